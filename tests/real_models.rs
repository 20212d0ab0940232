//! Trained models on real data, through compiled code: the accuracy that onnxruntime measured on the same files.
//!
//! `LAPIDARY_DATA` names the folder with the models and data; without it the tests say that they are skipped.

#[path = "support/data.rs"]
mod data;

use data::data;
use lapidary::specialize::Given;
use lapidary::{CompileOptions, driver};
use lapidary_runtime::bytes::Bytes;
use lapidary_runtime::io::{npy, pb};
use lapidary_runtime::{Model, ModelOptions, Tensor, Value};
use std::path::{Path, PathBuf};

const THREADS: usize = 2;

fn load(path: &Path, dims: &[(&str, i64)], given: Option<&Given>) -> Model {
    let mut options = CompileOptions::host(THREADS);
    options.dims = dims.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
    let file = path.display().to_string();
    let module = driver::import(path, &options).unwrap_or_else(|e| panic!("{e}"));
    let compiled =
        driver::compile(module, &file, &options, given).unwrap_or_else(|e| panic!("{e}"));
    let options = ModelOptions {
        threads: THREADS,
        pin: false,
        ..ModelOptions::default()
    };
    compiled.load(options).unwrap_or_else(|e| panic!("{e}"))
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn f32s(dims: &[usize], values: &[f32]) -> Value {
    let tensor = Tensor::from_f32(dims.to_vec(), values);
    tensor.expect("the values fill the shape").into()
}

fn floats(value: &Value) -> Vec<f32> {
    let tensor = value.as_tensor().expect("a tensor");
    let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    tensor.bytes().chunks_exact(4).map(four).collect()
}

fn npy_floats(path: PathBuf) -> Vec<f32> {
    let tensor = npy::read(&read(path), None).expect("an array");
    floats(&tensor.into())
}

/// Indices of the highest scores, the highest first.
fn ranked(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

fn run(model: &Model, inputs: &[Value]) -> Vec<Value> {
    model.run(inputs).unwrap_or_else(|e| panic!("{e}"))
}

/// The content of a gzip file without optional fields but the name.
fn gunzip(path: PathBuf) -> Vec<u8> {
    let file = read(path);
    let mut at = 10;
    if file[3] & 8 != 0 {
        at += file[at..]
            .iter()
            .position(|&b| b == 0)
            .expect("the name ends")
            + 1;
    }
    miniz_oxide::inflate::decompress_to_vec(&file[at..]).expect("a deflate stream")
}

#[test]
fn mnist_reads_98_91_percent_of_the_test_digits() {
    let Some(folder) = data("mnist") else { return };
    let images = gunzip(folder.join("t10k-images-idx3-ubyte.gz"));
    let labels = gunzip(folder.join("t10k-labels-idx1-ubyte.gz"));
    let model = load(&folder.join("mnist-8.onnx"), &[], None);
    let right = images[16..]
        .chunks_exact(784)
        .zip(&labels[8..])
        .filter(|(image, label)| {
            let pixels: Vec<f32> = image.iter().map(|&p| f32::from(p)).collect();
            let scores = floats(&run(&model, &[f32s(&[1, 1, 28, 28], &pixels)])[0]);
            ranked(&scores)[0] == usize::from(**label)
        });
    assert_eq!(right.count(), 9891);
}

fn cifar(file: &str, expected: usize) {
    let Some(folder) = data("cifar10") else {
        return;
    };
    let images = read(folder.join("test-images.u8.bin"));
    let labels = read(folder.join("test-labels.u8.bin"));
    const BATCH: usize = 50;
    let model = load(
        &folder.join(format!("{file}.onnx")),
        &[("N", BATCH as i64)],
        None,
    );
    let (mean, deviation) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let pixel = |(i, &p): (usize, &u8)| {
        let channel = i / 1024 % 3;
        (f32::from(p) / 255.0 - mean[channel]) / deviation[channel]
    };
    let mut right = 0;
    let mut logits = vec![];
    for (images, labels) in images
        .chunks_exact(BATCH * 3072)
        .zip(labels.chunks_exact(BATCH))
    {
        let pixels: Vec<f32> = images.iter().enumerate().map(pixel).collect();
        let scores = floats(&run(&model, &[f32s(&[BATCH, 3, 32, 32], &pixels)])[0]);
        let rows = scores.chunks_exact(10).zip(labels);
        right += rows
            .filter(|(row, label)| ranked(row)[0] == usize::from(**label))
            .count();
        logits.extend(scores);
    }
    for (got, want) in logits.iter().zip(npy_floats(
        folder.join(format!("{file}.logits-first200.npy")),
    )) {
        assert!((got - want).abs() <= 1e-3, "{got} for {want}");
    }
    assert_eq!(right, expected, "of 2000");
}

#[test]
fn resnet20_reaches_81_35_percent() {
    cifar("resnet20-cifar10", 1627);
}

#[test]
fn resnet56_reaches_83_15_percent() {
    cifar("resnet56-cifar10", 1663);
}

/// Pixels of a 227 x 227 crop as the network takes them: BGR planes less the mean.
fn squeezenet_input(rgb: &[u8]) -> Value {
    let mut planes = Vec::with_capacity(3 * 227 * 227);
    for (channel, mean) in [(2, 104.0), (1, 117.0), (0, 123.0)] {
        planes.extend(
            rgb.chunks_exact(3)
                .map(|pixel| f32::from(pixel[channel]) - mean),
        );
    }
    f32s(&[1, 3, 227, 227], &planes)
}

#[test]
fn squeezenet_reaches_63_6_and_82_8_percent() {
    let Some(folder) = data("squeezenet") else {
        return;
    };
    let model = load(&folder.join("squeezenet-1.0-dc.onnx"), &[("N", 1)], None);
    // Decoded photos first: no decoder between us and the reference.
    let photos = read(folder.join("first16.rgb227.u8.bin"));
    let wanted = npy_floats(folder.join("first16.logits.npy"));
    for (photo, want) in photos
        .chunks_exact(227 * 227 * 3)
        .zip(wanted.chunks_exact(1000))
    {
        let got = floats(&run(&model, &[squeezenet_input(photo)])[0]);
        let off = got
            .iter()
            .zip(want)
            .map(|(g, w)| (g - w).abs())
            .fold(0.0, f32::max);
        assert!(off <= 2e-3, "a logit is off by {off}");
    }
    let Some(python) = std::env::var_os("LAPIDARY_PYTHON") else {
        println!(
            "skipped: LAPIDARY_PYTHON does not name a Python with Pillow, which decodes the other photos"
        );
        return;
    };
    let labels = String::from_utf8(read(folder.join("labels.txt"))).expect("text");
    let rows: Vec<(&str, usize)> = labels
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?.parse().ok()?))
        })
        .collect();
    let mut decode = std::process::Command::new(python);
    decode
        .args(["-c", DECODE])
        .args(rows.iter().map(|r| folder.join("images").join(r.0)));
    let decoded = decode.output().expect("Python starts");
    let text = String::from_utf8_lossy(&decoded.stderr);
    assert!(decoded.status.success(), "{text}");
    let (mut first, mut among_five) = (0, 0);
    for (photo, (_, class)) in decoded.stdout.chunks_exact(227 * 227 * 3).zip(&rows) {
        let order = ranked(&floats(&run(&model, &[squeezenet_input(photo)])[0]));
        first += usize::from(order[0] == *class);
        among_five += usize::from(order[..5].contains(class));
    }
    assert_eq!((first, among_five), (159, 207), "of 250");
}

/// Its authors pruned it to a third of its weights; no two layers to the same share.
#[test]
fn zeros_of_squeezenet_are_noticed_and_left_out() {
    let Some(folder) = data("squeezenet") else {
        return;
    };
    let path = folder.join("squeezenet-1.0-dc.onnx");
    let compiled = |sparse: bool| {
        let mut options = CompileOptions::host(1);
        options.dims = [("N".to_owned(), 1)].into();
        options.sparse = sparse;
        let module = driver::import(&path, &options).unwrap_or_else(|e| panic!("{e}"));
        driver::compile(module, "squeezenet", &options, None).unwrap_or_else(|e| panic!("{e}"))
    };
    let (sparse, dense) = (compiled(true), compiled(false));
    let noticed = &sparse.report.noticed;
    let weights = |chosen: bool| noticed.iter().filter(move |n| n.sparse == chosen);
    assert!(weights(true).count() >= 5, "{noticed:?}");
    assert!(
        noticed
            .iter()
            .any(|n| n.weight == "fire9/conv3x3_2.weight" && n.nonzeros * 10 < n.weights * 4)
    );
    assert!(dense.report.noticed.is_empty());
    assert!(sparse.program.weights_bytes * 10 < dense.program.weights_bytes * 7);
}

/// Writes the crops of photos as RGB bytes: the decoder of the reference, so that every pixel is equal.
const DECODE: &str = "import sys
from PIL import Image
for name in sys.argv[1:]:
    photo = Image.open(name).convert('RGB').crop((14, 14, 241, 241))
    sys.stdout.buffer.write(photo.tobytes())
";

#[test]
fn silero_decides_as_its_reference_on_every_frame() {
    let Some(folder) = data("onnx-small/silero-vad") else {
        return;
    };
    let wav = read(folder.join("test.wav"));
    let at = wav.windows(4).position(|w| w == b"data").expect("samples") + 8;
    let samples: Vec<f32> = wav[at..]
        .chunks_exact(2)
        .map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0)
        .collect();
    let wanted = npy_floats(folder.join("test.probs.npy"));
    let rate = Tensor::from_i64(vec![], &[16000]).expect("a scalar");
    let mut state = f32s(&[2, 1, 128], &[0.0; 256]);
    let first = [
        f32s(&[1, 576], &[0.0; 576]),
        state.clone(),
        rate.clone().into(),
    ];
    let model = load(
        &folder.join("silero_vad.onnx"),
        &[],
        Some(&Given::from_runtime(&first)),
    );
    let (mut equal, mut off) = (0, 0f32);
    let mut window = vec![0.0; 64];
    for (frame, want) in samples.chunks_exact(512).zip(&wanted) {
        window.extend(frame);
        let outputs = run(
            &model,
            &[f32s(&[1, 576], &window), state, rate.clone().into()],
        );
        let got = floats(&outputs[0])[0];
        equal += usize::from((got > 0.5) == (*want > 0.5));
        off = off.max((got - want).abs());
        state = outputs[1].clone();
        window.drain(..512);
    }
    println!("probabilities differ by at most {off}");
    assert_eq!(equal, 1875);
}

#[test]
fn faces_are_found_where_the_reference_finds_them() {
    let Some(folder) = data("onnx-small/ultra-light-face") else {
        return;
    };
    let model = load(&folder.join("version-RFB-320.onnx"), &[], None);
    let input = npy::read(&read(folder.join("3.input.npy")), None).expect("an array");
    let outputs = run(&model, &[input.into()]);
    for (output, file) in outputs.iter().zip(["3.scores.npy", "3.boxes.npy"]) {
        for (got, want) in floats(output).iter().zip(npy_floats(folder.join(file))) {
            assert!((got - want).abs() <= 1e-4, "{file}: {got} for {want}");
        }
    }
    let faces = floats(&outputs[0])
        .chunks_exact(2)
        .filter(|s| s[1] > 0.7)
        .count();
    assert_eq!(faces, 35);
}

#[test]
fn super_resolution_gives_the_stored_image() {
    let Some(folder) = data("onnx-small/super-resolution-10") else {
        return;
    };
    let tensor = |name: &str| {
        let bytes = read(folder.join("test_data_set_0").join(name));
        pb::read_tensor(&bytes).expect("a tensor")
    };
    let (input, want): (Value, Value) = (tensor("input_0.pb").into(), tensor("output_0.pb").into());
    let given = Given::from_runtime(std::slice::from_ref(&input));
    let model = load(&folder.join("model.onnx"), &[], Some(&given));
    let got = floats(&run(&model, &[input])[0]);
    let off = got
        .iter()
        .zip(floats(&want))
        .map(|(g, w)| (g - w).abs())
        .fold(0.0, f32::max);
    assert!(off <= 1e-4, "a pixel is off by {off}");
}

#[test]
fn dlrm_reaches_an_auc_of_0_90405() {
    let Some(folder) = data("tabular") else {
        return;
    };
    let (labels, sparse) = (
        read(folder.join("adult-test-labels.u8.bin")),
        read(folder.join("adult-test-sparse.u16.bin")),
    );
    let n = labels.len();
    let model = load(&folder.join("dlrm-adult.onnx"), &[("N", n as i64)], None);
    let dense = Bytes::copy_of(&read(folder.join("adult-test-dense.f32.bin"))).expect("memory");
    let dense =
        Tensor::from_bytes(lapidary_ir::ElemType::F32, vec![n, 6], dense).expect("6 features");
    let sparse: Vec<i64> = sparse
        .chunks_exact(2)
        .map(|b| i64::from(u16::from_le_bytes([b[0], b[1]])))
        .collect();
    let sparse = Tensor::from_i64(vec![n, 12], &sparse).expect("12 categories");
    let outputs = run(&model, &[dense.into(), sparse.into()]);
    let auc = auc(&floats(&outputs[0]), &labels);
    assert!((auc - 0.90405).abs() < 5e-6, "AUC {auc}");
}

/// Area under the ROC curve: the chance that a positive scores above a negative, ties counted half.
fn auc(scores: &[f32], labels: &[u8]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let (mut rank_sum, mut at) = (0.0, 0);
    while at < order.len() {
        let tied = order[at..]
            .iter()
            .take_while(|&&i| scores[i] == scores[order[at]])
            .count();
        let rank = at as f64 + (tied as f64 + 1.0) / 2.0;
        rank_sum += rank
            * order[at..at + tied]
                .iter()
                .filter(|&&i| labels[i] != 0)
                .count() as f64;
        at += tied;
    }
    let positive = labels.iter().filter(|&&l| l != 0).count() as f64;
    let negative = labels.len() as f64 - positive;
    (rank_sum - positive * (positive + 1.0) / 2.0) / (positive * negative)
}

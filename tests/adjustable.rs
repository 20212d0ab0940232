//! Programs that use as much of their weights as there is memory for.
#![cfg(target_os = "linux")]

#[allow(missing_docs, reason = "helpers of tests")]
mod support;

use lapidary_frontend::onnx::proto::GraphProto;
use lapidary_runtime::exec::Memory;
use lapidary_runtime::image::Image;
use lapidary_runtime::{Model, ModelOptions, Tensor, Value};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::*;

/// Lengths of rows between the products. Of 200 inputs groups are of a length that has no kernel.
const LENGTHS: [usize; 4] = [256, 320, 200, 72];

/// What a program needs beside weights, what is made of them when it is loaded, and what it computes.
const BESIDE: u64 = 24 << 20;

/// Numbers between -1 and 1.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let number = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % 2001) as f32 / 1000.0 - 1.0
    };
    (0..count).map(number).collect()
}

/// Three products, with what is not linear between them.
fn network(folder: &Path) -> PathBuf {
    let dims = |at: usize| ["rows".to_owned(), LENGTHS[at].to_string()];
    let weight = |n: u64| {
        let [from, to] = [LENGTHS[n as usize - 1], LENGTHS[n as usize]];
        let scaled = numbers(from * to, n).into_iter().map(|v| v / 10.0);
        let scaled: Vec<f32> = scaled.collect();
        floats(&format!("w{n}"), &[from as i64, to as i64], &scaled)
    };
    let port = |name: &str, at: usize| {
        let dims = dims(at);
        port(name, F32, &[&dims[0], &dims[1]])
    };
    let layer = |n: u64| {
        let [x, y, z] = [format!("x{n}"), format!("y{n}"), format!("x{}", n + 1)];
        let product = node(&y, "MatMul", &[&x, &format!("w{n}")], &[&y]);
        [product, node(&z, "Relu", &[&y], &[&z])]
    };
    let graph = GraphProto {
        node: (1..4).flat_map(layer).collect(),
        initializer: (1..4).map(weight).collect(),
        input: vec![port("x1", 0)],
        output: vec![port("x4", 3)],
        ..GraphProto::default()
    };
    save(folder, "network.onnx", &model(graph))
}

fn build(model: &Path, output: &Path, more: &[&str]) -> Output {
    let args = ["build", str(model), "-o", str(output)];
    let mut command = Command::new(lapidary());
    let out = command.args(args).args(more).env("NO_COLOR", "1").output();
    out.expect("the command starts")
}

fn image(model: &Path, output: &Path, more: &[&str]) -> PathBuf {
    report(model, output, more);
    output.to_owned()
}

/// What building an image says.
fn report(model: &Path, output: &Path, more: &[&str]) -> serde_json::Value {
    let built = build(
        model,
        output,
        &[&["--emit", "image", "--json"], more].concat(),
    );
    assert!(built.status.success(), "{}", text(&built.stderr));
    serde_json::from_slice(&built.stdout).expect("one value")
}

fn load(path: &Path, memory: Option<Memory>) -> Model {
    let options = ModelOptions {
        threads: 1,
        pin: false,
        memory,
        ..ModelOptions::default()
    };
    let image = Image::open(path).unwrap_or_else(|e| panic!("{e}"));
    image.load(options).unwrap_or_else(|e| panic!("{e}"))
}

/// The network's results for a row, for a few, and for more than a tile has.
fn results(model: &Model) -> Vec<f32> {
    let of = |rows: usize| {
        let numbers = numbers(rows * LENGTHS[0], rows as u64);
        let x = Tensor::from_f32(vec![rows, LENGTHS[0]], &numbers).expect("it has room");
        let found = model.run(&[x.into()]).unwrap_or_else(|e| panic!("{e}"));
        let [Value::Tensor(y)] = &found[..] else {
            panic!("{} results", found.len())
        };
        let (numbers, _) = y.bytes().as_chunks::<4>();
        let numbers = numbers.iter().map(|b| f32::from_le_bytes(*b));
        numbers.collect::<Vec<f32>>()
    };
    [1, 3, 37].map(of).concat()
}

/// The results with the weights as they are.
fn whole(folder: &Path, network: &Path) -> Vec<f32> {
    results(&load(&image(network, &folder.join("whole"), &[]), None))
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v).powi(2);
    let between: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    between / b.iter().map(|&b| square(b)).sum::<f64>()
}

#[test]
fn more_memory_brings_results_nearer_while_a_program_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let network = network(folder.path());
    let whole = whole(folder.path(), &network);
    let path = folder.path().join("parts");
    let report = report(&network, &path, &["--adjustable"]);
    let bytes = |name: &str| report[name].as_u64().expect("a number");
    let made = bytes("prepared_bytes") + bytes("arena_bytes");
    let [least, _, all] = load(&path, None).weight_bytes().expect("it has parts");
    assert!(least < all / 2, "{least} bytes of {all} must be used");
    let limit = folder.path().join("limit");
    let mut clock = std::time::SystemTime::now();
    let mut allow = |weights: u64| {
        std::fs::write(&limit, format!("{}\n", BESIDE + made + weights)).expect("written");
        clock += std::time::Duration::from_secs(10);
        let file = std::fs::File::options().write(true).open(&limit);
        file.and_then(|f| f.set_modified(clock))
            .expect("it is ours");
    };
    let margin = 8 << 10;
    allow(all + margin);
    let model = load(&path, Some(Memory::File(limit.clone())));
    let mut found = vec![];
    for room in [all, (least + all) / 2, least, all] {
        allow(room + margin);
        let now = results(&model);
        let [_, used, _] = model.weight_bytes().expect("it has parts");
        assert!(
            used <= room + margin,
            "{used} bytes where there is room for {room}"
        );
        found.push((used, distance(&now, &whole)));
    }
    let [most, some, few, again] = found[..] else {
        panic!("{} limits", found.len())
    };
    assert_eq!((most.0, few.0, again), (all, least, most));
    assert!(few.0 < some.0 && some.0 < most.0, "{found:?}");
    assert!(
        most.1 < 1e-3 && 3.0 * most.1 < some.1 && some.1 < few.1,
        "{found:?}"
    );
    // Asked for, without a limit of memory.
    let model = load(&path, None);
    model.use_weights(least).expect("it has parts");
    assert_eq!(distance(&results(&model), &whole), few.1);
}

#[test]
fn weights_in_planes_and_blocks_of_signs_are_adjustable_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let network = network(folder.path());
    let whole = whole(folder.path(), &network);
    for (method, bits) in [("nested", 6), ("bitstack", 4)] {
        let recipe = folder.path().join("recipe.toml");
        let entry =
            format!("[[weight]]\nname = \"*\"\nmethod = \"{method}\"\nbits = {bits}\ngroup = 64\n");
        std::fs::write(&recipe, entry).expect("written");
        let more = ["--adjustable", "--recipe", str(&recipe)];
        let model = load(&image(&network, &folder.path().join(method), &more), None);
        let [least, _, all] = model.weight_bytes().expect("it has parts");
        let at = |bytes| {
            model.use_weights(bytes).expect("it has parts");
            distance(&results(&model), &whole)
        };
        let errors = [least, (least + all) / 2, all].map(at);
        let falls = errors.windows(2).all(|e| e[1] < e[0]);
        assert!(
            least < all / 2 && falls,
            "{method}: {least} of {all} bytes, {errors:?}"
        );
    }
}

#[test]
fn what_cannot_be_adjusted_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let network = network(folder.path());
    let output = folder.path().join("out");
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, "[[weight]]\nname = \"*\"\nmethod = \"rtn\"\n").expect("written");
    for (more, says) in [
        (&["--emit", "obj"][..], "for executables and images"),
        (
            &["--target", "ptx", "--emit", "ptx"],
            "for executables and images",
        ),
        (
            &["--recipe", str(&recipe)],
            "no weight that only products read has parts",
        ),
    ] {
        let refused = build(&network, &output, &[more, &["--adjustable"]].concat());
        let message = text(&refused.stderr).replace("\n  │ ", " ");
        assert!(
            !refused.status.success() && message.contains(says),
            "{message}"
        );
        assert!(!output.exists());
    }
    let built = build(&network, &output, &[]);
    assert!(built.status.success(), "{}", text(&built.stderr));
    for (memory, says) in [("@missing", "missing"), ("much", "no number of bytes")] {
        let mut command = Command::new(&output);
        let refused = command
            .args(["--bench", "0.1", "--memory", memory])
            .output();
        let refused = refused.expect("it starts");
        let message = text(&refused.stderr);
        assert!(
            !refused.status.success() && message.contains(says),
            "{message}"
        );
    }
}

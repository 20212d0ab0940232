//! `--quantize`: programs that compute with 8-bit codes of ranges that data shows. What is compiled is compared with the reference
//! evaluator on the same codes, and that with the model that was not changed.

use lapidary::calibrate::{Calibration, Normalization};
use lapidary::driver::{self, CompileOptions};
use lapidary::specialize::Given;
use lapidary::values::{to_evaluator, to_runtime};
use lapidary_ir::random::SplitMix64;
use lapidary_ir::tensor::Value;
use lapidary_ir::{ElemType, Tensor, eval};
use lapidary_passes::compress::Activations;
use lapidary_runtime::ModelOptions;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

fn path(of: &Path) -> &str {
    of.to_str().expect("test paths are UTF-8")
}

fn lapidary(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .expect("starts")
}

fn done(args: &[&str]) -> String {
    let out = lapidary(args);
    assert!(
        out.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What is said on one line, however it was broken.
fn refused(args: &[&str]) -> String {
    let out = lapidary(args);
    assert!(!out.status.success(), "{args:?}");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let words = said.split_whitespace().filter(|w| *w != "│");
    words.collect::<Vec<_>>().join(" ")
}

/// Tokens for the tiny networks.
fn tokens(folder: &Path) -> PathBuf {
    let to = folder.join("tokens.u16.bin");
    let numbers = (0..2048u32).flat_map(|i| ((i * 37 % 127) as u16).to_le_bytes());
    fs::write(&to, numbers.collect::<Vec<u8>>()).expect("written");
    to
}

/// Pictures for the network that reads digits.
fn pictures(folder: &Path) -> PathBuf {
    let to = folder.join("pictures");
    fs::create_dir(&to).expect("made");
    for k in 0..4u32 {
        let of = |x: u32, y: u32| image::Luma([((x * 9 + y * 5 + 40 * k) % 256) as u8]);
        let picture = image::GrayImage::from_fn(28, 28, of);
        picture.save(to.join(format!("{k}.png"))).expect("written");
    }
    to
}

/// All operations as codes, of ranges that these tokens show; with a report for programs.
fn bct(tokens: &Path) -> [&str; 7] {
    [
        "--quantize",
        "bct",
        "--calibrate",
        path(tokens),
        "--samples",
        "4",
        "--json",
    ]
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&done(args)).expect("JSON")
}

#[test]
fn networks_of_codes_predict_what_they_did() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = tokens(folder.path());
    let data = ["--calibrate", path(&tokens), "--samples", "8"];
    for name in ["llama31-rope", "gemma3"] {
        let model = root("tests/checkpoints/models").join(name);
        for (how, integers) in [("int8", false), ("bct", true)] {
            let kind = [
                "eval",
                path(&model),
                "--tokens",
                path(&tokens),
                "--windows",
                "4",
                "--json",
            ];
            let asked = ["--against", path(&model), "--quantize", how];
            let found = json(&[&kind[..], &asked, &data].concat());
            let kl = found["against"]["kl"].as_f64().expect("a number");
            assert!(
                kl < if integers { 0.05 } else { 0.01 },
                "{name} {how}: {found}"
            );
        }
    }
}

#[test]
fn an_encoder_computes_with_integers() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tokens, out) = (tokens(folder.path()), folder.path().join("out"));
    let model = root("tests/checkpoints/models/bert");
    let build = ["build", path(&model), "-o", path(&out), "--scores"];
    let asked = bct(&tokens);
    let report = json(&[&build[..], &asked].concat());
    let codes = &report["compression"]["codes"];
    // Of two layers, each with a softmax and a normalization after each of its two parts.
    assert!(
        codes["integers"].as_u64().is_some_and(|n| n >= 6),
        "{report}"
    );
    let loss = report["compression"]["loss"].as_f64();
    assert!(loss.is_some_and(|l| l < 0.05), "{report}");
}

#[test]
fn a_recipe_makes_the_same_program() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let model = root("examples/mnist/mnist-8.onnx");
    // The network takes numbers from 0 to 255.
    let (pictures, step) = (pictures(folder.path()), "0.00392156862745098");
    let steps = [step; 3].join(",");
    let data = [
        "--calibrate",
        path(&pictures),
        "--image-mean",
        "0,0,0",
        "--image-std",
        &steps,
    ];
    for how in ["int8", "bct"] {
        let asked = [&["--quantize", how][..], &data].concat();
        let program = at(how);
        let report = json(
            &[
                &["build", path(&model), "-o", path(&program), "--json"][..],
                &asked,
            ]
            .concat(),
        );
        let codes = &report["compression"]["codes"];
        assert_eq!(codes["products"], 3, "{report}");
        let loss = report["compression"]["loss"].as_f64().expect("measured");
        assert!(loss < 1e-2, "{report}");
        // The recipe that was written makes the same program.
        let again = at("again");
        let recipe = at(&format!("{how}.recipe.toml"));
        let _ = json(
            &[
                &[
                    "build",
                    path(&model),
                    "-o",
                    path(&again),
                    "--json",
                    "--recipe",
                    path(&recipe),
                ][..],
                &data,
            ]
            .concat(),
        );
        assert!(
            fs::read(&program).expect("written") == fs::read(&again).expect("written"),
            "{how}"
        );
    }
}

/// The first result of a network of codes, compiled and by the evaluator.
fn both(model: &Path, data: &Path, asked: Activations, inputs: &[Tensor]) -> [Vec<f64>; 2] {
    let mut options = CompileOptions::host(1);
    options.calibration = Some(Calibration {
        data: data.to_owned(),
        model: model.to_owned(),
        samples: 4,
        seq: None,
        normalization: Normalization::default(),
    });
    options.compression = Some(asked.into());
    let mut module = driver::import(model, &options).expect("imports");
    let report = driver::compress(&mut module, "model", &options).expect("encodes");
    assert!(report.is_some_and(|r| r.activations.is_some_and(|(_, coded)| coded.values > 0)));
    let values: Vec<Value> = inputs.iter().cloned().map(Value::from).collect();
    let evaluated = eval::run(&module, values.clone()).expect("runs");
    let given: Vec<_> = values
        .iter()
        .map(|v| to_runtime(v).expect("numbers"))
        .collect();
    let specialized = Given::from_runtime(&given);
    let compiled = driver::compile(
        module,
        "model",
        &CompileOptions::host(1),
        Some(&specialized),
    )
    .expect("compiles");
    let loaded = compiled.load(ModelOptions::default()).expect("loads");
    let outputs = loaded.run(&given).expect("runs");
    let numbers = |v: &Value| v.as_tensor().and_then(Tensor::to_f64s).expect("numbers");
    [
        numbers(&to_evaluator(&outputs[0]).expect("a tensor")),
        numbers(&evaluated[0]),
    ]
}

#[test]
fn compiled_codes_are_the_evaluators() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = tokens(folder.path());
    let pictures = pictures(folder.path());
    let mut random = SplitMix64::new(3);
    let picture = (0..784).map(|_| random.below(256) as f64).collect();
    let picture = Tensor::from_f64(ElemType::F32, [1, 1, 28, 28], picture);
    let ids: Vec<i64> = (0..24).map(|_| random.below(100) as i64).collect();
    let row = |v: &[i64]| {
        Tensor::from_int(
            ElemType::I64,
            [2, 12],
            v.iter().map(|&v| v.into()).collect(),
        )
    };
    let mask: Vec<i64> = (0..24).map(|i| i64::from(i < 20)).collect();
    let networks = [
        (
            root("examples/mnist/mnist-8.onnx"),
            &pictures,
            vec![picture],
        ),
        (
            root("tests/checkpoints/models/bert"),
            &tokens,
            vec![row(&ids), row(&mask), row(&[0; 24])],
        ),
    ];
    for (model, data, inputs) in networks {
        for asked in [Activations::int8(), Activations::bct()] {
            let [compiled, evaluated] = both(&model, data, asked.clone(), &inputs);
            let squares = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>();
            let far = squares(&mut compiled.iter().zip(&evaluated).map(|(a, b)| a - b));
            // Where a sum lies between two codes, floats that are added in another order may give the other.
            assert!(
                far <= 1e-4 * squares(&mut evaluated.iter().copied()),
                "{}: {asked:?} {far}",
                model.display()
            );
        }
    }
}

/// Circuits and other machines' code do not run here; what is observed does.
#[test]
fn data_is_looked_at_here_whatever_the_target() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tokens, out) = (tokens(folder.path()), folder.path().join("out"));
    let model = root("tests/checkpoints/models/bert");
    let asked = bct(&tokens);
    let other = match cfg!(target_arch = "aarch64") {
        true => "x86_64-unknown-linux-gnu",
        false => "aarch64-unknown-linux-gnu",
    };
    let build = ["build", path(&model), "-o", path(&out), "--scores"];
    for target in [other, "ptx"] {
        let report = json(&[&build[..], &["--emit", "image", "--target", target], &asked].concat());
        assert!(
            report["compression"]["codes"]["integers"].as_u64() >= Some(4),
            "{report}"
        );
        fs::remove_file(&out).expect("written");
    }
    let sizes = [
        "--emit", "hls", "--part", "vhk158", "--dim", "batch=1", "--dim", "seq=4",
    ];
    done(&[&build[..], &sizes, &asked].concat());
    // The circuits in C++ give what the evaluator does.
    let check = Command::new("make").arg("check").current_dir(&out).output();
    match check {
        Ok(check) => assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stdout)
        ),
        Err(error) => println!("skipped: make does not start: {error}"),
    }
}

#[test]
fn what_cannot_compute_with_codes_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tokens, out) = (tokens(folder.path()), folder.path().join("out"));
    // A tokenizer makes a model one that writes text.
    let (plain, model) = (
        root("tests/checkpoints/models/llama31-rope"),
        folder.path().join("llama"),
    );
    fs::create_dir(&model).expect("made");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(plain.join(name), model.join(name)).expect("copied");
    }
    fs::write(model.join("tokenizer.json"), "{}").expect("written");
    let quantize = ["--quantize", "int8", "--calibrate", path(&tokens)];
    let build = ["build", path(&model), "-o", path(&out)];
    assert!(refused(&[&build[..], &["--quantize", "int8"]].concat()).contains("--calibrate"));
    let with_size = [&build[..], &quantize, &["--size", "0.5x"]].concat();
    assert!(refused(&with_size).contains("cannot be used with"));
    assert!(refused(&[&build[..], &quantize].concat()).contains("--round-activations"));
    let compress = ["compress", path(&model), "-o", path(&out)];
    assert!(refused(&[&compress[..], &quantize].concat()).contains("codes of weights alone"));
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, "[activations]\nscope = \"some\"\n").expect("written");
    let followed = [
        "--scores",
        "--recipe",
        path(&recipe),
        "--calibrate",
        path(&tokens),
    ];
    assert!(refused(&[&build[..], &followed].concat()).contains("`products` or `all`"));
    assert!(!out.exists());
}

//! Projects for FPGAs: whole models in C simulation with sanitizers, and every constructor of encodings in a product.
//!
//! g++ and make are needed, and for some models `LAPIDARY_DATA` and `LAPIDARY_PYTHON`; a test that lacks one says that it is
//! skipped.

mod support;

use lapidary::artefact::hls::{Project, for_circuits, vectors, write_hls};
use lapidary::{CompileOptions, driver};
use lapidary_hls::parts::{Part, part};
use lapidary_hls::project::{Vector, files};
use lapidary_hls::{Design, Folding, Source};
use lapidary_ir::builder::Builder;
use lapidary_ir::encodings::sampling::Sampler;
use lapidary_ir::encodings::{ENCODINGS, Encoding};
use lapidary_ir::{Constant, ElemType, Module, Tensor, Type};
use std::cell::Cell;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use support::data::data;
use support::lapidary;

fn has_compiler() -> bool {
    let found = ["g++", "make"]
        .iter()
        .all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if !found {
        println!("skipped: there is no g++ or make");
    }
    found
}

fn run(command: &mut Command) -> String {
    let out = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}:\n{text}{errors}");
    text
}

/// Builds a project by the command and runs its test bench under sanitizers: what the bench says, and the report.
fn simulate(model: &Path, args: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let project = folder.path().join("project");
    let mut build = Command::new(lapidary());
    build.arg("build").arg(model).args(args);
    let report = run(build.args(["--emit", "hls", "-o"]).arg(&project));
    for file in ["run_hls.tcl", "report.txt", "top.h"] {
        assert!(project.join(file).is_file(), "{file}");
    }
    let bench = run(Command::new("make").arg("sanitize").current_dir(&project));
    (bench, report)
}

#[test]
fn a_digit_classifier_is_a_project_that_reads_digits() {
    if !has_compiler() {
        return;
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mnist");
    let digit = examples.join("digit_1").display().to_string();
    let model = examples.join("mnist-8.onnx");
    let (bench, report) = simulate(&model, &["--vectors", &digit, "--part", "zcu102"]);
    assert!(bench.contains("1 runs, 0 outputs differ"), "{bench}");
    assert!(
        report.contains("zcu102") && report.contains("conv"),
        "{report}"
    );
}

#[test]
fn a_residual_network_of_codes_simulates() {
    let (true, Some(cifar)) = (has_compiler(), data("cifar10")) else {
        return;
    };
    let Some(python) = std::env::var_os("LAPIDARY_PYTHON") else {
        println!("skipped: LAPIDARY_PYTHON does not name a Python with onnxruntime");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let quantized = folder.path().join("resnet20-int8.onnx");
    let script = "import sys; from quantized import quantize; quantize(sys.argv[1], sys.argv[2])";
    let networks = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/networks");
    run(Command::new(python)
        .args(["-c", script])
        .arg(cifar.join("resnet20-cifar10.onnx"))
        .arg(&quantized)
        .env("PYTHONPATH", networks));
    let (bench, _) = simulate(&quantized, &["--dim", "N=1"]);
    assert!(bench.contains("1 runs, 0 outputs differ"), "{bench}");
}

#[test]
fn a_language_model_simulates() {
    let (true, Some(stories)) = (has_compiler(), data("stories260k")) else {
        return;
    };
    let dims = ["--scores", "--dim", "batch=1", "--dim", "seq=4"];
    let (bench, _) = simulate(&stories, &dims);
    assert!(bench.contains("1 runs, 0 outputs differ"), "{bench}");
}

/// What block memories cannot hold comes by the bus.
#[test]
fn weights_beside_the_chip_are_arguments() {
    if !has_compiler() {
        return;
    }
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mnist/mnist-8.onnx");
    let mut options = CompileOptions::host(1);
    for_circuits(&mut options);
    let module = driver::import(&model, &options).expect("it is a model");
    let vectors = vectors(&module, "mnist", None).expect("it runs");
    let lowered = driver::lower_only(module, "mnist", &options).expect("it lowers");
    let mut weights = vec![0; lowered.program.weights_bytes as usize];
    for piece in &lowered.weights {
        let bytes = piece.read().expect("it is there");
        weights[piece.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    let small = Part {
        bram36: 2,
        ..part("zcu102").expect("it is in the list").clone()
    };
    let source = Source {
        program: &lowered.program,
        kernels: &lowered.kernels,
        weights: &weights,
        part: &small,
    };
    let design = Design::new(&source, &|_| Folding { pe: 4 }).expect("a circuit");
    assert!(!design.streamed.is_empty() && !design.constants.is_empty());
    assert!(design.layers.iter().any(|l| l.streamed_bytes > 0));
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, pieces) in files(&design, &small, &weights, &vectors) {
        std::fs::write(folder.path().join(name), pieces.concat()).expect("the folder is writable");
    }
    let bench = run(Command::new("make")
        .arg("sanitize")
        .current_dir(folder.path()));
    assert!(bench.contains("1 runs, 0 outputs differ"), "{bench}");
}

#[test]
fn what_is_no_circuit_is_refused() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mnist/mnist-8.onnx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let project = folder.path().join("project");
    let build = |args: &[&str]| {
        let mut build = Command::new(lapidary());
        build
            .arg("build")
            .arg(&model)
            .args(args)
            .arg("-o")
            .arg(&project);
        let out = build.args(["--emit", "hls"]).output().expect("it runs");
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let (status, errors) = build(&["--part", "u250"]);
    assert!(status == Some(2) && errors.contains("vhk158"), "{errors}");
    let (status, errors) = build(&["--latency", "1us"]);
    assert!(status == Some(1) && errors.contains("at best"), "{errors}");
    let left = std::fs::read_dir(folder.path()).expect("it is there");
    assert_eq!(left.count(), 0);
}

/// A term of this constructor at the top, of numbers if it has such, else of codes.
fn sample(name: &str, s: &mut Sampler) -> Option<Encoding> {
    let ctor = ENCODINGS.iter().find(|c| c.name == name)?;
    let elems = [ElemType::F32, ElemType::U8, ElemType::F16];
    (0..200).find_map(|n| {
        let shape = [[6, 8], [4, 12], [8, 8], [16, 16]][n % 4];
        (ctor.sample)(s, elems[n / 4 % 3], &shape)
    })
}

/// `x · termᵀ` as a circuit, and its vector.
fn product(name: &str, term: &Encoding, s: &mut Sampler) -> Result<(Design, Vector), String> {
    let (mut m, fresh) = (Module::new(name), Cell::new(0));
    let columns = term.shape[1];
    let w = m.add_constant("w", Constant::new(term.clone()));
    let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [3, columns]));
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let numbers = b.cast(w, ElemType::F32).map_err(|e| e.to_string())?;
    let turned = b.transpose(numbers, &[1, 0]).map_err(|e| e.to_string())?;
    let y = b.op("matmul", &[x, turned]).map_err(|e| e.to_string())?;
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("y".into());
    let x = Tensor::from_f64(ElemType::F32, [3, columns], s.numbers(3 * columns));
    let y = lapidary_ir::eval::run(&m, vec![x.clone().into()]).map_err(|e| e.to_string())?;
    let y = y[0].as_tensor().and_then(Tensor::to_bytes);
    let vector = Vector {
        inputs: vec![x.to_bytes().expect("numbers")],
        outputs: vec![y.expect("numbers")],
    };
    let mut options = CompileOptions::host(1);
    for_circuits(&mut options);
    let lowered = driver::lower_only(m, name, &options).map_err(|e| e.to_string())?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let project = Project {
        file: name,
        part: part("u280").expect("it is in the list"),
        latency_ns: None,
        vectors: &[],
    };
    let design = write_hls(&folder.path().join("p"), &lowered, &project);
    design.map(|d| (d, vector)).map_err(|e| e.to_string())
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    bytes.chunks_exact(4).map(four).collect()
}

/// One program for all constructors; one that would be left out has a line that says why.
#[test]
fn every_constructor_multiplies() {
    if !has_compiler() {
        return;
    }
    let mut s = Sampler::new(7, 2);
    let (mut text, mut calls, mut wanted) = (String::new(), String::new(), vec![]);
    text += "#include \"lapidary.h\"\n#include <cstdio>\n#include <vector>\n";
    for ctor in ENCODINGS {
        let made = sample(ctor.name, &mut s)
            .ok_or_else(|| "has no sample of a matrix".to_owned())
            .and_then(|term| product(ctor.name, &term, &mut s));
        let (design, vector) = match made {
            Ok(made) => made,
            Err(reason) => {
                println!("skipped: `{}`: {reason}", ctor.name);
                continue;
            }
        };
        let body = design.text.replace("extern \"C\" ", "");
        let _ = writeln!(
            text,
            "namespace n_{} {{\n{}\n{body}}}",
            ctor.name, design.constants
        );
        let x: Vec<String> = numbers(&vector.inputs[0])
            .iter()
            .map(|v| format!("{v:?}f"))
            .collect();
        let want = numbers(&vector.outputs[0]);
        let _ = writeln!(
            calls,
            "  {{ std::vector<float> x = {{{}}}, y({}); n_{}::top(x.data(), y.data());\n    for (float v : y) std::printf(\"%.9g \", v); std::puts(\"\"); }}",
            x.join(","),
            want.len(),
            ctor.name
        );
        wanted.push((ctor.name, want));
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, header) in lapidary_hls::HEADERS {
        std::fs::write(folder.path().join(name), header).expect("the folder is writable");
    }
    let _ = writeln!(text, "int main() {{\n{calls}}}");
    std::fs::write(folder.path().join("all.cpp"), text).expect("the folder is writable");
    let flags = "-std=c++17 -O0 -Wno-unknown-pragmas -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all";
    run(Command::new("g++")
        .args(flags.split(' '))
        .args(["all.cpp", "-o", "all"])
        .current_dir(folder.path()));
    let got = run(&mut Command::new(folder.path().join("all")));
    assert_eq!(got.lines().count(), wanted.len());
    for ((name, want), line) in wanted.iter().zip(got.lines()) {
        let got: Vec<f32> = line
            .split_whitespace()
            .map(|v| v.parse().expect("a number"))
            .collect();
        assert_eq!(got.len(), want.len(), "{name}");
        for (g, w) in got.iter().zip(want) {
            assert!(
                (g - w).abs() <= 2e-4 * (1.0 + w.abs()),
                "{name}: {g} instead of {w}"
            );
        }
    }
    // Random terms of these are all circuits today.
    assert!(
        wanted.len() * 10 >= ENCODINGS.len() * 9,
        "{} of {}",
        wanted.len(),
        ENCODINGS.len()
    );
}

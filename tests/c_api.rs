//! Libraries and objects, used from C as their users would: the digit recogniser's scores must be those that
//! came with the model. Needs `cc`; other machines' objects need a cross compiler and qemu. What is missing
//! is skipped, and said.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output();
    let found = found.is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: `{program}` is not installed");
    }
    found
}

/// Runs a command that must succeed; its standard output.
fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let status = output.status;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(status.success(), "{command:?}: {status}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn build(args: &[&str], output: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    let model = root("examples/mnist/mnist-8.onnx");
    succeed(
        command
            .arg("build")
            .arg(model)
            .args(args)
            .arg("-o")
            .arg(output),
    );
}

/// The last `n` numbers of a `TensorProto` with raw data at its end or beginning of known length.
fn raw(digit: &str, file: &str, n: usize) -> Vec<u8> {
    let bytes = std::fs::read(root("examples/mnist").join(digit).join(file)).expect("an example");
    // Field 9 (raw data) or 4 (packed floats), with its length as a varint of one or two bytes.
    let len = 4 * n;
    let varint = match len {
        0..128 => vec![len as u8],
        _ => vec![(len & 127) as u8 | 128, (len >> 7) as u8],
    };
    let at = (0..bytes.len() - varint.len())
        .find(|&i| matches!(bytes[i], 0x4a | 0x22) && bytes[i + 1..].starts_with(&varint))
        .expect("the tensor's data");
    let begin = at + 1 + varint.len();
    bytes[begin..begin + len].to_vec()
}

/// Runs `program` on each digit and compares the scores it prints.
fn check(folder: &Path, program: &[&str]) {
    for digit in ["digit_0", "digit_1", "digit_2"] {
        let input = folder.join("input");
        std::fs::write(&input, raw(digit, "input_0.pb", 784)).expect("the folder is writable");
        let printed = succeed(
            Command::new(program[0])
                .args(&program[1..])
                .arg(&input)
                .current_dir(folder),
        );
        let got: Vec<f32> = printed
            .lines()
            .map(|l| l.parse().expect("a number"))
            .collect();
        let want: Vec<f32> = raw(digit, "output_0.pb", 10)
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() <= 1e-4 * largest, "{digit}: {got:?} {want:?}");
        }
    }
}

#[test]
fn a_c_program_uses_the_static_library() {
    if !has("cc") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    build(&["--emit", "staticlib"], &at("libdigits.a"));
    std::fs::rename(at("libdigits.h"), at("digits.h")).expect("the header is there");
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Werror", "-I."])
        .arg(root("tests/c/library.c"));
    cc.args(["-o", "program", "libdigits.a", "-lm", "-lpthread", "-ldl"]);
    succeed(cc.current_dir(folder.path()));
    check(folder.path(), &["./program"]);
}

#[test]
fn a_c_program_uses_the_shared_library() {
    if !has("cc") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    build(&["--emit", "dylib"], &at("libdigits.so"));
    std::fs::rename(at("libdigits.h"), at("digits.h")).expect("the header is there");
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Werror", "-I."])
        .arg(root("tests/c/library.c"));
    cc.args([
        "-o",
        "program",
        "-L.",
        "-ldigits",
        "-lpthread",
        "-Wl,-rpath,$ORIGIN",
    ]);
    succeed(cc.current_dir(folder.path()));
    check(folder.path(), &["./program"]);
    let left = std::fs::read_dir(folder.path())
        .expect("it is there")
        .count();
    assert_eq!(left, 4, "library, header, program, input");
}

/// Builds an object for a target with every backend, links it with `cc` and runs it, under `emulator` if given.
fn object(target: &[&str], cc: &str, emulator: &[&str]) {
    if !has(cc) || emulator.first().is_some_and(|e| !has(e)) {
        return;
    }
    for backend in lapidary::backend::native() {
        object_by(backend.name, target, cc, emulator);
    }
}

fn object_by(backend: &str, target: &[&str], cc: &str, emulator: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    build(
        &[target, &["--emit", "obj", "--backend", backend]].concat(),
        &folder.path().join("digits.o"),
    );
    let mut link = Command::new(cc);
    link.args(["-Wall", "-Wextra", "-Werror", "-I."])
        .arg(root("tests/c/object.c"));
    link.args(["-o", "program", "digits.o"]);
    if !emulator.is_empty() {
        link.arg("-static");
    }
    succeed(link.current_dir(folder.path()));
    check(folder.path(), &[emulator, &["./program"]].concat());
}

#[test]
fn an_object_runs_here() {
    object(&[], "cc", &[]);
}

/// What this machine has of the levels of x86-64, from the least up.
#[cfg(target_arch = "x86_64")]
#[test]
fn an_object_runs_on_lesser_processors() {
    let has = lapidary_ir::target::Target::host().features;
    for cpu in ["x86-64-v2", "x86-64-v3", "x86-64-v4"] {
        let wants = lapidary_ir::target::Target::named(None, Some(cpu)).expect("a level");
        if wants.features.iter().all(|f| has.contains(f)) {
            object(&["--cpu", cpu], "cc", &[]);
        }
    }
}

#[test]
fn an_object_runs_on_aarch64() {
    let target = ["--target", "aarch64-unknown-linux-gnu"];
    object(
        &target,
        "aarch64-linux-gnu-gcc",
        &["qemu-aarch64", "-cpu", "max"],
    );
}

#[test]
fn an_object_runs_on_riscv64() {
    let target = ["--target", "riscv64gc-unknown-linux-gnu"];
    let emulator = ["qemu-riscv64", "-cpu", "rv64,v=true,vlen=128"];
    object(&target, "riscv64-linux-gnu-gcc", &emulator);
}

//! Artefacts from outside: built by the command, run as a user would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/mnist")
        .join(name)
}

fn build(args: &[&str], output: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.arg("build").arg(example("mnist-8.onnx"));
    command.args(args).arg("-o").arg(output);
    command.output().expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_executable_runs_anywhere_and_recognises_digits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let exe = folder.path().join("mnist");
    let built = build(&[], &exe);
    assert!(built.status.success(), "{}", text(&built.stderr));
    let bytes = std::fs::metadata(&exe).expect("it is there").len();
    assert!(bytes <= 2_000_000, "{bytes} bytes");
    let left = std::fs::read_dir(folder.path()).expect("it is there");
    assert_eq!(left.count(), 1, "nothing beside the executable");
    for digit in ["digit_0", "digit_1", "digit_2"] {
        let outputs = folder.path().join(digit);
        let run = Command::new(&exe)
            .current_dir("/")
            .env_clear()
            .env("PATH", "")
            .arg("--inputs")
            .arg(example(digit))
            .arg("--outputs")
            .arg(&outputs)
            .output()
            .expect("the executable starts");
        assert!(run.status.success(), "{}", text(&run.stderr));
        let scores = |path: PathBuf| raw_f32(&std::fs::read(path).expect("an output"));
        let best = |s: &[f32]| (0..s.len()).max_by(|&a, &b| s[a].total_cmp(&s[b]));
        let got = scores(outputs.join("output_0.pb"));
        let want = scores(example(digit).join("output_0.pb"));
        assert_eq!((got.len(), want.len()), (10, 10));
        assert_eq!(best(&got), best(&want), "{digit}: {got:?} {want:?}");
    }
}

/// The raw data of a `TensorProto` of ten numbers: the field (tag 9, or packed floats, tag 4) of 40 bytes.
fn raw_f32(bytes: &[u8]) -> Vec<f32> {
    let at = (0..bytes.len().saturating_sub(41))
        .find(|&i| (bytes[i] == 0x4a || bytes[i] == 0x22) && bytes[i + 1] == 40);
    let Some(at) = at else { return Vec::new() };
    bytes[at + 2..at + 42]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for emit in ["exe", "image", "staticlib", "dylib", "obj", "asm"] {
        let files = ["a", "b"].map(|name| {
            // The name of a library's functions comes from its file.
            let path = folder.path().join(name).join("digits");
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            let built = build(&["--emit", emit], &path);
            assert!(built.status.success(), "{}", text(&built.stderr));
            std::fs::read(&path).expect("it is there")
        });
        assert!(files[0] == files[1], "{emit} differs between two builds");
    }
}

#[test]
fn what_cannot_be_written_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nowhere = folder.path().join("missing/mnist");
    let other = ["--target", "aarch64-unknown-linux-gnu"];
    let cases: [(&[&str], &Path); 2] = [(&[], &nowhere), (&other, &folder.path().join("arm"))];
    for (args, output) in cases {
        if cfg!(target_arch = "aarch64") && !args.is_empty() {
            continue;
        }
        let built = build(args, output);
        assert_eq!(built.status.code(), Some(1), "{args:?}");
        assert!(!output.exists());
    }
}

/// Listings need nothing of the machine they are for.
#[test]
fn a_listing_has_the_code_of_each_kernel_beside_its_text() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("digits.s");
    for (target, instruction) in [
        ("x86_64-unknown-linux-gnu", "retq"),
        ("aarch64-unknown-linux-gnu", "ret"),
        ("riscv64gc-unknown-linux-gnu", "ret"),
    ] {
        let built = build(&["--emit", "asm", "--target", target], &path);
        assert!(built.status.success(), "{}", text(&built.stderr));
        let listing = std::fs::read_to_string(&path).expect("it is there");
        let kernels: Vec<&str> = listing.split("\n; == ").skip(1).collect();
        assert!(kernels.len() > 3, "{listing}");
        assert!(listing.contains(target));
        for kernel in kernels {
            let name = kernel.split(' ').next().unwrap_or_default();
            let (ir, code) = kernel
                .split_once(&format!("\n{name}:\n"))
                .expect("text, then code");
            assert!(ir.lines().skip(1).all(|l| l.starts_with("; ")), "{ir}");
            assert!(ir.contains("store"), "{ir}");
            assert!(code.contains(instruction), "{target}: {code}");
        }
    }
}

#[test]
fn the_memory_plan_is_printed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("digits");
    let printed = text(&build(&[], &path).stdout);
    let report: serde_json::Value =
        serde_json::from_slice(&build(&["--json"], &path).stdout).expect("one JSON value");
    let (arena, unshared) = (&report["arena_bytes"], &report["unshared_bytes"]);
    assert!(arena.as_u64() < unshared.as_u64(), "{report}");
    let plan = format!(
        "memory plan: a peak of {arena} bytes of working memory; {unshared} if nothing shared storage"
    );
    assert!(printed.contains(&plan), "{printed}");
}

//! A pruned quantized network beside onnxruntime, which computes it densely.

use std::process::Command;

#[test]
fn a_pruned_network_of_codes_gives_what_onnxruntime_gives() {
    let Some(python) = std::env::var_os("LAPIDARY_PYTHON") else {
        println!("skipped: LAPIDARY_PYTHON does not name a Python with onnxruntime");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pruned/judge.py");
    let out = Command::new(python)
        .args([script, env!("CARGO_BIN_EXE_lapidary")])
        .arg(folder.path())
        .output()
        .expect("Python starts");
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{message}");
    let line = out
        .stdout
        .split(|&b| b == b'\n')
        .rfind(|l| l.first() == Some(&b'{'));
    let found: serde_json::Value = serde_json::from_slice(line.expect("a line")).expect("JSON");
    assert!(found["chosen"].as_u64() >= Some(4), "{found}");
    // Rounding of a code half-way between two differs from engine to engine, and is carried on.
    let (steps, own) = (found["steps"].as_f64(), found["own"]["steps"].as_f64());
    assert!(
        steps.expect("steps") <= own.expect("steps").max(1.0) + 0.5,
        "{found}"
    );
}

//! How much memory compiling takes: weights are views of the model's file until they are written, packed one
//! at a time.
#![cfg(target_os = "linux")]

#[allow(missing_docs, reason = "helpers of tests")]
mod support;

use lapidary_frontend::onnx::proto::GraphProto;
use std::io::Write;
use std::process::Command;
use support::*;

/// A chain of products by square weights of this size, all in one file beside the model.
const SIDE: usize = 2048;
const LAYERS: usize = 6;

#[test]
fn building_takes_at_most_twice_the_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let weights_bytes = (4 * SIDE * SIDE * LAYERS) as u64;
    if available("MemAvailable:").is_some_and(|n| n < 4 * weights_bytes) {
        eprintln!(
            "skipped: less than {} MB of memory are free",
            (4 * weights_bytes) >> 20
        );
        return;
    }
    if let Err(error) = write_weights(&folder.path().join("w.bin")) {
        eprintln!(
            "skipped: no room for {} MB of weights: {error}",
            weights_bytes >> 20
        );
        return;
    }
    let side = SIDE.to_string();
    let name = |n: usize| {
        if n == LAYERS {
            "y".to_owned()
        } else {
            format!("x{n}")
        }
    };
    // Every other weight is stored transposed: its folded copy and its file are not both in memory.
    let layer = |n: usize| {
        let (weight, turned) = (format!("w{n}"), format!("t{n}"));
        let turn = (n % 2 == 1).then(|| node(&turned, "Transpose", &[&weight], &[&turned]));
        let right = if turn.is_some() { &turned } else { &weight };
        let product = node(
            &format!("layer{n}"),
            "MatMul",
            &[&name(n), right],
            &[&name(n + 1)],
        );
        turn.into_iter().chain([product])
    };
    let weight = |n: usize| {
        let bytes = 4 * SIDE * SIDE;
        let (offset, length) = ((n * bytes).to_string(), bytes.to_string());
        let place = [
            ("location", "w.bin"),
            ("offset", &offset),
            ("length", &length),
        ];
        external(&format!("w{n}"), &[SIDE as i64, SIDE as i64], &place)
    };
    let graph = GraphProto {
        node: (0..LAYERS).flat_map(layer).collect(),
        initializer: (0..LAYERS).map(weight).collect(),
        input: vec![port("x0", F32, &["1", &side])],
        output: vec![port("y", F32, &["1", &side])],
        ..GraphProto::default()
    };
    let path = save(folder.path(), "chain.onnx", &model(graph));
    for emit in ["exe", "image"] {
        let output = folder.path().join(emit);
        let built = Command::new(lapidary())
            .args([
                "build",
                str(&path),
                "--json",
                "--emit",
                emit,
                "-o",
                str(&output),
            ])
            .output()
            .expect("the command starts");
        assert!(built.status.success(), "{}", text(&built.stderr));
        let report: serde_json::Value = serde_json::from_slice(&built.stdout).expect("one value");
        assert!(
            report["weights_bytes"].as_u64() >= Some(weights_bytes),
            "{report}"
        );
        let peak = report["peak_bytes"].as_u64().expect("Linux tells");
        println!(
            "{emit}: a peak of {:.2} times the weights",
            peak as f64 / weights_bytes as f64
        );
        assert!(
            peak <= 2 * weights_bytes,
            "{emit}: {peak} bytes for {weights_bytes} of weights"
        );
    }
}

fn write_weights(path: &std::path::Path) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut state = 1u32;
    for _ in 0..SIDE * SIDE * LAYERS {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        file.write_all(&value.to_le_bytes())?;
    }
    file.flush()
}

/// A figure of `/proc/meminfo` in bytes.
fn available(key: &str) -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

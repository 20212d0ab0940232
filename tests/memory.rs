//! How much memory compiling takes: weights are views of the model's file until they are written, packed one
//! at a time.
#![cfg(target_os = "linux")]

#[allow(missing_docs, reason = "helpers of tests")]
mod support;

use lapidary_frontend::onnx::proto::{GraphProto, OperatorSetIdProto};
use std::io::Write;
use std::process::Command;
use support::*;

/// A chain of products by square weights of this size, all in one file beside the model.
const SIDE: usize = 2048;
const LAYERS: usize = 8;

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
    let program = folder.path().join("exe");
    let whole = running(&program, &["--bench", "0.1"]).expect("it runs");
    assert!(whole >= weights_bytes, "{whole} bytes");
    let limit = 80 << 20;
    let memory = limit.to_string();
    let least = running(&program, &["--bench", "0.1", "--memory", &memory]).expect("it runs");
    println!(
        "running takes {} MB, {} MB when told to take 80 MiB",
        whole >> 20,
        least >> 20
    );
    assert!(
        least <= limit,
        "{least} bytes in memory, {limit} are allowed"
    );
    let refused = running(&program, &["--bench", "0.1", "--memory", "17MiB"]);
    assert!(refused.is_err_and(|why| why.contains("bytes of memory at least")));
}

/// The most that a program has in memory while it runs; its message if it fails.
#[expect(clippy::zombie_processes, reason = "wait4 waits, and tells the memory")]
fn running(program: &std::path::Path, args: &[&str]) -> Result<u64, String> {
    let child = Command::new(program)
        .args(args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut status = 0;
    // SAFETY: all zeros is a value of this type.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: waits for our own child, and writes to what is ours.
    let found = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!(found, child.id() as i32);
    if status == 0 {
        return Ok(usage.ru_maxrss as u64 * 1024);
    }
    let mut message = String::new();
    let mut stderr = child.stderr.expect("piped");
    std::io::Read::read_to_string(&mut stderr, &mut message).expect("text");
    Err(message)
}

/// Products with packed weights: of 4 bits, in blocks of 32.
const PACKED_SIDE: usize = 4096;
const PACKED_LAYERS: usize = 6;

#[test]
fn packed_weights_are_never_decoded_as_a_whole() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (codes, scales) = (
        PACKED_SIDE * PACKED_SIDE / 2,
        PACKED_SIDE * PACKED_SIDE / 32 * 4,
    );
    let stored = ((codes + scales) * PACKED_LAYERS) as u64;
    if available("MemAvailable:").is_some_and(|n| n < 8 * stored) {
        eprintln!(
            "skipped: less than {} MB of memory are free",
            (8 * stored) >> 20
        );
        return;
    }
    if let Err(error) = write_packed(&folder.path().join("w.bin"), codes, scales) {
        eprintln!(
            "skipped: no room for {} MB of weights: {error}",
            stored >> 20
        );
        return;
    }
    let place = |name: String, elem: i32, dims: &[i64], offset: usize, length: usize| {
        let (offset, length) = (offset.to_string(), length.to_string());
        let entries = [
            ("location", "w.bin"),
            ("offset", &offset),
            ("length", &length),
        ];
        let mut tensor = external(&name, dims, &entries);
        tensor.data_type = Some(elem);
        tensor
    };
    let side = PACKED_SIDE as i64;
    // Rounded activations, and not.
    for level in [4, 0] {
        let layer = |n: usize| {
            let inputs = [format!("x{n}"), format!("c{n}"), format!("s{n}")];
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let mut product = node(
                &format!("layer{n}"),
                "MatMulNBits",
                &inputs,
                &[&format!("x{}", n + 1)],
            );
            product.domain = "com.microsoft".into();
            let attrs = [
                ("K", side),
                ("N", side),
                ("bits", 4),
                ("block_size", 32),
                ("accuracy_level", level),
            ];
            attrs
                .into_iter()
                .fold(product, |n, (name, value)| with_int(n, name, value))
        };
        let weights = |n: usize| {
            let at = n * (codes + scales);
            let packed = place(format!("c{n}"), 2, &[side, side / 32, 16], at, codes);
            [
                packed,
                place(format!("s{n}"), F32, &[side, side / 32], at + codes, scales),
            ]
        };
        let dims = ["2".to_owned(), side.to_string()];
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        let mut model = model(GraphProto {
            node: (0..PACKED_LAYERS).map(layer).collect(),
            initializer: (0..PACKED_LAYERS).flat_map(weights).collect(),
            input: vec![port("x0", F32, &dims)],
            output: vec![port(&format!("x{PACKED_LAYERS}"), F32, &dims)],
            ..GraphProto::default()
        });
        model.opset_import.push(OperatorSetIdProto {
            domain: Some("com.microsoft".into()),
            version: Some(1),
        });
        let path = save(folder.path(), "packed.onnx", &model);
        let output = folder.path().join("packed");
        let built = Command::new(lapidary())
            .args(["build", str(&path), "--json", "-o", str(&output)])
            .output()
            .expect("the command starts");
        assert!(built.status.success(), "{}", text(&built.stderr));
        let report: serde_json::Value = serde_json::from_slice(&built.stdout).expect("one value");
        let written = report["weights_bytes"].as_u64().expect("a number");
        assert!(
            written <= stored + stored / 20,
            "{written} bytes of {stored} were written"
        );
        let peak = report["peak_bytes"].as_u64().expect("Linux tells");
        println!(
            "level {level}: a peak of {:.2} times the weights",
            peak as f64 / stored as f64
        );
        assert!(peak <= 2 * stored, "{peak} bytes for {stored} of weights");
    }
}

/// Codes and scales of every layer, one after the other.
fn write_packed(path: &std::path::Path, codes: usize, scales: usize) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let codes: Vec<u8> = (0..codes)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    // Not representable in 16 bits.
    let scale = |i: usize| (0.001 + (i % 977) as f32 * 1e-7).to_le_bytes();
    let scales: Vec<u8> = (0..scales / 4).flat_map(scale).collect();
    for _ in 0..PACKED_LAYERS {
        file.write_all(&codes)?;
        file.write_all(&scales)?;
    }
    file.flush()
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

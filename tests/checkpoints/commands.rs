//! The command on checkpoints.

use super::*;
use lapidary_frontend::onnx::proto::GraphProto;
use std::process::Command;

fn lapidary(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    let out = command
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .expect("the command starts");
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn str(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[test]
fn every_command_takes_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = bundled().join("llama31-rope");
    let stored = arrays(&model.join("reference.npz"));
    let inputs = folder.path().join("in");
    fs::create_dir(&inputs).expect("created");
    fs::write(
        inputs.join("input_ids.npy"),
        npy::write(&stored["input_ids"]),
    )
    .expect("written");
    let check = |outputs: &Path| {
        let found = npy::read(&read(outputs.join("logits.npy")), None).expect("an array");
        let excess = excess(
            &floats(&found.into()),
            &floats(&stored["logits"].clone().into()),
        );
        assert!(excess <= 1.0, "{excess} times the tolerance");
    };
    let out = folder.path().join("out");
    let (status, _, message) = lapidary(&[
        "run",
        str(&model),
        "--inputs",
        str(&inputs),
        "--outputs",
        str(&out),
    ]);
    assert_eq!(status, Some(0), "{message}");
    check(&out);
    // For any batch and length, and without the compiler.
    let program = folder.path().join("program");
    let (status, _, message) = lapidary(&["build", str(&model), "-o", str(&program)]);
    assert_eq!(status, Some(0), "{message}");
    let out = folder.path().join("again");
    let mut command = Command::new(&program);
    let done = command
        .args(["--inputs", str(&inputs), "--outputs", str(&out)])
        .status()
        .expect("starts");
    assert!(done.success());
    check(&out);
    let (status, shown, message) = lapidary(&["inspect", str(&model)]);
    assert_eq!(status, Some(0), "{message}");
    assert!(
        shown.contains("fn llama(%input_ids: i64[batch,seq]) -> (logits: f32[batch,seq,128])"),
        "{shown}"
    );
    let (status, shown, message) = lapidary(&[
        "bench",
        str(&model),
        "--seconds",
        "0.1",
        "--json",
        "--dim",
        "seq=8",
    ]);
    assert_eq!(status, Some(0), "{message}");
    assert!(shown.contains("median_ms"), "{shown}");
    let (status, _, message) = lapidary(&["inspect", str(&model), "--dim", "tokens=8"]);
    assert_eq!(status, Some(1));
    assert!(
        message.contains("no symbolic dimension of this name"),
        "{message}"
    );
}

#[test]
fn eval_compares_a_checkpoint_with_a_module_in_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = bundled().join("llama31-rope");
    // Another network of the same form: the last normalization is twice as large.
    let other = changed("llama31-rope", |_| ());
    let path = other.path().join("model.safetensors");
    let mut all = tensors(&path);
    let norm = all
        .iter_mut()
        .find(|(name, ..)| name == "model.norm.weight")
        .expect("a norm");
    let doubled = norm
        .2
        .chunks_exact(4)
        .flat_map(|b| (2.0 * f32::from_le_bytes([b[0], b[1], b[2], b[3]])).to_le_bytes());
    norm.2 = doubled.collect();
    write(&path, &all);
    let saved = folder.path().join("other.lap");
    text::save(&import(other.path()), &saved).expect("saved");
    let tokens = folder.path().join("tokens.u16.bin");
    let numbers: Vec<u8> = (0..100u16)
        .flat_map(|i| (i * 37 % 128).to_le_bytes())
        .collect();
    fs::write(&tokens, numbers).expect("written");
    let eval = |model: &Path, against: &Path| {
        let (status, out, message) = lapidary(&[
            "eval",
            str(model),
            "--tokens",
            str(&tokens),
            "--against",
            str(against),
            "--seq",
            "16",
            "--json",
        ]);
        assert_eq!(status, Some(0), "{message}");
        let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        report
    };
    let same = eval(&model, &model);
    assert_eq!(same["windows"], 6);
    assert_eq!(same["tokens"], 96);
    assert_eq!(same["against"]["kl"], 0.0);
    assert_eq!(same["against"]["top1_agreement"], 1.0);
    let found = eval(&model, &saved);
    assert_eq!(found["perplexity"], same["perplexity"]);
    // All logits are doubled, so the most probable tokens stay.
    assert_eq!(found["against"]["top1_agreement"], 1.0);
    let kl = found["against"]["kl"].as_f64().expect("a number");
    assert!(kl > 1e-3, "{kl}");
    let back = eval(&saved, &model);
    assert_eq!(back["perplexity"], found["against"]["perplexity"]);
    let refused = |args: &[&str], want: &str| {
        let (status, _, message) = lapidary(args);
        assert_eq!(status, Some(1), "{message}");
        assert!(message.contains(want), "{message}");
    };
    refused(
        &["eval", str(&model), "--tokens", str(&tokens)],
        "a window needs 257",
    );
    refused(
        &[
            "eval",
            str(&bundled().join("bert")),
            "--tokens",
            str(&tokens),
        ],
        "no output predicts tokens",
    );
    let large = folder.path().join("large.u16.bin");
    fs::write(&large, [200u8, 0].repeat(40)).expect("written");
    refused(
        &["eval", str(&model), "--tokens", str(&large), "--seq", "8"],
        "token 200",
    );
    refused(
        &["eval", str(&model), "--text", str(&tokens), "--seq", "8"],
        "tokenizer.json",
    );
}

/// A model in ONNX that predicts by the last token alone: row `i` of the table are the logits after token `i`.
#[test]
fn eval_takes_onnx_with_the_usual_inputs() {
    use crate::support::{F32, I64, floats, ints, model, node, port, save, with_int};
    let folder = tempfile::tempdir().expect("a folder");
    let table: Vec<f32> = (0..16).map(|i| (i * 7 % 5) as f32 * 0.5).collect();
    let dims = &["batch", "seq"];
    let graph = GraphProto {
        name: "pairs".into(),
        node: vec![
            node("rows", "Gather", &["table", "input_ids"], &["rows"]),
            with_int(
                node("wide", "Cast", &["attention_mask"], &["wide"]),
                "to",
                i64::from(F32),
            ),
            node("column", "Unsqueeze", &["wide", "last"], &["column"]),
            node("masked", "Mul", &["rows", "column"], &["logits"]),
        ],
        initializer: vec![floats("table", &[4, 4], &table), ints("last", &[1], &[2])],
        input: vec![
            port("input_ids", I64, dims),
            port("attention_mask", I64, dims),
        ],
        output: vec![port("logits", F32, &["batch", "seq", "4"])],
        ..GraphProto::default()
    };
    let path = save(folder.path(), "pairs.onnx", &model(graph));
    let text: Vec<u16> = (0..41u16).map(|i| (i * i + i / 3) % 4).collect();
    let tokens = folder.path().join("tokens.bin");
    fs::write(
        &tokens,
        text.iter()
            .flat_map(|t| t.to_le_bytes())
            .collect::<Vec<u8>>(),
    )
    .expect("written");
    let (status, out, message) = lapidary(&[
        "eval",
        str(&path),
        "--tokens",
        str(&tokens),
        "--seq",
        "8",
        "--json",
    ]);
    assert_eq!(status, Some(0), "{message}");
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let surprise = |pair: &[u16]| {
        let row = &table[usize::from(pair[0]) * 4..][..4];
        let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        sum.ln() - f64::from(row[usize::from(pair[1])])
    };
    let want = text.windows(2).map(surprise).sum::<f64>() / 40.0;
    assert_eq!(report["tokens"], 40);
    assert!(
        (report["nll"].as_f64().expect("a number") - want).abs() < 1e-6,
        "{report} {want}"
    );
    let (status, _, message) = lapidary(&["eval", str(&path)]);
    assert_eq!(status, Some(2));
    assert!(
        message.contains("--tokens <FILE>|--text <FILE>"),
        "{message}"
    );
}

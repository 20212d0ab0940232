//! Packed checkpoints and GGUF files, made by Python from small models, against what their weights stand for.

use super::*;
use lapidary_frontend::gguf::blocks;
use std::process::Command;

/// Checkpoints in `LAPIDARY_DATA` of every architecture that GGUF files are read and written of.
const NETWORKS: &[&str] = &[
    "gemma2",
    "gemma3",
    "llama",
    "llama-linear-rope",
    "mixtral",
    "olmo2",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2-moe",
    "qwen3",
];

/// Runs the script beside this file; false, said aloud, if there is no Python with what it needs.
pub fn script(args: &[&str]) -> bool {
    let Some(python) = std::env::var_os("LAPIDARY_PYTHON") else {
        println!("skipped: LAPIDARY_PYTHON does not name a Python with gguf and safetensors");
        return false;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/formats.py");
    let mut command = Command::new(python);
    let out = command.arg(script).args(args).output().expect("starts");
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {message}");
    true
}

fn path(of: &Path) -> &str {
    of.to_str().expect("test paths are UTF-8")
}

/// Logits of some tokens.
fn logits(model: &Path) -> Vec<f32> {
    let tokens: Vec<u16> = (0..12).map(|i| i * 37 % 128).collect();
    floats(&run(import(model), &[ids(&[&tokens])])[0])
}

/// How the script packs weights.
const PACKED: &[&str] = &[
    "gptq",
    "gptq3",
    "awq",
    "compressed-tensors",
    "bitsandbytes",
    "hqq",
    "qmoe",
    "quip",
];

#[test]
fn packed_weights_give_what_they_stand_for() {
    packed_as(&bundled().join("llama31-rope"), PACKED);
}

/// QMoE packs the weights of experts alone.
#[test]
fn packed_experts_give_what_they_stand_for() {
    if let Some(model) = data("arch/mixtral") {
        packed_as(&model, &["qmoe"]);
    }
}

/// A model whose weights are packed gives what the one with the decoded weights does.
fn packed_as(model: &Path, methods: &[&str]) {
    let plain = logits(model);
    for method in methods {
        let folder = tempfile::tempdir().expect("a folder");
        if !script(&["pack", method, path(model), path(folder.path())]) {
            return;
        }
        let module = import(folder.path());
        let wrong = verify::errors(&module);
        assert!(wrong.is_empty(), "{method}: {wrong:?}");
        let found = logits(folder.path());
        let excess = excess(&found, &logits(&folder.path().join("DECODED")));
        assert!(excess <= 1.0, "{method}: {excess} times the tolerance");
        assert_ne!(found, plain, "{method}");
        // Printed and read back, with the weights in a file of their own.
        let saved = folder.path().join("saved.lap");
        text::save(&module, &saved).expect("saved");
        assert!(
            module.first_difference(&import(&saved)).is_none(),
            "{method}"
        );
    }
}

/// Parts that are missing, of another shape or of another type are errors that name a tensor, or are not needed.
#[test]
fn damaged_parts_are_refused_by_name() {
    let model = bundled().join("llama31-rope");
    for method in PACKED {
        let folder = tempfile::tempdir().expect("a folder");
        if !script(&["pack", method, path(&model), path(folder.path())]) {
            return;
        }
        let file = folder.path().join("model.safetensors");
        let all = tensors(&file);
        // One format keeps two projections in `upgate_proj`.
        let of_one = "model.layers.0.mlp.up";
        let parts: Vec<usize> = (0..all.len())
            .filter(|&i| all[i].0.starts_with(of_one))
            .collect();
        assert!(parts.len() >= 3, "{method}");
        let mut refused = 0;
        for &i in &parts {
            for change in 0..5 {
                let mut all = all.clone();
                let shape: Vec<u64> =
                    serde_json::from_value(all[i].1["shape"].clone()).expect("a shape");
                let count: u64 = shape.iter().product();
                match change {
                    0 => drop(all.remove(i)),
                    1 => all[i].1["shape"] = json!([count, 1]),
                    2 => all[i].1["shape"] = json!([1, count]),
                    3 => {
                        let swapped: Vec<u64> = shape.iter().rev().copied().collect();
                        all[i].1["shape"] = json!(swapped);
                    }
                    _ => {
                        // Another type of the same size.
                        let dtype = all[i].1["dtype"].as_str().expect("a name").to_owned();
                        let other = [
                            ("I32", "F32"),
                            ("F32", "I32"),
                            ("F16", "BF16"),
                            ("U8", "I8"),
                            ("I64", "F64"),
                            ("I16", "F16"),
                            ("BF16", "I16"),
                        ];
                        let other = other
                            .iter()
                            .find(|(from, _)| *from == dtype)
                            .map_or("U8", |(_, to)| to);
                        all[i].1["dtype"] = json!(other);
                    }
                }
                write(&file, &all);
                match driver::import(folder.path(), &CompileOptions::host(1)) {
                    Ok(module) => assert!(verify::errors(&module).is_empty(), "{method}"),
                    Err(e) => {
                        refused += 1;
                        let said = e.to_string();
                        assert!(said.contains(of_one), "{method}, {}: {said}", parts.len());
                    }
                }
            }
        }
        assert!(
            refused > 2 * parts.len(),
            "{method}: {refused} of {}",
            5 * parts.len()
        );
    }
}

#[test]
fn gguf_files_are_the_checkpoints_they_were_made_from() {
    let mut models = vec![bundled().join("llama31-rope")];
    models.extend(NETWORKS.iter().filter_map(|m| data(&format!("arch/{m}"))));
    let folder = tempfile::tempdir().expect("a folder");
    for model in models {
        let file = folder.path().join("m.gguf");
        if !script(&["gguf-model", path(&model), path(&file), "F32"]) {
            return;
        }
        assert_eq!(
            lapidary_frontend::files_of(&file),
            std::slice::from_ref(&file)
        );
        predicts_as(&file, &model);
    }
}

/// The logits of a file are those that transformers stored of the checkpoint, within the tolerance.
fn predicts_as(file: &Path, model: &Path) {
    let stored = arrays(&model.join("reference.npz"));
    let outputs = run(import(file), &[stored["input_ids"].clone().into()]);
    let excess = excess(
        &floats(&outputs[0]),
        &floats(&stored["logits"].clone().into()),
    );
    let model = model.display();
    assert!(excess <= 1.0, "{model}: {excess} times the tolerance");
}

/// Written by the command with nothing compressed, a file is the checkpoint.
#[test]
fn gguf_files_that_are_written_are_the_checkpoints() {
    let mut models = vec![bundled().join("llama31-rope")];
    models.extend(NETWORKS.iter().filter_map(|m| data(&format!("arch/{m}"))));
    let folder = tempfile::tempdir().expect("a folder");
    let [file, recipe] = ["m.gguf", "keep.toml"].map(|n| folder.path().join(n));
    fs::write(&recipe, "").expect("written");
    for model in models {
        let args = [
            "compress",
            path(&model),
            "-o",
            path(&file),
            "--recipe",
            path(&recipe),
        ];
        let out = Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .args(args)
            .output()
            .expect("starts");
        let message = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}: {message}", model.display());
        predicts_as(&file, &model);
    }
}

#[test]
fn blocks_are_decoded_as_gguf_py_decodes_them() {
    let folder = tempfile::tempdir().expect("a folder");
    if !script(&["gguf-blocks", path(folder.path())]) {
        return;
    }
    let mut seen = 0;
    for kind in blocks::TYPES {
        let bytes = folder.path().join(format!("{}.bin", kind.name));
        if !bytes.exists() {
            continue;
        }
        seen += 1;
        let bytes = read(bytes).into();
        let want = read(folder.path().join(format!("{}.f32", kind.name)));
        let columns = want.len() / 4 / 3;
        let term = blocks::term(kind, &[(3, 1)], 0, columns, &bytes);
        let decoded = term
            .decode()
            .unwrap_or_else(|e| panic!("{}: {e}", kind.name));
        let found = decoded.floats().expect("floats").iter().map(|&v| v as f32);
        for (i, (found, want)) in found.zip(want.chunks_exact(4)).enumerate() {
            let want = f32::from_le_bytes([want[0], want[1], want[2], want[3]]);
            assert!(
                found == want,
                "{}: element {i} is {found}, not {want}",
                kind.name
            );
        }
    }
    assert_eq!(
        seen,
        blocks::TYPES.len() - 4,
        "of all but F32, F64, Q1_0 and Q2_0"
    );
}

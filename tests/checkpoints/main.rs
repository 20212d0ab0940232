//! Checkpoints of every architecture against the logits that transformers gave, trained ones against their perplexity,
//! and what is said of those that cannot be read.
//!
//! `tests/checkpoints/models/` has three tiny ones with random weights. `LAPIDARY_DATA` names a folder with more; tests that need
//! it say that they are skipped.

mod commands;
mod embeddings;
mod evict;
mod formats;
mod generate;
mod refused;
mod server;
mod steps;
#[allow(missing_docs, reason = "helpers of tests")]
#[path = "../support/mod.rs"]
mod support;
mod trained;

use self::support::data::data;
use lapidary::specialize::Given;
use lapidary::{CompileOptions, driver, values};
use lapidary_ir::{Module, text, verify};
use lapidary_runtime::io::{npy, npz};
use lapidary_runtime::{ModelOptions, Tensor, Value};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const THREADS: usize = 2;

/// Checkpoints in `LAPIDARY_DATA` whose architecture is not written yet.
const UNKNOWN: &[&str] = &["phimoe", "switch", "t5"];

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/models")
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn import(folder: &Path) -> Module {
    driver::import(folder, &CompileOptions::host(THREADS)).unwrap_or_else(|e| panic!("{e}"))
}

fn run(module: Module, inputs: &[Value]) -> Vec<Value> {
    let given = Given::from_runtime(inputs);
    let options = CompileOptions::host(THREADS);
    let compiled = driver::compile(module, "checkpoint", &options, Some(&given));
    let options = ModelOptions {
        threads: THREADS,
        pin: false,
        ..ModelOptions::default()
    };
    let model = compiled
        .and_then(|c| c.load(options))
        .unwrap_or_else(|e| panic!("{e}"));
    model.run(inputs).unwrap_or_else(|e| panic!("{e}"))
}

fn floats(value: &Value) -> Vec<f32> {
    let tensor = value.as_tensor().expect("a tensor");
    let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    tensor.bytes().chunks_exact(4).map(four).collect()
}

fn ids(rows: &[&[u16]]) -> Value {
    let all: Vec<i64> = rows.concat().iter().map(|&t| i64::from(t)).collect();
    let tensor = Tensor::from_i64(vec![rows.len(), rows[0].len()], &all);
    tensor.expect("the values fill the shape").into()
}

/// Arrays of an `.npz` by name.
fn arrays(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = read(path);
    let members = npz::read(&bytes).expect("an archive").into_iter();
    let array = |(name, bytes): (String, std::borrow::Cow<[u8]>)| {
        let tensor = npy::read(&bytes, None).expect("an array");
        (name.trim_end_matches(".npy").to_owned(), tensor)
    };
    members.map(array).collect()
}

/// The inputs of a checkpoint with a stored reference: all ones or zeros where the reference has none.
fn inputs(module: &Module, stored: &BTreeMap<String, Tensor>) -> Vec<Value> {
    let names = module
        .top()
        .inputs
        .iter()
        .map(|&v| module.value(v).name.as_str());
    let dims = stored["input_ids"].dims().to_vec();
    let of = |name| match stored.get(name) {
        Some(tensor) => tensor.clone(),
        None => {
            assert_eq!(name, "token_type_ids");
            Tensor::zeros(lapidary_ir::ElemType::I64, dims.clone()).expect("small")
        }
    };
    names.map(|name| of(name).into()).collect()
}

/// The largest excess of a difference over rtol and atol of 1e-4; not above 1 if all are within.
fn excess(found: &[f32], want: &[f32]) -> f32 {
    assert_eq!(found.len(), want.len());
    let one = |(f, w): (&f32, &f32)| match (f - w).abs() / (1e-4 + 1e-4 * w.abs()) {
        excess if excess.is_nan() => f32::INFINITY,
        excess => excess,
    };
    found.iter().zip(want).map(one).fold(0.0, f32::max)
}

/// How far a checkpoint is from its stored reference.
fn distance(folder: &Path, reference: bool) -> f32 {
    let stored = arrays(&folder.join("reference.npz"));
    let module = import(folder);
    let wrong = verify::errors(&module);
    assert!(wrong.is_empty(), "{}: {wrong:?}", folder.display());
    let name = module.output_names[0].clone();
    let inputs = inputs(&module, &stored);
    let outputs = match reference {
        true => {
            let inputs = inputs
                .iter()
                .map(|v| values::to_evaluator(v).expect("whole"));
            let outputs = lapidary_ir::eval::run(&module, inputs.collect());
            let outputs = outputs.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            outputs
                .iter()
                .map(|v| values::to_runtime(v).expect("whole"))
                .collect()
        }
        false => run(module, &inputs),
    };
    excess(&floats(&outputs[0]), &floats(&stored[&name].clone().into()))
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).unwrap_or_else(|e| panic!("{}: {e}", of.display()));
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    found.sort();
    found
}

fn check(folders: &[PathBuf], reference: bool) {
    let mut wrong = vec![];
    for folder in folders {
        let distance = distance(folder, reference);
        println!("{}: {distance} of the tolerance", folder.display());
        if distance > 1.0 {
            wrong.push(format!(
                "{}: {distance} times the tolerance",
                folder.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bundled_checkpoints_give_the_logits_of_transformers() {
    let folders = folders(&bundled());
    assert_eq!(folders.len(), 3);
    check(&folders, false);
    check(&folders, true);
}

#[test]
fn every_architecture_gives_the_logits_of_transformers() {
    let Some(all) = data("arch") else { return };
    let (unknown, known): (Vec<PathBuf>, Vec<PathBuf>) = folders(&all)
        .into_iter()
        .partition(|f| UNKNOWN.iter().any(|u| f.ends_with(u)));
    assert!(known.len() >= 22, "{known:?}");
    check(&known, false);
    for folder in unknown {
        let error = driver::import(&folder, &CompileOptions::host(1)).expect_err("not known");
        assert!(
            error.to_string().contains("is not a known architecture"),
            "{error}"
        );
    }
}

/// A copy of a bundled checkpoint's configuration with some settings changed, beside its weights.
fn changed(
    of: &str,
    change: impl Fn(&mut serde_json::Map<String, serde_json::Value>),
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let from = bundled().join(of);
    fs::copy(
        from.join("model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .expect("copied");
    let mut config = serde_json::from_slice(&read(from.join("config.json"))).expect("JSON");
    change(&mut config);
    let config = serde_json::to_vec(&config).expect("JSON");
    fs::write(folder.path().join("config.json"), config).expect("written");
    folder
}

#[test]
fn older_settings_mean_the_same() {
    let same = |of: &str, folder: &Path| {
        let [new, old] =
            [bundled().join(of), folder.to_owned()].map(|f| text::print_elided(&import(&f)));
        assert!(new == old, "{of} differs");
    };
    let llama = changed("llama31-rope", |config| {
        let mut rope = config.remove("rope_parameters").expect("today's form");
        let rope = rope.as_object_mut().expect("an object");
        config.insert(
            "rope_theta".into(),
            rope.remove("rope_theta").expect("a base"),
        );
        let kind = rope.remove("rope_type").expect("a type");
        rope.insert("type".into(), kind);
        config.insert("rope_scaling".into(), rope.clone().into());
        config.remove("dtype");
        config.insert("torch_dtype".into(), json!("float32"));
    });
    same("llama31-rope", llama.path());
    let gemma = changed("gemma3", |config| {
        config.remove("rope_parameters");
        config.remove("layer_types");
        config.remove("_sliding_window_pattern");
        config.insert("rope_theta".into(), json!(1e6));
        config.insert("rope_local_base_freq".into(), json!(1e4));
        config.insert("sliding_window_pattern".into(), json!(6));
    });
    same("gemma3", gemma.path());
}

/// Tensors of a safetensors file: name, entry and bytes.
fn tensors(path: &Path) -> Vec<(String, serde_json::Value, Vec<u8>)> {
    let bytes = read(path);
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let entries = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__");
    let tensor = |(name, entry): (String, serde_json::Value)| {
        let at =
            |i: usize| entry["data_offsets"][i].as_u64().expect("an offset") as usize + 8 + length;
        let data = bytes[at(0)..at(1)].to_vec();
        (name, entry, data)
    };
    entries.map(tensor).collect()
}

fn write(path: &Path, tensors: &[(String, serde_json::Value, Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, entry, bytes) in tensors {
        let mut entry = entry.clone();
        entry["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        data.extend(bytes);
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).expect("JSON");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    fs::write(path, file).expect("written");
}

/// The bundled Llama in two files; gives the index.
fn in_shards(folder: &Path) -> serde_json::Value {
    let from = bundled().join("llama31-rope");
    fs::copy(from.join("config.json"), folder.join("config.json")).expect("copied");
    let all = tensors(&from.join("model.safetensors"));
    let half = all.len() / 2;
    let mut map = serde_json::Map::new();
    for (file, part) in [
        ("a.safetensors", &all[..half]),
        ("b.safetensors", &all[half..]),
    ] {
        write(&folder.join(file), part);
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    write_index(folder, &index);
    index
}

fn write_index(folder: &Path, index: &serde_json::Value) {
    let path = folder.join("model.safetensors.index.json");
    fs::write(path, serde_json::to_vec(index).expect("JSON")).expect("written");
}

#[test]
fn weights_in_many_files_are_the_same_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    in_shards(folder.path());
    let [one, many] = [bundled().join("llama31-rope"), folder.path().to_owned()]
        .map(|f| text::print(&import(&f)));
    assert!(one == many);
    let files = lapidary_frontend::files_of(folder.path());
    let names: Vec<_> = files
        .iter()
        .map(|f| f.file_name().expect("a name").to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "config.json",
            "model.safetensors.index.json",
            "a.safetensors",
            "b.safetensors"
        ]
    );
}

/// The cache of Hugging Face's downloader has links to files outside of the checkpoint's folder.
#[cfg(unix)]
#[test]
fn links_into_the_cache_are_followed_and_no_others() {
    use std::os::unix::fs::symlink;
    let cache = tempfile::tempdir().expect("a folder");
    let (blobs, folder) = (
        cache.path().join("blobs"),
        cache.path().join("snapshots/main"),
    );
    fs::create_dir_all(&blobs).expect("created");
    fs::create_dir_all(&folder).expect("created");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(bundled().join("llama31-rope").join(name), blobs.join(name)).expect("copied");
        symlink(Path::new("../../blobs").join(name), folder.join(name)).expect("linked");
    }
    import(&folder);
    fs::rename(blobs.join("config.json"), cache.path().join("config.json")).expect("moved");
    fs::remove_file(folder.join("config.json")).expect("removed");
    symlink("../../config.json", folder.join("config.json")).expect("linked");
    let error = driver::import(&folder, &CompileOptions::host(1)).expect_err("outside");
    assert!(
        error
            .to_string()
            .contains("a link that leaves the model's folder"),
        "{error}"
    );
}

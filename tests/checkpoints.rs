//! Checkpoints of every architecture against the logits that transformers gave, trained ones against their perplexity,
//! and what is said of those that cannot be read.
//!
//! `tests/checkpoints/` has three tiny ones with random weights. `LAPIDARY_DATA` names a folder with more; tests that need
//! it say that they are skipped.

use lapidary::eval::{LanguageModel, evaluate, tokens};
use lapidary::specialize::Given;
use lapidary::{CompileOptions, driver, values};
use lapidary_ir::{Module, text, verify};
use lapidary_runtime::io::{npy, npz};
use lapidary_runtime::{ModelOptions, Tensor, Value};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const THREADS: usize = 2;

/// Checkpoints in `LAPIDARY_DATA` whose architecture is not written yet.
const UNKNOWN: &[&str] = &["phimoe", "switch", "t5"];

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints")
}

fn data(of: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("LAPIDARY_DATA").map(|d| PathBuf::from(d).join(of));
    let found = folder.filter(|f| f.exists());
    if found.is_none() {
        println!("skipped: LAPIDARY_DATA does not name the folder with `{of}`");
    }
    found
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
        huge_pages: false,
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
    let one = |(f, w): (&f32, &f32)| (f - w).abs() / (1e-4 + 1e-4 * w.abs());
    // A NaN is an excess.
    found
        .iter()
        .zip(want)
        .map(one)
        .fold(0.0, |a, b| if b <= a { a } else { b })
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
        if !(distance <= 1.0) {
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
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
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

fn refused(folder: &Path, want: &str) {
    let error = driver::import(folder, &CompileOptions::host(1)).err();
    let message = error
        .unwrap_or_else(|| panic!("imported, expected {want:?}"))
        .to_string();
    assert!(message.contains(want), "expected {want:?}, found {message}");
}

#[test]
fn what_is_wrong_with_shards_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let index = in_shards(folder);
    let with = |name: &str, file: &str| {
        let mut index = index.clone();
        index["weight_map"][name] = json!(file);
        write_index(folder, &index);
    };
    with("model.norm.weight", "a.safetensors");
    refused(
        folder,
        "tensor `model.norm.weight`: is not in `a.safetensors`, where `model.safetensors.index.json` says",
    );
    for outside in ["../a.safetensors", "/etc/hostname"] {
        with("model.norm.weight", outside);
        refused(folder, "must stay inside the model's folder");
    }
    with("model.norm.weight", "c.safetensors");
    refused(folder, "cannot read the weights' file `c.safetensors`");
    fs::write(folder.join("model.safetensors.index.json"), "{").expect("written");
    refused(folder, "file `model.safetensors.index.json`: is not valid");
    fs::remove_file(folder.join("model.safetensors.index.json")).expect("removed");
    refused(
        folder,
        "the folder has neither `model.safetensors` nor `model.safetensors.index.json`",
    );
    fs::write(folder.join("pytorch_model.bin"), "").expect("written");
    refused(
        folder,
        "`pytorch_model.bin` is not read: load the checkpoint with transformers",
    );
}

#[test]
fn what_is_wrong_with_settings_is_said() {
    let cases: &[(&str, &str, serde_json::Value, &str)] = &[
        (
            "llama31-rope",
            "model_type",
            json!("llemma"),
            "`llemma` is not a known architecture (known are bert, ",
        ),
        (
            "llama31-rope",
            "model_type",
            json!(null),
            "`model_type` of `config.json`: is missing",
        ),
        (
            "llama31-rope",
            "model_type",
            json!("bert"),
            "`LlamaForCausalLM` is not known (of `bert`, known are BertModel",
        ),
        (
            "llama31-rope",
            "hidden_size",
            json!("64"),
            "must be a positive whole number, found \"64\"",
        ),
        (
            "llama31-rope",
            "hidden_size",
            json!(-64),
            "must be a positive whole number, found -64",
        ),
        (
            "llama31-rope",
            "hidden_size",
            json!(1u64 << 40),
            "must be a positive whole number",
        ),
        (
            "llama31-rope",
            "hidden_size",
            json!(32),
            "tensor `model.embed_tokens.weight` of `model.safetensors`: has shape [128, 64], but `config.json` makes it [128, 32]",
        ),
        (
            "llama31-rope",
            "vocab_size",
            json!(null),
            "`vocab_size` of `config.json`: is missing",
        ),
        (
            "llama31-rope",
            "tie_word_embeddings",
            json!(false),
            "tensor `lm_head.weight`: is missing; a tensor of shape [128, 64] is needed",
        ),
        (
            "llama31-rope",
            "num_hidden_layers",
            json!(1),
            "tensor `model.layers.1.input_layernorm.weight` of `model.safetensors`: has no place in the architecture `llama`",
        ),
        (
            "llama31-rope",
            "num_hidden_layers",
            json!(2_000_000_000),
            "but the weights are only 19 tensors",
        ),
        (
            "llama31-rope",
            "num_hidden_layers",
            json!(3),
            "tensor `model.layers.2.input_layernorm.weight`: is missing",
        ),
        (
            "llama31-rope",
            "num_key_value_heads",
            json!(3),
            "is 4, no multiple of the 3 heads of keys",
        ),
        (
            "llama31-rope",
            "head_dim",
            json!(2_000_000_000),
            "cannot be used",
        ),
        (
            "llama31-rope",
            "hidden_act",
            json!("snake"),
            "the activation `snake` is not supported (known are silu,",
        ),
        (
            "llama31-rope",
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1e4}),
            "rotary embeddings of type `yarn` are not supported (known are default, linear, llama3)",
        ),
        (
            "llama31-rope",
            "rope_parameters",
            json!({"rope_type": "linear"}),
            "`rope_parameters.factor` of `config.json`: is missing",
        ),
        (
            "llama31-rope",
            "quantization_config",
            json!({"quant_method": "gptq"}),
            "weights quantized by `gptq` are not read yet",
        ),
        (
            "bert",
            "num_attention_heads",
            json!(5),
            "is 5, which does not divide the width",
        ),
        (
            "bert",
            "is_decoder",
            json!(true),
            "is true, which is not supported",
        ),
        (
            "bert",
            "position_embedding_type",
            json!("relative_key"),
            "positions of kind `relative_key`",
        ),
    ];
    for (of, setting, value, want) in cases {
        let folder = changed(of, |config| {
            config.insert((*setting).to_owned(), value.clone());
        });
        refused(folder.path(), want);
    }
    let folder = changed("bert", |_| ());
    fs::write(folder.path().join("config.json"), "[1]").expect("written");
    refused(folder.path(), "file `config.json`: is not valid");
    fs::remove_file(folder.path().join("config.json")).expect("removed");
    refused(
        folder.path(),
        "file `config.json`: cannot read the configuration",
    );
}

#[test]
fn weights_of_other_types_are_refused_by_name() {
    let folder = changed("llama31-rope", |_| ());
    let path = folder.path().join("model.safetensors");
    let mut all = tensors(&path);
    let norm = all
        .iter_mut()
        .find(|(name, ..)| name == "model.norm.weight")
        .expect("a norm");
    norm.1["dtype"] = json!("I32");
    write(&path, &all);
    refused(
        folder.path(),
        "tensor `model.norm.weight` of `model.safetensors`: has elements of type i32, a float type",
    );
    norm_as(&mut all, "F4");
    write(&path, &all);
    refused(
        folder.path(),
        "has elements of type F4, a float type is needed",
    );
    let bytes = read(&path);
    fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    refused(folder.path(), "of the file's data, which has");
}

fn norm_as(all: &mut [(String, serde_json::Value, Vec<u8>)], dtype: &str) {
    let norm = all
        .iter_mut()
        .find(|(name, ..)| name == "model.norm.weight")
        .expect("a norm");
    norm.1["dtype"] = json!(dtype);
}

/// Damaged files are refused or read, and never more than that.
#[test]
fn damaged_headers_do_no_harm() {
    let folder = changed("llama31-rope", |_| ());
    let path = folder.path().join("model.safetensors");
    let whole = read(&path);
    let header = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize + 8;
    let options = CompileOptions::host(1);
    let mut seed = 7u64;
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            bytes[(seed >> 33) as usize % header] = (seed >> 20) as u8;
        }
        fs::write(&path, &bytes).expect("written");
        if let Ok(module) = driver::import(folder.path(), &options) {
            assert!(verify::errors(&module).is_empty());
        }
    }
}

fn language_model(folder: &Path, seq: usize) -> LanguageModel {
    let options = CompileOptions::host(THREADS);
    LanguageModel::load(folder, &options, THREADS, Some(seq)).unwrap_or_else(|e| panic!("{e}"))
}

fn perplexity(folder: &Path, tokens: &[u32], seq: usize, windows: usize) -> f64 {
    let mut model = language_model(folder, seq);
    let found =
        evaluate(&mut model, None, tokens, windows, |_| ()).unwrap_or_else(|e| panic!("{e}"));
    found.score.perplexity()
}

fn near(found: f64, want: f64) {
    assert!(
        (found / want - 1.0).abs() < 1e-3,
        "found {found}, expected {want}"
    );
}

/// The first 64 tokens' logits, as transformers gave them.
fn first_logits(folder: &Path, stored: &str, tokens: &[u32]) {
    let want = npy::read(&read(folder.join(stored)), None).expect("an array");
    let first: Vec<u16> = tokens[..64].iter().map(|&t| t as u16).collect();
    let found = run(import(folder), &[ids(&[&first])]);
    let excess = excess(&floats(&found[0]), &floats(&want.into()));
    assert!(excess <= 1.0, "{excess} times the tolerance");
}

#[test]
fn stories260k_has_its_logits_and_its_perplexity() {
    let Some(folder) = data("stories260k") else {
        return;
    };
    let greedy: serde_json::Value =
        serde_json::from_slice(&read(folder.join("greedy-reference.json"))).expect("JSON");
    let ids = greedy["greedy_ids"].as_array().expect("tokens").iter();
    let first: Vec<u32> = ids.map(|t| t.as_u64().expect("a token") as u32).collect();
    first_logits(&folder, "logits-first64.npy", &first);
    let tokens = tokens::read(&folder.join("tinystories-sample.tokens.u16.bin")).expect("tokens");
    near(perplexity(&folder, &tokens, 256, usize::MAX), 5.609);
    near(perplexity(&folder, &tokens, 512, usize::MAX), 5.446);
}

fn wikitext(of: &str, first_100: f64) {
    let (Some(folder), Some(text)) = (data(of), data("text")) else {
        return;
    };
    let tokens = tokens::read(&text.join("wikitext-2-test.bpe4096.u16.bin")).expect("tokens");
    first_logits(&folder, "test-logits-first64.npy", &tokens);
    near(perplexity(&folder, &tokens, 256, 100), first_100);
}

#[test]
fn llama_wt2_has_its_logits_and_its_perplexity() {
    wikitext("llama-wt2", 33.13);
}

#[test]
fn mixtral_wt2_has_its_logits_and_its_perplexity() {
    wikitext("mixtral-wt2", 64.10);
}

#[test]
fn text_is_encoded_as_its_tokenizer_does() {
    let (Some(model), Some(text)) = (data("llama-wt2"), data("text")) else {
        return;
    };
    let want = tokens::read(&text.join("wikitext-2-valid.bpe4096.u16.bin")).expect("tokens");
    let found =
        tokens::encode(&text.join("wikitext-2-valid.txt"), true, &model, None).expect("encodes");
    assert_eq!(found.len(), want.len());
    assert!(found == want);
}

#[test]
fn minilm_gives_its_embeddings() {
    let (Some(folder), Some(sts)) = (data("all-MiniLM-L6-v2"), data("stsbenchmark")) else {
        return;
    };
    let want = npy::read(&read(folder.join("sts-test-emb-a-first64.npy")), None).expect("an array");
    let want = floats(&want.into());
    let bytes = read(sts.join("sts-test.wordpiece-ids.u16.bin"));
    let mut numbers = bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    let mut sentence = || -> Vec<u16> {
        let n = numbers.next().expect("a length");
        numbers.by_ref().take(usize::from(n)).collect()
    };
    let options = CompileOptions::host(THREADS);
    let compiled = driver::compile(import(&folder), "MiniLM", &options, None);
    let options = ModelOptions {
        threads: THREADS,
        pin: false,
        huge_pages: false,
    };
    let model = compiled
        .and_then(|c| c.load(options))
        .unwrap_or_else(|e| panic!("{e}"));
    for want in want.chunks_exact(384) {
        let (own, _other) = (sentence(), sentence());
        let constant = |v: u16| ids(&[&vec![v; own.len()]]);
        let inputs = [ids(&[&own]), constant(1), constant(0)];
        let states = floats(&model.run(&inputs).unwrap_or_else(|e| panic!("{e}"))[0]);
        let mut mean = vec![0f32; 384];
        for row in states.chunks_exact(384) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
        }
        let norm = mean.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (m, w) in mean.iter().zip(want) {
            assert!((m / norm - w).abs() < 1e-5, "{} {w}", m / norm);
        }
    }
}

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
    assert!(message.contains("it has `batch`, `seq`"), "{message}");
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

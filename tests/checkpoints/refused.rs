//! What is said of checkpoints that cannot be read.

use super::*;

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
            "but the weights are only 20 tensors",
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
            json!({"quant_method": "vptq"}),
            "`vptq` is not a known format",
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

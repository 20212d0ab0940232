//! What llama.cpp's converter makes of each architecture: names of settings and of tensors, and what else it changes.
//!
//! Source: ggml-org/llama.cpp, `gguf-py/gguf/constants.py`, `tensor_mapping.py`, and `convert_hf_to_gguf.py`.

use serde_json::{Map, Value, json};

/// What is said of an architecture.
pub(crate) struct Network {
    /// `general.architecture`.
    pub name: &'static str,
    /// The architecture that it is built by, without experts and with them; empty if there is none.
    pub model_types: [&'static str; 2],
    /// Rows of queries and keys are in the order of pairs that rotate together.
    pub paired: bool,
    /// Normalizations multiply by what is stored; the checkpoint's by one more.
    pub whole_norms: bool,
    /// Settings beside [`SETTINGS`].
    pub settings: &'static [(&'static str, &'static str)],
    /// Tensors of a layer, before those of [`INNER`].
    pub inner: &'static [(&'static str, &'static str)],
    /// Tensors of all experts of a layer, one after the other; `#` is an expert's number.
    pub experts: &'static [(&'static str, &'static str)],
    /// Settings that follow from others.
    pub complete: fn(&mut Map<String, Value>),
}

/// Llama's form.
const PLAIN: Network = Network {
    name: "",
    model_types: ["", ""],
    paired: false,
    whole_norms: false,
    settings: &[],
    inner: &[],
    experts: &[],
    complete: |_| (),
};

/// Every architecture that is read and written.
pub(crate) static NETWORKS: &[Network] = &[
    Network {
        name: "llama",
        model_types: ["llama", "mixtral"],
        paired: true,
        inner: &[("ffn_gate_inp", "block_sparse_moe.gate")],
        experts: &[
            ("ffn_gate_exps", "block_sparse_moe.experts.#.w1"),
            ("ffn_down_exps", "block_sparse_moe.experts.#.w2"),
            ("ffn_up_exps", "block_sparse_moe.experts.#.w3"),
        ],
        ..PLAIN
    },
    Network {
        name: "qwen2",
        model_types: ["qwen2", ""],
        ..PLAIN
    },
    Network {
        name: "qwen2moe",
        model_types: ["", "qwen2_moe"],
        settings: &[
            ("expert_feed_forward_length", "moe_intermediate_size"),
            (
                "expert_shared_feed_forward_length",
                "shared_expert_intermediate_size",
            ),
        ],
        inner: &[
            ("ffn_gate_inp", "mlp.gate"),
            ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
            ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
            ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
            ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
        ],
        experts: EXPERTS,
        ..PLAIN
    },
    Network {
        name: "qwen3",
        model_types: ["qwen3", ""],
        ..PLAIN
    },
    Network {
        name: "gemma2",
        model_types: ["gemma2", ""],
        ..GEMMA
    },
    Network {
        name: "gemma3",
        model_types: ["gemma3_text", ""],
        ..GEMMA
    },
    Network {
        name: "olmo2",
        model_types: ["olmo2", ""],
        inner: AFTER,
        ..PLAIN
    },
    Network {
        name: "olmoe",
        model_types: ["", "olmoe"],
        inner: &[("ffn_gate_inp", "mlp.gate")],
        experts: EXPERTS,
        ..PLAIN
    },
    Network {
        name: "phi3",
        model_types: ["phi3", ""],
        settings: &[("attention.sliding_window", "sliding_window")],
        inner: &[
            ("attn_qkv", "self_attn.qkv_proj"),
            ("ffn_up", "mlp.gate_up_proj"),
        ],
        ..PLAIN
    },
];

const GEMMA: Network = Network {
    whole_norms: true,
    settings: &[
        ("attention.sliding_window", "sliding_window"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ],
    inner: &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    complete: |settings| {
        let get = |name: &str| settings.get(name).and_then(Value::as_u64);
        let [layers, hidden, heads] =
            ["num_hidden_layers", "hidden_size", "num_attention_heads"].map(get);
        // The files do not say it: it is the size of a head, but in the models of 27 billion weights.
        let scalar = match (layers, hidden, heads) {
            (Some(46 | 62), Some(hidden), Some(heads @ 1..)) => Some(hidden / heads),
            _ => get("head_dim"),
        };
        settings.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
    },
    ..PLAIN
};

/// Normalizations of what a layer adds.
const AFTER: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Experts as most checkpoints name them.
const EXPERTS: &[(&str, &str)] = &[
    ("ffn_gate_exps", "mlp.experts.#.gate_proj"),
    ("ffn_down_exps", "mlp.experts.#.down_proj"),
    ("ffn_up_exps", "mlp.experts.#.up_proj"),
];

/// Settings by the name behind the architecture's, and what checkpoints call them.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("context_length", "max_position_embeddings"),
    ("expert_count", "num_local_experts"),
    ("expert_count", "num_experts"),
    ("expert_used_count", "num_experts_per_tok"),
];

/// Tensors outside of layers.
pub(crate) const OUTER: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// Tensors of a layer.
pub(crate) const INNER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Names of scores of experts, which no one quantizes.
pub(crate) const ROUTERS: &[&str] = &["ffn_gate_inp", "ffn_gate_inp_shexp"];

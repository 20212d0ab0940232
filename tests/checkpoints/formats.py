"""Packed forms of checkpoints, by other people's code or by the definitions in their formats' descriptions.

  formats.py gguf-model FOLDER OUT TYPE    a llama checkpoint as a GGUF file, its matrices in a type that gguf-py writes
  formats.py gguf-blocks OUT               random blocks of every type, NAME.bin, and what gguf-py decodes, NAME.f32
  formats.py pack METHOD FOLDER OUT        a checkpoint with its layers' weights packed, and DECODED beside it: the
                                           same one with what they stand for
  formats.py gguf-decode FILE OUT          every tensor of a GGUF file, decoded by gguf-py, NAME.f32
"""
import json, os, shutil, sys
import numpy as np


def checkpoint(folder):
    from safetensors.numpy import load_file
    with open(os.path.join(folder, "config.json")) as f:
        return json.load(f), load_file(os.path.join(folder, "model.safetensors"))


def save(folder, config, tensors):
    from safetensors.numpy import save_file
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    contiguous = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    save_file(contiguous, os.path.join(folder, "model.safetensors"))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "block_sparse_moe.gate": "ffn_gate_inp", "mlp.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
}
# Where a normalization stands before what it does in Llama, and after it in others.
AROUND = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}
EXPERTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}


def gguf_model(folder, out, kind):
    """As llama.cpp's converter writes them."""
    import gguf
    config, tensors = checkpoint(folder)
    of = config["model_type"]
    arch = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "gemma3_text": "gemma3"}.get(of, of)
    names = {**GGUF_NAMES, **(AROUND if arch in ("gemma2", "gemma3", "olmo2") else {})}
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    w = gguf.GGUFWriter(out, arch)
    w.add_context_length(config["max_position_embeddings"]); w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"]); w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(heads); w.add_head_count_kv(keys); w.add_key_length(size); w.add_value_length(size)
    w.add_layer_norm_rms_eps(config["rms_norm_eps"]); w.add_rope_dimension_count(size); w.add_rope_freq_base(rope["rope_theta"])
    w.add_vocab_size(config["vocab_size"])
    w.add_tokenizer_model("llama"); w.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    if arch in ("gemma2", "gemma3", "phi3") and config.get("sliding_window"):
        w.add_sliding_window(config["sliding_window"])
    if arch == "gemma2":
        w.add_attn_logit_softcapping(config["attn_logit_softcapping"]); w.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch == "qwen2moe":
        w.add_expert_feed_forward_length(config["moe_intermediate_size"])
        w.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    experts = config.get("num_local_experts") or config.get("num_experts")
    if experts:
        w.add_expert_count(experts); w.add_expert_used_count(config["num_experts_per_tok"])
    if rope["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR); w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** (np.arange(0, size, 2) / size)  # of wave lengths over 2 pi
        context, factor = rope["original_max_position_embeddings"], rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = context / (2 * np.pi * plain)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        w.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / factor + smooth)).astype(np.float32))
    stacked = {}
    for name, t in tensors.items():
        t = t.astype(np.float32)
        base, ending = name.rsplit(".", 1)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            t = t + 1
        if not base.startswith("model.layers."):
            add(w, f"{names[base]}.{ending}", t, kind)
            continue
        layer, inner = base[len("model.layers."):].split(".", 1)
        if ".experts." in inner:
            _, _, expert, which = inner.split(".")
            which = f"ffn_{EXPERTS[which]}_exps"
            stacked.setdefault(f"blk.{layer}.{which}.{ending}", {})[int(expert)] = t
            continue
        if arch == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
            n = heads if "q_proj" in inner else keys
            t = t.reshape(n, 2, size // 2, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape)
        add(w, f"blk.{layer}.{names[inner]}.{ending}", t[0] if inner == "mlp.shared_expert_gate" else t, kind)
    for name, all in stacked.items():
        add(w, name, np.stack([all[e] for e in range(len(all))]), kind)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


def add(w, name, t, kind):
    import gguf
    kind = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if t.ndim < 2 or t.shape[-1] % block or "ffn_gate_inp" in name or kind == gguf.GGMLQuantizationType.F32:
        w.add_tensor(name, np.ascontiguousarray(t))
    else:
        w.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(t), kind), raw_dtype=kind)


BLOCKS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
          "MXFP4", "BF16", "F16", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "NVFP4"]


def gguf_blocks(out):
    import gguf
    random = np.random.default_rng(7)
    for name in BLOCKS:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        per_row = max(1, 512 // elements)
        blocks = random.integers(0, 256, (3 * per_row, size), dtype=np.uint8)
        # Numbers that are finite: exponents below the highest.
        for at in {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
                   "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [], "IQ1_M": [54], "BF16": [0], "F16": [0]}.get(name, [0]):
            blocks[:, at + 1] &= 0xBB
        if name == "MXFP4":
            blocks[:, 0] = random.integers(0, 255, len(blocks))
        rows = blocks.reshape(3, -1)
        blocks.tofile(os.path.join(out, name + ".bin"))
        gguf.quants.dequantize(rows, kind).astype("<f4").tofile(os.path.join(out, name + ".f32"))


def gguf_decode(path, out):
    import gguf
    for t in gguf.GGUFReader(path).tensors:
        gguf.quants.dequantize(t.data, t.tensor_type).astype("<f4").tofile(os.path.join(out, t.name + ".f32"))


def fields(codes, bits):
    """Codes along the last axis in 32-bit words, low bits first, over the ends of words."""
    n = codes.shape[-1] * bits
    planes = (codes[..., None] >> np.arange(bits)) & 1
    planes = planes.reshape(*codes.shape[:-1], n)
    return np.packbits(planes.astype(np.uint8), axis=-1, bitorder="little").view("<i4")


def grid(w, bits, group):
    """Codes, scales and zero points of each group of a row, and what they stand for."""
    rows, columns = w.shape
    g = w.reshape(rows, columns // group, group)
    low, high = np.minimum(g.min(2), 0), np.maximum(g.max(2), 0)
    scale = ((high - low) / (2 ** bits - 1)).astype(np.float16)
    scale[scale == 0] = 1
    zero = np.clip(np.round(-low / scale.astype(np.float32)), 0, 2 ** bits - 1).astype(np.int64)
    s, z = scale.astype(np.float32)[..., None], zero[..., None]
    codes = np.clip(np.round(g / s) + z, 0, 2 ** bits - 1).astype(np.int64)
    decoded = (s * (codes - z).astype(np.float32)).reshape(rows, columns)
    return codes.reshape(rows, columns), scale, zero, decoded


def gptq(w, random, bits=4, group=32, order=True):
    groups = np.arange(w.shape[1]) // group
    places = random.permutation(w.shape[1]) if order else np.arange(w.shape[1])
    codes, scale, zero, decoded = grid(w[:, np.argsort(groups[places], kind="stable")], bits, group)
    back = np.argsort(np.argsort(groups[places], kind="stable"))
    codes, decoded = codes[:, back], decoded[:, back]
    stored = (zero - 1) % 2 ** bits
    return {
        "qweight": fields(codes, bits).T, "qzeros": fields(stored.T, bits), "scales": scale.T,
        "g_idx": groups[places].astype(np.int32),
    }, decoded


def awq(w, random):
    codes, scale, zero, decoded = grid(w, 4, 32)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    pack = lambda m: fields(m.reshape(*m.shape[:-1], -1, 8)[..., order].reshape(m.shape), 4)
    return {"qweight": pack(codes.T), "qzeros": pack(zero.T), "scales": scale.T}, decoded


def packed(w, random):
    codes, scale, zero, decoded = grid(w, 4, 32)
    return {
        "weight_packed": fields(codes, 4), "weight_shape": np.array(w.shape, dtype=np.int64), "weight_scale": scale,
        "weight_zero_point": fields(zero.T, 4).T,
    }, decoded


def nf4(w, random):
    table = np.array([-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0, 0.0795803, 0.1609302,
                      0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1], dtype=np.float32)
    flat = w.reshape(-1, 64)
    most = np.abs(flat).max(1).astype(np.float32)
    codes = np.abs(flat[..., None] / most[:, None, None] - table).argmin(-1).astype(np.uint8).reshape(-1)
    # Scales are codes of a table themselves, from their mean.
    offset = np.float32(most.mean())
    dynamic = np.linspace(-1, 1, 256, dtype=np.float32)
    blocks = np.array_split(most - offset, range(256, len(most), 256))
    outer = np.array([np.abs(b).max() for b in blocks], dtype=np.float32)
    inner = np.concatenate([np.abs(b[:, None] / max(o, 1e-20) - dynamic).argmin(1) for b, o in zip(blocks, outer)]).astype(np.uint8)
    scales = dynamic[inner] * np.repeat(outer, [len(b) for b in blocks]) + offset
    decoded = (table[codes].reshape(-1, 64) * scales[:, None]).reshape(w.shape)
    state = dict(quant_type="nf4", blocksize=64, dtype="float32", shape=list(w.shape), nested_blocksize=256, nested_dtype="float32",
                 nested_offset=float(offset))
    return {
        "weight": (codes[0::2] << 4 | codes[1::2])[:, None], "weight.absmax": inner, "weight.quant_map": table,
        "weight.nested_absmax": outer, "weight.nested_quant_map": dynamic,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), dtype=np.uint8),
    }, decoded


def hqq(w, random):
    codes, scale, _, _ = grid(w, 4, 32)
    rows = codes.reshape(-1, 32).astype(np.uint8)
    zero = random.uniform(6, 9, (len(rows), 1)).astype(np.float16)
    scale = scale.reshape(-1, 1)
    decoded = ((rows - zero.astype(np.float32)) * scale.astype(np.float32)).reshape(w.shape)
    half = len(rows) // 2
    return {
        "W_q": rows[:half] << 4 | rows[half:], "scale": scale, "zero": zero, "shape": np.array(w.shape, dtype=np.int64),
        "nbits": np.array([4], dtype=np.int32), "axis": np.array([1], dtype=np.int32), "group_size": np.array([32], dtype=np.int32),
    }, decoded


def dictionary(cache=[]):
    """QMoE's words: the most probable sequences of pairs of ternary codes, by what they stand for."""
    import heapq
    if not cache:
        p = [.885, (1 - .885) / 2, (1 - .885) / 2]
        words, heap = {}, [(-1., ())]
        while len(words) < 2 ** 16:
            probability, pairs = heapq.heappop(heap)
            if pairs:
                words[pairs] = len(words)
            if len(pairs) < 14:
                for i in range(9):
                    # A pair is its first code and three times its second.
                    heapq.heappush(heap, (probability * (p[i % 3] * p[i // 3]), pairs + (i,)))
        cache.append(words)
    return cache[0]


def qmoe(w, random):
    import ml_dtypes
    ends = np.stack([w.min(1), w.max(1)], 1).astype(ml_dtypes.bfloat16)
    low, high = ends.astype(np.float32).T[..., None]
    codes = np.where(w > high / 2, 2, np.where(w < low / 2, 1, 0))
    decoded = np.choose(codes, [np.zeros_like(low), low, high]).astype(np.float32)
    words, starts = [], [0]
    for row in codes:
        pairs, at = tuple(int(p) for p in row[0::2] + 3 * row[1::2]), 0
        while at < len(pairs):
            n = next(n for n in range(14, 0, -1) if pairs[at:at + n] in dictionary())
            words.append(dictionary()[pairs[at:at + n]])
            at += min(n, len(pairs) - at)
        starts.append(len(words))
    return {
        "w_comp": np.array(words, dtype=np.uint16).view(np.int16), "row_off": np.array(starts, dtype=np.int32),
        "ter_minmax": ends.reshape(-1), "weight": np.zeros(0, dtype=ml_dtypes.bfloat16),
    }, decoded


def e8p():
    """QuIP#'s vectors by their codes: absolute values, their signs, and a shift."""
    import itertools
    all = np.array(list(itertools.product((1, 3, 5), repeat=8)))
    short = all[(all ** 2).sum(1) <= 40]
    ones = [14, 13, 11, 7, 200, 168, 152, 104, 88, 56, 196, 164, 148, 100, 84, 52, 194, 162, 146, 98, 82, 49, 193, 161, 145, 97, 81, 19, 140]
    long = np.where(np.array(ones)[:, None] >> np.arange(8) & 1, 1, 3)
    absolute = np.concatenate([short, long]) / 2
    absolute[:, 7] *= 1 - 2 * (absolute.sum(1) % 2)
    signs = np.arange(256)[:, None] >> np.arange(8) & 1
    odd = signs.sum(1) % 2
    signs[:, 0] ^= odd
    minus = 1 - 2 * signs[:, [0, 4, 1, 5, 2, 6, 3, 7]]
    return (absolute[:, None] * minus + ((1 - 2 * odd) / 4)[:, None]).reshape(-1, 8).astype(np.float32)


def hadamard(n):
    """Of 2^k, or of 12 times that, its rows of length 1."""
    small = np.ones((1, 1))
    if n % 3 == 0:
        square = {x * x % 11 for x in range(1, 11)}
        core = [[-1 if (j - i) % 11 in square else 1 for j in range(11)] for i in range(11)]
        small = np.block([[np.ones((1, 1)), -np.ones((1, 11))], [np.ones((11, 1)), np.array(core)]])
    while len(small) < n:
        small = np.kron(small, [[1, 1], [1, -1]])
    return small / np.sqrt(n)


def quip(w, random):
    table = e8p()
    rows, columns = w.shape
    su, sv = (random.choice([-1., 1.], n) for n in (columns, rows))
    left, right = hadamard(rows), hadamard(columns)
    turned = left.T @ (sv[:, None] * w * su) @ right
    scale = np.sqrt((turned ** 2).mean()) / 1.03
    half = (table ** 2).sum(1) / 2
    codes = np.concatenate([(run @ table.T - half).argmax(1) for run in (turned / scale).reshape(rows, -1, 8).astype(np.float32)])
    sv = (sv * scale).astype(np.float16)
    decoded = sv.astype(np.float64)[:, None] * (left @ table[codes].reshape(rows, columns) @ right.T) * su
    # Words of two rows by two runs, in tiles of 16 rows by 8 runs.
    four = codes.reshape(rows // 2, 2, columns // 16, 2).transpose(0, 2, 3, 1).reshape(-1, 4).astype(np.uint64)
    word = sum(four[:, i] >> np.uint64(8) << np.uint64(8 * i) for i in range(4))
    word |= sum((four[:, i] >> np.uint64(j) & np.uint64(1)) << np.uint64(32 + 4 * j + i) for i in range(4) for j in range(8))
    word = word.reshape(rows // 16, 8, columns // 64, 4).transpose(0, 2, 1, 3).reshape(rows, columns // 32)
    return {
        "Qidxs": word.view(np.int64), "SU": su.astype(np.float16), "SV": sv, "Wscale": np.array(1, dtype=np.float32),
        "codebook_id": np.array(7, dtype=np.int64),
    }, decoded.astype(np.float32)


def pack_quip(folder, out):
    """As the published files are: projections of the same input in one module, which has a factor for each."""
    config, tensors = checkpoint(folder)
    random = np.random.default_rng(3)
    stored, decoded = dict(tensors), dict(tensors)
    for layer in range(config["num_hidden_layers"]):
        for module, projections in [("self_attn.qkv_proj", ["q_proj", "k_proj", "v_proj"]), ("self_attn.o_proj", ["o_proj"]),
                                    ("mlp.upgate_proj", ["up_proj", "gate_proj"])]:
            base = f"model.layers.{layer}.{module}"
            names = [f"{base.rsplit('.', 1)[0]}.{p}.weight" for p in projections]
            weights = [stored.pop(name).astype(np.float32) for name in names]
            scales = [np.sqrt((w ** 2).mean()) if len(names) > 1 else np.float32(1) for w in weights]
            parts, whole = quip(np.concatenate([w / s for w, s in zip(weights, scales)]), random)
            if len(names) > 1:
                parts["fuse_scales"] = np.array(scales, dtype=np.float32)
            stored.update({f"{base}.{part}": value for part, value in parts.items()})
            rows = np.cumsum([len(w) for w in weights])[:-1]
            decoded.update({name: s * w for name, s, w in zip(names, scales, np.split(whole, rows))})
    save(os.path.join(out, "DECODED"), config, decoded)
    settings = dict(codebook="E8P12", codebook_version=1, codesz=8, packsz=4, idx_dtype="torch.int64", lora_rank=0, rescale_WH=False)
    save(out, {**config, "quip_params": settings}, stored)


METHODS = {
    "gptq": (dict(quant_method="gptq", bits=4, group_size=32, desc_act=True, sym=False), gptq),
    "gptq3": (dict(quant_method="gptq", bits=3, group_size=32), lambda w, r: gptq(w, r, 3, 32, False)),
    "awq": (dict(quant_method="awq", bits=4, version="gemm", group_size=32), awq),
    "compressed-tensors": (dict(quant_method="compressed-tensors", format="pack-quantized"), packed),
    "bitsandbytes": (dict(quant_method="bitsandbytes", load_in_4bit=True), nf4),
    "hqq": (dict(quant_method="hqq"), hqq),
    "qmoe": (dict(quant_method="qmoe"), qmoe),
}


def pack(method, folder, out):
    if method == "quip":
        return pack_quip(folder, out)
    config, tensors = checkpoint(folder)
    settings, how = METHODS[method]
    random = np.random.default_rng(3)
    stored, decoded = {}, {}
    # QMoE leaves all but experts as it is.
    only = ".experts." if method == "qmoe" and any(".experts." in name for name in tensors) else ".layers."
    for name, t in tensors.items():
        t = t.astype(np.float32)
        if only not in name or t.ndim != 2:
            stored[name] = decoded[name] = t
            continue
        parts, decoded[name] = how(t, random)
        base = name[:-len(".weight")]
        stored.update({f"{base}.{part}": value for part, value in parts.items()})
    save(os.path.join(out, "DECODED"), config, decoded)
    save(out, {**config, "quantization_config": settings}, stored)


if __name__ == "__main__":
    command, *args = sys.argv[1:]
    {"gguf-model": gguf_model, "gguf-blocks": gguf_blocks, "gguf-decode": gguf_decode, "pack": pack}[command](*args)

"""Memory that compression takes of a checkpoint larger than it: a sharded Llama checkpoint of random weights, 7B shapes by default.

    python benches/scale.py DIR [--lapidary BIN] [--layers 32] [--observed 1] [--keep]

Writes the checkpoint (13.5 GB) below DIR, compresses it to 4 bits without data, then the first `--observed` layers by GPTQ with
data (every layer does the same, for hours of it), and prints for each run its wall time and the largest resident memory that it had.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import time

import numpy as np

HIDDEN, INNER, VOCABULARY, HEADS = 4096, 11008, 32000, 32
POOL = 1 << 26


def tensors(layers):
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in "qkvo":
            yield f"{at}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"{at}mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{at}mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{at}mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"{at}input_layernorm.weight", (HIDDEN,)
        yield f"{at}post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def shards(layers, most=4 << 30):
    shard, size = [], 0
    for name, shape in tensors(layers):
        own = 2 * int(np.prod(shape))
        if size + own > most:
            yield shard
            shard, size = [], 0
        shard.append((name, shape, own))
        size += own
    yield shard


def write_checkpoint(folder, layers):
    os.makedirs(folder)
    rng = np.random.default_rng(0)
    floats = rng.standard_normal(POOL, dtype=np.float32) * 0.02
    pool = (floats.view(np.uint32) >> 16).astype(np.uint16)
    one = np.frombuffer(struct.pack("<f", 1.0), np.uint16)[1]
    index = {}
    for number, shard in enumerate(shards(layers)):
        file = f"model-{number + 1:05}.safetensors"
        header, at = {}, 0
        for name, shape, size in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
            index[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(folder, file), "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for _, shape, size in shard:
                count = size // 2
                if len(shape) == 1:
                    out.write(np.full(count, one).tobytes())
                while len(shape) > 1 and count:
                    begin = int(rng.integers(POOL // 2))
                    part = pool[begin : begin + count]
                    out.write(part.tobytes())
                    count -= len(part)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump(config, out)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as out:
        json.dump({"metadata": {}, "weight_map": index}, out)


def measured(command):
    """Seconds and the largest resident set of a command, in bytes."""
    begin = time.time()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.time() - begin, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--lapidary", default="target/release/lapidary")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--observed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint where it is, for another run")
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    place = lambda name: os.path.join(args.folder, name)
    checkpoint = place(f"llama-{args.layers}")
    if not os.path.exists(checkpoint):
        write_checkpoint(checkpoint, args.layers)
    size = sum(os.path.getsize(os.path.join(checkpoint, f)) for f in os.listdir(checkpoint))
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 4 * 129).astype("<u2")
    np.save(place("tokens.npy"), tokens)
    grid = "bits = 4\ngroup = 128\nsymmetric = true\n"
    of = lambda name, method: f"[[weight]]\nname = '{name}'\nmethod = '{method}'\n{grid}"
    runs = {
        "whole, without data": (of("model.layers.*_proj.weight", "rtn"), []),
        f"{args.observed} layers, with data": (
            "".join(of(f"model.layers.{i}.*_proj.weight", "gptq") for i in range(args.observed)),
            ["--calibrate", place("tokens.npy"), "--dim", "seq=128", "--dim", "batch=1"],
        ),
    }
    print(f"checkpoint: {size / 1e9:.1f} GB, {args.layers} layers")
    for name, (recipe, more) in runs.items():
        with open(place("recipe.toml"), "w") as out:
            out.write(recipe)
        shutil.rmtree(place("out"), ignore_errors=True)
        command = [args.lapidary, "compress", checkpoint, "-o", place("out"), "--recipe", place("recipe.toml"), *more]
        seconds, peak = measured(command)
        written = sum(os.path.getsize(os.path.join(place("out"), f)) for f in os.listdir(place("out")))
        print(f"{name}: {seconds:.0f} s, {peak / 2**30:.2f} GiB resident at most, {written / 1e9:.2f} GB written", flush=True)
    shutil.rmtree(place("out"), ignore_errors=True)
    if not args.keep:
        shutil.rmtree(checkpoint)


if __name__ == "__main__":
    main()

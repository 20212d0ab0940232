#!/usr/bin/env python3
"""How fast executables write text: tokens per second by `--stats`, and the bytes of weights that this reads a second.

  benches/text.py [--shapes 110m,wt2,1b] [--weights f32,8,4,ternary] [--threads 1,2] [--tokens 64] [--prompt 16,512] [--rounds 3]
                  [--kv f32,16,8,4] [--llama-bench PATH [--llama-quantize PATH]]
                  [--lapidary PATH] [--out FOLDER] [--write]

Shapes are Llamas with random weights by seed, made on the spot; 8 and 4 bits are packed codes in groups of 32 (method `rtn`), which
products read as they are, and what they are multiplied with is rounded (`--round-activations`); ternary ones have a scale for each 128. `--kv`
are forms of the caches of keys and values (with a prompt of 2000 tokens they matter). With llama.cpp's `llama-bench`, the same
codes in a GGUF file (Q8_0, Q4_0; ternary weights become TQ2_0 by its `llama-quantize`) run there, in the same rounds and after as many
tokens; its caches are halves. Weights may also be `BITS~TYPE`, `3.7~Q4_K_M`: ours of so many bits on average (`--bits BITS --packed`) beside
another type of llama.cpp's that predicts as well. Configurations are alternated; speeds are of the best rounds. Writes a table in Markdown, with `--write`
between its markers in `benches/RESULTS.md`. Needs numpy.
"""
import argparse
import itertools
import json
import pathlib
import re
import subprocess
import tempfile

import numpy as np

import results

SHAPES = {
    # hidden, layers, heads, heads of keys, inner, vocabulary
    "110m": (768, 12, 12, 12, 2048, 32000),
    "wt2": (256, 6, 8, 4, 704, 4096),
    "1b": (2048, 16, 32, 8, 8192, 32000),
}


def bits_of(weights):
    """Bits of a weight, with its share of a scale of two bytes."""
    if "~" in weights:
        return float(weights.split("~")[0])
    return {"f32": 32, "ternary": 2 + 16 / 128}.get(weights) or int(weights) + 16 / 32


def write_model(folder, shape, seed=1):
    """A checkpoint's folder; the numbers of its matrices."""
    hidden, layers, heads, keys, inner, vocabulary = shape
    folder.mkdir(parents=True, exist_ok=True)
    head = hidden // heads
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    }
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        names = {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys * head, hidden), "self_attn.v_proj": (keys * head, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }
        shapes.update({f"model.layers.{i}.{name}.weight": dims for name, dims in names.items()})
    write_checkpoint(folder, config, shapes, seed)
    # A step reads one row of the table.
    return sum(int(np.prod(d)) for n, d in shapes.items() if len(d) == 2 and n != "model.embed_tokens.weight")


def write_checkpoint(folder, config, shapes, seed):
    """Random weights of these shapes, with a tokenizer whose token n is the word tn."""
    (folder / "config.json").write_text(json.dumps(config))
    words = {f"t{n}": n for n in range(config["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }))
    random, header, at = np.random.default_rng(seed), {}, 0
    for name, dims in shapes.items():
        size = 4 * int(np.prod(dims))
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dims in shapes.values():
            numbers = np.ones(dims) if len(dims) == 1 else random.standard_normal(dims) / dims[1] ** 0.5
            file.write(numbers.astype("<f4").tobytes())


def build(lapidary, model, weights, program, kv="f32", more=()):
    args = [lapidary, "build", model, "-o", program, *more]
    if kv != "f32":
        args += ["--kv", kv]
    if "~" in weights:
        args += ["--bits", weights.split("~")[0], "--packed", "--round-activations"]
    elif weights != "f32":
        args += ["--recipe", recipe_of(weights, program), "--round-activations"]
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


def recipe_of(weights, program):
    recipe = program.with_suffix(".toml")
    how = {"f32": "", "ternary": 'method = "ternary"\nbits = 2\ngroup = 128\n'}.get(weights)
    if how is None:
        how = f'method = "rtn"\nbits = {weights}\ngroup = 32\nsymmetric = true\n'
    recipe.write_text("".join(f'[[weight]]\nname = "{name}"\n{how}' for name in ("*_proj.weight", "lm_head.weight") if how))
    return recipe


def peer_file(args, model, weights, file):
    """The weights as llama.cpp reads them."""
    # Speed does not depend on what the codes are.
    kind = {"ternary": "TQ2_0"}.get(weights) or weights.partition("~")[2]
    made = file.with_suffix(".8.gguf") if kind else file
    recipe = recipe_of("8" if kind else weights, made)
    subprocess.run([args.lapidary, "compress", model, "-o", made, "--recipe", recipe], check=True, stdout=subprocess.DEVNULL)
    if kind:
        types = ["--pure", "--output-tensor-type", "tq2_0", "--token-embedding-type", "q8_0"] if kind == "TQ2_0" else []
        subprocess.run([args.llama_quantize, "--allow-requantize", *types, made, file, kind], check=True, capture_output=True)
        made.unlink()


def measure(program, threads, prompt, tokens):
    """Tokens per second of the prompt, and of the text; megabytes of the caches."""
    text = " ".join(f"t{17 * n % 1000}" for n in range(prompt))
    args = [program, "--prompt", text, "--max-tokens", str(tokens), "--threads", str(threads), "--stats"]
    done = subprocess.run(args, check=True, capture_output=True, text=True)
    rates = [float(rate) for rate in re.findall(r"([\d.]+) tokens/s", done.stderr)]
    return *rates, int(re.search(r"caches of (\d+) bytes", done.stderr)[1]) / 1e6


def measure_peer(llama_bench, file, threads, prompt, tokens):
    def rate(*which):
        args = [llama_bench, "-m", file, *map(str, which), "-t", str(threads), "-r", "1", "-o", "json"]
        return json.loads(subprocess.run(args, check=True, capture_output=True, text=True).stdout)[0]["avg_ts"]

    return rate("-p", prompt, "-n", 0), rate("-p", 0, "-n", tokens, "-d", prompt), 0.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="110m,wt2")
    parser.add_argument("--weights", default="f32,8,4")
    parser.add_argument("--kv", default="f32")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", default="16,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lapidary", default="target/release/lapidary")
    parser.add_argument("--llama-bench")
    parser.add_argument("--llama-quantize", default="llama-quantize")
    parser.add_argument("--out")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    out = pathlib.Path(args.out or tempfile.mkdtemp())
    runs = [(int(p), int(t)) for p in args.prompt.split(",") for t in args.threads.split(",")]
    cells = {}
    for shape in args.shapes.split(","):
        model = out / shape
        numbers = write_model(model, SHAPES[shape])
        for weights, kv in itertools.product(args.weights.split(","), args.kv.split(",")):
            program = out / f"{shape}-{weights}-{kv}"
            build(args.lapidary, model, weights, program, kv)
            cells |= {(shape, weights, kv, *run): (program, numbers * bits_of(weights) / 8, []) for run in runs}
        for weights in args.weights.split(",") if args.llama_bench else []:
            file = out / f"{shape}-{weights}.gguf"
            peer_file(args, model, weights, file)
            cells |= {(shape, weights, "llama.cpp", *run): (file, numbers * bits_of(weights) / 8, []) for run in runs}
    for _ in range(args.rounds):
        # A program beside its peer.
        for (*_, kv, prompt, t), (program, _, found) in sorted(cells.items(), key=lambda cell: (cell[0][3:], cell[0])):
            if kv == "llama.cpp":
                found.append(measure_peer(args.llama_bench, program, t, prompt, args.tokens))
            else:
                found.append(measure(program, t, prompt, args.tokens))
    lines = [
        f"Written by `benches/text.py --rounds {args.rounds}`: prompts, then {args.tokens} tokens of text; the best of the rounds.",
        "",
        "| shape | weights | caches | prompt | threads | prompt, tokens/s | text, tokens/s | weights read, GB/s | caches, MB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (shape, weights, kv, prompt, t), (_, size, found) in sorted(cells.items(), key=lambda cell: (cell[0][:2], cell[0][3:])):
        read, text, caches = (max(rates) for rates in zip(*found))
        caches = f"{caches:.1f}" if caches else ""
        lines.append(f"| {shape} | {weights} | {kv} | {prompt} | {t} | {read:.0f} | {text:.1f} | {text * size / 1e9:.1f} | {caches} |")
    table = "\n".join(lines)
    print(table)
    if args.write:
        results.write("text", table)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What of a mixture of experts is in memory: the most that a program holds while it writes, by how many tokens, and within limits.

  benches/experts.py [--experts 64] [--lapidary PATH] [--out FOLDER]

The model is a Mixtral with random weights by seed, made on the spot: 4 layers, 2 experts for each token. Prints a table in Markdown. Needs numpy.
"""
import argparse
import os
import pathlib
import re
import subprocess
import tempfile

import text

HIDDEN, LAYERS, INNER, VOCABULARY = 512, 4, 1024, 1000


def write_model(folder, experts):
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": VOCABULARY,
        "num_local_experts": experts, "num_experts_per_tok": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "hidden_act": "silu", "sliding_window": None, "rope_theta": 10000.0,
    }
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        shapes |= {f"{at}{n}.weight": (HIDDEN,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
        shapes[f"{at}block_sparse_moe.gate.weight"] = (experts, HIDDEN)
        for e in range(experts):
            expert = f"{at}block_sparse_moe.experts.{e}."
            shapes |= {f"{expert}w1.weight": (INNER, HIDDEN), f"{expert}w3.weight": (INNER, HIDDEN), f"{expert}w2.weight": (HIDDEN, INNER)}
    text.write_checkpoint(folder, config, shapes, 1)


def run(program, tokens, limit):
    """Peak bytes in memory, and tokens per second of the text."""
    args = [program, "--prompt", "t1", "--max-tokens", str(tokens), "--stats", "--threads", "1"] + (["--memory", str(limit)] if limit else [])
    # A shell between, since a child counts what its parent holds until it is another program.
    child = subprocess.Popen(["/bin/sh", "-c", 'exec "$0" "$@"', *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    message = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, message
    return usage.ru_maxrss * 1024, float(re.findall(r"([\d.]+) tokens/s", message)[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--lapidary", default="target/release/lapidary")
    parser.add_argument("--out")
    args = parser.parse_args()
    out = pathlib.Path(args.out or tempfile.mkdtemp())
    write_model(out / "model", args.experts)
    program = out / "program"
    subprocess.run([args.lapidary, "build", out / "model", "-o", program], check=True, stdout=subprocess.DEVNULL)
    size = program.stat().st_size
    print(f"{args.experts} experts, 2 for each token; the executable has {size / 1e6:.0f} MB\n")
    print("| tokens | limit, MB | most in memory, MB | of the executable | text, tokens/s |\n| ---: | ---: | ---: | ---: | ---: |")
    for tokens, share in [(1, None), (4, None), (64, None), (64, 0.5), (64, 0.25)]:
        limit = share and int(size * share)
        peak, rate = run(program, tokens, limit)
        print(f"| {tokens} | {f'{limit / 1e6:.0f}' if limit else 'none'} | {peak / 1e6:.0f} | {peak / size:.2f} | {rate:.1f} |")


if __name__ == "__main__":
    main()

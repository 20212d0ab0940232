#!/usr/bin/env python3
"""What of a mixture of experts is in memory: the most that a program holds while it writes, by how many tokens, and within limits.
And how long a prompt waits for experts that are not in memory, by the order in which they are read (`--orders`).

  benches/experts.py [--experts 64] [--lapidary PATH] [--out FOLDER]
  benches/experts.py --orders [--prompt 64,128,256] [--threads 1] [--rounds 15] [--lapidary PATH] [--out FOLDER]

The model is a Mixtral with random weights by seed, made on the spot, 2 experts for each token: 4 layers, or with `--orders` 2 layers of 8
experts of 88 MB, of which few get most tokens. Before each run the system is asked to forget the file, which it does for a file that nobody
uses; orders are alternated, and what they write is compared. Prints a table in Markdown. Needs numpy.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile

import numpy as np

import text

# Hidden size, layers, inner size.
MEMORY, ORDERS = (512, 4, 1024), (1024, 2, 7168)
VOCABULARY = 1000


def write_model(folder, experts, shape):
    hidden, layers, inner = shape
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": VOCABULARY,
        "num_local_experts": experts, "num_experts_per_tok": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "hidden_act": "silu", "sliding_window": None, "rope_theta": 10000.0,
    }
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "lm_head.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}{n}.weight": (hidden,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
        shapes[f"{at}block_sparse_moe.gate.weight"] = (experts, hidden)
        for e in range(experts):
            expert = f"{at}block_sparse_moe.experts.{e}."
            shapes |= {f"{expert}w1.weight": (inner, hidden), f"{expert}w3.weight": (inner, hidden), f"{expert}w2.weight": (hidden, inner)}
    text.write_checkpoint(folder, config, shapes, 1)


def skew(folder, experts, seed):
    """Makes the n-th of the experts, in an order by chance, score less by the factor n. Shares of the choices of random vectors, the
    largest first."""
    random = np.random.default_rng(seed)
    path = folder / "model.safetensors"
    shares = []
    with open(path, "r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        for name, place in header.items():
            if not name.endswith("gate.weight"):
                continue
            begin, end = place["data_offsets"]
            file.seek(start + begin)
            gate = np.frombuffer(file.read(end - begin), "<f4").reshape(place["shape"])
            gate = gate / (1 + random.permutation(experts)[:, None])
            file.seek(start + begin)
            file.write(gate.astype("<f4").tobytes())
            scores = random.standard_normal((10000, gate.shape[1])) @ gate.T
            chosen = np.argsort(scores, 1)[:, -2:]
            shares.append(sorted(np.bincount(chosen.ravel(), minlength=experts) / chosen.size, reverse=True))
    return np.mean(shares, 0)


def forget(path):
    """Asks the system to have nothing of a file in memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_token(program, tokens, threads, order):
    """Milliseconds until the first token after a prompt of so many, and the token."""
    prompt = " ".join(f"t{1 + n * 7919 % (VOCABULARY - 1)}" for n in range(tokens))
    args = [program, "--prompt", prompt, "--max-tokens", "1", "--stats", "--threads", str(threads), "--expert-order", order]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(re.findall(r"tokens in ([\d.]+) ms", done.stderr)[0]), done.stdout


def orders(args, out):
    write_model(out / "skewed", 8, ORDERS)
    shares = skew(out / "skewed", 8, 1)
    program = out / "skewed-program"
    subprocess.run([args.lapidary, "build", out / "skewed", "-o", program], check=True, stdout=subprocess.DEVNULL)
    print(f"8 experts in each of 2 layers, 2 for each token, of random vectors {', '.join(f'{s:.0%}' for s in shares)} of the choices; "
          f"{args.threads} thread(s), {args.rounds} rounds\n")
    print("| tokens | figure | in memory, ms | none | fifo | hebf | waits: none | fifo | hebf | hebf before fifo |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for tokens in map(int, args.prompt.split(",")):
        times = {name: [] for name in ("warm", "none", "fifo", "hebf")}
        texts = set()
        for n in range(args.rounds):
            # Every order is first and last as often.
            cold = ["none", "fifo", "hebf"][n % 3:] + ["none", "fifo", "hebf"][:n % 3]
            for name in cold + ["warm"]:
                if name != "warm":
                    forget(program)
                time, written = first_token(program, tokens, args.threads, "none" if name == "warm" else name)
                times[name].append(time)
                texts.add(written)
        assert len(texts) == 1, "the order has changed what is written"
        wins = sum(h < f for h, f in zip(times["hebf"], times["fifo"]))
        for figure, of in ("median", statistics.median), ("fastest", min):
            whole = {name: of(rounds) for name, rounds in times.items()}
            waits = [whole[name] - whole["warm"] for name in ("none", "fifo", "hebf")]
            cells = [str(tokens), figure, *(f"{t:.0f}" for t in [*whole.values(), *waits]), f"{wins} of {args.rounds}"]
            print("| " + " | ".join(cells) + " |", flush=True)


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
    parser.add_argument("--orders", action="store_true")
    parser.add_argument("--prompt", default="64,128,256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    out = pathlib.Path(args.out or tempfile.mkdtemp())
    if args.orders:
        return orders(args, out)
    write_model(out / "model", args.experts, MEMORY)
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

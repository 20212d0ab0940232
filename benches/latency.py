#!/usr/bin/env python3
"""How well predicted latencies agree with measured ones, over variants of one model: other encodings of its weights, other shares of
zeros, other budgets of latency, other lengths or batches. Prints a Markdown table for each model, and Spearman's rank correlation.

  latency.py [--models mlp,bert_mini,llama-wt2] [--data DATA] [--threads 1] [--rounds 5] [--seconds 0.3] [--profile FILE]
             [--lapidary BIN] [--out FILE.json]

A variant is built to an executable, for which `build` predicts; then all are run in turns, round after round, each by itself, and a
variant's time is the median of the rounds' medians. Without `--profile` the machine is measured first (`lapidary tune`). DATA is the
folder with the trained models. Needs numpy and onnx. It runs no other program than ours.
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import tempfile

import onnx
from onnx import TensorProto

from budgets import run, spearman
from networks import transformers
from networks.graph import Graph

# Method, bits, weights that share a scale, share of zeros. Palettes and entropy-coded grids are decoded when a program is loaded.
LEVELS = [
    ("keep", 0, 0, 0),
    ("palette", 4, 0, 0),
    ("rtn", 8, 128, 0),
    ("rtn", 4, 32, 0),
    ("rtn", 4, 128, 0),
    ("rtn", 2, 32, 0),
    ("magnitude", 16, 0, 0.5),
    ("magnitude", 16, 0, 0.7),
    ("magnitude", 16, 0, 0.8),
    ("magnitude", 16, 0, 0.9),
    ("magnitude", 16, 0, 0.95),
]
# Budgets of latency, as shares of what the original is predicted to take.
SHARES = [0.85, 0.7, 0.55]


def mlp():
    graph, x = Graph(seed=9), "x"
    widths = [1024, 2048, 2048, 1024]
    for n_in, n_out in zip(widths, widths[1:]):
        x = graph.op("Relu", graph.linear(x, n_in, n_out))
    return graph.model("mlp", {"x": (TensorProto.FLOAT, ["batch", widths[0]])}, "y", ["batch", widths[-1]])


def bert_mini():
    return transformers.bert("bert_mini", seed=8, layers=4, width=256, heads=4, hidden=1024)


# What is written here, and the dimensions of each.
MODELS = {
    "mlp": (mlp, [{"batch": n} for n in (1, 16, 128)]),
    "bert_mini": (bert_mini, [{"batch": 1, "seq": n} for n in (16, 64, 128)]),
    "llama-wt2": (None, [{"batch": 1, "seq": n} for n in (1, 16, 128)]),
}


class Variant:
    def __init__(self, name, size, exe, predicted):
        self.name, self.size, self.exe, self.predicted, self.rounds = name, size, exe, predicted, []

    def measure(self, threads, seconds):
        said = subprocess.run([self.exe, "--bench", str(seconds), "--threads", str(threads)], capture_output=True, text=True, check=True).stdout
        self.rounds.append(float(re.search(r"median ([0-9.]+) ms", said)[1]))

    @property
    def measured(self):
        return statistics.median(self.rounds)


def variants(model, sizes, options, folder):
    for dims in sizes:
        fixed = [x for name, n in dims.items() for x in ("--dim", f"{name}={n}")]
        size = " ".join(f"{name}={n}" for name, n in dims.items())

        def build(name, choice):
            exe = folder / f"{size} {name}".replace(" ", "_").replace("%", "")
            said = run([*options, "build", str(model), "-o", str(exe), "--json", *fixed, *choice, *options.target])
            return Variant(name, size, exe, said["predicted_ms"])

        original = None
        for method, bits, group, sparsity in LEVELS:
            recipe = folder / "recipe.toml"
            recipe.write_text(f"[[weight]]\nname = '*'\nmethod = '{method}'\nbits = {bits}\ngroup = {group}\nsparsity = {sparsity}\n")
            name = method + (f" {bits}" if 0 < bits < 16 else "") + (f" by {group}" if group else "") + (f" {sparsity}" if sparsity else "")
            made = build(name, ["--recipe", str(recipe)])
            original = original or made.predicted
            yield made
        for share in SHARES:
            try:
                yield build(f"--latency of {share}", ["--latency", f"{share * original}ms"])
            except RuntimeError as e:
                if "latency asked for" not in str(e):
                    raise
                print(f"{size}: no choice is predicted to take {share} of the original's time", flush=True)


class Command(list):
    """The command, and what its builds are for."""

    def __init__(self, binary, target):
        super().__init__([binary])
        self.target = target


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", default="mlp,bert_mini")
    ap.add_argument("--data", type=pathlib.Path)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=float, default=0.3)
    ap.add_argument("--profile")
    ap.add_argument("--lapidary", default="target/release/lapidary")
    ap.add_argument("--out", type=pathlib.Path)
    a = ap.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        profile = a.profile or str(work / "target.toml")
        if not a.profile:
            print(f"tune: {run([a.lapidary, 'tune', '--json', '--out', profile])['seconds']:.0f} s", flush=True)
        options = Command(a.lapidary, ["--threads", str(a.threads), "--target-profile", profile])
        for name in a.models.split(","):
            make, sizes = MODELS[name]
            folder = work / name
            folder.mkdir()
            path = folder / "model.onnx" if make else a.data / name
            if make:
                onnx.save(make(), path)
            all_of = list(variants(path, sizes, options, folder))
            for _ in range(a.rounds):
                for v in all_of:
                    v.measure(a.threads, a.seconds)
            report(name, all_of, a)
            found += [{"model": name, "variant": v.name, "size": v.size, "threads": a.threads, "predicted_ms": v.predicted, "measured_ms": v.rounds} for v in all_of]
            if a.out:
                a.out.write_text(json.dumps(found, indent=1))


def report(name, all_of, a):
    print(f"\n{name}, {a.threads} threads, {a.rounds} rounds:\n\n| size | variant | predicted ms | measured ms | predicted / measured |\n| --- | --- | ---: | ---: | ---: |")
    for v in all_of:
        low, high = min(v.rounds), max(v.rounds)
        print(f"| {v.size} | {v.name} | {v.predicted:.3f} | {v.measured:.3f} ({low:.3f} - {high:.3f}) | {v.predicted / v.measured:.2f} |")
    rank = lambda some: spearman([v.predicted for v in some], [v.measured for v in some])
    print(f"\n{len(all_of)} variants: Spearman {rank(all_of):.3f}", end="")
    for size in dict.fromkeys(v.size for v in all_of):
        print(f"; of {size} alone {rank([v for v in all_of if v.size == size]):.3f}", end="")
    ratios = sorted(v.predicted / v.measured for v in all_of)
    noise = statistics.median((max(v.rounds) - min(v.rounds)) / v.measured for v in all_of)
    print(f"; predicted over measured {ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}; rounds of a variant differ by {noise:.0%} (median)\n", flush=True)


if __name__ == "__main__":
    main()

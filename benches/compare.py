#!/usr/bin/env python3
"""Latency beside onnxruntime (and tract), alternated in one run; prints a table in Markdown.

  benches/compare.py MODEL.onnx ... [--threads 1,2] [--rounds 3] [--seconds 2] [--lapidary PATH] [--tract PATH]

Each round runs every engine once on each model, in a process of its own, so that a slow minute of a shared
machine falls on all of them. A cell is the median of all rounds; a ratio is ours over theirs, so below 1 is
faster than they. `--tract` names a program `CMD bench MODEL THREADS SECONDS` that prints the same JSON line
as `lapidary bench --latencies-json`.
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

ORT = "onnxruntime"
OURS = "lapidary"


def run_onnxruntime(model, threads, seconds):
    """In a child process: time onnxruntime on zeros-free random inputs of the model's shapes."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    begin = time.perf_counter()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    load = time.perf_counter() - begin
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    rng = np.random.default_rng(0)
    feeds = {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 1 for d in i.shape]
        kind = types[i.type]
        value = rng.standard_normal(shape) if kind == np.float32 else np.zeros(shape)
        feeds[i.name] = value.astype(kind)
    warm = time.perf_counter()
    while time.perf_counter() - warm < 0.3:
        session.run(None, feeds)
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        one = time.perf_counter()
        session.run(None, feeds)
        times.append((time.perf_counter() - one) * 1e3)
    print(json.dumps({"load_s": load, "lat_ms": times}))


def measure(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RuntimeError(f"{command[0]}: " + " | ".join(tail))
    return json.loads([l for l in done.stdout.splitlines() if l.startswith("{")][-1])


def main():
    if sys.argv[1:2] == ["--child"]:
        return run_onnxruntime(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--lapidary", default="target/release/lapidary")
    parser.add_argument("--tract")
    args = parser.parse_args()
    engines = {
        OURS: lambda m, t: [args.lapidary, "bench", m, "--threads", t, "--seconds", str(args.seconds), "--latencies-json"],
        ORT: lambda m, t: [sys.executable, os.path.abspath(__file__), "--child", m, t, str(args.seconds)],
    }
    if args.tract:
        engines["tract"] = lambda m, t: [args.tract, "bench", m, t, str(args.seconds)]
    peers = [e for e in engines if e != OURS]
    for threads in args.threads.split(","):
        print(f"\n{threads} thread{'s' if threads != '1' else ''}:\n")
        print("| model | " + " | ".join(f"{e} ms" for e in engines) + " | " + " | ".join(f"/ {p}" for p in peers) + " |")
        print("|---|" + "---:|" * (len(engines) + len(peers)))
        ratios = {p: [] for p in peers}
        for model in args.models:
            times = {e: [] for e in engines}
            for _ in range(args.rounds):
                for engine, command in engines.items():
                    try:
                        times[engine] += measure(command(model, threads))["lat_ms"]
                    except RuntimeError as error:
                        print(error, file=sys.stderr)
            median = {e: statistics.median(t) if t else math.nan for e, t in times.items()}
            row = [os.path.splitext(os.path.basename(model))[0]] + [f"{median[e]:.2f}" for e in engines]
            for peer in peers:
                ratio = median[OURS] / median[peer]
                ratios[peer].append(ratio)
                row.append(f"{ratio:.2f}")
            print("| " + " | ".join(row) + " |", flush=True)
        means = [f"{math.exp(statistics.fmean(map(math.log, ratios[p]))):.2f}" for p in peers]
        print("| geometric mean | " + " | ".join("" for _ in engines) + " | " + " | ".join(means) + " |", flush=True)


main()

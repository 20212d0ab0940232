#!/usr/bin/env python3
"""Products with weights of a few bits (MatMulNBits, accuracy_level 4) beside onnxruntime on the same files, alternated;
prints tables in Markdown, or writes them between their markers in `benches/RESULTS.md`.

  benches/lowbit.py [--formats 4:32,4:128,2:64] [--rows 1,16,64,256] [--side 4096] [--threads 1,2] [--rounds 3] [--seconds 1]
                    [--lapidary PATH] [--ggml-mm PATH] [--out FOLDER] [--write]

A format is bits and block. One table has a single product of `side` by `side`. The other has chains of products of one row,
whose weights together are as many bytes as `lapidary bench` reads from memory for its ceiling, so that the speed at which
weights are read can be set beside it; `1.58:64` has three values of weights, stored with two bits. Models are random and
made on the spot. Speeds and ratios are of the best runs. With a program that
times ggml's own product (`PROGRAM TYPE THREADS SECONDS KxN M` prints a list of K, N, M, the median and the best milliseconds), llama.cpp's
nearest format is run before and after. Needs numpy, onnx and onnxruntime.
"""
import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import compare
import models
import results
import suite
from measure import OURS, Case, engines

PEER = "onnxruntime"

# llama.cpp's formats of as many bits.
GGML = {"4:32": "q4_0", "4:128": "q4_0", "2:64": "q2_K", "1.58:64": "tq2_0"}

# Bytes of a chain's weights: what `runtime/src/ceiling.rs` reads.
CHAIN_BYTES = 128 << 20


def parse(text):
    """Name, stored bits and block of a format."""
    bits, block = text.split(":")
    return text, 2 if bits == "1.58" else int(bits), int(block)


def packed(random, name, side, format):
    """Codes, scales and, for three values, zero points of a weight; numbers keep their size through it."""
    text, bits, block = format
    blocks = side // block
    ternary = text.startswith("1.58")
    codes = random.integers(0, 3 if ternary else 1 << bits, (side, blocks, block * bits // 8, 8 // bits), np.uint8)
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    size = (2 / 3) ** 0.5 if ternary else (((1 << bits) ** 2 - 1) / 12) ** 0.5
    scales = (1 + 0.1 * random.standard_normal((side, blocks))) / (size * side ** 0.5)
    made = {"codes": np.bitwise_or.reduce(codes << shifts, axis=-1, dtype=np.uint8), "scales": scales.astype(np.float32)}
    if ternary:
        made["zeros"] = np.full((side, blocks * bits // 8), 0b01010101, np.uint8)
    return [numpy_helper.from_array(v, f"{name}.{part}") for part, v in made.items()]


def weight_bytes(side, format):
    _, bits, block = format
    return side * side * bits // 8 + side * (side // block) * 4


def write_model(path, side, rows, format, layers):
    if path.exists():
        return path
    random, nodes, weights = np.random.default_rng(3), [], []
    for layer in range(layers):
        own = packed(random, f"w{layer}", side, format)
        weights += own
        inputs = [f"x{layer}", *(w.name for w in own)]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"x{layer + 1}"], domain="com.microsoft", K=side, N=side,
                                      bits=format[1], block_size=format[2], accuracy_level=4))
    ports = [[helper.make_tensor_value_info(p, TensorProto.FLOAT, [rows, side])] for p in ("x0", f"x{layers}")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "lowbit", *ports, weights), opset_imports=imports, ir_version=8)
    part = path.with_suffix(".part")
    onnx.save(model, part)
    part.rename(path)
    return path


def measure(path, args, threads):
    """Rows of ours and of the peer."""
    chosen = engines([OURS, PEER], args.lapidary, None)
    with tempfile.TemporaryDirectory(prefix="lapidary-bench-") as folder:
        case = Case(path, {}, folder)
        case.prepare()
        rows = compare.measure_case(case, chosen, threads, args.rounds, args.seconds)
    return {row["engine"]: row for row in rows}


def ggml(text, args, threads, rows):
    """The best milliseconds of llama.cpp's product."""
    command = [args.ggml_mm, GGML[text], str(threads), str(args.seconds), f"{args.side}x{args.side}", str(rows)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"@@\[(.*)\]", out)[1].split(",")[4])


def milliseconds(row):
    """The best run of all rounds: what is least the machine's other work."""
    return row["best_ms"] if row["rounds_ms"] else None


def spread(row):
    """The best run, and the median of the rounds' medians."""
    ms = row["rounds_ms"]
    return f"{milliseconds(row):.2f} ({statistics.median(ms):.2f})" if ms else f"failed: {row.get('error', '')[:60]}"


def products(args, threads):
    heads = ["bits:block", "rows", "lapidary ms", "Gop/s", "onnxruntime ms", "Gop/s", "times faster", "differs"]
    heads += ["llama.cpp ms", "Gop/s", "times faster"] if args.ggml_mm else []
    lines = [f"| {' | '.join(heads)} |\n| --- |" + " ---: |" * (len(heads) - 1)]
    for text in args.formats.split(","):
        format = parse(text)
        for rows in map(int, args.rows.split(",")):
            path = args.out / f"lowbit_{text.replace(':', 'g')}_{args.side}_m{rows}.onnx"
            write_model(path, args.side, rows, format, 1)
            llama = [ggml(text, args, threads, rows)] if args.ggml_mm and text in GGML else []
            found = measure(path, args, threads)
            llama += [ggml(text, args, threads, rows) for _ in llama]
            ours, theirs = milliseconds(found[OURS]), milliseconds(found[PEER])
            speed = lambda ms: f"{2e-6 * rows * args.side ** 2 / ms:.0f}" if ms else ""
            faster = lambda peer: f"{peer / ours:.2f}" if ours and peer else ""
            cells = [text, rows, spread(found[OURS]), speed(ours), spread(found[PEER]), speed(theirs), faster(theirs),
                     f"{found[OURS].get('relative', float('nan')):.1e}"]
            cells += [f"{min(llama):.2f}", speed(min(llama)), faster(min(llama))] if llama else [""] * (len(heads) - len(cells))
            lines.append(f"| {' | '.join(map(str, cells))} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def ceiling(model, args, threads):
    """GB/s that `lapidary bench` reads from memory with this many threads."""
    command = [args.lapidary, "bench", model, "--threads", str(threads), "--seconds", "0.1"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"this machine: .*, ([\d.]+) GB/s", out)[1])


def chains(args, threads):
    heads = ["bits:block", "weights MB", "lapidary ms", "GB/s", "memory GB/s", "share", "onnxruntime ms", "times faster"]
    lines = [f"| {' | '.join(heads)} |\n| --- |" + " ---: |" * (len(heads) - 1)]
    for text in args.formats.split(",") + ["1.58:64"]:
        format = parse(text)
        layers = max(1, round(CHAIN_BYTES / weight_bytes(args.side, format)))
        path = args.out / f"lowbit_{text.replace(':', 'g')}_{args.side}_x{layers}.onnx"
        write_model(path, args.side, 1, format, layers)
        before = ceiling(path, args, threads)
        found = measure(path, args, threads)
        memory = max(before, ceiling(path, args, threads))
        ours, theirs = milliseconds(found[OURS]), milliseconds(found[PEER])
        mb = layers * weight_bytes(args.side, format) / 1e6
        speed = mb / ours if ours else float("nan")
        faster = f"{theirs / ours:.2f}" if ours and theirs else ""
        lines.append(f"| {text} | {mb:.0f} | {spread(found[OURS])} | {speed:.1f} | {memory:.1f} | {speed / memory:.2f} | {spread(found[PEER])} | {faster} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="4:32,4:128,2:64")
    parser.add_argument("--rows", default="1,16,64,256")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--lapidary", default=str(here.parent / "target/release/lapidary"))
    parser.add_argument("--ggml-mm", help="a program that times ggml's product")
    parser.add_argument("--out", type=pathlib.Path, default=models.default_folder())
    parser.add_argument("--write", action="store_true", help="into RESULTS.md instead of standard output")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = [f"Times are of the best run, and in brackets the median of {args.rounds} rounds' medians; speeds and ratios are of the best runs. Written by `{suite.command_line(args, parser).replace('benches/run', 'benches/lowbit.py')}`; {PEER} {compare.version(PEER)}; {suite.processor()}."]
    for threads in map(int, args.threads.split(",")):
        count = f"{threads} thread{'s' * (threads != 1)}"
        parts.append(f"One product, {count}:\n\n{products(args, threads)}")
        parts.append(f"Chains of products of one row, {count}:\n\n{chains(args, threads)}")
    text = "\n\n".join(parts)
    if not args.write:
        print(text)
        return
    results.write("lowbit", text)


if __name__ == "__main__":
    main()

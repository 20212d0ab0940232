#!/usr/bin/env python3
"""Networks with nine of ten weights pruned, beside the same network compiled as if they were not, onnxruntime, and
DeepSparse; prints a Markdown table for each number of threads.

  benches/sparse.py [--networks resnet50,bert_base:batch=1:seq=128] [--threads 1,2] [--rounds 3] [--seconds 1]
                    [--deepsparse PYTHON] [--out FOLDER] [--lapidary PATH]

Each weight matrix loses the smallest 90 % of its numbers (unstructured), and is stored densely: who gains by it has
noticed the zeros. `mlp` is three layers of 4096. DeepSparse (1.8.0, its last release) needs an old numpy, hence a Python of
its own: `--deepsparse` names one that imports it. Rounds alternate, and each measurement is a process of its own.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import models

SPARSITY = 0.9
DEEPSPARSE = """
import json, sys, time, numpy as np, onnx, deepsparse
model, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
graph, random = onnx.load(model).graph, np.random.default_rng(0)
weights, feeds = {i.name for i in graph.initializer}, []
for i in graph.input:
    if i.name not in weights:
        shape = [d.dim_value for d in i.type.tensor_type.shape.dim]
        floats = i.type.tensor_type.elem_type == 1
        feeds.append(random.standard_normal(shape).astype(np.float32) if floats else np.ones(shape, np.int64))
begin = time.perf_counter()
engine = deepsparse.Engine(model, batch_size=None, num_cores=threads)
load, times = time.perf_counter() - begin, []
engine.run(feeds)
begin = time.perf_counter()
while time.perf_counter() - begin < seconds or len(times) < 5:
    one = time.perf_counter()
    engine.run(feeds)
    times.append((time.perf_counter() - one) * 1e3)
print(json.dumps({"load_s": load, "lat_ms": times}))
"""


def mlp():
    random, n = np.random.default_rng(7), 4096
    nodes, weights, x = [], [], "x"
    for layer in range(3):
        w = (random.standard_normal((n, n)) * (2 / n) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], [f"m{layer}"]))
        x = f"m{layer}"
        if layer < 2:
            nodes.append(helper.make_node("Relu", [x], [f"r{layer}"]))
            x = f"r{layer}"
    ports = [[helper.make_tensor_value_info(p, TensorProto.FLOAT, [1, n])] for p in ("x", x)]
    return helper.make_model(helper.make_graph(nodes, "mlp", *ports, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pruned(name, dims, folder):
    """The pruned network's file, its symbolic dimensions fixed: not every peer takes them."""
    path = folder / ("_".join([name, *(f"{k}{v}" for k, v in dims.items())]) + "_sp90.onnx")
    if path.exists():
        return path
    model = mlp() if name == "mlp" else onnx.load(models.make(name, folder))
    for port in [*model.graph.input, *model.graph.output]:
        for d in port.type.tensor_type.shape.dim:
            if d.dim_param in dims:
                d.dim_value = dims[d.dim_param]
    looked_up = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim >= 2 and values.size >= 4096 and weight.name not in looked_up:
            bound = np.quantile(np.abs(values), SPARSITY)
            weight.CopyFrom(numpy_helper.from_array(np.where(np.abs(values) < bound, np.float32(0), values), weight.name))
    part = path.with_suffix(".part")
    onnx.save(model, part)
    part.rename(path)
    return path


def measure(command):
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        tail = (done.stderr or done.stdout).strip().splitlines()[-2:]
        raise RuntimeError(f"{command[0]}: " + " | ".join(tail))
    return statistics.median(json.loads(lines[-1])["lat_ms"])


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet50:batch=1,bert_base:batch=1:seq=128,mlp")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--deepsparse", metavar="PYTHON")
    parser.add_argument("--lapidary", default=str(here.parent / "target/release/lapidary"))
    parser.add_argument("--out", type=pathlib.Path, default=models.default_folder())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files = {}
    for spec in args.networks.split(","):
        name, *dims = spec.split(":")
        files[spec] = pruned(name, {k: int(v) for k, v in (d.split("=") for d in dims)}, args.out)
    for threads in args.threads.split(","):
        ours = [args.lapidary, "bench", "--threads", threads, "--seconds", str(args.seconds), "--latencies-json"]
        ort = [sys.executable, str(here / "sparse.py"), "--child", threads, str(args.seconds)]
        engines = {
            "lapidary": lambda f: [*ours, f],
            "as dense": lambda f: [*ours, "--no-sparse", f],
            "onnxruntime": lambda f: [*ort, f],
        }
        if args.deepsparse:
            engines["deepsparse"] = lambda f: [args.deepsparse, "-c", DEEPSPARSE, f, threads, str(args.seconds)]
        print(f"\n{threads} thread{'s' * (threads != '1')}:\n\n| network, 90 % pruned | "
              + " | ".join(f"{e} ms" for e in engines) + " | " + " | ".join(f"/ {e}" for e in list(engines)[1:]) + " |")
        print("| --- |" + " ---: |" * (2 * len(engines) - 1))
        for spec, file in files.items():
            times = {e: [] for e in engines}
            for _ in range(args.rounds):
                for e, command in engines.items():
                    times[e].append(measure(command(str(file))))
            median = {e: statistics.median(t) for e, t in times.items()}
            cells = [f"{median[e]:.2f}" for e in engines] + [f"{median['lapidary'] / median[e]:.2f}" for e in list(engines)[1:]]
            print(f"| {spec} | " + " | ".join(cells) + " |", flush=True)


def child(threads, seconds, file):
    """onnxruntime in a process of its own."""
    import time

    from engines import onnxruntime_session

    session = onnxruntime_session(file, {}, int(threads))
    random, feeds = np.random.default_rng(0), {}
    for i in session.get_inputs():
        floats = i.type == "tensor(float)"
        feeds[i.name] = random.standard_normal(i.shape).astype(np.float32) if floats else np.ones(i.shape, np.int64)
    session.run(None, feeds)
    times, begin = [], time.perf_counter()
    while time.perf_counter() - begin < float(seconds) or len(times) < 5:
        one = time.perf_counter()
        session.run(None, feeds)
        times.append((time.perf_counter() - one) * 1e3)
    print(json.dumps({"lat_ms": times}))


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()

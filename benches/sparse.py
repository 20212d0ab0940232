#!/usr/bin/env python3
"""Pruned networks, beside the same compiled as if they were not pruned, onnxruntime, OpenVINO, and DeepSparse; prints a
Markdown table for each pattern and number of threads.

  benches/sparse.py [--patterns 90,1x4,2:4] [--networks resnet50:batch=1,FILE.onnx:batch=1:seq=128,...] [--threads 1,2]
                    [--rounds 3] [--seconds 1] [--best] [--deepsparse PYTHON] [--out FOLDER] [--lapidary PATH]

Weight matrices lose their smallest numbers and are stored densely: who gains by it has noticed the zeros. Patterns:

  90    90 % of the numbers, unstructured; f32
  1x4   80 % of the blocks of four consecutive inputs of an output; quantized to int8 (QDQ) after that
  2:4   two of every four consecutive inputs; quantized as well

A network is one of `models.py`, `mlp` (three layers of 4096, of as many rows as `batch`), or a file. DeepSparse (1.8.0, its last
release) needs an old numpy, hence a Python of its own: `--deepsparse` names one that imports it; it runs f32. Rounds
alternate, each measurement is a process of its own, and ours are executables (see `measure.py`). A time is the median of the
rounds' medians, or with `--best` the least of all runs: what to take where others work on the machine. OpenVINO computes what is
not quantized in the precision that it chooses.
"""
import argparse
import pathlib
import statistics
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import models
from measure import OURS, Case, Failed, Lapidary, Peer, last_json, run, summary
from networks.quantized import quantize

SPARSITY = {"90": 0.9, "1x4": 0.8}
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


class DeepSparse:
    def __init__(self, python):
        self.python = python

    def measure(self, case, threads, seconds, is_first):
        out, _, _ = run([self.python, "-c", DEEPSPARSE, case.model, threads, seconds])
        return summary(last_json(out)["lat_ms"])


def mlp(rows):
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
    ports = [[helper.make_tensor_value_info(p, TensorProto.FLOAT, [rows, n])] for p in ("x", x)]
    return helper.make_model(helper.make_graph(nodes, "mlp", *ports, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs_axis(model):
    """For each weight of a product or convolution, the axis along which its inputs lie."""
    axes = {}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv") and len(node.input) > 1:
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            axes[node.input[1]] = 1 if node.op_type == "Conv" or turned else 0
    return axes


def prune(values, axis, pattern):
    """The weights without the smallest; `None` where the pattern does not fit."""
    if pattern == "90":
        bound = np.quantile(np.abs(values), SPARSITY[pattern])
        return np.where(np.abs(values) < bound, np.float32(0), values)
    if values.shape[axis] % 4:
        return None
    fours = np.moveaxis(values, axis, -1)
    shape = fours.shape
    fours = fours.reshape(-1, 4).copy()
    if pattern == "1x4":
        sizes = np.abs(fours).sum(axis=1)
        fours[sizes < np.quantile(sizes, SPARSITY[pattern])] = 0
    else:
        np.put_along_axis(fours, np.argsort(np.abs(fours), axis=1)[:, :2], 0, axis=1)
    return np.ascontiguousarray(np.moveaxis(fours.reshape(shape), -1, axis))


def pruned(name, dims, pattern, folder):
    """The pruned network's file, its symbolic dimensions fixed: not every peer takes them."""
    stem = "_".join([pathlib.Path(name).stem, *(f"{k}{v}" for k, v in dims.items()), pattern.replace(":", "of")])
    path = folder / f"{stem}.onnx"
    if path.exists():
        return path
    if name == "mlp":
        model = mlp(dims.get("batch", 1))
    else:
        model = onnx.load(name if name.endswith(".onnx") else models.make(name, folder))
    for port in [*model.graph.input, *model.graph.output]:
        for d in port.type.tensor_type.shape.dim:
            if d.dim_param in dims:
                d.dim_value = dims[d.dim_param]
    axes = inputs_axis(model)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.name in axes and values.dtype == np.float32 and values.ndim >= 2 and values.size >= 4096:
            kept = prune(values, axes[weight.name], pattern)
            if kept is not None:
                weight.CopyFrom(numpy_helper.from_array(kept, weight.name))
    part = path.with_suffix(".part")
    onnx.save(model, part)
    if pattern != "90":
        quantize(part, part)
    part.rename(path)
    return path


def table(pattern, threads, files, engines, args):
    names, peers = list(engines), [e for e in engines if e not in (OURS, "as dense")]
    print(f"\n{pattern}, {threads} thread{'s' * (threads != 1)}:\n\n| network | " + " | ".join(f"{e} ms" for e in names)
          + " | " + " | ".join(f"/ {e}" for e in names[1:]) + " | / best peer |")
    print("| --- |" + " ---: |" * (2 * len(names)), flush=True)
    for spec, file in files.items():
        with tempfile.TemporaryDirectory(prefix="lapidary-bench-") as folder:
            case = Case(file, {}, folder)
            case.prepare()
            times = {e: [] for e in names}
            for round in range(args.rounds):
                for name, engine in engines.items():
                    try:
                        found = engine.measure(case, threads, args.seconds, round == 0)
                        times[name].append(found["best_ms" if args.best else "ms"])
                    except Failed as error:
                        print(f"{spec} {name}: {error}", flush=True)
        of_all = min if args.best else statistics.median
        time = {e: of_all(t) if t else float("nan") for e, t in times.items()}
        ours = time[OURS]
        cells = [f"{time[e]:.2f}" for e in names] + [f"{ours / time[e]:.2f}" for e in names[1:]]
        print(f"| {pathlib.Path(spec).name} | " + " | ".join(cells) + f" | {ours / min(time[e] for e in peers):.2f} |", flush=True)


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", default="90,1x4,2:4")
    parser.add_argument("--networks", default="resnet50:batch=1,bert_base:batch=1:seq=128,mlp:batch=1,mlp:batch=16")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--deepsparse", metavar="PYTHON")
    parser.add_argument("--lapidary", default=str(here.parent / "target/release/lapidary"))
    parser.add_argument("--out", type=pathlib.Path, default=models.default_folder())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for pattern in args.patterns.split(","):
        files = {}
        for spec in args.networks.split(","):
            name, *dims = spec.split(":")
            files[spec] = pruned(name, {k: int(v) for k, v in (d.split("=") for d in dims)}, pattern, args.out)
        engines = {OURS: Lapidary(args.lapidary), "as dense": Lapidary(args.lapidary, ["--no-sparse"]), "onnxruntime": Peer("onnxruntime")}
        if pattern != "90":
            engines["openvino-default"] = Peer("openvino-default")
        elif args.deepsparse:
            engines["deepsparse"] = DeepSparse(args.deepsparse)
        for threads in map(int, args.threads.split(",")):
            table(pattern, threads, files, engines, args)


if __name__ == "__main__":
    main()

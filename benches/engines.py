#!/usr/bin/env python3
"""A peer in a process of its own, started by `measure.py`; prints one JSON line.

  engines.py ENGINE MODEL --inputs DIR --outputs DIR [--dim NAME=N ...] [--threads N] [--seconds S]

`ENGINE` is `onnxruntime`, `openvino` (computing in f32) or `openvino-default` (in what it chooses). `reference` draws the
inputs, writes them, and writes onnxruntime's outputs and what is needed to judge others by them.
"""
import argparse
import importlib
import json
import pathlib
import time

import numpy as np

from judge import difference, file_name, read, write

WARM_UP_SECONDS = 0.3


def onnxruntime_session(model, dims, threads, optimize=True):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, size in dims.items():
        options.add_free_dimension_override_by_name(name, size)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnxruntime(model, dims, threads, feeds):
    """Names of the outputs, and a function that runs the model on `feeds` (by file name)."""
    session = onnxruntime_session(model, dims, threads)
    by_name = {i.name: feeds[file_name(i.name)] for i in session.get_inputs()}
    return [o.name for o in session.get_outputs()], lambda: session.run(None, by_name)


def openvino(model, threads, feeds, precision):
    import openvino as ov

    core = ov.Core()
    network = core.read_model(model)
    network.reshape({i: feeds[file_name(i.any_name)].shape for i in network.inputs})
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(network, "CPU", config)
    request = compiled.create_infer_request()
    for port in compiled.inputs:
        request.set_tensor(port, ov.Tensor(feeds[file_name(port.any_name)]))

    def run():
        request.infer()
        return [request.get_tensor(o).data for o in compiled.outputs]

    return [o.any_name for o in compiled.outputs], run


ENGINES = {
    "onnxruntime": onnxruntime,
    "openvino": lambda model, _, threads, feeds: openvino(model, threads, feeds, "f32"),
    "openvino-default": lambda model, _, threads, feeds: openvino(model, threads, feeds, None),
}


def resident_mb():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


def bench(engine, args):
    importlib.import_module(engine.split("-")[0])
    feeds = read(args.inputs)
    base_mb = resident_mb()
    begin = time.perf_counter()
    names, run = ENGINES[engine](args.model, args.dims, args.threads, feeds)
    load_s = time.perf_counter() - begin
    write(args.outputs, dict(zip(names, run())))
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_UP_SECONDS:
        run()
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < args.seconds:
        one = time.perf_counter()
        run()
        times.append((time.perf_counter() - one) * 1e3)
    return {"load_s": load_s, "lat_ms": times, "base_mb": base_mb, "running_mb": resident_mb()}


def reference(args):
    """Inputs and onnxruntime's outputs into their folders. Steps of quantized outputs, by file name; for such models also
    how far onnxruntime's results are from its own without graph optimizations."""
    import onnx

    from networks.quantized import draw

    session = onnxruntime_session(args.model, args.dims, args.threads)
    random = np.random.default_rng(0)
    feeds = {i.name: draw(random, i, args.dims) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds)))
    write(args.inputs, feeds)
    write(args.outputs, outputs)
    graph = onnx.load(args.model, load_external_data=False).graph
    scales = {i.name: i for i in graph.initializer}
    steps = {file_name(n.output[0]): float(onnx.numpy_helper.to_array(scales[n.input[1]]))
             for n in graph.node if n.op_type == "DequantizeLinear" and n.output[0] in names}
    if not steps:
        return {"steps": {}}
    plain = onnxruntime_session(args.model, args.dims, args.threads, optimize=False).run(None, feeds)
    expected = {file_name(n): v for n, v in outputs.items()}
    return {"steps": steps, "own": difference(dict(zip(expected, plain)), expected, steps)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=[*ENGINES, "reference"])
    parser.add_argument("model")
    parser.add_argument("--inputs", type=pathlib.Path, required=True)
    parser.add_argument("--outputs", type=pathlib.Path, required=True)
    parser.add_argument("--dim", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    args.dims = {name: int(size) for name, size in (d.split("=") for d in args.dim)}
    print(json.dumps(reference(args) if args.engine == "reference" else bench(args.engine, args)))


if __name__ == "__main__":
    main()

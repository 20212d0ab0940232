"""Makes a small pruned network, quantizes it by onnxruntime's quantizer, and says how far ours is from onnxruntime.

  judge.py LAPIDARY FOLDER

Prints a JSON line: what `judge.difference` says, `own` of onnxruntime with and without its optimizations, and `chosen`: the
weights that are multiplied sparsely.
"""
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benches"))
from measure import Case
from networks.quantized import quantize
from sparse import inputs_axis, prune


def network():
    """Two convolutions with a residual, pooled, and two products, of which one has a bias and one a rectifier."""
    random, weights = np.random.default_rng(3), []

    def weight(name, shape, scale):
        weights.append(numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    conv = lambda x, y, w, b, **attrs: helper.make_node("Conv", [x, w, b], [y], **attrs)
    nodes = [
        conv("x", "c1", weight("w1", (96, 64, 3, 3), 0.06), weight("b1", (96,), 0.1), pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        conv("r1", "c2", weight("w2", (96, 96, 1, 1), 0.15), weight("b2", (96,), 0.1)),
        helper.make_node("Add", ["c2", "r1"], ["a2"]),
        helper.make_node("Relu", ["a2"], ["r2"]),
        conv("r2", "c3", weight("w3", (320, 96, 3, 3), 0.06), weight("b3", (320,), 0.1), strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", weight("w4", (320, 512), 0.12)], ["m4"]),
        helper.make_node("Relu", ["m4"], ["r4"]),
        helper.make_node("Gemm", ["r4", weight("w5", (200, 512), 0.1), weight("b5", (200,), 0.1)], ["y"], transB=1),
    ]
    ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in (("x", [64, 64, 14, 14]), ("y", [64, 200]))]
    graph = helper.make_graph(nodes, "pruned", *ports, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main():
    lapidary, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    model = network()
    axes = inputs_axis(model)
    for weight in model.graph.initializer:
        if weight.name in axes:
            values = prune(numpy_helper.to_array(weight), axes[weight.name], "1x4")
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path = folder / "pruned.onnx"
    onnx.save(model, path)
    quantize(path, path)
    case = Case(path, {}, folder)
    case.prepare()
    build = [lapidary, "build", path, "-o", folder / "pruned", "--json"]
    report = json.loads(subprocess.run(build, check=True, capture_output=True, text=True).stdout)
    run = [folder / "pruned", "--inputs", case.inputs, "--outputs", folder / "outputs"]
    subprocess.run(run, check=True, capture_output=True)
    found = case.judge(folder / "outputs") | {"own": case.facts["own"]}
    print(json.dumps(found | {"chosen": sum(w["sparse"] for w in report["sparse"])}))


if __name__ == "__main__":
    main()

"""Judges of `lapidary compress`.

  compress.py onnx-model OPSET OUT         a network with a convolution, products and a Gemm, random weights
  compress.py onnx-run MODEL X Y           onnxruntime's result of random inputs, both as f32
  compress.py decompress FOLDER OUT        the packed weights of a folder as compressed-tensors decodes them, NAME.f32
"""
import os, sys
import numpy as np


def onnx_model(opset, out):
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    random = np.random.default_rng(5)
    weights = {
        "filters": random.normal(0, 0.2, (32, 4, 5, 5)), "w1": random.normal(0, 0.1, (512, 128)), "w2": random.normal(0, 0.1, (64, 128)),
        "b2": random.normal(0, 0.1, 64), "w3": random.normal(0, 0.1, (64, 64)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["c"]), helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"], doc_string="kept as it is"), helper.make_node("MatMul", ["f", "w1"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["g"], transB=1), helper.make_node("MatMul", ["g", "w3"], ["y"]),
    ]
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    initializers = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "g", [value("x", ["batch", 4, 8, 8])], [value("y", ["batch", 64])], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", int(opset))], ir_version=10)
    model.doc_string = "kept as it is"
    onnx.save(model, out)


def onnx_run(path, x, y):
    import onnx, onnxruntime
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert model.doc_string == "kept as it is" and any(n.doc_string for n in model.graph.node)
    data = np.random.default_rng(6).normal(0, 1, (3, 4, 8, 8)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    data.tofile(x)
    session.run(None, {"x": data})[0].astype("<f4").tofile(y)


def decompress(folder, out):
    try:
        import torch
        from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationConfig
    except ImportError as e:
        print("skipped:", e)
        return
    import json
    from safetensors.torch import load_file
    os.makedirs(out)
    with open(os.path.join(folder, "config.json")) as f:
        config = QuantizationConfig.model_validate(json.load(f)["quantization_config"])
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    for group in config.config_groups.values():
        for module in group.targets:
            parts = {n[len(module) + 1:]: t for n, t in tensors.items() if n.startswith(module + ".")}
            decoded = PackedQuantizationCompressor.decompress(parts, group)["weight"]
            decoded.to(torch.float32).numpy().astype("<f4").tofile(os.path.join(out, module + ".f32"))


if __name__ == "__main__":
    command, *args = sys.argv[1:]
    {"onnx-model": onnx_model, "onnx-run": onnx_run, "decompress": decompress}[command](*args)

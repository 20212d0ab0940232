"""The light networks of the `onnx` package (graphs without weights) with He-initialised weights and a symbolic batch.

As shipped, every weight is a `ConstantOfShape`, so that results are the same number, or none. Here each becomes an
initializer, drawn by its role: what reads it, and as which operand.
"""
import math
import pathlib
import zlib

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from .graph import IR_VERSION, OPSET

NAMES = ["resnet50", "densenet121", "vgg19", "shufflenet", "squeezenet", "inception_v2"]

# Scale of a batch norm that ends a residual branch: keeps sums from growing with depth, and a softmax from saturating.
RESIDUAL_SCALE = math.sqrt(0.2)

# Gain of the last product, by what the network before it makes of normal inputs: its softmax is neither flat nor saturated.
LAST_GAIN = {"resnet50": 4.0, "vgg19": 2.0, "shufflenet": 0.25, "inception_v2": 2.0}

# Nodes that hand a weight on in another shape.
RESHAPES = ("Unsqueeze", "Reshape")


def light(name):
    folder = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = version_converter.convert_version(onnx.load(folder / f"light_{name}.onnx"), OPSET)
    model.ir_version = IR_VERSION
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    constants |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    readers = {}
    for node in graph.node:
        for position, value in enumerate(node.input):
            readers.setdefault(value, []).append((node, position))
    writers = {o: n for n in graph.node for o in n.output}
    random = np.random.default_rng(zlib.crc32(name.encode()))
    shapes = {n.output[0]: [int(d) for d in constants[n.input[0]]] for n in graph.node if n.op_type == "ConstantOfShape"}
    # Few weights are stored.
    shapes |= {n: list(c.shape) for n, c in constants.items() if c.dtype == np.float32 and c.ndim and n in readers}
    weights = {n: draw(random, shape, *reader(readers, n), readers, writers, LAST_GAIN.get(name)) for n, shape in shapes.items()}
    make_batch_symbolic(graph, constants, weights)
    nodes = [n for n in graph.node if n.output[0] not in weights]
    used = {i for n in nodes for i in n.input}
    inputs = [i for i in graph.input if i.name in used and i.name not in constants]
    initializers = [i for i in graph.initializer if i.name in used and i.name not in weights]
    initializers += [numpy_helper.from_array(w, n) for n, w in weights.items()]
    for field, values in ((graph.node, nodes), (graph.input, inputs), (graph.initializer, initializers)):
        del field[:]
        field.extend(values)
    onnx.checker.check_model(model)
    return model


def reader(readers, value):
    """The node that computes with a weight, and the operand that it is."""
    node, position = readers[value][0]
    return reader(readers, node.output[0]) if node.op_type in RESHAPES else (node, position)


def gain(value, writers):
    """What keeps variance through a product: 2 for what went through a ReLU, 1 for what did not."""
    writer = writers.get(value)
    if writer is None or writer.op_type in ("BatchNormalization", "Conv", "Gemm"):
        return 1.0
    return 2.0 if writer.op_type in ("Relu", "Concat") else gain(writer.input[0], writers)


def draw(random, shape, node, position, readers, writers, last_gain):
    """A weight for this operand of this node."""
    kind = node.op_type

    def normal(std):
        return random.standard_normal(shape, np.float32) * np.float32(std)

    def near_one():
        return random.uniform(0.8, 1.2, shape).astype(np.float32)

    if kind == "Conv" and position == 1:
        return normal(math.sqrt(gain(node.input[0], writers) / math.prod(shape[1:])))
    if kind == "Gemm" and position == 1:
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        # A reshaped weight keeps its leading axis.
        fan_in = math.prod(shape[1:]) if is_transposed else shape[0]
        is_last = any(n.op_type == "Softmax" for n, _ in readers[node.output[0]])
        return normal(math.sqrt((last_gain if is_last else gain(node.input[0], writers)) / fan_in))
    if kind == "BatchNormalization" and position == 1:
        ends_branch = any(n.op_type == "Sum" for n, _ in readers.get(node.output[0], []))
        return near_one() * np.float32(RESIDUAL_SCALE if ends_branch else 1.0)
    if kind == "BatchNormalization" and position == 4 or kind == "Mul":
        return near_one()
    if kind in ("Conv", "Gemm", "BatchNormalization", "Add"):
        return normal(0.1)
    raise ValueError(f"a weight of `{kind}` (operand {position}) has no rule")


def make_batch_symbolic(graph, constants, weights):
    """Inputs and outputs get the leading dimension `batch`; reshapes of activations copy theirs."""
    for value in [*graph.input, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dims) > 1:
            dims[0].dim_param = "batch"
    del graph.value_info[:]
    stored = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] not in weights and node.input[1] in stored:
            shape = constants[node.input[1]].copy()
            if shape[0] == 1:
                shape[0] = 0
                stored[node.input[1]].CopyFrom(numpy_helper.from_array(shape, node.input[1]))

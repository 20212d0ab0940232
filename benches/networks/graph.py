"""Writes ONNX graphs node by node, with weights from a seeded generator."""
import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


class Graph:
    """A graph under construction. Values are names; every method that adds a node returns its output's name."""

    def __init__(self, seed):
        self.nodes, self.initializers = [], []
        self.random = np.random.default_rng(seed)

    def constant(self, array):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, *values):
        return self.constant(np.array(values, np.int64))

    def index(self, value):
        return self.constant(np.array(value, np.int64))

    def scalar(self, value):
        return self.constant(np.array(value, np.float32))

    def normal(self, *shape, std, mean=0.0):
        values = self.random.standard_normal(shape, np.float32)
        return self.constant(values * np.float32(std) + np.float32(mean))

    def op(self, kind, *inputs, **attributes):
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x, c_in, c_out, kernel, stride=1, groups=1, gain=2.0):
        """A convolution with `same` padding for odd kernels, none for even ones. He: weights of variance gain / fan-in,
        where a gain of 2 keeps the variance of what went through a ReLU, and 1 of what did not."""
        fan_in = c_in // groups * kernel * kernel
        weight = self.normal(c_out, c_in // groups, kernel, kernel, std=math.sqrt(gain / fan_in))
        pad = kernel // 2 if kernel % 2 else 0
        return self.op("Conv", x, weight, self.normal(c_out, std=0.1), kernel_shape=[kernel, kernel],
                       strides=[stride, stride], pads=[pad] * 4, group=groups)

    def linear(self, x, n_in, n_out, std=0.02):
        return self.op("Add", self.op("MatMul", x, self.normal(n_in, n_out, std=std)), self.normal(n_out, std=0.02))

    def layer_norm(self, x, width, epsilon):
        scale = self.normal(width, std=0.02, mean=1.0)
        return self.op("LayerNormalization", x, scale, self.normal(width, std=0.02), axis=-1, epsilon=epsilon)

    def gelu(self, x):
        """The exact form as exporters write it."""
        erf = self.op("Erf", self.op("Div", x, self.scalar(math.sqrt(2.0))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.scalar(1.0))), self.scalar(0.5))

    def size(self, x, axis):
        """The size of one axis, `[1]`."""
        return self.op("Gather", self.op("Shape", x), self.integers(axis), axis=0)

    def model(self, name, inputs, output, output_shape):
        """`inputs`: name to (element type, shape). The last node's output gets the name `output`."""
        self.nodes[-1].output[0] = output
        values = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)
        graph = helper.make_graph(self.nodes, name, values, [result], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="lapidary-benches")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model


class Trained(Graph):
    """A graph whose weights are these arrays, in the order in which they are asked for."""

    def __init__(self, arrays):
        super().__init__(seed=0)
        self.arrays = iter(arrays)

    def normal(self, *shape, std, mean=0.0):
        array = next(self.arrays)
        assert array.shape == shape, f"{array.shape} in the place of {shape}"
        return self.constant(array.astype(np.float32))

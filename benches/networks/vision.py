"""MobileNetV2, EfficientNet-B0: published shapes, batch norms already folded into the convolutions, as exporters do."""
from onnx import TensorProto

from .graph import Graph

IMAGE = {"image": (TensorProto.FLOAT, ["batch", 3, 224, 224])}
CLASSES = 1000

# Keeps the sum of a residual block and its input from growing with depth.
RESIDUAL = 0.2


def head(g, x, channels):
    x = g.op("Flatten", g.op("GlobalAveragePool", x), axis=1)
    return g.op("Gemm", x, g.normal(CLASSES, channels, std=channels**-0.5), g.normal(CLASSES, std=0.1), transB=1)


def mobilenet_v2():
    """Source: MobileNetV2: Inverted Residuals and Linear Bottlenecks, table 2."""
    g = Graph(seed=2)
    low, high = g.scalar(0.0), g.scalar(6.0)

    def relu6(x):
        return g.op("Clip", x, low, high)

    x, channels = relu6(g.conv("image", 3, 32, 3, stride=2, gain=1.0)), 32
    for expand, out, repeats, first_stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
                                               (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(repeats):
            stride, wide, y = first_stride if i == 0 else 1, channels * expand, x
            if expand != 1:
                y = relu6(g.conv(y, channels, wide, 1, gain=1.0))
            y = relu6(g.conv(y, wide, wide, 3, stride=stride, groups=wide))
            is_residual = stride == 1 and channels == out
            y = g.conv(y, wide, out, 1, gain=2.0 * (RESIDUAL if is_residual else 1.0))
            x, channels = g.op("Add", x, y) if is_residual else y, out
    head(g, relu6(g.conv(x, channels, 1280, 1, gain=1.0)), 1280)
    return g.model("mobilenet_v2", IMAGE, "logits", ["batch", CLASSES])


def efficientnet_b0():
    """Source: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, table 1."""
    g = Graph(seed=3)
    silu_gain = 2.4  # 1 / E[silu(z)^2] of a normal z is 2.8, and falls to 2 for wider ones

    def silu(x):
        return g.op("Mul", x, g.op("Sigmoid", x))

    def squeeze_excite(x, wide, narrow):
        s = g.op("GlobalAveragePool", x)
        s = g.op("Sigmoid", g.conv(silu(g.conv(s, wide, narrow, 1)), narrow, wide, 1))
        return g.op("Mul", x, s)

    x, channels = silu(g.conv("image", 3, 32, 3, stride=2, gain=1.0)), 32
    for expand, out, repeats, first_stride, kernel in [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
                                                       (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]:
        for i in range(repeats):
            stride, wide, y = first_stride if i == 0 else 1, channels * expand, x
            if expand != 1:
                y = silu(g.conv(y, channels, wide, 1, gain=1.0))
            y = silu(g.conv(y, wide, wide, kernel, stride=stride, groups=wide, gain=silu_gain))
            y = squeeze_excite(y, wide, max(1, channels // 4))
            is_residual = stride == 1 and channels == out
            # The gate is about a half, so its square about a quarter.
            y = g.conv(y, wide, out, 1, gain=4.0 * silu_gain * (RESIDUAL if is_residual else 1.0))
            x, channels = g.op("Add", x, y) if is_residual else y, out
    head(g, silu(g.conv(x, channels, 1280, 1, gain=1.0)), 1280)
    return g.model("efficientnet_b0", IMAGE, "logits", ["batch", CLASSES])

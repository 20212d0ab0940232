"""BERT-shaped encoders and a vision transformer, written as PyTorch exports them."""
import math

from onnx import TensorProto

from .graph import Graph, Trained

MAX_POSITIONS = 512
MINILM = {"layers": 6, "width": 384, "heads": 12, "hidden": 1536}


def attend(g, q, k, v, width, heads, mask=None):
    """`q`, `v`: [batch, heads, seq, d]; `k`: [batch, heads, d, seq]. Returns [batch, seq, width]."""
    scores = g.op("Div", g.op("MatMul", q, k), g.scalar(math.sqrt(width // heads)))
    if mask:
        scores = g.op("Add", scores, mask)
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    return g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.integers(0, 0, width))


def bert(name, g, layers, width, heads, hidden, vocabulary=30522):
    """Source: BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, section 3."""
    tokens = ["batch", "seq"]
    inputs = {n: (TensorProto.INT64, tokens) for n in ("input_ids", "attention_mask", "token_type_ids")}
    positions = g.op("Slice", g.integers(*range(MAX_POSITIONS)), g.integers(0), g.size("input_ids", 1), g.integers(0))
    positions = g.op("Unsqueeze", positions, g.integers(0))
    positions = g.op("Gather", g.normal(MAX_POSITIONS, width, std=0.02), positions)
    x = g.op("Add", g.op("Gather", g.normal(vocabulary, width, std=0.02), "input_ids"),
             g.op("Gather", g.normal(2, width, std=0.02), "token_type_ids"))
    x = g.layer_norm(g.op("Add", x, positions), width, 1e-12)
    mask = g.op("Cast", g.op("Unsqueeze", "attention_mask", g.integers(1, 2)), to=TensorProto.FLOAT)
    mask = g.op("Mul", g.op("Sub", g.scalar(1.0), mask), g.scalar(-10000.0))
    split = g.integers(0, 0, heads, width // heads)
    for _ in range(layers):
        q, k, v = (g.op("Reshape", g.linear(x, width, width), split) for _ in range(3))
        q, v = (g.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        y = attend(g, q, g.op("Transpose", k, perm=[0, 2, 3, 1]), v, width, heads, mask)
        x = g.layer_norm(g.op("Add", g.linear(y, width, width), x), width, 1e-12)
        y = g.linear(g.gelu(g.linear(x, width, hidden)), hidden, width)
        x = g.layer_norm(g.op("Add", y, x), width, 1e-12)
    return g.model(name, inputs, "last_hidden_state", [*tokens, width])


def bert_base():
    return bert("bert_base", Graph(seed=4), layers=12, width=768, heads=12, hidden=3072)


def minilm_l6():
    """The shape of all-MiniLM-L6."""
    return bert("minilm_l6", Graph(seed=5), **MINILM)


def trained_minilm(weights):
    """all-MiniLM-L6 itself: `weights` has the arrays of its checkpoint by name."""
    embeddings = [weights[f"embeddings.{n}_embeddings.weight"] for n in ("position", "word", "token_type")]
    linear = lambda n: [weights[f"{n}.weight"].T, weights[f"{n}.bias"]]
    norm = lambda n: [weights[f"{n}.LayerNorm.weight"], weights[f"{n}.LayerNorm.bias"]]
    arrays = [*embeddings, *norm("embeddings")]
    for layer in (f"encoder.layer.{i}" for i in range(MINILM["layers"])):
        for part in ("query", "key", "value"):
            arrays += linear(f"{layer}.attention.self.{part}")
        arrays += linear(f"{layer}.attention.output.dense") + norm(f"{layer}.attention.output")
        arrays += linear(f"{layer}.intermediate.dense") + linear(f"{layer}.output.dense") + norm(f"{layer}.output")
    return bert("minilm_l6", Trained(arrays), **MINILM)


def vit_b16(layers=12, width=768, heads=12, hidden=3072, patch=16, image=224):
    """Source: An Image is Worth 16x16 Words, table 1; 1000 classes. Queries, keys and values come of one product."""
    g = Graph(seed=6)
    grid, d = image // patch, width // heads
    x = g.conv("image", 3, width, patch, stride=patch, gain=1.0)
    x = g.op("Transpose", g.op("Reshape", x, g.integers(0, width, grid * grid)), perm=[0, 2, 1])
    shape = g.op("Concat", g.size("image", 0), g.integers(1, width), axis=0)
    x = g.op("Concat", g.op("Expand", g.normal(1, 1, width, std=0.02), shape), x, axis=1)
    x = g.op("Add", x, g.normal(1, grid * grid + 1, width, std=0.02))
    for _ in range(layers):
        y = g.linear(g.layer_norm(x, width, 1e-6), width, 3 * width)
        y = g.op("Transpose", g.op("Reshape", y, g.integers(0, 0, 3, heads, d)), perm=[2, 0, 3, 1, 4])
        q, k, v = (g.op("Gather", y, g.index(i), axis=0) for i in range(3))
        y = attend(g, q, g.op("Transpose", k, perm=[0, 1, 3, 2]), v, width, heads)
        x = g.op("Add", x, g.linear(y, width, width))
        y = g.linear(g.gelu(g.linear(g.layer_norm(x, width, 1e-6), width, hidden)), hidden, width)
        x = g.op("Add", x, y)
    x = g.op("Gather", g.layer_norm(x, width, 1e-6), g.index(0), axis=1)
    g.linear(x, width, 1000)
    return g.model("vit_b16", {"image": (TensorProto.FLOAT, ["batch", 3, image, image])}, "logits", ["batch", 1000])

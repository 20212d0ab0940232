"""QDQ forms by onnxruntime's own quantizer: u8 activations, i8 weights per channel, ranges from random inputs."""
import pathlib
import tempfile

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

CALIBRATION_INPUTS = 4

# Sizes of symbolic dimensions while calibrating.
SIZES = {"batch": 1, "seq": 128}


class RandomInputs(CalibrationDataReader):
    def __init__(self, inputs):
        random = np.random.default_rng(0)
        self.feeds = iter([{i.name: draw(random, i) for i in inputs} for _ in range(CALIBRATION_INPUTS)])

    def get_next(self):
        return next(self.feeds, None)


def draw(random, port, sizes=SIZES):
    """A random value for an input of an onnxruntime session: normal numbers, token ids, or a mask of ones."""
    shape = [d if isinstance(d, int) else sizes.get(d, 1) for d in port.shape]
    if port.type == "tensor(float)":
        return random.standard_normal(shape, np.float32)
    kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}[port.type]
    if "mask" in port.name:
        return np.ones(shape, kind)
    return random.integers(0, 2 if "type" in port.name else 1000, shape).astype(kind)


def quantize(source, destination):
    """Reads and writes files."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = pathlib.Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        session = onnxruntime.InferenceSession(str(prepared), providers=["CPUExecutionProvider"])
        inputs = RandomInputs(session.get_inputs())
        del session
        quantize_static(str(prepared), str(destination), inputs, quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)

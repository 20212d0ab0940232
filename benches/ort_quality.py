#!/usr/bin/env python3
"""What onnxruntime's own quantizers cost in quality, on models of the test data: bytes of all weights against the difference from
the original, on the inputs and by the scores of `budgets.py`, to set beside its rows.

  ort_quality.py DATA [--models resnet56,dlrm,minilm] [--out FILE.json]

Weights of 8 and 4 bits by channel, with activations in 8 bits observed on the calibration data (`QDQ`) or rounded at run time (`dynamic`),
and weights of 4 bits in blocks alone (`MatMulNBits`). Needs numpy, onnx, onnxruntime and, for the encoder,
safetensors.
"""
import argparse
import json
import os
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, matmul_nbits_quantizer, quantize_dynamic, quantize_static, shape_inference

import safetensors.numpy

import budgets
from networks import transformers

CALIBRATED = 128


class Reader(CalibrationDataReader):
    """The first rows of the calibration data, a few at a time."""

    def __init__(self, path, rows=CALIBRATED, step=16):
        data = dict(np.load(path))
        self.batches = iter([{k: v[i : i + step] for k, v in data.items()} for i in range(0, rows, step)])

    def get_next(self):
        return next(self.batches, None)


def static(weights):
    def quantize(source, target, calibrate):
        quantize_static(source, target, Reader(calibrate), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8, weight_type=weights)

    return quantize


def dynamic(source, target, calibrate):
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def blocks(size):
    def quantize(source, target, calibrate):
        quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=size, is_symmetric=False)
        quantizer.process()
        quantizer.model.save_model_to_file(target)

    return quantize


FORMS = {
    "QDQ, int8": static(QuantType.QInt8),
    "QDQ, int4 weights": static(QuantType.QInt4),
    "dynamic, int8": dynamic,
    "MatMulNBits, blocks of 32": blocks(32),
}


def weight_bytes(path):
    """Bytes of what is stored; two codes of 4 bits share one."""
    total = 0
    for tensor in onnx.load(path).graph.initializer:
        numbers = int(np.prod(tensor.dims))
        four = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
        total += (numbers + 1) // 2 if four else numbers * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return total


def outputs(path, tests):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    parts = []
    for test in tests:
        rows = len(next(iter(test.values())))
        parts += [session.run(None, {k: v[i : i + 500] for k, v in test.items()}) for i in range(0, rows, 500)]
    return {name: np.concatenate(part) for name, part in zip(names, zip(*parts))}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("data")
    ap.add_argument("--models", default="resnet56,dlrm,minilm")
    ap.add_argument("--out")
    a = ap.parse_args()
    rows = []
    a.data, a.out = os.path.abspath(a.data), a.out and os.path.abspath(a.out)
    with tempfile.TemporaryDirectory() as work:
        # The quantizers leave files where they run.
        os.chdir(work)
        for model in budgets.models(a.data, work):
            if model.name not in a.models.split(","):
                continue
            source, path = os.path.join(work, f"{model.name}.onnx"), model.path
            if os.path.isdir(path):
                weights = safetensors.numpy.load_file(os.path.join(path, "model.safetensors"))
                path = os.path.join(work, "trained.onnx")
                onnx.save(transformers.trained_minilm(weights), path)
            # Its inference of symbols does not know how positions are cut.
            shape_inference.quant_pre_process(path, source, skip_symbolic_shape=os.path.isdir(model.path))
            original = outputs(path, model.tests)
            rows.append(first := {"model": model.name, "form": "original", "bytes": weight_bytes(source), **model.score(original, original)})
            for form, quantize in FORMS.items():
                target = os.path.join(work, "quantized.onnx")
                try:
                    quantize(source, target, model.calibrate)
                    if (size := weight_bytes(target)) == first["bytes"]:
                        raise ValueError("the model has no weight for it")
                    row = {"bytes": size, **model.score(outputs(target, model.tests), original)}
                except Exception as error:  # a form that a model has no place for is a row as well
                    row = {"refused": str(error)[-300:]}
                rows.append({"model": model.name, "form": form, **row})
                print(json.dumps(rows[-1]), flush=True)
    if a.out:
        with open(a.out, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

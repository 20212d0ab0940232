#!/usr/bin/env python3
"""Makes the folder of ONNX cases that tests/conformance runs, from the installed `onnx` package.

    python3 tests/conformance/generate.py FOLDER        then: LAPIDARY_ONNX_TESTS=FOLDER cargo test --test conformance

Needs `pip install onnx numpy`. Every case becomes FOLDER/KIND/NAME/{model.onnx, test_data_set_N/{input,output}_I.pb},
and index-VERSION.json lists kind, name, dir, rtol, atol, ops and whether it is a function body (`expanded`).
"""
import json
import pathlib
import shutil
import sys

import numpy
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

CONVERTERS = {"sequence_type": numpy_helper.from_list, "optional_type": numpy_helper.from_optional}


def encode(value, info):
    """A value as the message that its declared type asks for."""
    if not isinstance(value, onnx.TensorProto):
        convert = CONVERTERS.get(info.type.WhichOneof("value"))
        value = convert(value, info.name) if convert else numpy_helper.from_array(numpy.asarray(value), info.name)
    return value.SerializeToString()


def write_set(folder, graph, inputs, outputs):
    folder.mkdir(parents=True, exist_ok=True)
    for kind, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
        for i, (value, info) in enumerate(zip(values, infos)):
            (folder / f"{kind}_{i}.pb").write_bytes(encode(value, info))


def operators(model):
    standard = ("", "ai.onnx")
    return sorted({n.op_type if n.domain in standard else f"{n.domain}.{n.op_type}" for n in model.graph.node})


def entry(kind, name, rtol, atol, model):
    return dict(kind=kind, name=name, dir=f"{kind}/{name}", rtol=rtol, atol=atol, ops=operators(model),
                expanded=kind == "node" and "_expanded" in name)


def node_cases(root):
    for case in load_model_tests(kind="node"):
        folder = root / "node" / case.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(case.model.SerializeToString())
        for i, (inputs, outputs) in enumerate(case.data_sets):
            write_set(folder / f"test_data_set_{i}", case.model.graph, inputs, outputs)
        yield entry("node", case.name, case.rtol, case.atol, case.model)


def stored_cases(root, kind):
    for case in load_model_tests(kind=kind):
        shutil.copytree(case.model_dir, root / kind / case.name, dirs_exist_ok=True)
        yield entry(kind, case.name, case.rtol, case.atol, onnx.load(root / kind / case.name / "model.onnx"))


def light_cases(root):
    """Whole networks with constant weights; the input is a ramp from 0 to 1, as in ONNX's own runner."""
    source = pathlib.Path(onnx.__file__).parent / "backend/test/data/light"
    tolerances = {pathlib.Path(c.url or "").stem: (c.rtol, c.atol) for c in load_model_tests(kind="real")}
    for file in sorted(source.glob("light_*.onnx")):
        name = file.stem
        model = onnx.load(file)
        weights = {t.name for t in model.graph.initializer}
        info = next(i for i in model.graph.input if i.name not in weights)
        shape = [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
        count = int(numpy.prod(shape))
        ramp = (numpy.arange(count).reshape(shape) / count).astype(numpy.float32)
        folder = root / "light" / name
        (folder / "test_data_set_0").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / "model.onnx")
        shutil.copy(source / f"{name}_output_0.pb", folder / "test_data_set_0/output_0.pb")
        (folder / "test_data_set_0/input_0.pb").write_bytes(encode(ramp, info))
        yield entry("light", name, *tolerances.get(name, (1e-3, 1e-7)), model)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = pathlib.Path(sys.argv[1])
    cases = list(node_cases(root))
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        cases += stored_cases(root, kind)
    cases += light_cases(root)
    index = root / f"index-{onnx.__version__}.json"
    index.write_text(json.dumps(cases))
    print(f"{len(cases)} cases in {index}")


if __name__ == "__main__":
    main()

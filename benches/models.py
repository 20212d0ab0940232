#!/usr/bin/env python3
"""Writes the networks that are measured, by seed; those that are there already are left. Prints a line for each.

  benches/models.py [NAME ...] [--out FOLDER] [--list]

The folder is `lapidary-benches` in the user's cache folder unless `--out` names another. Weights are random, so
results mean nothing, but are neither constant nor NaN. Needs numpy and onnx; the `_qdq` forms onnxruntime too. The
trained networks are taken from `$LAPIDARY_DATA`, and left out where that is not set.
"""
import argparse
import os
import pathlib
import sys

import onnx

from networks import light, transformers, vision

MAKERS = {name: (lambda name=name: light.light(name)) for name in light.NAMES} | {
    "mobilenet_v2": vision.mobilenet_v2,
    "efficientnet_b0": vision.efficientnet_b0,
    "bert_base": transformers.bert_base,
    "minilm_l6": transformers.minilm_l6,
    "vit_b16": transformers.vit_b16,
}
QUANTIZED = ["resnet50", "mobilenet_v2", "bert_base"]

# Name, and file below `$LAPIDARY_DATA`.
TRAINED = {
    "cifar_resnet20": "cifar10/resnet20-cifar10.onnx",
    "cifar_resnet56": "cifar10/resnet56-cifar10.onnx",
    "squeezenet_dc": "squeezenet/squeezenet-1.0-dc.onnx",
}


def default_folder():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "lapidary-benches"


def names():
    """All networks, in the order of the tables."""
    trained = TRAINED if os.environ.get("LAPIDARY_DATA") else {}
    return [*MAKERS, *trained, *(f"{name}_qdq" for name in QUANTIZED)]


def make(name, folder):
    """The file of a network, written if it is not there. A trained one is a link."""
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    if name in TRAINED:
        part.symlink_to(pathlib.Path(os.environ["LAPIDARY_DATA"]).resolve() / TRAINED[name])
    elif name.endswith("_qdq"):
        from networks.quantized import quantize

        quantize(make(name.removesuffix("_qdq"), folder), part)
    else:
        onnx.save(MAKERS[name](), part)
    part.rename(path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=pathlib.Path, default=default_folder())
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(names()))
        return
    unknown = set(args.names) - set(names())
    if unknown:
        sys.exit(f"no such network: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or names():
        path = make(name, args.out)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()

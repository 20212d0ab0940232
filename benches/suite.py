#!/usr/bin/env python3
"""All tables of `benches/RESULTS.md`: makes the networks, builds the command, measures, and writes the part of the file that
is between its markers. Notes outside the markers are left as they are.

  benches/run [--rounds 3] [--seconds 1] [--threads 1,2] [--batches 1,8] [--sequences 16,128,512] [--only NAME,NAME]
              [--engines lapidary,onnxruntime,openvino] [--lapidary PATH] [--models FOLDER] [--print]
"""
import argparse
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import models
import report
import results

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The name of the batch in networks that were not written here.
BATCH_NAMES = {name: "N" for name in models.TRAINED}
WITH_SEQUENCES = ("bert", "minilm")


def cases(name, args):
    """The sizes at which a network is measured, as `compare.py` reads them."""
    batch = BATCH_NAMES.get(name, "batch")
    sizes = [f"{batch}={b}" for b in args.batches.split(",")]
    if name.startswith(WITH_SEQUENCES):
        sizes = [f"{size},seq={s}" for s in args.sequences.split(",") for size in sizes]
    return sizes


def compare(names, folder, args, json_file, engines=None, options=""):
    """What `compare.py` measures of these networks; `options` are for our build."""
    listed = [f"{models.make(name, folder)}:{sizes}" for name in names for sizes in cases(name, args)]
    if not listed:
        return None
    command = [sys.executable, ROOT / "benches" / "compare.py", *listed, "--threads", args.threads, "--rounds", str(args.rounds),
               "--seconds", str(args.seconds), "--engines", engines or args.engines, "--lapidary", args.lapidary, f"--options={options}", "--json", json_file]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(json_file.read_text())


def ceilings(model, args):
    """What `lapidary bench` measures of the machine, a line for each number of threads."""
    lines = []
    for threads in args.threads.split(","):
        command = [args.lapidary, "bench", model, "--dim", "batch=1", "--threads", threads, "--seconds", "0.1"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = re.search(r"this machine: (.*)", out)
        lines.append(f"- {found[1]}")
    return "\n".join(lines)


def processor():
    found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def revision():
    """The commit that is built, and whether its sources were changed."""
    def git(*args):
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "--", "*.rs") else "")


def command_line(args, parser):
    """What to type for the same measurement; places on this machine are left out."""
    words = [f" --{name} {value}" for name, value in vars(args).items()
             if name not in ("lapidary", "models", "out", "print", "write", "ggml_mm") and value != parser.get_default(name)]
    return "benches/run" + "".join(words)


def text(command, built, limits, results):
    known = [result for _, result in results if result]
    versions = ", ".join(f"{n} {v}" for n, v in known[0]["versions"].items())
    parts = [
        f"Written by `{command}`. {built}; {versions}.",
        f"Machine: {processor()}, {os.cpu_count()} processors; load average {os.getloadavg()[2]:.1f} (15 minutes) at the end. "
        f"Its ceilings as `lapidary bench` measures them:\n\n{limits}",
        "Times: median of the rounds' medians (lowest - highest); ratios are ours over theirs, below 1 is better. Sizes: batch, "
        "sequence. Ours is an executable made by `lapidary build`; memory is the peak of its whole process, theirs is "
        "less what the interpreter held before loading. `load s`: ours the whole process around one run, less the run; "
        "theirs making the session. `differs`: from onnxruntime on the same input, relative to the largest number, or in "
        "steps of the output's quantization.",
    ]
    for title, result in results:
        if result:
            parts.append(f"## {title}\n\n{report.tables(result['rows'])}".rstrip())
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--sequences", default="16,128,512")
    parser.add_argument("--only", default="", help="names of networks, after commas")
    parser.add_argument("--engines", default="lapidary,onnxruntime,openvino")
    parser.add_argument("--lapidary", help="a command that is built already")
    parser.add_argument("--models", type=pathlib.Path, default=models.default_folder())
    parser.add_argument("--print", action="store_true", help="print what would be written")
    args = parser.parse_args()
    built = "A command that was built before"
    if not args.lapidary:
        built = f"Revision {revision()}"
        subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "lapidary"], cwd=ROOT, check=True)
        args.lapidary = str(ROOT / "target" / "release" / "lapidary")
    known = models.names()
    names = args.only.split(",") if args.only else known
    if unknown := set(names) - set(known):
        sys.exit(f"no such network: {', '.join(sorted(unknown))}")
    args.models.mkdir(parents=True, exist_ok=True)
    limits = ceilings(models.make("squeezenet", args.models), args)
    quantized = [n for n in names if n.endswith("_qdq")]
    floats = [n for n in names if n not in quantized]
    found = [("f32", compare(floats, args.models, args, args.models / "f32.json")),
             ("int8 (QDQ)", compare(quantized, args.models, args, args.models / "int8.json"))]
    if "avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_text():
        # OpenVINO computes in bf16 here unless it is told otherwise.
        bf16 = compare(floats, args.models, args, args.models / "bf16.json", "lapidary,openvino-default", "--bf16")
        found.append(("bf16: `build --bf16` beside what OpenVINO does by default", bf16))
    part = text(command_line(args, parser), built, limits, found)
    if args.print:
        print(part)
        return
    results.write("measured", part)


if __name__ == "__main__":
    main()

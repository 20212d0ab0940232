#!/usr/bin/env python3
"""Speed, memory and results beside peers on the same inputs, alternated in one run; prints tables in Markdown.

  benches/compare.py MODEL.onnx[:DIM=N,DIM=N] ... [--threads 1,2] [--rounds 3] [--seconds 1] [--json FILE]
                     [--engines lapidary,onnxruntime,openvino] [--lapidary PATH] [--options=--bf16] [--tract PATH]

Each round runs every engine once on each model, in a process of its own, so that a slow minute of a shared machine falls
on all of them. Ours is an executable made by `lapidary build`. A time is the median of the rounds' medians; its spread is
their lowest and highest; a ratio is ours over theirs, so below 1 is faster than they. What an engine cannot do is said in
the table and is no reason to stop. Needs numpy, onnx, onnxruntime, and openvino where it is asked for (the default).
"""
import argparse
import importlib.metadata
import json
import pathlib
import sys
import tempfile

import report
from measure import OURS, Case, Failed, engines


def parse_case(text, folder, number):
    model, _, dims = text.partition(":")
    dims = {name: int(size) for name, size in (d.split("=") for d in dims.split(",") if d)}
    return Case(model, dims, pathlib.Path(folder) / str(number))


def measure_case(case, engines, threads, rounds, seconds):
    """A row for each engine: what its rounds gave, or the error that stopped it."""
    rows = {e: {"model": case.name, "dims": case.dims, "threads": threads, "engine": e, "rounds_ms": []} for e in engines}
    for round in range(rounds):
        for name, engine in engines.items():
            row = rows[name]
            if "error" in row:
                continue
            try:
                found = engine.measure(case, threads, seconds, round == 0)
            except Failed as error:
                row["error"] = str(error)
                print(f"{case.name} {case.dims} {name}: {error}", file=sys.stderr, flush=True)
                continue
            row["rounds_ms"].append(found.pop("ms"))
            row["best_ms"] = min(found.pop("best_ms"), row.get("best_ms", float("inf")))
            row["peak_mb"] = max(found.pop("peak_mb"), row.get("peak_mb", 0.0))
            row |= {k: v for k, v in found.items() if k not in row}
    if "own" in case.facts:
        rows["onnxruntime"]["own"] = case.facts["own"]
    return list(rows.values())


def version(engine):
    try:
        return importlib.metadata.version(engine.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--engines", default=f"{OURS},onnxruntime,openvino")
    parser.add_argument("--lapidary", default="target/release/lapidary")
    parser.add_argument("--options", default="", help="for `lapidary build`")
    parser.add_argument("--tract")
    parser.add_argument("--json", type=pathlib.Path, help="also write what was measured here, as it comes")
    args = parser.parse_args()
    names = args.engines.split(",") + (["tract"] if args.tract else [])
    chosen = engines(names, args.lapidary, args.tract, args.options.split())
    result = {
        "versions": {n: v for n in names if n != OURS and (v := version(n))},
        "rounds": args.rounds,
        "seconds": args.seconds,
        "rows": [],
    }
    for number, text in enumerate(args.models):
        with tempfile.TemporaryDirectory(prefix="lapidary-bench-") as folder:
            case = parse_case(text, folder, number)
            try:
                case.prepare()
            except Failed as error:
                # Without inputs and expectations nothing can be measured.
                result["rows"] += [{"model": case.name, "dims": case.dims, "threads": int(t), "engine": e, "rounds_ms": [],
                                    "error": f"no reference: {error}"} for t in args.threads.split(",") for e in names]
                print(f"{case.name}: no reference: {error}", file=sys.stderr)
                continue
            for threads in args.threads.split(","):
                result["rows"] += measure_case(case, chosen, int(threads), args.rounds, args.seconds)
                print(report.progress(result["rows"][-len(names):]), file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1))
    print(report.tables(result["rows"]))


if __name__ == "__main__":
    main()

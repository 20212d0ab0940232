"""Runs an engine on a model in a process of its own, and watches its memory."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

from judge import difference, read

HERE = pathlib.Path(__file__).resolve().parent
POLL_SECONDS = 0.005
TIMEOUT_SECONDS = 900

OURS = "lapidary"
PEERS = ["onnxruntime", "openvino", "openvino-default"]


class Failed(Exception):
    """An engine that did not do it; the text says why."""


def run(command):
    """Standard output, seconds, and the peak of resident memory in MB.

    The peak is read from `/proc` while the process lives, the same way for all: what `wait4` says of a child counts
    the memory of the parent that it was forked from."""
    begin = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = [0.0]

    def watch():
        while process.poll() is None:
            try:
                for line in open(f"/proc/{process.pid}/status"):
                    if line.startswith("VmHWM"):
                        peak[0] = int(line.split()[1]) / 1e3
            except (OSError, ValueError):
                pass  # It has just ended.
            time.sleep(POLL_SECONDS)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Failed(f"more than {TIMEOUT_SECONDS} s") from None
    watcher.join()
    if process.returncode:
        lines = [line for line in (err or out).strip().splitlines() if line.strip()]
        raise Failed(f"exit status {process.returncode}: " + " | ".join(lines[:3] if command[0] != sys.executable else lines[-1:])[:500])
    return out, time.perf_counter() - begin, peak[0]


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


class Case:
    """A model at fixed sizes, with inputs and the outputs that are expected, in a folder of its own."""

    def __init__(self, model, dims, folder):
        self.model, self.dims, self.folder = pathlib.Path(model), dims, pathlib.Path(folder)
        self.inputs = self.folder / "inputs"
        self.dim_options = [o for name, size in dims.items() for o in ("--dim", f"{name}={size}")]
        self.facts = None

    @property
    def name(self):
        return self.model.stem

    def child(self, engine, outputs, threads, seconds):
        return [sys.executable, HERE / "engines.py", engine, self.model, "--inputs", self.inputs, "--outputs", outputs,
                "--threads", threads, "--seconds", seconds, *self.dim_options]

    def prepare(self):
        """Draws inputs, and runs onnxruntime for what is expected."""
        out, _, _ = run(self.child("reference", self.folder / "expected", 1, 0))
        self.facts = last_json(out)

    def judge(self, outputs):
        try:
            return difference(read(outputs), read(self.folder / "expected"), self.facts["steps"])
        except ValueError as error:
            raise Failed(str(error)) from None


class Lapidary:
    """An executable that the command builds once for each case and number of threads, with these options."""

    BENCH = re.compile(r"(\d+) runs, \d+ threads: best ([\d.]+) ms, median ([\d.]+) ms, worst ([\d.]+) ms")

    def __init__(self, command, options=()):
        self.command, self.options = command, options

    def measure(self, case, threads, seconds, is_first):
        exe = case.folder / f"lapidary-{threads}{''.join(self.options)}"
        outputs = case.folder / "outputs"
        result = {}
        if is_first:
            build = [self.command, "build", case.model, "-o", exe, "--threads", threads, *self.options, *case.dim_options]
            _, result["build_s"], result["build_peak_mb"] = run(build)
        program = [exe, "--inputs", case.inputs, "--threads", threads]
        if is_first:
            shutil.rmtree(outputs, ignore_errors=True)
            _, once, _ = run([*program, "--outputs", outputs])
            result |= case.judge(outputs)
        out, _, peak = run([*program, "--bench", seconds])
        found = self.BENCH.search(out)
        if not found:
            raise Failed(f"no times in: {out[:200]}")
        result |= {"runs": int(found[1]), "best_ms": float(found[2]), "ms": float(found[3]), "peak_mb": peak, "base_mb": 0.0}
        if is_first:
            result["load_s"] = max(0.0, once - result["ms"] / 1e3)
        return result


class Peer:
    def __init__(self, name):
        self.name = name

    def measure(self, case, threads, seconds, is_first):
        outputs = case.folder / "outputs"
        shutil.rmtree(outputs, ignore_errors=True)
        out, _, peak = run(case.child(self.name, outputs, threads, seconds))
        found = last_json(out)
        return summary(found["lat_ms"]) | {k: found[k] for k in ("load_s", "base_mb", "running_mb")} | {"peak_mb": peak} | (
            case.judge(outputs) if is_first else {})


class Tract:
    """A program `CMD bench MODEL THREADS SECONDS` that prints `{"load_s": .., "lat_ms": [..]}`."""

    def __init__(self, command):
        self.command = command

    def measure(self, case, threads, seconds, is_first):
        if any(size != 1 for size in case.dims.values()):
            raise Failed("takes the model's own sizes only")
        out, _, peak = run([self.command, "bench", case.model, threads, seconds])
        found = last_json(out)
        return summary(found["lat_ms"]) | {"load_s": found["load_s"], "peak_mb": peak, "base_mb": 0.0}


def summary(times):
    times = sorted(times)
    return {"runs": len(times), "best_ms": times[0], "ms": times[len(times) // 2]}


def engines(names, lapidary, tract, options=()):
    """By name, ours first; `options` are for its `build`."""
    lapidary = shutil.which(lapidary) or os.path.abspath(lapidary)
    made = {OURS: Lapidary(lapidary, options)} | {n: Peer(n) for n in PEERS} | ({"tract": Tract(tract)} if tract else {})
    return {n: made[n] for n in names}

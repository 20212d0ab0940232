#!/usr/bin/env python3
"""What programs whose weights are in parts (`build --adjustable`) lose with less of them, and what they hold in memory and write then.

  benches/adjustable.py [--data FOLDER] [--windows 100] [--rounds 4] [--lapidary PATH] [--out FOLDER]

Quality is that of llama-wt2 (in FOLDER, calibrated on its texts; left out without one), beside a stack of fewer bits and BitStack's blocks.
Speed and memory are those of a Llama of 110 million parameters with random weights by seed, the best and the most of the rounds. Prints
tables in Markdown. Needs numpy.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import tempfile

import text

RECIPE = '[[weight]]\nname = "*embed*"\nmethod = "rtn"\nbits = 8\ngroup = 64\n[[weight]]\nname = "*"\nmethod = "{}"\nbits = {}\ngroup = {}\nclip = true\n'


def quality(args, data, out):
    model, texts = data / "llama-wt2", data / "text"
    common = ["--calibrate", texts / "wikitext-2-calib.bpe4096.u16.bin", "--samples", "128", "--work", out / "work",
              "--tokens", texts / "wikitext-2-test.bpe4096.u16.bin", "--windows", str(args.windows), "--against", model, "--json"]

    def measure(*more):
        done = subprocess.run([args.lapidary, "eval", model, *more, *common], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        return found["weights_bytes"], f"{found['perplexity']:.3f} | {found['against']['kl']:.5f} | {found['against']['top1_agreement']:.4f}"

    print("| weights | bytes used | perplexity | KL divergence | top-1 |\n| --- | ---: | ---: | ---: | ---: |")
    most, _ = measure("--adjustable")
    least, _ = measure("--adjustable", "--weights", "1")
    for n in range(6):
        used, cells = measure("--adjustable", "--weights", str(least + (most - least) * n // 5))
        print(f"| in parts | {used} | {cells} |", flush=True)
    for method, bits, group in [("gptq-refit", 3, 64), ("gptq-refit", 5, 64), ("bitstack", 3, 0), ("bitstack", 5, 0)]:
        recipe = out / "recipe.toml"
        recipe.write_text(RECIPE.format(method, bits, group))
        print(f"| `{method}`, {bits} {'blocks' if method == 'bitstack' else 'bits'} | | {measure('--recipe', recipe)[1]} |", flush=True)


def run(program, threads, limit):
    """Tokens per second of the text, peak bytes in memory, and bytes of weights that were used."""
    args = [program, "--prompt", "t1 t2 t3", "--max-tokens", "64", "--stats", "--threads", str(threads)]
    args += ["--memory", str(limit)] if limit else []
    child = subprocess.Popen(["/bin/sh", "-c", 'exec "$0" "$@"', *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    message = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, message
    used = int(re.findall(r"(\d+) of \d+ bytes of weights", message)[0])
    return float(re.findall(r"([\d.]+) tokens/s", message)[1]), usage.ru_maxrss * 1024, used


def speed(args, out):
    model, program = out / "110m", out / "110m-parts"
    if not program.exists():
        text.write_model(model, text.SHAPES["110m"])
        build = [args.lapidary, "build", model, "-o", program, "--adjustable", "--round-activations", "--work", out / "110m-work"]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    limits = [None, 150_000_000, 130_000_000, 110_000_000]
    found = {}
    for _ in range(args.rounds):
        for threads in (1, 2):
            for limit in limits:
                found.setdefault((threads, limit), []).append(run(program, threads, limit))
    print("\n| limit, MB | weights used, MB | most in memory, MB | threads | text, tokens/s |\n| ---: | ---: | ---: | ---: | ---: |")
    for (threads, limit), rounds in found.items():
        rate, peak, used = (max(r[i] for r in rounds) for i in range(3))
        print(f"| {f'{limit / 1e6:.0f}' if limit else 'none'} | {used / 1e6:.0f} | {peak / 1e6:.0f} | {threads} | {rate:.0f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--lapidary", default="target/release/lapidary")
    parser.add_argument("--out")
    args = parser.parse_args()
    out = pathlib.Path(args.out or tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    if args.data:
        quality(args, args.data, out)
    speed(args, out)


if __name__ == "__main__":
    main()

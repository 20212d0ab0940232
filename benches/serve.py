#!/usr/bin/env python3
"""How much text a server writes a second for one client and for eight, and whether its memory grows under load.

  benches/serve.py [--shape 110m] [--weights 4] [--kv f32] [--threads 2] [--clients 1,8] [--seconds 120] [--tokens 64] [--prompt 32]
                   [--lapidary PATH] [--out FOLDER] [--program PATH] [--write]

The model is that of `benches/text.py`, built with `--with-server`. Clients ask again as soon as they are answered, every second one by
a stream; one in sixteen leaves in the middle of it. The numbers of clients are alternated, some seconds each, until the time is over.
Prints tokens per second for each number, and the server's resident memory over time: the issue's line is 30 minutes
(`--seconds 1800`). `--write` puts the table between its markers in `benches/RESULTS.md`. Needs numpy, and Linux.
"""
import argparse
import asyncio
import json
import pathlib
import random
import subprocess
import tempfile
import time

import results
import text

SLICE = 10


async def ask(port, prompt, tokens, stream, leave):
    """One request; how many tokens it gave."""
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "stream": stream, "stream_options": {"include_usage": True}})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"POST /v1/completions HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        if leave:
            await reader.read(64)
            return 0
        answer = await reader.read()
    finally:
        writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(answer[:300])
    if stream:
        rest = rest.split(b"\n\n")[-3].removeprefix(b"data: ")
    return json.loads(rest)["usage"]["completion_tokens"]


async def load(port, clients, seconds, tokens, prompt):
    """Tokens per second that so many clients get."""
    end, written = time.monotonic() + seconds, 0

    async def client(number):
        nonlocal written
        ones = random.Random(number)
        n = 0
        while time.monotonic() < end:
            words = " ".join(f"t{ones.randrange(1000)}" for _ in range(prompt))
            # Not in one statement: others add to it while this one waits.
            got = await ask(port, words, tokens, n % 2 == 1, leave=n % 16 == 15)
            written += got
            n += 1

    begin = time.monotonic()
    await asyncio.gather(*(client(i) for i in range(clients)))
    return written / (time.monotonic() - begin)


def resident(process):
    """MiB of memory: all that is resident, and what of it is no file."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return [int(line.split()[1]) / 1024 for name in ("VmRSS", "RssAnon") for line in status.splitlines() if line.startswith(name + ":")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="110m")
    parser.add_argument("--weights", default="4")
    parser.add_argument("--kv", default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--lapidary", default="target/release/lapidary")
    parser.add_argument("--out")
    parser.add_argument("--program")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    program = pathlib.Path(args.program) if args.program else None
    if program is None:
        out = pathlib.Path(args.out or tempfile.mkdtemp())
        text.write_model(out / args.shape, text.SHAPES[args.shape])
        program = out / f"{args.shape}-{args.weights}-{args.kv}-server"
        text.build(args.lapidary, out / args.shape, args.weights, program, args.kv, ["--with-server"])
    server = subprocess.Popen([program, "--listen", "127.0.0.1:0", "--threads", str(args.threads)], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().rsplit(":", 1)[1])
        clients = [int(n) for n in args.clients.split(",")]
        rates, memory = {n: [] for n in clients}, []
        # The first round warms up.
        for n in clients:
            asyncio.run(load(port, n, 3, args.tokens, args.prompt))
        begin = time.monotonic()
        while time.monotonic() - begin < args.seconds:
            for n in clients:
                rates[n].append(asyncio.run(load(port, n, SLICE, args.tokens, args.prompt)))
                memory.append((time.monotonic() - begin, *resident(server)))
                print(f"{memory[-1][0]:7.0f} s: {n} clients, {rates[n][-1]:.1f} tokens/s; {memory[-1][1]:.1f} MiB, "
                      f"{memory[-1][2]:.1f} MiB of them no file", flush=True)
    finally:
        server.terminate()
        server.wait()
    mean = {n: sum(all) / len(all) for n, all in rates.items()}
    some = [memory[i] for i in sorted({round(i * (len(memory) - 1) / 4) for i in range(5)})]
    lines = [
        f"Written by `benches/serve.py --shape {args.shape} --weights {args.weights} --kv {args.kv} --threads {args.threads} --seconds {args.seconds:.0f}`: "
        f"prompts of {args.prompt} tokens, texts of {args.tokens}, {sum(map(len, rates.values()))} slices of {SLICE} s.",
        "",
        "| clients | tokens/s | of one client's |",
        "| ---: | ---: | ---: |",
        *(f"| {n} | {rate:.1f} | {rate / mean[clients[0]]:.2f} |" for n, rate in mean.items()),
        "",
        "| seconds | resident, MiB | of it no file, MiB |",
        "| ---: | ---: | ---: |",
        *(f"| {t:.0f} | {all:.1f} | {own:.1f} |" for t, all, own in some),
    ]
    table = "\n".join(lines)
    print(table)
    if args.write:
        results.write("serve", table)


if __name__ == "__main__":
    main()

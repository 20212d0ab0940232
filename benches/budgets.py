#!/usr/bin/env python3
"""What compression within a budget costs in quality, on the models of the test data: bytes of all weights against the difference from
the original. One command of `lapidary` each; `--methods` puts one method for all weights beside the budget of its bytes. It runs no other program's
quantizers.

  budgets.py DATA [--lapidary BIN] [--models NAME,...] [--bits 8,6,4,3,2,1.6] [--blind] [--methods] [--quantize] [--out FILE.json]

Needs numpy and onnx. DATA is the folder with the trained models. Inputs for calibration and for tests
are made from its files; the tests' are never calibrated on.
"""
import argparse
import json
import os
import subprocess
import tempfile

import numpy as np

METHODS = [("rtn", 4, 64), ("rtn", 3, 32), ("hqq", 4, 64), ("gptq", 4, 64), ("gptq", 3, 32), ("gptq", 2, 16), ("nf4", 4, 64)]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def spearman(a, b):
    rank = lambda v: np.argsort(np.argsort(v, kind="stable"), kind="stable").astype(float)
    return float(np.corrcoef(rank(a), rank(b))[0, 1])


def auc(score, label):
    # Ties share their mean rank.
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    positive = label == 1
    p, n = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * n))


class Model:
    """A model of the data: where it is, what it is calibrated on, how it is judged."""

    def __init__(self, name, path, calibrate, work):
        self.name, self.path, self.calibrate, self.work = name, path, calibrate, work

    def options(self, choice, blind):
        data = [] if blind else ["--calibrate", self.calibrate, "--work", os.path.join(self.work, self.name)]
        return [*choice, *data]


class Language(Model):
    def __init__(self, name, path, calibrate, work, tokens, windows):
        super().__init__(name, path, calibrate, work)
        self.tokens, self.windows = tokens, windows

    def judge(self, lapidary, choice, blind=False):
        found = run([lapidary, "eval", self.path, "--tokens", self.tokens, "--windows", str(self.windows), "--against", self.path, "--json", *self.options(choice, blind)])
        return {"kl": found["against"]["kl"], "top1": found["against"]["top1_agreement"], "perplexity": found["perplexity"]}


class Arrays(Model):
    """Runs on arrays; `score` turns outputs, and the original's, into numbers."""

    def __init__(self, name, path, calibrate, work, tests, score):
        super().__init__(name, path, calibrate, work)
        self.tests, self.score, self.original = tests, score, None

    def outputs(self, lapidary, choice, blind):
        with tempfile.TemporaryDirectory() as folder:
            exe = os.path.join(folder, "model")
            kind = ["--scores"] if os.path.isdir(self.path) else []
            run([lapidary, "build", self.path, "-o", exe, "--json", *kind, *self.options(choice, blind)])
            parts = []
            for k, test in enumerate(self.tests):
                inputs, out = os.path.join(folder, f"in{k}"), os.path.join(folder, f"out{k}")
                os.makedirs(inputs)
                np.savez(os.path.join(inputs, "inputs.npz"), **test)
                subprocess.run([exe, "--inputs", inputs, "--outputs", out], check=True)
                parts.append(dict(np.load(next(os.path.join(out, f) for f in os.listdir(out) if f.endswith(".npz")))))
            return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def judge(self, lapidary, choice, blind=False):
        if self.original is None:
            self.original = self.outputs(lapidary, [], True)
        return self.score(self.outputs(lapidary, choice, blind), self.original)


def run(command):
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{' '.join(command)}: {found.stderr.strip()[-400:]}")
    return json.loads(found.stdout.strip().splitlines()[-1])


def images(data, kind):
    raw = np.fromfile(os.path.join(data, f"cifar10/{kind}-images.u8.bin"), np.uint8).reshape(-1, 3, 32, 32)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in [(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)])
    return ((raw.astype(np.float32) / 255 - mean) / std).astype(np.float32)


def models(data, work):
    at = lambda *p: os.path.join(data, *p)
    calib, test = at("text/wikitext-2-calib.bpe4096.u16.bin"), at("text/wikitext-2-test.bpe4096.u16.bin")
    yield Language("llama-wt2", at("llama-wt2"), calib, work, test, 100)
    yield Language("mixtral-wt2", at("mixtral-wt2"), calib, work, test, 100)
    # One part of the stories is looked at, the other is the test.
    stories = np.fromfile(at("stories260k/tinystories-sample.tokens.u16.bin"), np.uint16)
    half = len(stories) // 2
    paths = [os.path.join(work, f"stories-{k}.bin") for k in ("calib", "test")]
    stories[:half].tofile(paths[0])
    stories[half:].tofile(paths[1])
    yield Language("stories260k", at("stories260k"), paths[0], work, paths[1], 10**6)

    x = images(data, "calib")
    labels = np.fromfile(at("cifar10/test-labels.u8.bin"), np.uint8)
    name = run_names(at("cifar10/resnet56-cifar10.onnx"))[0]
    np.savez(os.path.join(work, "cifar.npz"), **{name: x})

    def classes(found, original):
        y, y0 = found["logits"], original["logits"]
        p, q = log_softmax(y0.astype(float)), log_softmax(y.astype(float))
        return {"kl": float((np.exp(p) * (p - q)).sum(-1).mean()), "top1": float((y.argmax(-1) == y0.argmax(-1)).mean()), "accuracy": float((y.argmax(-1) == labels).mean())}

    yield Arrays("resnet56", at("cifar10/resnet56-cifar10.onnx"), os.path.join(work, "cifar.npz"), work, [{name: images(data, "test")}], classes)

    rows = lambda kind, what, t, n: np.fromfile(at(f"tabular/adult-{kind}-{what}.bin"), t).reshape(-1, n)
    table = lambda kind: {"dense": rows(kind, "dense.f32", np.float32, 6), "sparse": rows(kind, "sparse.u16", np.uint16, 12).astype(np.int64)}
    np.savez(os.path.join(work, "adult.npz"), **table("calib"))
    clicked = np.fromfile(at("tabular/adult-test-labels.u8.bin"), np.uint8)

    def clicks(found, original):
        pair = lambda v: log_softmax(np.stack([np.zeros(v.size), v.reshape(-1).astype(float)], -1))
        p, q = pair(original["logit"]), pair(found["logit"])
        return {"kl": float((np.exp(p) * (p - q)).sum(-1).mean()), "top1": float((p.argmax(-1) == q.argmax(-1)).mean()), "auc": auc(found["logit"].reshape(-1), clicked)}

    yield Arrays("dlrm", at("tabular/dlrm-adult.onnx"), os.path.join(work, "adult.npz"), work, [table("test")], clicks)

    ids = np.fromfile(at("stsbenchmark/sts-test.wordpiece-ids.u16.bin"), np.uint16)
    scores = np.fromfile(at("stsbenchmark/sts-test.scores.f32.bin"), np.float32)
    sentences, k = [], 0
    while k < len(ids):
        n = int(ids[k])
        sentences.append(ids[k + 1 : k + 1 + n].astype(np.int64))
        k += 1 + n
    width = 64
    batch = lambda part: {
        "input_ids": np.stack([np.pad(s[:width], (0, width - len(s[:width]))) for s in part]),
        "attention_mask": np.stack([np.pad(np.ones(len(s[:width]), np.int64), (0, width - len(s[:width]))) for s in part]),
        "token_type_ids": np.zeros((len(part), width), np.int64),
    }
    # Calibrated on the first 64 pairs, judged on the others.
    calibrated = 128
    np.savez(os.path.join(work, "sts.npz"), **batch(sentences[:calibrated]))
    tests = [batch(sentences[b : b + 128]) for b in range(calibrated, len(sentences), 128)]
    masks = np.concatenate([t["attention_mask"] for t in tests])[..., None]

    def meanings(found, original):
        def embed(y):
            m = (y["last_hidden_state"] * masks).sum(1) / masks.sum(1)
            return m / np.linalg.norm(m, axis=-1, keepdims=True)

        a, b = embed(found), embed(original)
        pairs = (a[0::2] * a[1::2]).sum(-1)
        return {"cosine": float((a * b).sum(-1).mean()), "spearman": spearman(pairs, scores[calibrated // 2 :])}

    yield Arrays("minilm", at("all-MiniLM-L6-v2"), os.path.join(work, "sts.npz"), work, tests, meanings)


def run_names(path):
    import onnx

    return [i.name for i in onnx.load(path).graph.input]


def uniform(lapidary, model, method, bits, group, work):
    """One method for all weights: its bytes and its difference."""
    recipe = os.path.join(work, "recipe.toml")
    with open(recipe, "w") as f:
        # Tables whose rows are only looked up have no inputs to look at.
        for name, own in [("*emb*", "rtn"), ("*", method)] if method.startswith("gptq") else [("*", method)]:
            f.write(f"[[weight]]\nname = '{name}'\nmethod = '{own}'\nbits = {bits}\ngroup = {group}\nclip = true\n")
    exe = os.path.join(work, "uniform.image")
    built = run([lapidary, "build", model.path, "-o", exe, "--emit", "image", "--json", *model.options(["--recipe", recipe], False)])
    return built["compression"]["bytes"], model.judge(lapidary, ["--recipe", recipe])


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("data")
    ap.add_argument("--lapidary", default="target/release/lapidary")
    ap.add_argument("--models")
    ap.add_argument("--bits", default="8,6,4,3,2,1.6")
    ap.add_argument("--blind", action="store_true", help="without calibration")
    ap.add_argument("--methods", action="store_true", help="also one method for all weights, at its bytes")
    ap.add_argument("--quantize", action="store_true", help="also with values between weights as codes")
    ap.add_argument("--out")
    a = ap.parse_args()
    rows = []

    def note(row):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if a.out:
            with open(a.out, "w") as f:
                json.dump(rows, f, indent=1)

    with tempfile.TemporaryDirectory() as work:
        for model in models(a.data, work):
            if a.models and model.name not in a.models.split(","):
                continue
            for how in ("int8", "bct") if a.quantize else ():
                note({"model": model.name, "quantize": how, **model.judge(a.lapidary, ["--quantize", how])})
            for bits in filter(None, a.bits.split(",")):
                try:
                    note({"model": model.name, "bits": bits, "blind": a.blind, **model.judge(a.lapidary, ["--bits", bits], a.blind)})
                except RuntimeError as e:
                    note({"model": model.name, "bits": bits, "refused": str(e)})
            for method in METHODS if a.methods else []:
                try:
                    size, alone = uniform(a.lapidary, model, *method, work)
                    note({"model": model.name, "method": method, "bytes": size, "alone": alone, "budget": model.judge(a.lapidary, ["--size", str(size)])})
                except RuntimeError as e:
                    note({"model": model.name, "method": method, "refused": str(e)})


if __name__ == "__main__":
    main()

"""Tables in Markdown from what `compare.py` measured."""
import math
import statistics

from measure import OURS

JUDGE = "onnxruntime"

# Differences of f32 results above this are printed bold.
SUSPICIOUS = 1e-3


def sizes(row):
    return ", ".join(str(n) for n in row["dims"].values()) or "-"


def count(threads):
    return f"{threads} thread{'' if threads == 1 else 's'}"


def time(row):
    if not row or not row["rounds_ms"]:
        return "failed"
    ms = row["rounds_ms"]
    digits = 2 if statistics.median(ms) < 100 else 0
    spread = f" ({min(ms):.{digits}f} - {max(ms):.{digits}f})" if len(ms) > 1 else ""
    return f"{statistics.median(ms):.{digits}f}{spread}"


def ratio(ours, theirs):
    if not (ours and theirs and ours["rounds_ms"] and theirs["rounds_ms"]):
        return None
    return statistics.median(ours["rounds_ms"]) / statistics.median(theirs["rounds_ms"])


def memory(row):
    """Peak in MB, less what an interpreter held before it loaded anything."""
    return row["peak_mb"] - row["base_mb"] if row and "peak_mb" in row else None


def number(value, digits=2):
    return "" if value is None else f"{value:.{digits}f}"


def far(row):
    """How far an engine's results are from onnxruntime's."""
    if not row or "relative" not in row:
        return "" if not row or "error" not in row else "failed"
    if "steps" in row:
        return steps(row)
    bold = "**" if row["relative"] > SUSPICIOUS else ""
    return f"{bold}{row['relative']:.1e}{bold}"


def steps(found):
    return f"{found['steps']:.0f} step" + ("" if round(found["steps"]) == 1 else "s")


def mean(ratios):
    ratios = [r for r in ratios if r]
    return number(math.exp(statistics.fmean(map(math.log, ratios)))) if ratios else ""


def table(heads, rows):
    """The first two columns are text."""
    lines = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def by_case(rows):
    """Rows of each case, by engine; the order is kept."""
    cases = {}
    for row in rows:
        cases.setdefault((row["model"], sizes(row)), {})[row["engine"]] = row
    return cases


def speed(rows, threads):
    chosen = [r for r in rows if r["threads"] == threads]
    engines = list(dict.fromkeys(r["engine"] for r in chosen))
    peers = [e for e in engines if e != OURS]
    lines, ratios = [], {p: [] for p in peers}
    for (model, dims), row in by_case(chosen).items():
        for p in peers:
            ratios[p].append(ratio(row.get(OURS), row.get(p)))
        lines.append([model, dims, *(time(row.get(e)) for e in engines), *(number(ratios[p][-1]) for p in peers)])
    lines.append(["geometric mean", "", *([""] * len(engines)), *(mean(ratios[p]) for p in peers)])
    heads = ["network", "sizes", *(f"{e} ms" for e in engines), *(f"/ {p}" for p in peers)]
    return f"{count(threads)}:\n\n" + table(heads, lines)


def worst(rows):
    """Of each case and engine the row, of all numbers of threads, whose results are furthest from what is expected."""
    found = {}
    for row in rows:
        key = (row["model"], sizes(row), row["engine"])
        if key not in found or row.get("relative", math.inf) > found[key].get("relative", math.inf):
            found[key] = row
    return by_case(found.values())


def costs(rows, threads):
    """Memory and times before the first result, of one number of threads; differences, the largest of all."""
    chosen = [r for r in rows if r["threads"] == threads]
    furthest = worst(rows)
    engines = list(dict.fromkeys(r["engine"] for r in chosen))
    peers = [e for e in engines if e != OURS]
    lines, shares = [], {p: [] for p in peers}
    for (model, dims), row in by_case(chosen).items():
        ours = row.get(OURS)
        peaks = {e: memory(row.get(e)) for e in engines}
        for p in peers:
            shares[p].append(peaks[OURS] / peaks[p] if peaks.get(OURS) and peaks[p] else None)
        own = row.get(JUDGE, {}).get("own")
        lines.append([model, dims, *(number(peaks[e], 0) for e in engines), *(number(shares[p][-1]) for p in peers),
                      number(ours and ours.get("build_s")), *(number((row.get(e) or {}).get("load_s"), 3) for e in engines),
                      *(far(furthest[model, dims].get(e)) for e in engines if e != JUDGE), steps(own) if own else ""])
    lines.append(["geometric mean", "", *([""] * len(engines)), *(mean(shares[p]) for p in peers),
                  *([""] * (1 + 2 * len(engines)))])
    heads = ["network", "sizes", *(f"{e} MB" for e in engines), *(f"/ {p}" for p in peers), "build s",
             *(f"{e} load s" for e in engines), *(f"{e} differs" for e in engines if e != JUDGE), "onnxruntime unoptimized differs"]
    return table(heads, lines)


def errors(rows):
    lines = [f"- {r['model']} ({sizes(r)}), {count(r['threads'])}, {r['engine']}: `{r['error']}`" for r in rows if "error" in r]
    return "What failed:\n\n" + "\n".join(lines) + "\n" if lines else ""


def tables(rows):
    """Speed for each number of threads; memory, load time and results for the first; what failed."""
    threads = list(dict.fromkeys(r["threads"] for r in rows))
    if not threads:
        return ""
    return "\n".join([*(speed(rows, t) for t in threads),
                      f"Memory, time to load, results ({count(threads[0])}):\n",
                      costs(rows, threads[0]), errors(rows)]).rstrip() + "\n"


def progress(rows):
    """One line for a case that is done."""
    first = rows[0]
    return f"{first['model']} ({sizes(first)}), {count(first['threads'])}: " + ", ".join(f"{r['engine']} {time(r)}" for r in rows)

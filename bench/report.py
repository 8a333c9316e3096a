"""Makes the table of targets from saved JSON, and with --page the figures and tables of docs/performance.md."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

Runs = list[dict[str, Any]]
Rows = list[tuple[str, str, str, str]]
CASE = ("test", "dtype", "variant", "n")  # of a limit
OURS = ("ours", "ours again")
LEVEL = 0.97
RMSPROP_PEERS = (
    "numpy",
    "numpy out=",
    "numexpr",
    "numba",
    "numba prange",
    "torch",
    "torch foreach",
    "torch.compile",
    "optax jit",
)
MARK = "<!-- Below this line everything is written by make bench. -->"
LIMITS_NOTE = """\
The largest of k1, k2 and k3 over the time of `update_`; above 1 where the part that is the limit was measured in
a slower moment, or its loop was not the best possible.

"""
PEERS_NOTE = """\
The time of each peer over that of `update_` in the same process; - where it was not measured. The last column is
Adagrad, not RMSProp: the nearest fused kernel that torch has.

"""
KINDS = {
    "trees": "Trees of arrays of 64, one thread",
    "options": "What options cost, 100 arrays of 64",
    "ufunc": "The ufunc and its wrapper",
    "subnormal": "Subnormal accumulators, 64 Ki float32",
    "cold": "Cold caches",
    "misaligned": "Where parameter and gradient start in a page, 64 Ki float32",
    "beside": "Beside other libraries' busy threads, 1 Mi float32 and products of 512 x 512",
}
BYTES = {"plain": 5, "momentum": 7, "centered": 7}  # values moved an element: times 4 in float32, 8 in float64


def load(paths: list[Path]) -> tuple[Runs, dict[str, Any]]:
    """The extra_info of all benchmarks, and of the machine."""
    runs: Runs = []
    machine: dict[str, Any] = {}
    for path in paths:
        saved = json.loads(path.read_text())
        machine = saved["machine_info"]
        for run in saved["benchmarks"]:
            merge(runs, run["extra_info"] | {"test": run["name"].partition("[")[0]})
    for run in runs:
        if run["test"] == "test_limit" and run["threads"] > 1:
            run["limit"] = limit_of_threads(run, find(runs, **{key: run[key] for key in CASE}, threads=1))
    return runs, machine


def limit_of_threads(run: dict[str, Any], alone: dict[str, Any] | None) -> float:
    """The limit of a case on several threads, each part of it on as many as are best: a few elements go best on one."""
    return max(min(time, alone["best"][kind]) if alone else time for kind, time in run["best"].items())


def merge(runs: Runs, new: dict[str, Any]) -> None:
    """Add a run; the peers of a case that was measured already join it, with their ratio to ours in their own run."""
    case = ("test", "kind", "dtype", "variant", "n", "count", "other", "threads")
    old = next((run for run in runs if all(run.get(key) == new.get(key) for key in case)), None)
    if old is None or "ours" not in old["medians"]:
        runs.append(new)
        return
    for name, time in new["medians"].items():
        if name != "ours":
            old["medians"][name] = time / new["medians"]["ours"] * old["medians"]["ours"]


def find(runs: Runs, **wanted: Any) -> dict[str, Any] | None:
    """The one run with these values, or None where it was not measured."""
    found = [run for run in runs if all(run.get(key) == value for key, value in wanted.items())]
    return found[0] if found else None


def targets(runs: Runs) -> Rows:
    """(what, target, measured, met) for every target that was measured."""
    rows: Rows = []

    def row(what: str, target: str, value: float, limit: float, form: str = "{:.2f}", least: bool = True) -> None:
        met = value >= limit if least else value <= limit
        rows.append((what, target, form.format(value), "yes" if met else "**no**"))

    def times_over(medians: dict[str, float], *names: str) -> float | None:
        known = [medians[name] for name in names if name in medians]
        return min(known) / medians["ours"] if known else None

    many = find(runs, test="test_many_arrays", count=1000, threads=1)
    if many:
        what, medians = "update_, 1000 arrays x 64 f32", many["medians"]
        row(what, "<= 30 ns an array", medians["ours"] * 1e6, 30, "{:.1f} ns", least=False)
        for names, limit in ((("numpy",), 120), (("torch", "torch foreach"), 220)):
            ratio = times_over(medians, *names)
            if ratio:
                row(what, f">= {limit}x {names[0]}", ratio, limit, "{:.0f}x")
    lone = find(runs, kind="lone", threads=1)
    if lone:
        what, medians = "update_, one array of 64", lone["medians"]
        row(what, "<= 250 ns", medians["ours"] * 1e9, 250, "{:.0f} ns", least=False)
        for names, limit in ((("numpy",), 16), (("torch", "torch foreach"), 80)):
            ratio = times_over(medians, *names)
            if ratio:
                row(what, f">= {limit}x {names[0]}", ratio, limit, "{:.1f}x")
    trees = find(runs, kind="trees", count=1000)
    if trees:
        ratio = trees["medians"]["nested dict"] / trees["medians"]["list"]
        row("nested dict of 1000 arrays", "<= 2x the list", ratio, 2, "{:.2f}x", least=False)
    for n, name, limit, threads in ((2**16, "64 Ki", 0.93, (1,)), (2**24, "16 Mi", 0.95, (1, 2))):
        for count in threads:
            for dtype in ("f32", "f64"):
                run = find(runs, test="test_limit", variant="plain", dtype=dtype, n=n, threads=count)
                if run:
                    what = f"{name} elements, {count} thread{'s' * (count > 1)}, {dtype}"
                    row(what, f">= {limit} of the limit", run["limit"] / run["ours"], limit)
    one, two = (find(runs, test="test_limit", variant="plain", dtype="f32", n=2**18, threads=t) for t in (1, 2))
    if one and two:
        row("256 Ki elements, 2 threads", ">= 1.7x of 1 thread", one["ours"] / two["ours"], 1.7, "{:.2f}x")
    for variant in ("momentum", "centered"):
        for n, name in ((2**16, "64 Ki"), (2**24, "16 Mi")):
            for dtype in ("f32", "f64"):
                run = find(runs, test="test_limit", variant=variant, dtype=dtype, n=n, threads=1)
                if run:
                    row(f"{variant}, {name}, {dtype}", ">= 0.90 of its limit", run["limit"] / run["ours"], 0.90)
    for test in ("test_one_array", "test_many_arrays", "test_resnet50"):
        for run in (r for r in runs if r["test"] == test):
            others = {name: t for name, t in run["medians"].items() if name not in OURS}
            if others:
                best = min(others, key=lambda name: others[name])
                size = run.get("n", "ResNet-50")
                count = f"{run['count']} x " if "count" in run else ""
                what = f"{count}{size} {run['dtype']}, {run['threads']} thread{'s' * (run['threads'] > 1)}"
                ratio = others[best] / run["medians"]["ours"]
                met = "yes" if ratio >= 1 else "level" if ratio >= LEVEL else "**no**"
                rows.append((what, "never slower than the best peer", f"{ratio:.2f}x {best}", met))
    for other, what in (("torch", "torch's threads"), ("numpy", "NumPy's BLAS threads")):
        beside = find(runs, kind="beside", other=other)
        for who, undisturbed in (("ours", "ours between those"), ("theirs", "theirs alone")) if beside else ():
            loss = beside["medians"][who] / beside["medians"][undisturbed]
            row(f"beside busy {what}: {who}", "<= 1.10x of undisturbed", loss, 1.10, "{:.2f}x", least=False)
    imported = find(runs, kind="import")
    if imported:
        row("import", "<= 15 ms over numpy", imported["medians"]["import"] * 1e3, 15, "{:.1f} ms", least=False)
    wheel = find(runs, kind="wheel")
    if wheel:
        row("wheel", "<= 500 kB", wheel["medians"]["wheel"] / 1e3, 500, "{:.0f} kB", least=False)
    return rows


def table(rows: Rows) -> str:
    """The table of targets, in Markdown."""
    cells = [("what", "target", "measured", "met"), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def summary(rows: Rows, runs: Runs) -> str:
    """How many targets were met, and how far the same thing differed from itself."""
    count = Counter(met for *_, met in rows)
    level = f", {count['level']} level with a peer that is ahead by at most {1 - LEVEL:.0%}" if count["level"] else ""
    pairs = [[run["medians"][name] for name in OURS] for run in runs if OURS[1] in run["medians"]]
    noise = [abs(again / once - 1) for once, again in pairs] or [0.0]
    return (
        f"{count['yes']} of {len(rows)} met{level}. `update_` measured twice in the same rounds: "
        f"{median(noise):.1%} apart in the median of the cases, {max(noise):.0%} in the worst."
    )


def machine_line(machine: dict[str, Any]) -> str:
    """Which machine, with which versions."""
    cpu = machine.get("cpu", {}).get("brand_raw", "unknown processor")
    config = machine["config"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{cpu}, {config['instruction set']}, Python {config['python']}; {versions}"


def throughput_figure(runs: Runs, caption: str, path: Path) -> None:
    """Elements a nanosecond against size, ours and the limit."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axes, dtype in zip(panels, ("f32", "f64"), strict=True):
        for threads, color in ((1, "C0"), (2, "C1")):
            found = [r for r in runs if r["test"] == "test_limit" and r["variant"] == "plain"]
            chosen = sorted((r for r in found if r["dtype"] == dtype and r["threads"] == threads), key=lambda r: r["n"])
            if not chosen:
                continue
            sizes = [r["n"] for r in chosen]
            label = f"{threads} thread{'s' * (threads > 1)}"
            axes.plot(sizes, [r["n"] / r["limit"] / 1e9 for r in chosen], "--", color=color, label=f"limit, {label}")
            axes.plot(sizes, [r["n"] / r["ours"] / 1e9 for r in chosen], "o-", color=color, label=f"update_, {label}")
        axes.set(
            xscale="log", title=f"one array, {dtype}", xlabel="elements", ylabel="elements a nanosecond", ylim=(0, None)
        )
        axes.legend()
    figure.supxlabel(caption, fontsize="xx-small", color="gray", ha="left", x=0.01)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def overhead_figure(runs: Runs, caption: str, path: Path) -> None:
    """Nanoseconds an array against the number of arrays."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    chosen = sorted(
        (r for r in runs if r["test"] == "test_many_arrays" and r["n"] == 64 and r["threads"] == 1),
        key=lambda r: r["count"],
    )
    for name in ("ours", "numpy", "numba", "torch", "torch foreach", "torch fused adagrad", "optax jit"):
        points = [(r["count"], r["medians"][name] / r["count"] * 1e9) for r in chosen if name in r["medians"]]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label="update_" if name == "ours" else name)
    axes.set(xscale="log", yscale="log", title="float32 arrays of 64", xlabel="arrays", ylabel="ns an array")
    figure.legend(loc="outside right center")
    figure.supxlabel(caption, fontsize="xx-small", color="gray", ha="left", x=0.01)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def peers_figure(runs: Runs, caption: str, path: Path) -> None:
    """Times of the peers over ours."""
    import matplotlib.pyplot as plt

    cases = [
        ("1000 arrays of 64", find(runs, test="test_many_arrays", count=1000, threads=1)),
        ("one array of 64 Ki", find(runs, test="test_one_array", dtype="f32", n=2**16, threads=1)),
        ("one array of 16 Mi", find(runs, test="test_one_array", dtype="f32", n=2**24, threads=1)),
        ("ResNet-50", find(runs, test="test_resnet50", threads=1)),
    ]
    cases = [(title, run) for title, run in cases if run]
    figure, panels = plt.subplots(1, len(cases), figsize=(3.6 * len(cases), 4), layout="constrained", squeeze=False)
    for axes, (title, run) in zip(panels[0], cases, strict=True):
        medians = run["medians"]  # type: ignore[index]
        names = sorted((name for name in medians if name not in OURS), key=lambda name: medians[name])
        bars = axes.barh(names, [medians[name] / medians["ours"] for name in names], color="C7")
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.axvline(1, color="C0")
        axes.set(title=title, xlabel="times as long as update_", xscale="log")
        axes.set_xlim(right=axes.get_xlim()[1] * 5)  # room for the numbers
    figure.supxlabel(caption, fontsize="xx-small", color="gray", ha="left", x=0.01)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def peers_table(runs: Runs) -> str:
    """Times over ours, a row a case."""
    names = [*RMSPROP_PEERS, "torch fused adagrad"]
    lines = ["| case | ours | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for run in runs:
        if run["test"] in ("test_one_array", "test_many_arrays", "test_resnet50"):
            count = f"{run['count']} x " if "count" in run else ""
            case = f"{count}{run.get('n', 'ResNet-50')} {run['dtype']}, {run['threads']} thr."
            ours = run["medians"]["ours"]
            others = [f"{run['medians'][name] / ours:.3g}" if name in run["medians"] else "-" for name in names]
            lines.append(f"| {case} | {ours * 1e6:.4g} µs | " + " | ".join(others) + " |")
    return "\n".join(lines)


def limits_table(runs: Runs) -> str:
    """Limit over ours by size, and bytes an element."""
    keys = [(v, d, t) for v in BYTES for d in ("f32", "f64") for t in (1, 2)]
    found = {(r["variant"], r["dtype"], r["threads"], r["n"]): r for r in runs if r["test"] == "test_limit"}
    keys = [key for key in keys if any(key == known[:3] for known in found)]
    lines = [
        "| elements | " + " | ".join(f"{v} {d} {t} thr." for v, d, t in keys) + " |",
        "|---" * (len(keys) + 1) + "|",
    ]
    lines.append(
        "| bytes an element | " + " | ".join(str(BYTES[v] * (4 if d == "f32" else 8)) for v, d, _ in keys) + " |"
    )
    for n in sorted({known[3] for known in found}):
        cells = [found.get((*key, n)) for key in keys]
        lines.append(f"| {n} | " + " | ".join(f"{c['limit'] / c['ours']:.2f}" if c else "-" for c in cells) + " |")
    return "\n".join(lines)


def medians_table(runs: Runs, kind: str) -> str:
    """The medians of one kind of run, as they are."""
    lines = []
    for run in (r for r in runs if r.get("kind") == kind):
        size = " ".join(f"{key}={run[key]}" for key in ("count", "n", "other", "threads") if key in run)
        lines += [f"| {size} | {name} | {1e6 * t:.3g} µs |" for name, t in run["medians"].items()]
    return "\n".join(["| | what | median |", "|---|---|---|", *lines])


def main() -> None:
    """Read the JSON, print the targets, and with --figures draw and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="+", type=Path)
    parser.add_argument(
        "--page", type=Path, help="the page to write the tables into, below its mark; figures go to images/"
    )
    arguments = parser.parse_args()
    runs, machine = load(arguments.json)
    rows = targets(runs)
    print(machine_line(machine))
    print(table(rows))
    print(summary(rows, runs))
    if arguments.page:
        figures = arguments.page.parent / "images"
        caption = f"make bench; {machine_line(machine)}"
        throughput_figure(runs, caption, figures / "throughput.png")
        overhead_figure(runs, textwrap.fill(caption, 110), figures / "overhead.png")
        peers_figure(runs, caption, figures / "peers.png")
        parts = {
            "Targets": f"{summary(rows, runs)}\n\n{table(rows)}",
            "Limit over ours": LIMITS_NOTE + limits_table(runs),
            "Peers, times over ours": PEERS_NOTE + peers_table(runs),
        }
        parts |= {title: medians_table(runs, kind) for kind, title in KINDS.items()}
        head = arguments.page.read_text().partition(MARK)[0]
        text = "\n\n".join(f"## {title}\n\n{part}" for title, part in parts.items())
        arguments.page.write_text(f"{head}{MARK}\n\n`make bench` on {machine_line(machine)}.\n\n{text}\n")


if __name__ == "__main__":
    main()

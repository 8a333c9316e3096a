"""The figures of the README and of docs/performance.md, from the measurements that results.py has joined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from baseline import COMMIT
from child import OPTIONS
from results import PEERS, Runs, Times, before, cold, find, size_of, threads_of

WIDTH = 8  # inches: text of 8 points is read as such where a page shows the figure 830 pixels wide
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 4,
    "savefig.dpi": 160,
}
NAMES = {"ours": "update_", "torch fused adagrad": "torch fused Adagrad"}
COLORS = {
    "ours": "#0b5cad",
    COMMIT: "#7fb2e5",
    "numpy": "#444444",
    "numpy out=": "#777777",
    "numexpr": "#999999",
    "numba": "#c2571a",
    "numba prange": "#e39b6d",
    "torch": "#8a2be2",
    "torch foreach": "#b383e0",
    "torch.compile": "#6a4c93",
    "optax jit": "#2a8a4a",
    "torch fused adagrad": "#a8327e",
}
THREADS = {1: COLORS["ours"], 2: COLORS["numba"]}
DECADES = {10: "10 ns", 100: "100 ns", 1000: "1 µs", 10000: "10 µs", 100000: "100 µs"}
COUNTED = ("numba", "numpy", "torch", "torch fused adagrad")  # the peers of the figure of small steps


def name_of(contender: str) -> str:
    """What a figure calls a contender."""
    return NAMES.get(contender, contender)


def short(value: float) -> str:
    """A ratio in three digits."""
    return f"{value:.0f}x" if value >= 99.5 else f"{value:.3g}x"


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved so that no two are nearer than `gap`: where labels are put beside lines."""
    order = np.argsort(values)
    moved = np.asarray(values, float)
    for _ in range(200):
        for low, high in itertools.pairwise(order):
            lack = gap - (moved[high] - moved[low])
            if lack > 0:
                moved[low] -= lack / 2
                moved[high] += lack / 2
    return list(moved)


def save(figure: Any, caption: str, path: Path) -> None:
    """Write it, with the machine below."""
    figure.supxlabel(caption.replace("; ", "\n", 1), fontsize=8, color="gray", ha="left", x=0.01)
    figure.savefig(path)
    plt.close(figure)


def throughput(runs: Runs, caption: str, path: Path) -> None:
    """Elements a nanosecond against size, ours and the limit."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    for axes, dtype in zip(panels, ("f32", "f64"), strict=True):
        lines: dict[int, dict[int, Times]] = {}  # threads: elements: times
        for run in runs:
            if run["kind"] == "limit" and run["dtype"] == dtype and not run.get("variant"):
                lines.setdefault(run["threads"], {})[run["n"]] = run["medians"]
        for threads, line in lines.items():
            sizes, color = sorted(line), THREADS[threads]
            limit, ours = ([n / line[n][name] / 1e9 for n in sizes] for name in ("limit", "ours"))
            axes.plot(sizes, limit, "--", color=color, linewidth=1)
            axes.plot(sizes, ours, "o-", color=color)
            at = (sizes[0], max(limit[:5])), (0, 4)
            axes.annotate(f"limit, {threads_of(threads)}", *at, textcoords="offset points", color=color)
        axes.set(ylim=(0, axes.get_ylim()[1] * 1.05))
        ends = {threads: max(line) / line[max(line)]["ours"] / 1e9 for threads, line in lines.items()}
        for threads, y in zip(ends, apart(list(ends.values()), axes.get_ylim()[1] / 7), strict=True):
            axes.annotate(f"update_,\n{threads_of(threads)}", (2**25.7, y), color=THREADS[threads], va="center")
        for n in (2**16, 2**24):
            known = sorted((line[n]["ours"], threads) for threads, line in lines.items() if n in line)
            for (time, threads), offset in zip(known, (8, -9), strict=False):  # the faster one above its point
                text, at = f"{lines[threads][n]['limit'] / time:.2f}", ((n, n / time / 1e9), (0, offset))
                words = {"textcoords": "offset points", "ha": "center", "va": "center", "color": THREADS[threads]}
                words["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.75}
                axes.annotate(text, *at, **words)
        ticks = [2**k for k in (8, 12, 16, 20, 24)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [size_of(n) for n in ticks])
        axes.set(xlim=(2**7.5, 2**30), title=f"one array, {dtype}", xlabel="elements", ylabel="elements a nanosecond")
    title = "The plain step of one array in a row; the numbers are the part of the limit that is reached"
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    save(figure, caption, path)


def overhead(runs: Runs, caption: str, path: Path) -> None:
    """Nanoseconds an array against the number of arrays."""
    found = [r for r in runs if r["kind"] == "many" and r["n"] == 64 and r["threads"] == 1]
    chosen = sorted(found, key=lambda r: r["count"])
    if not chosen:
        return
    figure, axes = plt.subplots(figsize=(WIDTH, 4), layout="constrained")
    ends = {}
    for name in ("ours", "numpy", "numba", "torch", "torch foreach", "optax jit", "torch fused adagrad"):
        points = [(r["count"], r["medians"][name] / r["count"] * 1e9) for r in chosen if name in r["medians"]]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=COLORS[name], linewidth=2 if name == "ours" else 1)
            ends[name] = points[-1][1]
    axes.set(xscale="log", yscale="log", xlabel="arrays in the list", ylabel="time of an array")
    axes.set_title(
        "Lists of float32 arrays of 64, 1 thread, the same arrays at each call; at the lines: time over update_"
    )
    axes.set_xticks([r["count"] for r in chosen], [str(r["count"]) for r in chosen])
    axes.minorticks_off()
    axes.set_yticks(list(DECADES), list(DECADES.values()))
    low, high = np.log10(axes.get_ylim())
    last = chosen[-1]["count"]
    for (name, end), y in zip(ends.items(), apart(np.log10(list(ends.values())), (high - low) / 22), strict=True):
        text = f"{name_of(name)}, {end:.3g} ns" if name == "ours" else f"{name_of(name)}, {short(end / ends['ours'])}"
        axes.annotate(text, (last * 1.06, 10**y), color=COLORS[name], va="center")
    axes.set_xlim(right=last * 2.2)
    save(figure, caption, path)


def row_labels(axes: Any, labels: dict[float, str], span: tuple[float, float], part: float) -> None:
    """Rows instead of a y axis; a log axis of `span` in the left `part` of the panel, beside which numbers go."""
    low, high = span
    axes.set(xscale="log", xlim=(low, low * (high / low) ** (1 / part)))
    axes.spines["bottom"].set_bounds(low, high)
    axes.set_yticks(list(labels), list(labels.values()))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def dots(axes: Any, rows: Sequence[tuple[str, Times]], span: tuple[float, float], part: float = 1) -> None:
    """Ratios as dots on a log axis with a line at 1; a row each, from the top."""
    for y, (_, values) in enumerate(rows):
        axes.plot(span, [y, y], color="#eeeeee", linewidth=0.8, zorder=0)
        for name, value in values.items():
            axes.plot(value, y, "o", color=COLORS[name], zorder=3)
    axes.axvline(1, color=COLORS["ours"], linewidth=1)
    axes.set(ylim=(len(rows) - 0.4, -0.6))
    row_labels(axes, dict(enumerate(label for label, _ in rows)), span, part)
    ticks = [10**k for k in range(0, int(np.log10(span[1])) + 1, 2 if span[1] > 1000 else 1)]
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()


def column(axes: Any, place: float, head: str, cells: dict[float, str], color: str) -> None:
    """Numbers in a panel, right-aligned at `place` (1 is its right edge), below a head."""
    across = {"ha": "right", "va": "center", "color": color}
    for y, cell in cells.items():
        axes.annotate(cell, (place, y), xycoords=("axes fraction", "data"), **across)
    if head:
        axes.annotate(head, (place, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", **across)


def against_peers(runs: Runs, caption: str, path: Path) -> None:
    """Times of the peers over ours, the same rows and axis in each panel."""
    cases = [
        ("1000 arrays of 64", {"kind": "many", "count": 1000}),
        ("one array, 64 Ki", {"kind": "one", "dtype": "f32", "n": 2**16}),
        ("one array, 16 Mi", {"kind": "one", "dtype": "f32", "n": 2**24}),
        ("ResNet-50", {"kind": "resnet50"}),
    ]
    found = [(title, run["medians"]) for title, case in cases if (run := find(runs, threads=1, **case))]
    if not found:
        return
    figure, panels = plt.subplots(1, len(found), figsize=(WIDTH, 3.6), layout="constrained", sharey=True, squeeze=False)
    for axes, (title, times) in zip(panels[0], found, strict=True):
        rows = [(name_of(n), {n: times[n] / times["ours"]} if n in times else {}) for n in PEERS]
        dots(axes, rows, (0.6, 12000))
        for y, (_, values) in enumerate(rows):
            for value in values.values():
                axes.annotate(short(value), (value, y), (6, 0), textcoords="offset points", va="center")
            if not values:
                axes.annotate("not measured", (1.3, y), va="center", color="gray")
        axes.set_title(title)
    figure.suptitle("Time of each peer over update_ (the line at 1); float32, 1 thread", fontsize=9, x=0.01, ha="left")
    save(figure, caption, path)


def small_steps(runs: Runs, caption: str, path: Path) -> None:
    """Hot and after a backward pass; other arrays, options; rates: ours, the earlier version, peers."""
    figure = plt.figure(figsize=(WIDTH, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 0.9), height_ratios=(15, 7))
    hot_and_cold(figure.add_subplot(grid[:, 0]), runs)
    calls(figure.add_subplot(grid[0, 1]), runs)
    rates(figure.add_subplot(grid[1, 1]), runs)
    figure.suptitle("Small steps; float32, 1 thread", fontsize=9, x=0.01, ha="left")
    save(figure, caption, path)


def hot_and_cold(axes: Any, runs: Runs) -> None:
    """From the time hot (filled) to that after a backward pass (open), in groups of a case each."""
    cases = (
        ("1000 x 64, in order", {"count": 1000, "layout": None}),
        ("1000 x 64, scattered", {"count": 1000, "layout": "scattered"}),
        ("1000 x 64, nested dict", {"count": 1000, "layout": "nested dict"}),
        ("one array of 64", {"count": None, "n": 64}),
    )
    y, labels, highest = 0.0, {}, 1e5
    for title, case in cases:
        run = find(runs, kind="versions", **case)
        if run is None:
            continue
        times: Times = run["medians"]
        count = run.get("count") or 1
        heads = ("time", "ratio") if y == 0 else ("", "")
        axes.annotate(title, (0, y), xycoords=("axes fraction", "data"), va="center", weight="bold")
        for name in ("ours", COMMIT, *COUNTED):
            if cold(name) not in times:
                continue
            y += 1
            labels[y] = f"update_ at {COMMIT}" if name == COMMIT else name_of(name)
            ends = [times[key] / count * 1e9 for key in (name, cold(name))]
            highest = max(highest, 1.3 * ends[1])
            axes.plot(ends, [y, y], color=COLORS[name], linewidth=1)
            axes.plot(ends[0], y, "o", color=COLORS[name])
            axes.plot(ends[1], y, "o", markerfacecolor="white", color=COLORS[name])
            column(
                axes,
                0.82,
                heads[0],
                {y: f"{ends[1]:.0f} ns" if ends[1] < 1000 else f"{ends[1] / 1000:.3g} µs"},
                COLORS[name],
            )
            column(axes, 1, heads[1], {y: short(times[cold(name)] / times[cold("ours")])}, COLORS[name])
            heads = ("", "")
        y += 1.6
    axes.set(ylim=(y - 0.8, -0.8))
    row_labels(axes, labels, (10, highest), 0.66)
    axes.set_xticks(list(DECADES), list(DECADES.values()))
    axes.minorticks_off()
    title = (
        "Time of an array: hot (filled), after a backward pass (open);\nnumbers: after that pass, and over update_\n"
    )
    axes.set_title(title)


def calls(axes: Any, runs: Runs) -> None:
    """What is not the plain step over the plain step, here and in the earlier version."""
    rows = []
    for count, n in ((1, 4), (100, 64), (1000, 64)):
        run = find(runs, kind="versions", count=count, n=n, layout=None)
        for name in ("new parameter arrays", "new gradient arrays", "rms.update", *OPTIONS) if run else ():
            times = run["medians"]
            if name in times:
                pairs = (("ours", name, "ours"), (COMMIT, before(name), before("ours")))
                values = {who: times[one] / times[base] for who, one, base in pairs if one in times}
                what = name.replace(" arrays", "s").removeprefix("rms.")
                rows.append((what if name in OPTIONS else f"{what}, {count} x {n}", values))
    if not rows:
        return
    dots(axes, rows, (0.7, 2000), 0.52)
    for who, place, head in (("ours", 0.74, "here"), (COMMIT, 1, COMMIT)):
        cells = {float(y): short(values[who]) for y, (_, values) in enumerate(rows) if who in values}
        column(axes, place, head, cells, COLORS[who])
    axes.set_title("Hot: time over the plain step of\nits version; options on 100 x 64\n")


def rates(axes: Any, runs: Runs) -> None:
    """Learning rates in arrays: the peers over ours."""
    rows = []
    for run in (run for run in runs if run["kind"] == "rates"):
        times = run["medians"]
        values = {name: times[name] / times["ours"] for name in ("numba", "numpy") if name in times}
        rows.append((f"{run['rates']}, n = {run['n']}", values))
    if not rows:
        return
    lowest = min(min(values.values()) for _, values in rows)
    dots(axes, rows, (min(0.5, lowest / 2), 12), 0.52)
    for who, place in (("numba", 0.74), ("numpy", 1)):
        cells = {float(y): short(values[who]) for y, (_, values) in enumerate(rows) if who in values}
        column(axes, place, who, cells, COLORS[who])
    axes.set_title("A learning rate per row or element,\n(1000, n): time of peers over rmsprop\n")


def draw(runs: Runs, caption: str, folder: Path) -> None:
    """All of them."""
    with plt.rc_context(STYLE):
        throughput(runs, caption, folder / "throughput.png")
        overhead(runs, caption, folder / "overhead.png")
        against_peers(runs, caption, folder / "peers.png")
        small_steps(runs, caption, folder / "small_steps.png")

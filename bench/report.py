"""Makes the table of targets from saved JSON, and with --page the figures and tables of docs/performance.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import figures
from baseline import COMMIT
from child import OPTIONS
from results import (
    AGAINST_PEERS,
    PEERS,
    Runs,
    before,
    case_of,
    cold,
    find,
    load,
    machine_of,
    size_of,
    threads_of,
    time_of,
)
from targets import Row, summary, targets

MARK = "<!-- Below this line everything is written by make bench. -->"
VARIANTS = {None: 5, "momentum": 7, "centered": 7}  # values moved an element: times 4 in float32, 8 in float64
SIDE_BY_SIDE = ("numpy", "numba", "torch", "torch fused adagrad")
CALLS = ("new parameter arrays", "rms.update", "new gradient arrays")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def over(times: dict[str, float], name: str, base: str = "ours") -> str:
    """The cell of one time over another."""
    return f"{times[name] / times[base]:.3g}" if name in times and base in times else "-"


def time(times: dict[str, float], name: str) -> str:
    """The cell of a time."""
    return time_of(times[name]) if name in times else "-"


def side_by_side(runs: Runs) -> str:
    """Hot and after a backward pass, a row each."""
    cases = (
        ("1000 x 64, in order", {"count": 1000, "layout": None}),
        ("1000 x 64, scattered", {"count": 1000, "layout": "scattered"}),
        ("1000 x 64, nested dict", {"count": 1000, "layout": "nested dict"}),
        ("one array of 64", {"count": None, "n": 64}),
    )
    names = ("ours", before("ours"), *SIDE_BY_SIDE)
    rows = []
    for what, case in cases:
        run = find(runs, kind="versions", **case)
        if run:
            times = run["medians"]
            rows.append([what, "hot", *(time(times, name) for name in names)])
            rows.append([what, "after a backward pass", *(time(times, cold(name)) for name in names)])
            slower = [over(times, cold(name), name) for name in names]
            rows.append([what, "the second over the first", *slower])
    return markdown(["float32, 1 thread", "", "update_", f"at {COMMIT}", *SIDE_BY_SIDE], rows)


def calls(runs: Runs) -> str:
    """Other arrays at each call, the pure step, and options: over the plain step, here and in the earlier version."""
    rows = []
    for run in (run for run in runs if run["kind"] == "versions" and not run.get("layout")):
        times = run["medians"]
        for name in ("ours", *CALLS, *OPTIONS):
            if name in times and run.get("count"):
                what = "update_, the same arrays" if name == "ours" else name
                cells = time(times, name), over(times, name)
                old = time(times, before(name)), over(times, before(name), before("ours"))
                rows.append([f"{run['count']} x {run['n']}", what, *cells, *old])
    return markdown(["float32, 1 thread", "", "time", "over plain", f"at {COMMIT}", "over its plain"], rows)


def rates(runs: Runs) -> str:
    """Learning rates in arrays."""
    names = ("numba", "numpy")
    found = [run for run in runs if run["kind"] == "rates"]
    rows = [
        [f"a rate per {run['rates']}", f"1000 x {run['n']}", time(run["medians"], "ours")]
        + [over(run["medians"], name) for name in names]
        for run in found
    ]
    return markdown(["float32, 1 thread", "arrays", "rmsprop", *(f"{name}, over it" for name in names)], rows)


def limits(runs: Runs) -> str:
    """Limit over ours by size, and bytes an element."""
    found = {(r.get("variant"), r["dtype"], r["threads"], r["n"]): r["medians"] for r in runs if r["kind"] == "limit"}
    keys = [(v, d, t) for v in VARIANTS for d in ("f32", "f64") for t in (1, 2)]
    keys = [key for key in keys if any(key == known[:3] for known in found)]
    rows = [["bytes an element", *(str(VARIANTS[v] * {"f32": 4, "f64": 8}[d]) for v, d, _ in keys)]]
    for n in sorted({known[3] for known in found}):
        cells = [found.get((*key, n)) for key in keys]
        rows.append([size_of(n), *(f"{c['limit'] / c['ours']:.2f}" if c else "-" for c in cells)])
    return markdown(["elements", *(f"{v or 'plain'} {d} {t} thr." for v, d, t in keys)], rows)


def peers(runs: Runs) -> str:
    """Times over ours, a row a case."""
    rows = [
        [
            case_of(run),
            threads_of(run["threads"]),
            time(run["medians"], "ours"),
            *(over(run["medians"], name) for name in PEERS),
        ]
        for run in runs
        if run["kind"] in AGAINST_PEERS
    ]
    return markdown(["case", "", "ours", *PEERS], rows)


def ratios(runs: Runs, kind: str, base: str, names: Sequence[str] = ()) -> str:
    """The contenders of one kind of run over `base`; runs are columns. With `base` "ours" also its time."""
    found = [run for run in runs if run["kind"] == kind]
    labels = [
        ", ".join([str(run[key]) for key in ("count", "other") if key in run])
        or (size_of(run["n"]) if "n" in run else threads_of(run["threads"]))
        for run in found
    ]
    if kind in ("cold", "storage"):
        labels = [f"{label}, {threads_of(run['threads'])}" for label, run in zip(labels, found, strict=True)]
    names = names or [name for name in (found[0]["medians"] if found else ()) if name != base]
    rows = [[name, *(over(run["medians"], name, base) for run in found)] for name in names]
    if base == "ours":
        rows.insert(0, ["time of the first", *(time(run["medians"], base) for run in found)])
    return markdown([f"over {FIRST.get(kind, base)}", *labels], rows)


FIRST = {"trees": "a list of arrays", "ufunc": "update_"}  # what "ours" is there
TREES = ("tuple", "flat dict", "nested dict", "nested dict, keys in another order", "a tenth without gradient")
UFUNC = ("rmsprop, in place", "rmsprop, new arrays", "its ufunc", "np.divmod")
BESIDE = """\
Steps over 1 Mi float32 between matrix products of 512 x 512 of the other library, whose threads go on spinning. Ours,
over the same between products on one thread; the products, over themselves without steps between them.
"""


def beside(runs: Runs) -> str:
    """Beside the busy threads of others."""
    rows = [
        [
            run["other"],
            over(run["medians"], "ours", "ours between those"),
            over(run["medians"], "theirs", "theirs alone"),
        ]
        for run in runs
        if run["kind"] == "beside"
    ]
    return markdown(["other library, 2 threads", "ours", "theirs"], rows)


def torch_steps(runs: Runs) -> str:
    """The step of interop.torch.RMSprop beside those of torch's class."""
    names = ("torch", "torch foreach")
    rows = [
        [run["shapes"], threads_of(run["threads"]), time(run["medians"], "ours")]
        + [over(run["medians"], name) for name in names]
        for run in runs
        if run["kind"] == "torch"
    ]
    return markdown(["parameters, float32", "", "ours", *(f"{name}, over ours" for name in names)], rows)


BF16 = (
    "ours, square_avg bfloat16",
    "ours, rounded",
    "ours, all bfloat16",
    "ours, float32",
    "torch",
    "torch foreach",
    "bitsandbytes 8 bit",
)


def torch_bf16_steps(runs: Runs) -> str:
    """The step of bfloat16 tensors, by what is kept, beside that of others."""
    rows = [
        [run["shapes"], threads_of(run["threads"]), time(run["medians"], "ours")]
        + [over(run["medians"], name) for name in BF16]
        for run in runs
        if run["kind"] == "torch bf16"
    ]
    return markdown(["parameters, bfloat16", "", "ours", *(f"{name}, over ours" for name in BF16)], rows)


def parts(runs: Runs, rows: list[Row]) -> dict[str, str]:
    """The sections of the page below its mark, by their titles."""
    return {
        "Targets": f"{summary(rows, runs)}\n\n{markdown(('what', 'target', 'measured', COMMIT, 'met'), rows)}",
        "Hot, and after a backward pass": side_by_side(runs),
        "Other arrays at each call, the pure step, options": calls(runs),
        "A learning rate per row or element": rates(runs),
        "Limit over ours": limits(runs),
        "Peers, times over ours": f"- where it was not measured.\n\n{peers(runs)}",
        "The optimizer of torch": torch_steps(runs),
        "The optimizer of torch with bfloat16 tensors": torch_bf16_steps(runs),
        "Trees of arrays of 64 float32, one thread": ratios(runs, "trees", "ours", TREES),
        "The ufunc and its wrapper, float64, one thread": ratios(runs, "ufunc", "ours", UFUNC),
        "Subnormal accumulators, 64 Ki float32": ratios(runs, "subnormal", "normal"),
        "Storage in bfloat16, plain step": ratios(runs, "storage", "float32"),
        "Nothing in any cache, float32": ratios(runs, "cold", "warm"),
        "Where parameter and gradient start in a page, 64 Ki float32": ratios(runs, "misaligned", "16 bytes"),
        "Beside other libraries' busy threads": f"{BESIDE}\n{beside(runs)}",
    }


def main() -> None:
    """Read the JSON, print the targets, and with --page draw the figures and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="+", type=Path)
    parser.add_argument(
        "--page", type=Path, help="the page to write the tables into, below its mark; figures go to images/"
    )
    arguments = parser.parse_args()
    runs, machine = load(arguments.json)
    rows = targets(runs)
    print(machine_of(machine))
    print(markdown(("what", "target", "measured", COMMIT, "met"), rows))
    print(summary(rows, runs))
    if arguments.page:
        figures.draw(runs, f"make bench on {machine_of(machine)}", arguments.page.parent / "images")
        head = arguments.page.read_text().partition(MARK)[0]
        text = "\n\n".join(f"## {title}\n\n{part}" for title, part in parts(runs, rows).items())
        arguments.page.write_text(f"{head}{MARK}\n\n`make bench` on {machine_of(machine)}.\n\n{text}\n")


if __name__ == "__main__":
    main()

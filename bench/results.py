"""The saved measurements, joined so that each contender of a case has one time, whatever states it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baseline import COMMIT
from child import COLD

Run = dict[str, Any]
Runs = list[Run]
Times = dict[str, float]

CASE = ("variant", "dtype", "count", "n", "layout", "threads")  # which arrays are stepped, and how
TABLE = ("kind", "other", "rates", "shapes")  # and in which table
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
PEERS = (*RMSPROP_PEERS, "torch fused adagrad")  # in the order of every table and figure
AGAINST_PEERS = ("one", "many", "resnet50")  # the kinds of runs that measure all peers


def load(paths: list[Path]) -> tuple[Runs, dict[str, Any]]:
    """The runs of all files, one a kind and case, and what is known of the machine."""
    runs: Runs = []
    known: dict[tuple[Any, ...], Times] = {}
    machine: dict[str, Any] = {}
    # The first that measured a contender gives its time: those that measure hot and cold in the same rounds.
    for path in sorted(paths, key=lambda path: ("versions" not in path.name, "numpy" not in path.name, path.name)):
        saved = json.loads(path.read_text())
        machine = saved["machine_info"]
        for benchmark in saved["benchmarks"]:
            run = benchmark["extra_info"]
            join(known, run)
            old = find(runs, **{key: run.get(key) for key in (*TABLE, *CASE)})
            if old:
                old["noise"] += run["noise"]
            else:
                runs.append(run)
    for run in runs:
        if run["kind"] == "limit":
            alone = {key: run.get(key) for key in ("kind", *CASE)} | {"threads": 1}
            run["medians"]["limit"] = limit_of(run, find(runs, **alone))
    return runs, machine


def join(known: dict[tuple[Any, ...], Times], run: Run) -> None:
    """Let the run share the times of its case; contenders that were not measured yet enter by their ratio to ours."""
    medians = run["medians"]
    again = medians.pop("ours again", None)
    run["noise"] = [abs(again / medians["ours"] - 1)] if again else []
    if "dtype" not in run:
        return  # a table of its own
    if run.get("variant") == "plain":
        del run["variant"]  # what all other runs are
    times = known.setdefault(tuple(run.get(key) for key in CASE), {})
    scale = times.get("ours", medians["ours"]) / medians["ours"]
    for name, time in medians.items():
        times.setdefault(name, time * scale)
    run["medians"] = times


def limit_of(run: Run, alone: Run | None) -> float:
    """The larger of the two parts of a step: its streams by the best loop, and its roots and divisions.

    On several threads each part is as fast as with the best number of them: a few elements go best on one.
    """
    parts = [run["medians"], *([alone["medians"]] if alone else [])]
    streams, divider = (min(times[kind] for times in parts for kind in kinds) for kinds in (("k1", "k3"), ("k2",)))
    return max(streams, divider)


def find(runs: Runs, **wanted: Any) -> Run | None:
    """The one run with these values, or None where it was not measured."""
    return next((run for run in runs if all(run.get(key) == value for key, value in wanted.items())), None)


def before(name: str) -> str:
    """What a contender of ours is called in the version of `COMMIT`."""
    return COMMIT + name.removeprefix("ours") if name.startswith("ours") else f"{COMMIT} {name}"


def cold(name: str) -> str:
    """What a contender is called where it was timed after a backward pass."""
    return name + COLD


def case_of(run: Run) -> str:
    """The words for a run against peers."""
    if run["kind"] == "resnet50":
        return f"ResNet-50 {run['dtype']}"
    count = f"{run['count']} x " if run.get("count") else ""
    return f"{count}{size_of(run['n'])} {run['dtype']}"


def threads_of(count: int) -> str:
    """The words for a number of threads."""
    return f"{count} thread{'s' * (count > 1)}"


def size_of(n: int) -> str:
    """A number of elements in powers of two: 64, 4 Ki, 16 Mi."""
    for unit, name in ((2**20, " Mi"), (2**10, " Ki")):
        if n >= unit:
            return f"{n // unit}{name}"
    return str(n)


def time_of(seconds: float) -> str:
    """A time in microseconds."""
    return f"{seconds * 1e6:.0f} µs" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} µs"


def machine_of(machine: dict[str, Any]) -> str:
    """Which machine, with which versions."""
    cpu = machine.get("cpu", {}).get("brand_raw", "unknown processor")
    config = machine["config"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{cpu}, {config['instruction set']}, Python {config['python']}; {versions}"

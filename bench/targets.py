"""The table of targets: what was meant to be reached, what was measured, and what an earlier version takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from baseline import COMMIT
from results import AGAINST_PEERS, PEERS, Run, Runs, before, case_of, cold, find, size_of, threads_of

LEVEL = 0.97  # of the speed of a peer
SLOWER_DAY = 1.05  # a time may be so much longer: the time of the earlier version beside it shows the day


class Row(NamedTuple):
    """A row of the table, in words."""

    what: str
    target: str
    measured: str
    before: str
    met: str


def ratio(what: str, target: str, value: float | None, *, least: float = 0, most: float = float("inf")) -> Row:
    """A row of a ratio, or of what was not measured."""
    if value is None:
        return Row(what, target, "-", "", "-")
    shown = f"{value:.2f}" if "limit" in target else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
    return Row(what, target, shown, "", "yes" if least <= value <= most else "**no**")


def duration(what: str, times: dict[str, float], name: str, most: float, unit: str = "µs", scale: float = 1e6) -> Row:
    """A row of a time, which a slower machine makes longer; `most` is in the unit."""
    value, old = times[name] * scale, times.get(before(name))
    met = "yes" if value <= most else f"within {SLOWER_DAY - 1:.0%}" if value <= most * SLOWER_DAY else "**no**"

    def shown(number: float) -> str:
        return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"

    return Row(what, f"<= {most} {unit}", shown(value), shown(old * scale) if old else "-", met)


def over(times: dict[str, float], name: str, base: str = "ours") -> float | None:
    """One contender's time over another's, where both were measured."""
    return times[name] / times[base] if name in times and base in times else None


def faster_of(times: dict[str, float], *names: str) -> float | None:
    """The time of the fastest of some contenders over ours."""
    return min((times[name] / times["ours"] for name in names if name in times), default=None)


def of_small_arrays(runs: Runs) -> Iterator[Row]:
    """One array and many, the same ones at each call, hot."""
    torches = ("torch", "torch foreach")
    cases = (
        ("update_, 1000 arrays x 64 f32", {"count": 1000}, 30, "ns an array", 1e6, 120, 220),
        ("update_, one array of 64 f32", {"count": None}, 250, "ns", 1e9, 16, 80),
    )
    for what, case, most, unit, scale, numpy, torch in cases:
        run = find(runs, kind="versions", n=64, layout=None, **case)
        if run:
            times = run["medians"]
            yield duration(what, times, "ours", most, unit, scale)
            yield ratio(what, f">= {numpy}x numpy", faster_of(times, "numpy"), least=numpy)
            yield ratio(what, f">= {torch}x torch", faster_of(times, *torches), least=torch)
    trees = find(runs, kind="trees", count=1000)
    if trees:
        yield ratio("nested dict of 1000 arrays x 64", "<= 2x the list", over(trees["medians"], "nested dict"), most=2)


def of_new_arrays(runs: Runs) -> Iterator[Row]:
    """Other arrays at each call, and the pure step."""
    for count, n, new, pure in ((1, 4, 1, 2.5), (100, 64, 15, 60)):
        run = find(runs, kind="versions", count=count, n=n, layout=None)
        if run:
            yield duration(f"new parameter arrays, {count} x {n}", run["medians"], "new parameter arrays", new)
            yield duration(f"rms.update, {count} x {n}", run["medians"], "rms.update", pure)
    run = find(runs, kind="versions", count=1000, layout=None)
    if run:
        value = over(run["medians"], "new gradient arrays")
        yield ratio("new gradient arrays, 1000 x 64", "<= 1.5x the same ones", value, most=1.5)


def of_rates(runs: Runs) -> Iterator[Row]:
    """Learning rates in arrays, by the ufunc."""
    for run in (run for run in runs if run["kind"] == "rates"):
        what = f"learning rate per {run['rates']}, 1000 x {run['n']} f32"
        speed = 0.9 if run["n"] == 50 else 0.95
        yield ratio(what, f">= {speed} of numba's speed", over(run["medians"], "numba"), least=speed)
        yield ratio(what, ">= 3x numpy", over(run["medians"], "numpy"), least=3)


def of_options(runs: Runs) -> Iterator[Row]:
    """What options cost over a plain step."""
    run = find(runs, kind="versions", count=100)
    limits = {
        "bias_correction": 1.3,
        "schedule": 1.3,
        "ema": 1.8,
        "clip_norm": 2.2,
        "on_nonfinite=raise": 2.2,
        "accumulate=4": 1.5,
    }
    for name, most in limits.items() if run else ():
        yield ratio(f"{name}, 100 x 64", f"<= {most}x plain", over(run["medians"], name), most=most)


def of_cold_steps(runs: Runs) -> Iterator[Row]:
    """After a backward pass, against the earlier version."""
    cases = (
        ("1000 x 64 in order", {"count": 1000, "layout": None}, 1.15),
        ("1000 x 64 scattered", {"count": 1000, "layout": "scattered"}, 1.35),
        ("one array of 64", {"count": None, "n": 64}, 1.5),
    )
    for what, case, least in cases:
        run = find(runs, kind="versions", **case)
        if run:
            value = over(run["medians"], cold(before("ours")), cold("ours"))
            yield ratio(f"after a backward pass, {what}", f">= {least}x {COMMIT}", value, least=least)


def of_limits(runs: Runs) -> Iterator[Row]:
    """How near to the limit of the machine, and what the second thread gains."""

    def limit(variant: str | None, dtype: str, n: int, threads: int, least: float) -> Iterator[Row]:
        run = find(runs, kind="limit", variant=variant, dtype=dtype, n=n, threads=threads)
        if run:
            what = f"{variant or 'plain'}, {size_of(n)} {dtype}, {threads_of(run['threads'])}"
            yield ratio(what, f">= {least:.2f} of the limit", over(run["medians"], "limit"), least=least)

    for n, threads, least in ((2**16, 1, 0.93), (2**24, 1, 0.95), (2**24, 2, 0.95)):
        for dtype in ("f32", "f64"):
            yield from limit(None, dtype, n, threads, least)
    for n in (2**16, 2**17):
        yield from limit(None, "f32", n, 2, 0.8)
    one, two = (find(runs, kind="limit", variant=None, dtype="f32", n=2**18, threads=threads) for threads in (1, 2))
    if one and two:
        value = one["medians"]["ours"] / two["medians"]["ours"]
        yield ratio("plain, 256 Ki f32, 2 threads", ">= 1.7x of 1 thread", value, least=1.7)
    for variant in ("momentum", "centered"):
        for n in (2**16, 2**24):
            for dtype in ("f32", "f64"):
                yield from limit(variant, dtype, n, 1, 0.90)


def of_peers(runs: Runs) -> Iterator[Row]:
    """Against the best peer of each case."""

    def row(run: Run) -> Row:
        times = run["medians"]
        best = min((name for name in PEERS if name in times), key=lambda name: times[name])
        value = times[best] / times["ours"]
        met = "yes" if value >= 1 else "level" if value >= LEVEL else "**no**"
        what = f"{case_of(run)}, {threads_of(run['threads'])}"
        return Row(what, "never slower than the best peer", f"{value:.2f}x {best}", "", met)

    for kind in AGAINST_PEERS:
        yield from (row(run) for run in runs if run["kind"] == kind)


def of_torch(runs: Runs) -> Iterator[Row]:
    """The optimizer of torch."""

    def step(shapes: str, threads: int = 1) -> dict[str, float]:
        run = find(runs, kind="torch", shapes=shapes, threads=threads)
        return run["medians"] if run else {}

    for shapes, least in (("100 x 64", 25), ("16 Mi", 5)):
        value = faster_of(step(shapes), "torch", "torch foreach")
        yield ratio(f"interop.torch.RMSprop, {shapes} f32", f">= {least}x the best of torch", value, least=least)
    low = find(runs, kind="torch bf16", shapes="16 Mi", threads=1)
    for name, least in (("torch", 3), ("torch foreach", 3), ("bitsandbytes 8 bit", 15)):
        value = over(low["medians"], name, "ours, all bfloat16") if low else None
        yield ratio("interop.torch.RMSprop, 16 Mi, all bfloat16", f">= {least}x {name} in bfloat16", value, least=least)
    if step("A2C"):
        yield duration("interop.torch.RMSprop, 12 parameters of A2C", step("A2C"), "ours", 10)
    for shapes in ("A2C", "100 x 64", "1000 x 64", "1 Mi", "16 Mi"):
        value = over(step(shapes, 2), "ours, 1 thread")
        if value:
            met = "yes" if value >= 1 else "level" if value >= LEVEL else "**no**"
            what = f"interop.torch.RMSprop, {shapes}, 2 threads"
            yield Row(what, "never slower than 1 thread", f"{value:.2f}x", "", met)


def of_storage(runs: Runs) -> Iterator[Row]:
    """Storage in bfloat16; the targets are those for AVX-512."""
    split, avg, narrow = "split", "float32, square_avg bfloat16", "rounded, square_avg bfloat16"
    for n, least in ((2**16, {avg: 0.88, narrow: 0.88}), (2**24, {avg: 1.0, narrow: 1.12, split: 0.9})):
        run = find(runs, kind="storage", n=n, threads=1)
        for name, speed in least.items() if run else ():
            value = over(run["medians"], "float32", name)
            yield ratio(f"{name}, {size_of(n)}", f">= {speed} of the speed of float32", value, least=speed)


def of_the_rest(runs: Runs) -> Iterator[Row]:
    """Beside other libraries' threads; the import and the wheel."""
    for other, what in (("torch", "torch's threads"), ("numpy", "NumPy's BLAS threads")):
        run = find(runs, kind="beside", other=other)
        for who, undisturbed in (("ours", "ours between those"), ("theirs", "theirs alone")) if run else ():
            value = over(run["medians"], who, undisturbed)
            yield ratio(f"beside busy {what}: {who}", "<= 1.10x of undisturbed", value, most=1.10)
    for kind, what, unit, scale, most in (("import", "over numpy", "ms", 1e3, 15), ("wheel", "", "kB", 1e-3, 450)):
        run = find(runs, kind=kind)
        if run:
            value = run["medians"][kind] * scale
            met = "yes" if value <= most else "**no**"
            yield Row(kind, f"<= {most} {unit} {what}".strip(), f"{value:.3g} {unit}", "", met)


def of_checkpoints(runs: Runs) -> Iterator[Row]:
    """A state to disk and back, beside NumPy's own files."""
    for run in (run for run in runs if run["kind"] == "checkpoint"):
        for ours, theirs in (("save", "np.savez and fsync"), ("load", "np.load")):
            what = f"{ours} .{run['other']}"
            yield ratio(what, f">= 0.6 of the speed of {theirs}", over(run["medians"], theirs, ours), least=0.6)
            memory = run[f"{ours}_memory"]
            met = "yes" if memory <= 1 else "**no**"
            yield Row(f"{what}: memory", "<= one array besides the state", f"{memory:.2f} arrays", "", met)


PARTS = (
    of_small_arrays,
    of_new_arrays,
    of_rates,
    of_options,
    of_cold_steps,
    of_limits,
    of_peers,
    of_torch,
    of_storage,
    of_the_rest,
    of_checkpoints,
)


def targets(runs: Runs) -> list[Row]:
    """All rows that can be measured."""
    return [row for part in PARTS for row in part(runs)]


def summary(rows: list[Row], runs: Runs) -> str:
    """How many targets were met, how far the same thing differed from itself, and why a version was not measured."""
    count = Counter(row.met for row in rows)
    noise = [value for run in runs for value in run["noise"]] or [0.0]
    words = {
        "level": f"level with a peer, or one thread, that is ahead by at most {1 - LEVEL:.0%}",
        f"within {SLOWER_DAY - 1:.0%}": f"times that are at most {SLOWER_DAY - 1:.0%} longer",
        "-": "not measured",
    }
    parts = [
        f"{count['yes']} of {len(rows)} met",
        *(f"{count[met]} {text}" for met, text in words.items() if count[met]),
    ]
    missing = {run["missing_baseline"] for run in runs if run.get("missing_baseline")}
    return (
        f"{', '.join(parts)}. `update_` measured twice in the same rounds: {median(noise):.1%} apart in the median of "
        f"the cases, {max(noise):.0%} in the worst."
        + "".join(f" `{COMMIT}` was not measured: {reason}." for reason in missing)
    )

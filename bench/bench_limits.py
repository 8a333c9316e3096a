"""How near to the machine's limits a step is: limit / ours, by size, type, threads and variant."""

from __future__ import annotations

from statistics import median

import pytest
import roofs
from conftest import PLACES, QUICK, THREADS

import rmsprop_native as rms
from rmsprop_native import _core

SIZES = [2**k for k in ((8, 16, 18, 24) if QUICK else range(8, 26))]
VARIANTS = {"plain": {}, "momentum": {"momentum": 0.9}, "centered": {"centered": True}}
KINDS = ("k1", "k2", "k3")
LIBRARIES = roofs.libraries(_core.isas())


ELEMENTS = {}  # of one call of a divider, by its name


def time_of_best(loops):
    """The best loop's time: chosen in one half of the rounds, timed in the other, and the other way round.

    The least of several medians of noise would be less than the time of any loop.
    """
    halves = [[median(times[first::2]) for times in loops] for first in (0, 1)]
    chosen = [half.index(min(half)) for half in halves]
    return (halves[1][chosen[0]] + halves[0][chosen[1]]) / 2


def contenders_of(rng, dtype, variant, n):
    """Ours and what the machine can do, over arrays of their own."""
    param, grad = (rng.standard_normal(n).astype(dtype.replace("f", "float")) for _ in range(2))
    state = rms.init(param, **VARIANTS[variant])
    arrays = [param, grad, state.square_avg]
    state.square_avg[...] = grad * grad
    if variant != "plain":
        arrays.append(state.momentum_buffer if variant == "momentum" else state.grad_avg)
    contenders = {"ours": lambda: rms.update_(param, grad, state)}
    for width, library in LIBRARIES.items():
        for unroll in roofs.UNROLLS:
            for kind in ("k1", "k3"):
                call = roofs.streams(library, kind, unroll, THREADS, dtype, arrays)
                contenders[f"{kind} {width} x{unroll}"] = call
        contenders[f"k2 {width}"], ELEMENTS[f"k2 {width}"] = roofs.divider(library, dtype, 2000)
    return contenders


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_limit(interleave, benchmark, rng, dtype, variant, n):
    if QUICK and variant != "plain" and n not in (2**16, 2**24):
        pytest.skip("in the long form only")
    places = [contenders_of(rng, dtype, variant, n) for _ in range(PLACES if n <= 2**18 else 1)]
    rounds = (6 if QUICK else 12) if n >= 2**22 else 10
    times = interleave(*places, rounds=rounds, seconds=1e-3, dtype=dtype, variant=variant, n=n)
    for name, count in ELEMENTS.items():
        times[name] = [t / count * n / THREADS for t in times[name]]
    best = {kind: time_of_best([ts for name, ts in times.items() if name.startswith(kind)]) for kind in KINDS}
    benchmark.extra_info.update(best=best, limit=max(best.values()), ours=median(times["ours"]))

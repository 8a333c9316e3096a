"""How near to the machine's limits a step is: limit / ours, by size, type, threads and variant."""

from __future__ import annotations

from statistics import median

import pytest
import roofs
from conftest import PLACES, QUICK, THREADS

import rmsprop_native as rms
from rmsprop_native import _core

SIZES = [2**k for k in ((8, 16, 17, 18, 24) if QUICK else range(8, 26))]
VARIANTS = {"plain": {}, "momentum": {"momentum": 0.9}, "centered": {"centered": True}}
KINDS = ("k1", "k2", "k3")
LIBRARIES = roofs.libraries(_core.isas())


STEPS = {}  # the work of a call of a roof, by its name


def best_over_ours(loops, ours):
    """The best loop's time over ours: chosen in one half of the rounds, compared in the other, and the other way round.

    The least of several medians of noise would be less than the time of any loop. What is compared is times of the
    same round, since the speed of memory that other guests of the machine leave changes from second to second.
    """
    ratios = []
    for first, second in ((0, 1), (1, 0)):
        chosen = min(loops, key=lambda times: median(times[first::2]))
        ratios.append(median(loop / own for loop, own in zip(chosen[second::2], ours[second::2], strict=True)))
    return sum(ratios) / 2


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
                name = f"{kind} {width} x{unroll}"
                contenders[name], STEPS[name] = roofs.streams(library, kind, unroll, THREADS, dtype, arrays)
        contenders[f"k2 {width}"], STEPS[f"k2 {width}"] = roofs.divider(library, dtype, THREADS, n)
    return contenders


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_limit(interleave, benchmark, rng, dtype, variant, n):
    if QUICK and variant != "plain" and n not in (2**16, 2**24):
        pytest.skip("in the long form only")
    places = [contenders_of(rng, dtype, variant, n) for _ in range(PLACES if n <= 2**18 else 1)]
    rounds = (6 if QUICK else 12) if n >= 2**22 else 10
    times = interleave(*places, rounds=rounds, seconds=1e-3, kind="limit", dtype=dtype, variant=variant, n=n)
    for name, steps in STEPS.items():
        times[name] = [t / steps for t in times[name]]
    ours = times["ours"]
    best = {
        kind: best_over_ours([ts for name, ts in times.items() if name.startswith(kind)], ours) * median(ours)
        for kind in KINDS
    }
    benchmark.extra_info.update(medians={"ours": median(ours)} | best)

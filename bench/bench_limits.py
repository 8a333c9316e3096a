"""How near to the machine's limits a step is: limit / ours, by size, type, threads and variant."""

from __future__ import annotations

import pytest
import roofs
from conftest import PLACES, QUICK, THREADS

import rmsprop_native as rms
from rmsprop_native import _core

SIZES = [2**k for k in ((8, 16, 18, 24) if QUICK else range(8, 26))]
VARIANTS = {"plain": {}, "momentum": {"momentum": 0.9}, "centered": {"centered": True}}
LIBRARIES = roofs.libraries(_core.isas())


ELEMENTS = {}  # of one call of a divider, by its name


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
    rounds = 5 if QUICK and n >= 2**22 else 9
    medians = interleave(*places, rounds=rounds, seconds=1e-3, dtype=dtype, variant=variant, n=n)

    best = {kind: min(t for name, t in medians.items() if name.startswith(kind)) for kind in ("k1", "k3")}
    best["k2"] = min(t / ELEMENTS[name] for name, t in medians.items() if name.startswith("k2")) * n / THREADS
    benchmark.extra_info.update(best=best, limit=max(best.values()), ours=medians["ours"])

"""What a call costs: lists and dicts of small arrays, the ufuncs, and learning rates in arrays."""

from __future__ import annotations

import numpy as np
import peers
import pytest
from conftest import THREADS

import rmsprop_native as rms

pytestmark = pytest.mark.skipif(THREADS != 1, reason="small work stays on one thread")


def ours(params, grads, **options):
    state = rms.init(params, **options)
    return lambda: rms.update_(params, grads, state)


def small(rng, count, n=64):
    return [rng.standard_normal(n).astype("float32") for _ in range(count)]


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_trees(interleave, rng, count):
    params, grads = small(rng, count), small(rng, count)

    def nested(leaves):
        return {f"layer{i}": {"w": leaves[i], "b": leaves[i + 1]} for i in range(0, count, 2)}

    contenders = {
        "ours": ours(params, grads),
        "tuple": ours(tuple(params), tuple(grads)),
        "flat dict": ours(dict(enumerate(params)), dict(enumerate(grads))),
        "nested dict": ours(nested(params), nested(grads)),
        "nested dict, keys in another order": ours(nested(params), dict(reversed(nested(grads).items()))),
        "a tenth without gradient": ours(params, [None if i % 10 == 0 else g for i, g in enumerate(grads)]),
    }
    interleave(contenders, kind="trees", dtype="f32", count=count, n=64)


@pytest.mark.parametrize("n", [4, 2**16, 2**20])
def test_ufunc(interleave, rng, n):
    p, g = (rng.standard_normal(n) for _ in range(2))
    state = rms.init(p)
    v = state.square_avg
    out = np.empty(n), np.empty(n)
    contenders = {
        "ours": lambda: rms.update_(p, g, state),
        "rmsprop, in place": lambda: rms.rmsprop(p, g, v, lr=1e-3, rho=0.9, eps=1e-8, out=(p, v)),
        "rmsprop, new arrays": lambda: rms.rmsprop(p, g, v, lr=1e-3, rho=0.9, eps=1e-8),
        "its ufunc": lambda: rms.rmsprop.ufunc(p, g, v, 1e-3, 0.9, 1e-8, 0.0),
        "np.divmod": lambda: np.divmod(p, g, out=out),
    }
    interleave(contenders, kind="ufunc", dtype="f64", n=n)


@pytest.mark.parametrize("n", [50, 200, 1000])
@pytest.mark.parametrize("rates", ["row", "element"])
def test_rates(interleave, rng, rates, n):
    """A learning rate per row or per element of float32 (1000, n); rates are float64, rounded once a step."""
    p, g = (rng.standard_normal((1000, n)).astype(np.float32) for _ in range(2))
    v = g * g
    lr = rng.uniform(1e-4, 1e-3, (1000, n if rates == "element" else 1))
    contenders = {"ours": lambda: rms.rmsprop(p, g, v, lr=lr, rho=peers.RHO, eps=peers.EPS, out=(p, v))}
    for name, make in peers.RATE_PEERS.items():
        try:
            contenders[name] = make(p, g, v, lr)
        except ImportError:
            continue
    interleave(contenders, kind="rates", rates=rates, n=n)

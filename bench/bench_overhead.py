"""What a call costs: one small array, lists and dicts of small arrays, options, ufuncs."""

from __future__ import annotations

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


def test_lone_array(interleave, rng):
    (param,), (grad,) = small(rng, 1), small(rng, 1)
    state = rms.init(param)
    square_avg = state.square_avg
    contenders = {"ours": lambda: rms.update_(param, grad, state)}
    for name in ("numpy", "torch", "torch foreach", "torch fused adagrad"):
        try:
            contenders[name] = peers.PEERS[name]([param], [grad], [square_avg], 1)
        except ImportError:
            continue
    interleave(contenders, kind="lone")


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_trees(interleave, rng, count):
    params, grads = small(rng, count), small(rng, count)

    def nested(leaves):
        return {f"layer{i}": {"w": leaves[i], "b": leaves[i + 1]} for i in range(0, count, 2)}

    contenders = {
        "list": ours(params, grads),
        "tuple": ours(tuple(params), tuple(grads)),
        "flat dict": ours(dict(enumerate(params)), dict(enumerate(grads))),
        "nested dict": ours(nested(params), nested(grads)),
        "nested dict, keys in another order": ours(nested(params), dict(reversed(nested(grads).items()))),
        "a tenth without gradient": ours(params, [None if i % 10 == 0 else g for i, g in enumerate(grads)]),
    }
    interleave(contenders, kind="trees", count=count)


def test_options(interleave, rng):
    """What the options cost that form coefficients anew or read every gradient first, on 100 arrays of 64."""
    params, grads = small(rng, 100), small(rng, 100)
    options = {
        "plain": {},
        "momentum": {"momentum": 0.9},
        "centered": {"centered": True},
        "bias_correction": {"bias_correction": True},
        "schedule": {"lr": lambda taken: 1e-3},
        "clip_norm": {"clip_norm": 1.0},
        "clip_global_norm": {"clip_global_norm": 1.0},
        "ema": {"ema": 0.99},
        "on_nonfinite=skip": {"on_nonfinite": "skip"},
        "accumulate=2": {"accumulate": 2},
    }
    interleave({name: ours(params, grads, **chosen) for name, chosen in options.items()}, kind="options")


@pytest.mark.parametrize("n", [4, 2**16, 2**20])
def test_ufunc(interleave, rng, n):
    import numpy as np

    p, g = (rng.standard_normal(n) for _ in range(2))
    state = rms.init(p)
    v = state.square_avg
    out = np.empty(n), np.empty(n)
    contenders = {
        "update_": lambda: rms.update_(p, g, state),
        "rmsprop, in place": lambda: rms.rmsprop(p, g, v, lr=1e-3, rho=0.9, eps=1e-8, out=(p, v)),
        "rmsprop, new arrays": lambda: rms.rmsprop(p, g, v, lr=1e-3, rho=0.9, eps=1e-8),
        "its ufunc": lambda: rms.rmsprop.ufunc(p, g, v, 1e-3, 0.9, 1e-8, 0.0),
        "np.divmod": lambda: np.divmod(p, g, out=out),
    }
    interleave(contenders, kind="ufunc", n=n)

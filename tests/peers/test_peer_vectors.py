"""The test vectors beside the frameworks: each preset and each variant, from the same parameters and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from frameworks import Optax, Torch, graves
from make_vectors import from_bits, load
from measure import LR, assert_close
from test_peers import CASES, FLOAT64_ONLY

import rmsprop_native as rms

# Over four steps that run freely; see test_peers.py for what rounds differently. PyTensor and Keras divide by roots of
# float32 that are not rounded correctly.
TOLERANCES = {"float64": 1e-12, "float32": 2e-6}


def beside(peer, case, tolerance, **factors):
    """Step a framework with the gradients of a case, and compare each of its arrays after each step."""
    for call in case["calls"]:
        peer.step([from_bits(bits) for bits in call["grads"]])
        found = peer.arrays()
        assert "param" in found
        for array, values in found.items():
            expected = call["params" if array == "param" else array] if array in (*call, "param") else None
            for i, value in enumerate(values if expected is not None else ()):
                ours = from_bits(expected[i]) * value.dtype.type(factors.get(array, 1))
                assert_close(value, ours, f"{case['name']}: {array} at step {call['step']}", tolerance)


def start(case):
    return [from_bits(bits) for bits in case["params"]]


PRESETS = [
    (preset, dtype)
    for preset in rms.PRESETS
    for dtype in TOLERANCES
    if not (preset in FLOAT64_ONLY and dtype == "float32")
]


@pytest.mark.parametrize(("preset", "dtype"), PRESETS)
def test_presets(preset, dtype):
    case = load(dtype)[f"preset {preset}"]
    _, _, make, theirs = CASES[preset]
    beside(make(start(case), **theirs, **({"lr": LR} if make is graves else {})), case, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("l2", ["", "l2"])
@pytest.mark.parametrize("centered", ["", "centered"])
@pytest.mark.parametrize("momentum", ["", "momentum", "nesterov"])
def test_variants(momentum, centered, l2, dtype):
    """Nesterov's momentum is optax's, which keeps lr in the buffer; the others are torch's."""
    loop = "_".join(filter(None, (momentum, centered))) or "plain"
    case = load(dtype)["_".join(filter(None, (loop, l2)))]
    o = case["options"]
    shared = {name: o[name] for name in ("eps", "momentum", "centered")}
    if momentum == "nesterov":
        before = (lambda optax: optax.add_decayed_weights(o["weight_decay"])) if l2 else None
        options = {"learning_rate": LR, "decay": o["rho"], "eps_in_sqrt": False, "nesterov": True, "before": before}
        beside(Optax(start(case), **shared, **options), case, TOLERANCES[dtype], momentum_buffer=LR)
    else:
        options = {"lr": LR, "alpha": o["rho"], "weight_decay": o["weight_decay"], "foreach": False}
        beside(Torch(start(case), **shared, **options), case, TOLERANCES[dtype])


def test_rates_are_those_of_the_comparison():
    assert {case["options"]["lr"] for case in load("float64").values()} == {LR}
    assert np.float32(LR) == LR

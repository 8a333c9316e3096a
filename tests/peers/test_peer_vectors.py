"""The test vectors beside the frameworks: each preset and each variant, from the same parameters and gradients.

In float64, where four steps that run freely stay within 1e-12 of the framework's; test_peers.py says what rounds
differently, and has float32 step by step.
"""

from __future__ import annotations

import pytest
from frameworks import Optax, Torch, graves
from make_vectors import from_bits, load
from measure import LR, assert_close
from test_peers import CASES

import rmsprop_native as rms

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with torch

VECTORS = load("float64")


def compare(make, case, factor=1.0, **options):
    """Step a framework with the gradients of a case, and compare each of its arrays after each step; `factor` is what
    its momentum buffer has and ours has not.
    """
    peer = make([from_bits(bits) for bits in case["params"]], **options)
    for call in case["calls"]:
        peer.step([from_bits(bits) for bits in call["grads"]])
        found = {"params" if name == "param" else name: arrays for name, arrays in peer.arrays().items()}
        assert "params" in found
        for name in set(found) & set(call):
            for theirs, bits in zip(found[name], call[name], strict=True):
                ours = from_bits(bits) * (factor if name == "momentum_buffer" else 1.0)
                assert_close(theirs.ravel(), ours, f"{case['name']}: {name} at step {call['step']}")


@pytest.mark.parametrize("preset", rms.PRESETS)
def test_presets(preset):
    _, _, make, theirs = CASES[preset]
    compare(make, VECTORS[f"preset {preset}"], **theirs, **({"lr": LR} if make is graves else {}))


@pytest.mark.parametrize("l2", ["", "l2"])
@pytest.mark.parametrize("centered", ["", "centered"])
@pytest.mark.parametrize("momentum", ["", "momentum", "nesterov"])
def test_variants(momentum, centered, l2):
    """Nesterov's momentum is optax's, which keeps lr in the buffer; the others are torch's."""
    loop = "_".join(filter(None, (momentum, centered))) or "plain"
    case = VECTORS["_".join(filter(None, (loop, l2)))]
    o = case["options"]
    shared = {name: o[name] for name in ("eps", "momentum", "centered")}
    if momentum == "nesterov":
        before = (lambda optax: optax.add_decayed_weights(o["weight_decay"])) if l2 else None
        options = {"learning_rate": LR, "decay": o["rho"], "eps_in_sqrt": False, "nesterov": True, "before": before}
        compare(Optax, case, factor=LR, **shared, **options)
    else:
        options = {"lr": LR, "alpha": o["rho"], "weight_decay": o["weight_decay"], "foreach": False}
        compare(Torch, case, **shared, **options)


def test_the_rate_of_all_cases_is_that_of_the_comparison():
    assert {case["options"]["lr"] for case in VECTORS.values()} == {LR}

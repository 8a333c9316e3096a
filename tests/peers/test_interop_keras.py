"""States from and to Keras' RMSprop: training goes on here as it goes on there, and the other way round."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
from frameworks import Keras
from measure import LR, Problem, assert_close

import rmsprop_native as rms
from rmsprop_native.interop.keras import from_optimizer, to_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with torch

STEPS = 50
MU = {"momentum": 0.9}
CASES = {
    "plain": {},
    "momentum": MU,
    "centered": {"centered": True},
    "momentum-centered": MU | {"centered": True},
    "rho-eps": {"rho": 0.7, "epsilon": 1e-3},
    "weight_decay": {"weight_decay": 2.0**-5},
    "clip_value": {"clipvalue": 0.0625},
    "ema": {"use_ema": True, "ema_momentum": 0.875},
    "accumulate": {"gradient_accumulation_steps": 4},
    "schedule": {"learning_rate": keras.optimizers.schedules.InverseTimeDecay(LR, 16, 1.0)},
    "schedule-accumulate": {
        "learning_rate": keras.optimizers.schedules.InverseTimeDecay(LR, 16, 1.0), "gradient_accumulation_steps": 4,
    },
}  # fmt: skip
# Keras evaluates schedules in float32: a learning rate here is the number that Keras gives.


def trained(case, steps=STEPS + 1):
    """Keras after some steps: with accumulation in the middle of one."""
    problem = Problem(np.float64)
    peer = Keras(problem.params, **{"learning_rate": LR} | CASES[case])
    for _ in range(steps):
        peer.step(problem.grads(peer.arrays()["param"]))
    return problem, peer


def compare(peer, params, state, label):
    found = peer.arrays()
    for name in ("square_avg", "momentum_buffer", "grad_avg", "ema"):
        ours = getattr(state, name)
        for one, other in zip(ours or (), found.get(name, ()), strict=True):
            assert_close(one, other, f"{label}: {name}")
    for one, other in zip(params, found["param"], strict=True):
        assert_close(one, other, f"{label}: param")


@pytest.mark.parametrize("case", CASES)
def test_from_keras(case):
    """Both go on on the same gradients, and stay together to 1e-12, as in test_peers.py."""
    problem, peer = trained(case)
    state = from_optimizer(peer.optimizer)
    params = peer.arrays()["param"]
    assert state.step == (STEPS + 1) // (CASES[case].get("gradient_accumulation_steps") or 1)
    for step in range(STEPS):
        grads = problem.grads(params)
        rms.update_(params, grads, state)
        peer.step(grads)
        compare(peer, params, state, f"step {step}")


@pytest.mark.parametrize("case", CASES)
def test_to_keras(case):
    """Ours is trained, and Keras goes on from it."""
    problem, peer = trained(case)
    state = from_optimizer(peer.optimizer)
    params = peer.arrays()["param"]
    for _ in range(STEPS):
        rms.update_(params, problem.grads(params), state)
    other = Keras(params, **{"learning_rate": LR} | CASES[case])
    to_optimizer(state, other.optimizer)
    for step in range(STEPS):
        grads = problem.grads(params)
        rms.update_(params, grads, state)
        other.step(grads)
        compare(other, params, state, f"step {step}")


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_to_the_bit(case):
    _, peer = trained(case)
    before = [np.array(peer.convert(v)) for v in peer.optimizer.variables]
    state = from_optimizer(peer.optimizer)
    for variable in peer.optimizer.variables:
        if "learning_rate" not in variable.path:
            variable.assign(keras.ops.zeros_like(variable))
    to_optimizer(state, peer.optimizer)
    for variable, values in zip(peer.optimizer.variables, before, strict=True):
        assert np.array_equal(peer.convert(variable), values), variable.path


def test_a_structure_may_be_given(tmp_path):
    _, peer = trained("momentum")
    w, b, c = peer.arrays()["param"]
    like = {"w": w, "rest": [b, c]}
    state = from_optimizer(peer.optimizer, like=like)
    rms.save(tmp_path / "a.npz", state)
    assert np.array_equal(rms.load(tmp_path / "a.npz").momentum_buffer["rest"][1], peer.arrays()["momentum_buffer"][2])
    with pytest.raises(ValueError, match="the parameters have the shapes"):
        from_optimizer(peer.optimizer, like=[b, w, c])


def test_variables_without_weight_decay():
    variables = [keras.Variable(np.ones(3), name=name, dtype="float64") for name in ("kernel", "bias")]
    optimizer = keras.optimizers.RMSprop(LR, weight_decay=2.0**-5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    state = from_optimizer(optimizer, like={"kernel": np.ones(3), "bias": np.ones(3)})
    params = {"kernel": np.ones(3), "bias": np.ones(3)}
    grads = np.array([0.5, -0.25, 1.0])
    optimizer.apply([keras.ops.convert_to_tensor(grads)] * 2, variables)
    rms.update_(params, {"kernel": grads.copy(), "bias": grads.copy()}, state)
    for variable in variables:
        assert_close(params[variable.name], keras.ops.convert_to_numpy(variable), variable.name)
    to_optimizer(state, optimizer)
    all_decay = rms.init([np.ones(3), np.ones(3)], preset="keras", weight_decay=2.0**-5)
    with pytest.raises(
        ValueError, match=r"leaf '1' has weight_decay=0\.03125; the optimizer steps with weight_decay=0"
    ):
        to_optimizer(all_decay, optimizer)


def built(**options):
    optimizer = keras.optimizers.RMSprop(**options)
    optimizer.build([keras.Variable(np.ones(3), dtype="float64")])
    return optimizer


def changed(optimizer, **attributes):
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    return optimizer


class Other(keras.optimizers.RMSprop):
    pass


REFUSED = {
    "another optimizer": (lambda: keras.optimizers.Adam(), TypeError, "must be a keras.optimizers.RMSprop, got Adam"),
    "a subclass": (Other, TypeError, "must be a keras.optimizers.RMSprop, got Other"),
    "loss scale": (
        lambda: keras.optimizers.LossScaleOptimizer(built()), TypeError, "LossScaleOptimizer; pass its inner_optimizer",
    ),
    "not built": (keras.optimizers.RMSprop, ValueError, "the optimizer has no variables yet: call optimizer.build"),
    "loss_scale_factor": (lambda: built(loss_scale_factor=2.0), ValueError, "loss_scale_factor=2.0, which has no"),
    "overwritten": (
        lambda: built(use_ema=True, ema_overwrite_frequency=3), ValueError, "ema_overwrite_frequency=3, which has no",
    ),
    "averages": (
        lambda: built(use_ema=True, gradient_accumulation_steps=2), ValueError, "Keras moves its averages at each call",
    ),
    "a function": (lambda: built(learning_rate=lambda: LR), ValueError, "is a function without arguments"),
    "a missing buffer": (
        lambda: changed(built(), momentum=0.9), ValueError, r"has 0 variables for momentum_buffer \(_momentums\) and 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart(name):
    make, error, match = REFUSED[name]
    optimizer = make()
    with pytest.raises(error, match=match):
        from_optimizer(optimizer)
    with pytest.raises(error, match=match):
        to_optimizer(rms.init([np.ones(3)], preset="keras", momentum=0.9), optimizer)


def keras_state(**options):
    return rms.init([np.ones(3)], preset="keras", **options)


def halfway():
    state = keras_state(accumulate=2)
    rms.update_([np.ones(3)], [None], state)
    return state


STATES = {
    "eps outside": (lambda: rms.init([np.ones(3)], eps=1e-7), {}, "has eps_inside_sqrt=False; the"),
    "lr outside": (lambda: keras_state(momentum=0.9, lr_in_momentum=False), MU, "has lr_in_momentum=False; the"),
    "nesterov": (lambda: keras_state(momentum=0.9, nesterov=True), MU, "has nesterov=True; the optimizer"),
    "L2": (lambda: keras_state(weight_decay=0.5, decoupled_weight_decay=False), {"weight_decay": 0.5}, "decoupled"),
    "bias correction": (lambda: keras_state(bias_correction=True), {}, "has bias_correction=True; the optimizer"),
    "maximize": (lambda: keras_state(maximize=True), {}, "has maximize=True; the optimizer"),
    "rho": (lambda: keras_state(rho=0.5), {}, "leaf '0' has rho=0.5; the optimizer steps with rho=0.9"),
    "own lr": (lambda: keras_state(overrides={"0": {"lr": 0.5}}), {}, "leaf '0' has a learning rate of its own"),
    "skips": (lambda: keras_state(on_nonfinite="skip"), {}, "has on_nonfinite='skip'; the optimizer"),
    "unseen": (halfway, {"gradient_accumulation_steps": 2}, "a leaf had no gradient since the last step"),
    "shape": (lambda: rms.init([np.ones(2)], preset="keras"), {}, r"is float64 of \(2,\), the variable"),
    "dtype": (lambda: rms.init([np.ones(3, np.float32)], preset="keras"), {}, r"is float32 of \(3,\), the variable"),
    "leaves": (lambda: rms.init([np.ones(3), np.ones(1)], preset="keras"), {}, "the state has 2 leaves, the opt"),
    "schedule": (
        keras_state, {"learning_rate": keras.optimizers.schedules.InverseTimeDecay(LR, 16, 1.0)}, "a schedule: give",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_what_keras_would_step_in_another_way(name):
    make, options, match = STATES[name]
    optimizer = built(**options)
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in optimizer.variables]
    with pytest.raises(ValueError, match=match):
        to_optimizer(make(), optimizer)
    for variable, values in zip(optimizer.variables, before, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(variable), values)

"""States from and to optax.rmsprop: training goes on here as it goes on there, and the other way round."""

from __future__ import annotations

import numpy as np
import optax
import pytest
from frameworks import Optax, clip_each
from measure import LR, Problem, assert_close

import rmsprop_native as rms
from rmsprop_native.interop.optax import from_opt_state, to_opt_state

STEPS = 50
MU = {"momentum": 0.9}


def schedule(count):
    return LR / (1 + count)


# id: (our options, those of optax)
CASES = {
    "plain": ({}, {}),
    "decay-eps": ({"rho": 0.7, "eps": 1e-3}, {"decay": 0.7, "eps": 1e-3}),
    "eps-outside": ({"eps_inside_sqrt": False}, {"eps_in_sqrt": False}),
    "momentum": (MU, MU),
    "nesterov": (MU | {"nesterov": True}, MU | {"nesterov": True}),
    "centered": ({"centered": True}, {"centered": True}),
    "momentum-centered": (MU | {"centered": True}, MU | {"centered": True}),
    "bias_correction": ({"bias_correction": True}, {"bias_correction": True}),
    "centered-bias_correction": (
        {"centered": True, "bias_correction": True, "eps": 0.25},
        {"centered": True, "bias_correction": True, "eps": 0.25},
    ),
    "clip_norm": ({"clip_norm": 0.25}, {"before": clip_each}),
    "weight_decay": ({"weight_decay": 2.0**-5}, {"before": lambda optax: optax.add_decayed_weights(2.0**-5)}),
    "accumulate": ({"accumulate": 4}, {"every": 4}),
    "accumulate-momentum": (MU | {"accumulate": 4}, MU | {"every": 4}),
    "schedule": ({"lr": schedule}, {"learning_rate": schedule}),
    "schedule-accumulate": ({"lr": schedule, "accumulate": 4}, {"learning_rate": schedule, "every": 4}),
}  # fmt: skip


def made(case, params):
    return Optax(params, **{"learning_rate": LR} | CASES[case][1])


def ours(case):
    return {"lr": LR} | CASES[case][0]


def trained(case, steps=STEPS + 1):
    """Optax after some steps: with accumulation in the middle of one."""
    problem = Problem(np.float64)
    peer = made(case, problem.params)
    for _ in range(steps):
        peer.step(problem.grads(peer.arrays()["param"]))
    return problem, peer


def compare(peer, params, state, label):
    found = peer.arrays()
    for name in ("square_avg", "momentum_buffer", "grad_avg"):
        for one, other in zip(getattr(state, name) or (), found.get(name, ()), strict=True):
            assert_close(one, other, f"{label}: {name}")
    for one, other in zip(params, found["param"], strict=True):
        assert_close(one, other, f"{label}: param")


@pytest.mark.parametrize("case", CASES)
def test_from_optax(case):
    """Both go on on the same gradients, and stay together to 1e-12, as in test_peers.py."""
    problem, peer = trained(case)
    state = from_opt_state(peer.state, peer.params, **ours(case))
    params = peer.arrays()["param"]
    for step in range(STEPS):
        grads = problem.grads(params)
        rms.update_(params, grads, state)
        peer.step(grads)
        compare(peer, params, state, f"step {step}")


@pytest.mark.parametrize("case", CASES)
def test_to_optax(case):
    """Ours is trained, and optax goes on from it."""
    problem, peer = trained(case)
    state = from_opt_state(peer.state, peer.params, **ours(case))
    params = peer.arrays()["param"]
    for _ in range(STEPS):
        rms.update_(params, problem.grads(params), state)
    other = made(case, params)
    other.state = to_opt_state(state, other.state)
    for step in range(STEPS):
        grads = problem.grads(params)
        rms.update_(params, grads, state)
        other.step(grads)
        compare(other, params, state, f"step {step}")


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case):
    """To the bit, but for the mean of accumulated gradients, which is their sum here."""
    _, peer = trained(case)
    state = from_opt_state(peer.state, peer.params, **ours(case))
    if case == "plain":
        assert state.step == 0  # optax does not count
    again = to_opt_state(state, made(case, peer.arrays()["param"]).state)
    assert peer.jax.tree.structure(again) == peer.jax.tree.structure(peer.state)
    for one, other in zip(peer.jax.tree.leaves(again), peer.jax.tree.leaves(peer.state), strict=True):
        assert one.dtype == other.dtype
        assert_close(np.array(one), np.array(other), case, 1e-15 if "accumulate" in case else 0.0)


def test_structures_of_any_kind():
    """JAX sorts the keys of dicts; leaves are matched by them."""
    import jax.numpy as jnp

    params = {"w": jnp.ones((2, 3)), "b": [jnp.ones(3), (jnp.ones(1),)]}
    optimizer = optax.rmsprop(LR, momentum=0.5)
    opt_state = optimizer.init(params)
    grads = {"w": jnp.ones((2, 3)), "b": [jnp.full(3, 2.0), (jnp.full(1, 3.0),)]}
    _, opt_state = optimizer.update(grads, opt_state, params)
    state = from_opt_state(opt_state, params, lr=LR, momentum=0.5, step=1)
    assert state.step == 1
    assert list(state.square_avg) == ["w", "b"]
    assert np.array_equal(state.square_avg["b"][1][0], np.array(opt_state[0].nu["b"][1][0]))
    again = to_opt_state(state, optimizer.init(params))
    assert np.array_equal(again[0].nu["w"], opt_state[0].nu["w"])
    with pytest.raises(ValueError, match="nu 'b' is missing|nus do not have the keys"):
        from_opt_state(optimizer.init({"w": params["w"], "c": params["b"]}), params, lr=LR, momentum=0.5)


def opt_state(optimizer=None, **options):
    params = [np.ones(3, np.float32)]
    return (optimizer or optax.rmsprop(LR, **options)).init(params), params


REFUSED = {
    "adam": (lambda: opt_state(optax.adam(LR)), {}, TypeError, "a part of the state is a ScaleByAdamState, which"),
    "no state": (lambda: (5, [np.ones(3)]), {}, TypeError, "a part of the state is a int, which has no counterpart"),
    "hyperparameters": (
        lambda: opt_state(optax.inject_hyperparams(optax.rmsprop)(learning_rate=LR)), {}, TypeError, "InjectState",
    ),
    "a missing trace": (opt_state, MU, ValueError, "keeps square_avg; .* needs square_avg, momentum_buffer: give the"),
    "a trace too many": (lambda: opt_state(**MU), {}, ValueError, "keeps square_avg, momentum_buffer; .* needs"),
    "no mean": (opt_state, {"centered": True}, ValueError, "keeps square_avg; .* needs square_avg, grad_avg"),
    "no average": (opt_state, {"ema": 0.5}, ValueError, "keeps square_avg; .* needs square_avg, ema"),
    "twice": (
        lambda: opt_state(optax.chain(optax.scale_by_rms(), optax.rmsprop(LR))), {}, ValueError,
        "keeps square_avg, square_avg;",
    ),
    "bias correction": (opt_state, {"bias_correction": True}, ValueError, "is of bias_correction=False, the options"),
    "lr outside": (lambda: opt_state(**MU), MU | {"lr_in_momentum": False}, ValueError, "lr_in_momentum must be True"),
    "skipped": (
        lambda: opt_state(
            optax.MultiSteps(optax.rmsprop(LR), 2, should_skip_update_fn=optax.skip_not_finite)
        ), {"accumulate": 2}, ValueError, "MultiSteps skips updates by a function of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart(name):
    make, options, error, match = REFUSED[name]
    found, params = make()
    with pytest.raises(error, match=match):
        from_opt_state(found, params, lr=LR, **options)
    state = rms.init([np.ones(3, np.float32)], preset="optax", lr=LR, **options)
    with pytest.raises(error, match=match):
        to_opt_state(state, found)


def test_steps_that_were_not_counted():
    found, params = opt_state()
    with pytest.raises(ValueError, match="optax has not counted the steps that the learning rate depends on: give"):
        from_opt_state(found, params, lr=schedule)
    assert from_opt_state(found, params, lr=schedule, step=3).step == 3
    found, params = opt_state(bias_correction=True)
    with pytest.raises(ValueError, match="the number of steps is 0 and 3"):
        from_opt_state(found, params, lr=LR, bias_correction=True, step=3)


def test_buffers_of_another_kind():
    found, _ = opt_state()
    for params, match in (
        ([np.ones(2, np.float32)], r"square_avg of leaf '0' is float32 of \(2,\), optax's nu float32 of \(3,\)"),
        ([np.ones(3)], r"square_avg of leaf '0' is float64 of \(3,\), optax's nu float32"),
        ({"w": np.ones(3, np.float32)}, "nus are a list, the parameters a dict"),
    ):
        with pytest.raises(ValueError, match=match):
            to_opt_state(rms.init(params, preset="optax"), found)
    halfway = rms.init([np.ones(3, np.float32)], preset="optax", accumulate=2)
    rms.update_([np.ones(3, np.float32)], [None], halfway)
    multi, _ = opt_state(optax.MultiSteps(optax.rmsprop(LR), 2))
    with pytest.raises(ValueError, match="a leaf had no gradient since the last step"):
        to_opt_state(halfway, multi)

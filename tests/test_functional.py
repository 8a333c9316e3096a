"""The step as functions: any options with any arrays, `update_`, `update`, schedules."""

from __future__ import annotations

import os
import pickle

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, ISAS, LAYOUTS, VARIANTS, hard_numbers, option_sets, options_of
from conftest import check_alike, on_reference, refused, same_bits, small_tree, stepped_alike
from hypothesis import given, settings
from hypothesis import strategies as st

import rmsprop_native as rms
from rmsprop_native import reference

# ---- anything with anything ----


TREES = {
    "list": list,
    "tuple": tuple,
    "dict": lambda leaves: {f"leaf{i}": leaf for i, leaf in enumerate(leaves)},
    "nested": lambda leaves: {"first": [leaves[0], None], "rest": {"layer": tuple(leaves[1:])}},
}


F32, B16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
STORED = {"square_avg_dtype": st.just("bfloat16"), "master_weights": st.booleans(), "seed": st.integers(0, 2**64 - 1)}


# make hardening tries more. Layouts and values follow from the seed: chosen by Hypothesis they take longer than steps.
@settings(max_examples=int(os.environ.get("RMSP_EXAMPLES", "300")), deadline=None)
@given(
    isa=st.sampled_from(sorted(ISAS)),
    shapes=st.lists(hnp.array_shapes(min_dims=0, max_dims=3, max_side=7), min_size=1, max_size=4),
    tree=st.sampled_from(sorted(TREES)),
    options=option_sets(),
    stored=st.fixed_dictionaries({}, optional=STORED),
    finite=st.booleans(),
    steps=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_anything_with_anything(isa, shapes, tree, options, stored, finite, steps, seed):
    """Any options, trees, dtypes, layouts; gradients missing, of rows or not finite: the bits of the reference."""
    rms.use_isa(isa)
    rng = np.random.default_rng(seed)
    layouts = list(LAYOUTS.values())
    possible = [F32, B16] if "square_avg_dtype" in stored else [F32, B16, *map(np.dtype, ("f8", "c8", "c16"))]
    dtypes = [possible[rng.integers(len(possible))] for _ in shapes]

    def laid(shape, dtype):
        real = F32 if dtype == B16 else np.empty(0, dtype).real.dtype
        reals = rng.standard_normal((*shape, 2)).astype(real) if finite else hard_numbers(rng, (*shape, 2), real)
        values = reals.view(dtype)[..., 0] if dtype.kind == "c" else reals[..., 0].astype(dtype, order="C")
        return layouts[rng.integers(len(layouts))](values)

    def gradient(shape, dtype):
        kind = rng.choice(["dense", "dense", "none", "rows"])
        if dtype in (F32, B16):
            dtype = (F32, B16)[rng.integers(2)]
        if kind == "rows" and shape and options.get("accumulate", 1) == 1:
            rows = rng.integers(0, shape[0], rng.integers(6))
            return rms.RowGrad(rows, laid((len(rows), *shape[1:]), dtype))
        return None if kind == "none" else laid(shape, dtype)

    params = TREES[tree]([laid(*leaf) for leaf in zip(shapes, dtypes, strict=True)])
    ref_params, ref_state = on_reference(params, {**options, **stored})
    state = rms.init(params, **options, **stored)
    for _ in range(steps):
        grads = TREES[tree]([gradient(*leaf) for leaf in zip(shapes, dtypes, strict=True)])
        scale = rng.choice([1.0, 0.25, -3.0])
        assert rms.update_(params, grads, state, grad_scale=scale) is params
        reference.update_(ref_params, grads, ref_state, grad_scale=scale)
        check_alike(params, state, ref_params, ref_state)
        state = pickle.loads(pickle.dumps(state))


# ---- update ----


def test_update_is_pure_and_gives_the_bits_of_update_(rng):
    params = {"w": np.asfortranarray(rng.standard_normal((3, 4))), "b": [rng.standard_normal(4), None]}
    grads = {"w": rng.standard_normal((3, 4)), "b": [rng.standard_normal(4), None]}
    state = rms.init(params, momentum=0.9)
    kept = pickle.dumps((params, state))
    for array in (params["w"], params["b"][0]):
        array.flags.writeable = False
    new, new_state = rms.update(params, grads, state, lr=0.5, grad_scale=0.5)
    for array in (params["w"], params["b"][0]):
        array.flags.writeable = True
    assert pickle.dumps((params, state)) == kept
    rms.update_(params, grads, state, lr=0.5, grad_scale=0.5)
    assert same_bits(new["w"], params["w"])
    assert same_bits(new["b"][0], params["b"][0])
    assert same_bits(new_state.momentum_buffer["w"], state.momentum_buffer["w"])
    assert new_state.step == state.step == 1


# ---- numbers of a call ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_call", [{"lr": 0.5}, {"grad_scale": 1 / 1024}, {"lr": 0.0, "grad_scale": -1.5}])
def test_bits_of_per_call_numbers(dtype, per_call, rng):
    params, grads = ([hard_numbers(rng, n, DTYPES[dtype]) for n in (67, 1)] for _ in range(2))
    stepped_alike(options_of(VARIANTS["momentum_centered_l2"]), params, grads, steps=4, **per_call)


@pytest.mark.parametrize(
    ("per_call", "error", "match"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and >= 0, got -1.0"),
        ({"lr": np.nan}, ValueError, "lr must be finite"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"grad_scale": np.inf}, ValueError, "grad_scale must be finite"),
        ({"grad_scale": None}, TypeError, "grad_scale must be a number"),
        ({"lr": 1e300}, ValueError, "infinite in float32"),
    ],
)
def test_bad_number_writes_nothing(per_call, error, match, rng):
    params = small_tree(rng)
    state = rms.init(params)
    refused(error, match, params, small_tree(rng), state, **per_call)
    ref_params, ref_state = on_reference(params, state.options)
    grads = small_tree(rng)
    rms.update_(params, grads, state)  # and the next step has the state's own numbers again
    reference.update_(ref_params, grads, ref_state)
    check_alike(params, state, ref_params, ref_state)


def test_lr_as_a_function_of_the_steps_taken(rng):
    asked = []

    def schedule(taken):
        asked.append(taken)
        return 0.1 / (1 + taken)

    one, other = np.zeros(4), np.zeros(4)
    state, plain = rms.init(one, lr=schedule), rms.init(other)
    asked.clear()
    for t in range(4):
        grad = rng.standard_normal(4)
        rms.update_(one, grad, state)
        rms.update_(other, grad, plain, lr=0.1 / (1 + t))
    assert asked == [0, 1, 2, 3]
    assert same_bits(one, other)
    with pytest.raises(ValueError, match="lr must be finite and >= 0, got -1.0"):
        rms.init(one, lr=lambda taken: -1.0)


RATES = {
    "number": 0.1,
    "float": lambda taken: 0.5 / (1 + taken),
    "float32": lambda taken: np.float32(0.25),
    "float64": lambda taken: np.float64(0.3),
    "int": lambda taken: 1,
    "0-d": lambda taken: np.array(0.125),
}
REFUSED = [{"lr": True}, {"lr": np.nan}, {"lr": [1.0, 2.0]}, {"lr": -1.0}, {"grad_scale": np.inf}, {"grad_scale": None}]


@pytest.mark.parametrize("own", RATES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "bias_correction": True},
        {"momentum": 0.9, "maximize": True, "clip_norm": 0.5},
        {"momentum": 0.9, "lr_in_momentum": True, "accumulate": 2, "maximize": True},
    ],
    ids=["decoupled", "momentum", "accumulate"],
)
def test_numbers_of_calls_in_any_order(options, rate, own, rng):
    """Of calls, schedules and overrides, with refused calls, copies and pure steps between them."""
    params = {"a": rng.standard_normal(5).astype(np.float32), "b": rng.standard_normal(3).astype(np.float32)}
    options = options | {"lr": RATES[rate]}
    overrides = {"b": {"lr": RATES[own]}}
    ref_params = {key: param.copy() for key, param in params.items()}
    state = rms.init(params, overrides=overrides, **options)
    ref_state = reference.init(ref_params, overrides=overrides, **options)
    for call in range(12):
        grads = {key: rng.standard_normal(param.size).astype(np.float32) for key, param in params.items()}
        numbers = {
            "lr": [None, 0.2, 0.0, -0.0, 1, np.float32(0.3), np.array(0.4)][rng.integers(7)],
            "grad_scale": [1.0, 2, 0.0, -0.0, -1.5, np.float32(0.5)][rng.integers(6)],
        }
        refused(
            (TypeError, ValueError), "lr must|grad_scale must", params, grads, state, **REFUSED[call % len(REFUSED)]
        )
        if call % 3 == 1:
            state = state.copy()
        if call % 3 == 2:
            params, state = rms.update(params, grads, state, **numbers)
        else:
            rms.update_(params, grads, state, **numbers)
        lr = None if numbers["lr"] is None else float(numbers["lr"])
        reference.update_(ref_params, grads, ref_state, lr=lr, grad_scale=float(numbers["grad_scale"]))
        check_alike(params, state, ref_params, ref_state)


def test_a_schedule_that_raises_counts_nothing_and_leaves_no_rate_behind():
    calls = []

    def flaky(taken):
        calls.append(taken)
        if len(calls) % 2:
            return 0.5
        raise ZeroDivisionError

    params = [np.zeros(1), np.zeros(1)]
    state = rms.init(params, rho=0.0, eps=0.0, overrides={"1": {"lr": flaky}})  # asks once
    for lr in (1.0, 2.0, 4.0):
        before = [param.copy() for param in params]
        with pytest.raises(ZeroDivisionError):
            rms.update_(params, [np.ones(1), np.ones(1)], state, lr=lr)
        assert all(same_bits(one, other) for one, other in zip(params, before, strict=True))
        rms.update_(params, [np.ones(1), np.ones(1)], state, lr=8.0)
    assert [param[0] for param in params] == [-24.0, -1.5]
    assert state.step == 3


# ---- floating-point flags ----


def test_a_step_that_overflows_is_no_error_of_numpy():
    with np.errstate(all="raise"):
        param = np.zeros(3, np.float32)
        rms.update_(param, np.full(3, 1e30, np.float32), rms.init(param))
    assert np.isfinite(param).all()


@pytest.mark.parametrize("state", [None, 5, np.ones(3), rms.State.__new__(rms.State)], ids=type)
def test_what_is_no_state_is_named(state):
    name = type(state).__name__
    with pytest.raises(TypeError, match=rf"^state must be a State, which init\(\) makes, got {name}$"):
        rms.update_(np.ones(3), np.ones(3), state)

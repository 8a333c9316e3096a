"""The transaction: gradients that are not finite, accumulation, norms, averages and counts."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from cases import DTYPES, ISAS, THREADS, options_of
from conftest import refused, same_bits, stepped_alike, written_by

import rmsprop_native as rms
from rmsprop_native import _core, reference

# ---- gradients that are not finite ----


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8"])
@pytest.mark.parametrize("extra", [{}, {"accumulate": 2}, {"clip_global_norm": 1.0}])
def test_nonfinite_gradients(bad, dtype, extra):
    params = {"a": np.ones(40, dtype), "b": np.ones((3, 5), dtype)}
    good = {"a": np.ones(40, dtype), "b": np.asfortranarray(np.ones((3, 5), dtype))}
    spoiled = {"a": np.ones(40, dtype), "b": good["b"].copy(order="K")}
    spoiled["b"][1, 2] = bad
    skips, raises = (rms.init(params, on_nonfinite=name, ema=0.9, **extra) for name in ("skip", "raise"))
    for state in (skips, raises):
        rms.update_(params, good, state)
    message = r"gradient 'b' has 1 of 15 elements that are not finite"
    refused(FloatingPointError, message, params, spoiled, raises)
    before, (step, skipped, accumulated) = written_by(params, skips)
    rms.update_(params, spoiled, skips)
    after, counts = written_by(params, skips)
    assert counts == (step, skipped + 1, accumulated)
    assert all(same_bits(one, other) for one, other in zip(before, after, strict=True))
    for state in (skips, raises):
        rms.update_(params, good, state)


def test_huge_but_finite_gradients_are_not_skipped():
    """Their squares overflow in double; that is no infinity in the gradient."""
    param = np.zeros(3)
    state = rms.init(param, on_nonfinite="raise")
    rms.update_(param, np.full(3, 1e200), state)
    assert state.step == 1


def test_nonfinite_rows():
    table = np.zeros((5, 2))
    state = rms.init(table, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match="the gradient has 1 of 4 elements"):
        rms.update_(table, rms.RowGrad([1, 2], np.array([[1, 2], [np.nan, 3]])), state)
    assert not table.any()


# ---- norms ----


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_norms_have_the_same_bits_everywhere(isa, dtype, threads, rng):
    rms.use_isa(isa)
    rms.set_num_threads(threads)
    _core.set_grain(0)
    span = _core.SPAN
    lengths = [0, 1, 15, 16, 17, 511, 512, 513, span - 1, span, span + 1, 3 * span + 700]
    params = [rng.standard_normal(n).astype(DTYPES[dtype]) for n in lengths]
    grads = [(rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4)).astype(DTYPES[dtype]) for n in lengths]
    for clip in ({"clip_norm": 0.7}, {"clip_global_norm": 0.7}):
        state = stepped_alike(options_of(clip, {"momentum": 0.9}), [p.copy() for p in params], grads, grad_scale=0.3)
        assert state.step == 2


def test_clipping_bounds_the_norm(rng):
    grads = [rng.standard_normal(100), 1e-3 * rng.standard_normal(100)]
    factors = reference.clip_factors(grads, [1.0, 1.0], None, 1.0)
    assert math.isclose(np.linalg.norm(grads[0] * factors[0]), 1.0)
    assert factors[1] == 1.0
    both = reference.clip_factors(grads, [None, None], 1.0, 1.0)
    assert both[0] == both[1] < 1


def test_nan_in_a_clipped_gradient_stays_in_its_element():
    grad = np.array([1.0, np.nan, 2.0])
    param = np.zeros(3)
    rms.update_(param, grad, rms.init(param, clip_norm=0.1))
    assert np.isnan(param).tolist() == [False, True, False]


@pytest.mark.parametrize("clip", [{"clip_norm": 2.0}, {"clip_global_norm": 2.0}, {"clip_norm": 1e250}])
@pytest.mark.parametrize("grad_scale", [1.0, -1e-3, 1e-199, 0.0])
@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_norm_of_huge_gradients(dtype, grad_scale, clip, rng):
    """Finite gradients are clipped to a finite step, however large the sum of their squares."""
    sizes = (1e200, 1e306, 1.0)
    params = [rng.standard_normal(n).astype(dtype) for n in (5, 5000, 3)]
    grads = [(size * rng.standard_normal(p.size)).astype(dtype) for size, p in zip(sizes, params, strict=True)]
    stepped_alike(options_of(clip, {"rho": 0.5, "eps": 1e-3}), params, grads, grad_scale=grad_scale)
    assert all(np.isfinite(p).all() for p in params)


def test_norm_of_huge_gradients_after_unscaling(rng):
    grads = [1e150 * rng.standard_normal(5), rng.standard_normal(3)]
    params = [np.zeros(g.size) for g in grads]
    for clip in ({"clip_norm": 2.0}, {"clip_global_norm": 2.0}):
        stepped_alike(options_of(clip), params, grads, grad_scale=1e160)
        assert all(np.isfinite(p).all() for p in params)


# ---- accumulation ----


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_accumulated_steps_are_one_step_with_the_mean(k, dtype, rng):
    micro = [rng.standard_normal(50).astype(dtype) for _ in range(k)]
    one, other = (np.zeros(50, dtype) for _ in range(2))
    state = rms.init(one, accumulate=k, momentum=0.5)
    for i, grad in enumerate(micro):
        assert state.accumulated == i
        rms.update_(one, grad, state)
    assert (state.step, state.accumulated) == (1, 0)
    total = np.zeros(50, dtype)
    for grad in micro:
        total = total + grad
    rms.update_(other, total * one.dtype.type(1 / k), rms.init(other, momentum=0.5))
    assert same_bits(one, other)


def test_a_leaf_without_any_gradient_does_not_move_while_accumulating(rng):
    params = [np.ones(3), np.ones(3), np.ones(3)]
    state = rms.init(params, accumulate=2, weight_decay=0.1)
    rms.update_(params, [np.ones(3), None, None], state)
    assert all((p == 1).all() for p in params)
    rms.update_(params, [None, np.ones(3), None], state)
    assert [bool((p == 1).all()) for p in params] == [False, False, True]
    assert all((s == 0).all() for s in state.grad_sum)


def test_overflowing_scale_is_refused_while_accumulating():
    param = np.ones(3, np.float32)
    state = rms.init(param, accumulate=2)
    with pytest.raises(ValueError, match="infinite in float32"):
        rms.update_(param, np.ones(3, np.float32), state, grad_scale=1e300)
    assert (state.grad_sum == 0).all()


# ---- averaged weights ----


def test_averaged_weights(rng):
    param = rng.standard_normal(5)
    state = rms.init(param, ema=0.5, lr=0.0)
    constant = param.copy()
    for _ in range(5):
        rms.update_(param, rng.standard_normal(5), state)
    assert same_bits(state.ema, constant)  # the average of a constant is the constant

    state = rms.init(param, ema=0.9, lr=0.1)
    assert same_bits(state.ema, param)
    rms.update_(param, rng.standard_normal(5), state)
    assert same_bits(state.ema, param)  # the first step copies
    first = param.copy()
    rms.update_(param, rng.standard_normal(5), state)
    assert same_bits(state.ema, 0.9 * first + (1 - 0.9) * param)


# ---- what does not move ----


def test_missing_gradient_moves_nothing(rng):
    params = [rng.standard_normal(3), rng.standard_normal(3)]
    before = params[0].copy()
    state = rms.init(params, weight_decay=0.1, initial_square_avg=1.0)
    rms.update_(params, [None, np.ones(3)], state)
    assert same_bits(params[0], before)
    assert same_bits(state.square_avg[0], np.ones(3))
    assert state.step == 1


def test_lr_zero_changes_the_state_only(rng):
    param, grad = rng.standard_normal(5), rng.standard_normal(5)
    before = param.copy()
    state = rms.init(param, lr=0.0, momentum=0.9, centered=True)
    rms.update_(param, grad, state)
    assert same_bits(param, before)
    assert all((buffer != 0).all() for buffer in (state.square_avg, state.momentum_buffer, state.grad_avg))


# ---- counts ----


def test_each_call_is_counted_once_as_what_it_did():
    """A step at every third call with finite gradients; calls that are skipped or refused do not count."""
    param, bad = np.ones(2), np.array([1.0, np.nan])
    state = rms.init(param, accumulate=3, on_nonfinite="skip")
    counts = []
    for grad in (np.ones(2), bad, np.ones(2), np.ones(3), np.ones(2), bad, np.ones(2)):
        with contextlib.suppress(ValueError):
            rms.update_(param, grad, state)
        counts.append((state.step, state.accumulated, state.skipped))
    assert counts == [(0, 1, 0), (0, 1, 1), (0, 2, 1), (0, 2, 1), (1, 0, 1), (1, 0, 2), (1, 1, 2)]

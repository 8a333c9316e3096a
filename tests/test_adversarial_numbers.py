"""Numbers at the limits of a type: NaN, infinities, subnormal, tiny and huge ones; and a million steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import DTYPES, ISAS, VARIANTS
from conftest import check_alike, on_reference, refused, same_bits, stepped_alike

import rmsprop_native as rms
from rmsprop_native import reference

INFO = {name: np.finfo(dtype) for name, dtype in DTYPES.items()}
SPECIAL = {
    "NaN": lambda info: np.nan,
    "inf": lambda info: np.inf,
    "-inf": lambda info: -np.inf,
    "subnormal": lambda info: info.smallest_subnormal,
    "1e-30": lambda info: 1e-30,
    "1e30": lambda info: 1e30,
    "largest": lambda info: info.max,
}
FINITE = [name for name in SPECIAL if math.isfinite(SPECIAL[name](INFO["f32"]))]
NOT_FINITE = [name for name in SPECIAL if name not in FINITE]


def with_special(name, dtype, n=37):
    """Ordinary gradients, one of which is special."""
    grad = np.linspace(-1, 1, n).astype(DTYPES[dtype])
    grad[n // 2] = SPECIAL[name](INFO[dtype])
    return grad


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_special_gradient_stays_in_its_element(variant, name, dtype, isa):
    """The other elements have the bits that they have without it; all have those of the reference."""
    rms.use_isa(isa)
    grad, ordinary = with_special(name, dtype), with_special(name, dtype)
    ordinary[18] = 0.5
    params, others = np.ones_like(grad), np.ones_like(grad)
    stepped_alike(VARIANTS[variant], params, grad, steps=3)
    stepped_alike(VARIANTS[variant], others, ordinary, steps=3)
    elsewhere = np.arange(37) != 18
    assert same_bits(params[elsewhere], others[elsewhere])


@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FINITE)
def test_finite_gradients_are_stepped_whatever_their_size(name, dtype, on_nonfinite):
    """Also where their squares overflow or vanish: on_nonfinite is about gradients."""
    grad = with_special(name, dtype)
    state = stepped_alike({"on_nonfinite": on_nonfinite, "lr": 0.1}, np.ones_like(grad), grad)
    assert (state.step, state.skipped) == (2, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NOT_FINITE)
def test_gradients_that_are_not_finite(name, dtype):
    grad = with_special(name, dtype)
    param = np.ones_like(grad)
    assert stepped_alike({"on_nonfinite": "propagate"}, param, grad).step == 2
    # An infinite gradient is divided by the root of an infinite mean.
    assert np.isnan(param[18])
    assert np.isfinite(np.delete(param, 18)).all()
    param = np.ones_like(grad)
    state = stepped_alike({"on_nonfinite": "skip"}, param, grad)
    assert (state.step, state.skipped) == (0, 2)
    assert (param == 1).all()
    state = rms.init(param, on_nonfinite="raise")
    refused(FloatingPointError, "^the gradient has 1 of 37 elements that are not finite", param, grad, state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}])
def test_an_accumulator_that_has_overflowed_stops_its_element(momentum, dtype):
    """The square of a huge finite gradient is infinite, and so is square_avg from then on: the step is 0."""
    info = INFO[dtype]
    grad = np.array([info.max, 1], info.dtype)
    params, ref_params = np.ones_like(grad), np.ones_like(grad)
    options = {"lr": 0.1, **momentum}
    state, ref_state = rms.init(params, **options), reference.init(ref_params, **options)
    for _ in range(5):
        rms.update_(params, grad, state)
        reference.update_(ref_params, grad, ref_state)
        check_alike(params, state, ref_params, ref_state)
        grad = np.ones_like(grad)
    assert np.isinf(state.square_avg[0])
    assert params[0] == 1
    assert params[1] < 1
    # It has to be written to go on.
    state.square_avg[...] = [1, state.square_avg[1]]
    rms.update_(params, grad, state)
    assert params[0] < 1


@pytest.mark.parametrize(("dtype", "largest"), [("f32", 5.8e19), ("f64", 4.2e154)])
def test_the_largest_gradient_whose_mean_square_is_finite(dtype, largest):
    """(1 - rho) * g is formed before it is multiplied by g, so that this is 1/sqrt(1 - rho) above the root of the
    largest number.
    """
    grad = np.array([largest, largest * 1.02], DTYPES[dtype])
    state = rms.init(np.ones_like(grad))
    rms.update_(np.ones_like(grad), grad, state)
    assert np.isfinite(state.square_avg).tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_whose_squares_vanish_take_no_long_step(dtype):
    """square_avg is 0 and eps is the whole denominator; without eps the quotient is infinite, as IEEE 754 says."""
    grad = np.array([1e-30 if dtype == "f32" else 1e-170], DTYPES[dtype])
    param = np.zeros_like(grad)
    stepped_alike({"lr": 1.0, "eps": 1e-8}, param, grad, steps=1)
    assert 0 < -param[0] <= np.float64(grad[0]) / 1e-8 * 1.001
    param = np.zeros_like(grad)
    stepped_alike({"lr": 1.0, "eps": 0.0}, param, grad, steps=1)
    assert param[0] == -np.inf


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("gradient", [0.1, -3.7, 100.0])
def test_a_million_steps_of_a_constant_gradient(gradient, centered):
    """Every bit of the last step is that of a loop over Python floats, and nothing becomes NaN."""
    param, grad = np.array([1.0]), np.array([gradient])
    state = rms.init(param, lr=1e-6, rho=0.9, eps=1e-8, momentum=0.5, centered=centered)
    for _ in range(1_000_000):
        rms.update_(param, grad, state)
    p, v, b, a, rho, rest = 1.0, 0.0, 0.0, 0.0, 0.9, 1 - 0.9
    for _ in range(1_000_000):
        v = rho * v + (rest * gradient) * gradient
        a = rho * a + rest * gradient if centered else 0.0
        variance = max(v - a * a, 0.0)
        b = 0.5 * b + gradient / (math.sqrt(variance) + 1e-8)
        p = p - 1e-6 * b
    assert (param[0], state.square_avg[0], state.momentum_buffer[0], state.step) == (p, v, b, 1_000_000)
    assert math.isfinite(p)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_square_that_decays_to_nothing(dtype):
    """With gradients of 0 it becomes subnormal, and then does not change further; the reference has the same bits."""
    param, grad = np.ones(5, DTYPES[dtype]), np.ones(5, DTYPES[dtype])
    ref_param, ref_state = on_reference(param, {"rho": 0.5})
    state = rms.init(param, rho=0.5)
    for _ in range(1200):
        rms.update_(param, grad, state)
        reference.update_(ref_param, grad, ref_state)
        grad = np.zeros_like(grad)
    check_alike(param, state, ref_param, ref_state)
    assert state.square_avg[0] <= INFO[dtype].smallest_subnormal

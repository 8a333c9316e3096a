"""Coefficients: how they are formed, in double, and which numbers a dtype cannot hold."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import rmsprop_native as rms
from rmsprop_native import Options
from rmsprop_native.coefficients import (
    Coefficients,
    Variant,
    check_dtype,
    check_initial,
    group_of,
    resolve_lr,
    variant_of,
)

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
HEADER = Path(__file__).parent.parent / "src" / "c" / "rmsp.h"


def check(options, dtype, lr=0.5, grad_scale=1.0):
    check_dtype(group_of(options, lr, grad_scale), options, dtype)


# ---- forming them ----


def test_the_order_is_that_of_the_c_library():
    (listed,) = re.findall(r"#define RMSP_COEFFICIENTS\(X\)((?:.*\\\n)+.*\n)", HEADER.read_text())
    assert re.findall(r"X\((\w+)\)", listed) == list(Coefficients._fields)


def test_coefficients_are_formed_in_double():
    assert group_of(Options(rho=0.9), 0.25, 1.0).numbers.one_minus_rho == 1.0 - 0.9
    inside = group_of(Options(momentum=0.5, lr_in_momentum=True), 0.25, 1.0).numbers
    assert (inside.lr_in, inside.lr_out) == (0.25, 1.0)
    outside = group_of(Options(momentum=0.5), 0.25, 1.0).numbers
    assert (outside.lr_in, outside.lr_out) == (1.0, 0.25)
    decoupled = Options(weight_decay=0.1, decoupled_weight_decay=True)
    assert group_of(decoupled, 0.3, 1.0).numbers.shrink == 1.0 - 0.3 * 0.1


def test_coefficients_of_defaults_are_neutral():
    group = group_of(Options(rho=0.75, eps=0.5), 0.25, 1.0)
    assert group.numbers == (1.0, math.inf, 0.0, 0.75, 0.25, 1.0, 0.0, 0.5, 0.25, 0.0, 1.0, 1.0)
    assert group[:4] == (("none", False, False), False, 0.0, math.inf)


def test_the_rest_of_a_group():
    group = group_of(Options(bias_correction=True, ema=0.5, clip_norm=2.0, maximize=True), 0.25, 3.0)
    assert (group.bias_correction, group.ema, group.clip_norm) == (True, 0.5, 2.0)
    assert group.numbers.bias_correction == 1.0  # formed from the number of the step, where that is counted
    assert group.numbers.grad_scale == -3.0
    assert group_of(Options(eps=0.5, eps_inside_sqrt=True), 0.25, 1.0).numbers[6:8] == (0.5, 0.0)


def test_variants():
    assert variant_of(Options()) == Variant("none", False, False)
    assert variant_of(Options(momentum=0.5, centered=True)) == Variant("classic", True, False)
    assert variant_of(Options(momentum=0.5, nesterov=True)) == Variant("nesterov", False, False)
    assert variant_of(Options(weight_decay=0.5)) == Variant("none", False, True)
    assert variant_of(Options(weight_decay=0.5, decoupled_weight_decay=True)) == Variant("none", False, False)


# ---- the learning rate ----


def test_the_rate_of_the_call_wins_over_the_schedule_over_the_option():
    asked = []

    def schedule(taken):
        asked.append(taken)
        return np.float32(0.5)

    assert resolve_lr(Options(lr=0.25), None, 7) == 0.25
    assert resolve_lr(Options(lr=schedule), 0.125, 7) == 0.125
    assert asked == []
    rate = resolve_lr(Options(lr=schedule), None, 7)
    assert (rate, type(rate), asked) == (0.5, float, [7])


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (-1.0, ValueError, "lr must be finite and >= 0, got -1.0"),
        (math.nan, ValueError, "lr must be finite and >= 0, got nan"),
        (10**400, ValueError, "lr must be finite and >= 0, got a number too large for a float"),
        (True, TypeError, "lr must be a number, got True"),
        ("1", TypeError, "lr must be a number, got '1'"),
        (np.ones(2), TypeError, "lr must be a number, got array"),
        (abs, TypeError, "lr must be a number, got <built-in function abs>"),
    ],
)
def test_bad_rates(rate, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        resolve_lr(Options(), rate, 0)
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        resolve_lr(Options(lr=lambda taken: rate), None, 0)
    with pytest.raises(TypeError, match="^lr must be a number, got None"):
        resolve_lr(Options(lr=lambda taken: None), None, 0)


# ---- what float32 cannot hold ----

TOO_LARGE = {
    "eps": ({"eps": 1e39}, "eps=1e+39"),
    "eps inside": ({"eps": 1e39, "eps_inside_sqrt": True}, "eps=1e+39"),
    "weight_decay": ({"weight_decay": 1e39}, "weight_decay=1e+39"),
    "clip_value": ({"clip_value": 1e39}, "clip_value=1e+39"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_options_that_are_infinite_in_float32(name):
    options, text = TOO_LARGE[name]
    with pytest.raises(ValueError, match=f"^{re.escape(text)} is infinite in float32"):
        rms.init([np.zeros(2), np.zeros(2, np.float32)], **options)
    rms.init(np.zeros(2), **options)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"momentum": 0.5, "lr_in_momentum": True}])
def test_a_rate_that_is_infinite_in_float32(options):
    param = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"^lr=1e\+39 is infinite in float32"):
        rms.init(param, lr=1e39, **options)
    with pytest.raises(ValueError, match=r"^lr=1e\+39 is infinite in float32"):
        rms.update_(param, param.copy(), rms.init(param, **options), lr=1e39)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scale", [1e300, -1e300])
def test_a_grad_scale_that_is_infinite_in_float32_has_the_sign_that_was_given(maximize, accumulate, scale):
    options = Options(maximize=maximize, accumulate=accumulate)
    with pytest.raises(ValueError, match=f"^grad_scale={re.escape(repr(scale))} is infinite in float32"):
        check(options, F32, grad_scale=scale)
    check(options, F64, grad_scale=scale)


LEAST_INFINITE = 2.0**128 - 2.0**103  # in float32; a tie


@pytest.mark.parametrize(
    ("options", "per_call", "text"),
    [
        ({"weight_decay": LEAST_INFINITE}, {}, "weight_decay={}"),
        ({"weight_decay": LEAST_INFINITE, "decoupled_weight_decay": True}, {"lr": 1.0}, "lr=1.0 times weight_decay={}"),
        ({"clip_value": LEAST_INFINITE, "maximize": True}, {}, "clip_value={}"),
        ({}, {"grad_scale": -LEAST_INFINITE}, "grad_scale=-{}"),
        ({"maximize": True}, {"grad_scale": LEAST_INFINITE}, "grad_scale={}"),
    ],
)
def test_the_least_number_that_is_infinite_in_float32(options, per_call, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text.format(LEAST_INFINITE))} is infinite in float32$"):
        check(Options(**options), F32, **per_call)


@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, 1e-46), (np.complex64, 1e-50)])
@pytest.mark.parametrize("inside", [False, True])
def test_eps_that_rounds_to_zero(dtype, eps, inside):
    rms.init(np.zeros(2, np.float64), eps=eps, eps_inside_sqrt=inside)
    with pytest.raises(ValueError, match=f"^eps={eps} rounds to 0 in float32; give an eps of at least 1.17.*e-38"):
        rms.init(np.zeros(2, dtype), eps=eps, eps_inside_sqrt=inside)


def test_clip_value_that_rounds_to_zero():
    rms.init(np.zeros(2), clip_value=1e-60)
    with pytest.raises(ValueError, match=r"^clip_value=1e-60 rounds to 0 in float32; give a clip_value of at least"):
        rms.init(np.zeros(2, np.float32), clip_value=1e-60)


@pytest.mark.parametrize("name", ["rho", "momentum", "ema"])
def test_decays_that_round_to_one(name):
    rms.init(np.zeros(2), **{name: 1 - 1e-9})
    message = rf"^{name}=0.999999999 rounds to 1 in float32; the largest below 1 is 0.999999940395\d+$"
    with pytest.raises(ValueError, match=message):
        rms.init(np.zeros(2, np.float32), **{name: 1 - 1e-9})
    rms.init(np.zeros(2, np.float32), **{name: 1 - 2.0**-24})


def test_decoupled_decay_that_overflows():
    text = r"^lr=1e\+200 times weight_decay=1e\+200 is infinite in float64"
    options = {"weight_decay": 1e200, "decoupled_weight_decay": True}
    for momentum in (0.0, 0.5):
        with pytest.raises(ValueError, match=text):
            rms.init(np.zeros(2), lr=1e200, momentum=momentum, **options)
    with pytest.raises(ValueError, match=r"^lr=1e\+20 times weight_decay=1e\+20 is infinite in float32"):
        check(Options(weight_decay=1e20, decoupled_weight_decay=True), F32, lr=1e20)
    check(Options(weight_decay=1e20, decoupled_weight_decay=True), F64, lr=1e20)


@pytest.mark.parametrize(("value", "what"), [(1e300, "is infinite"), (1e-60, "rounds to 0")])
def test_initial_square_avg(value, what):
    rms.init(np.zeros(2), initial_square_avg=value)
    for dtype in (np.float32, np.complex64):
        with pytest.raises(ValueError, match=f"^initial_square_avg={re.escape(repr(value))} {what} in float32"):
            rms.init(np.zeros(2, dtype), initial_square_avg=value)


@pytest.mark.parametrize("name", ["clip_norm", "clip_global_norm"])
@pytest.mark.parametrize("value", [1e-300, 1e300])
def test_norms_are_doubles_in_any_dtype(name, value):
    options = Options(**{name: value})
    check(options, F32)
    assert rms.init(np.zeros(2, np.float32), **{name: value}).options == options


def refused(make, dtype):
    try:
        make(dtype)
    except ValueError:
        return True
    return False


AROUND = [
    float(np.finfo(np.float32).max), math.nextafter(2.0**128 - 2.0**103, 0), 2.0**128 - 2.0**103, 2.0**-150,
    math.nextafter(2.0**-150, 1), 1e-46, 5e-324, 1.7976931348623157e308, 0.0,
]  # fmt: skip


@given(st.floats(min_value=0.0, allow_infinity=False))
@example(AROUND[0])
@example(AROUND[1])
@example(AROUND[2])
@example(AROUND[3])
@example(AROUND[4])
@example(AROUND[5])
@example(AROUND[6])
@example(AROUND[7])
@example(AROUND[8])
def test_refused_are_exactly_the_numbers_that_rounding_spoils(value):
    """Compared with what NumPy's own rounding makes of them."""
    for dtype in (F32, F64):
        with np.errstate(all="ignore"):
            rounded = dtype.type(value)
        infinite, vanished = bool(np.isinf(rounded)), bool(rounded == 0 < value)
        assert refused(lambda d: check(Options(), d, lr=value), dtype) == infinite
        assert refused(lambda d: check(Options(weight_decay=value), d), dtype) == infinite
        assert refused(lambda d: check(Options(eps=value), d), dtype) == (infinite or vanished)
        assert refused(lambda d: check_initial(Options(initial_square_avg=value), d), dtype) == (infinite or vanished)


@given(st.floats(min_value=0.0, max_value=1.0, exclude_max=True))
@example(1 - 2.0**-25)
@example(math.nextafter(1 - 2.0**-25, 0))
@example(math.nextafter(1.0, 0))
def test_refused_are_exactly_the_decays_that_round_to_one(value):
    for dtype in (F32, F64):
        for name in ("rho", "momentum", "ema"):
            options = Options(**{name: value})
            assert refused(lambda d: check(options, d), dtype) == (dtype.type(value) == 1)  # noqa: B023

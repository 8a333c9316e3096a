"""Options: every check, and the coefficients they make."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rmsprop_native as rms
from rmsprop_native import Options

INF, NAN = math.inf, math.nan

OUT_OF_RANGE = {
    "lr": [-1e-9, INF, NAN, -INF],
    "rho": [-0.1, 1.0, 1.5, NAN],
    "eps": [-1e-8, INF, NAN],
    "momentum": [-0.1, 1.0, NAN],
    "initial_square_avg": [-1.0, INF, NAN],
    "weight_decay": [-0.1, INF, NAN],
    "clip_value": [0.0, -1.0, INF, NAN],
    "clip_norm": [0.0, -1.0, INF, NAN],
    "clip_global_norm": [0.0, -1.0, INF, NAN],
    "ema": [-0.1, 1.0, NAN],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Options(**{name: value})


@pytest.mark.parametrize("name", OUT_OF_RANGE)
@pytest.mark.parametrize("value", ["0.5", True, 0.5j, [0.5], np.array([0.5]), np.bool(True)])
def test_numbers_of_the_wrong_kind(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a number, got "):
        Options(**{name: value})


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), 0.5], ids=repr)
def test_numbers_of_any_real_kind(value):
    assert Options(lr=value, rho=value, momentum=value) == Options(lr=0.5, rho=0.5, momentum=0.5)
    assert type(Options(lr=value).lr) is float
    assert Options(lr=1).lr == 1.0


@pytest.mark.parametrize(
    "name", ["eps_inside_sqrt", "nesterov", "centered", "bias_correction", "maximize", "decoupled_weight_decay", "lr_in_momentum"]
)  # fmt: skip
def test_flags_are_bools(name):
    with pytest.raises(TypeError, match=f"^{name} must be a bool"):
        Options(**{name: 1})
    assert getattr(Options(momentum=0.5, **{name: np.bool(True)}), name) is True


def test_contradictions():
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        Options(nesterov=True)
    with pytest.raises(ValueError, match="bias_correction assumes a square_avg that starts from 0"):
        Options(bias_correction=True, initial_square_avg=1.0)
    with pytest.raises(TypeError, match="alpha"):
        Options(alpha=0.9)


def test_options_are_frozen_and_show_what_was_chosen():
    options = Options(lr=0.5, momentum=0.9)
    with pytest.raises(AttributeError):
        options.lr = 1.0
    assert repr(options) == "Options(lr=0.5, rho=0.9, momentum=0.9)"


@pytest.mark.parametrize("changes", [{"momentum": 0.0}, {"centered": True}])
def test_changes_that_need_other_arrays_are_refused(changes):
    with pytest.raises(ValueError, match="the state keeps square_avg, momentum_buffer; .* would need square_avg"):
        Options(momentum=0.9).replace(**changes)


def test_changes_of_numbers():
    options = Options(momentum=0.9).replace(lr=0.5, rho=0.5, momentum=0.5, nesterov=True, weight_decay=0.1)
    assert options == Options(lr=0.5, rho=0.5, momentum=0.5, nesterov=True, weight_decay=0.1)
    with pytest.raises(ValueError, match="initial_square_avg has been used"):
        Options().replace(initial_square_avg=1.0)


@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, 1e-46), (np.complex64, 1e-50)])
def test_eps_that_rounds_to_zero(dtype, eps):
    rms.init(np.zeros(2, np.float64), eps=eps)
    with pytest.raises(ValueError, match="eps=.* rounds to 0 in float32"):
        rms.init(np.zeros(2, dtype), eps=eps)


def test_numbers_too_large_for_float32():
    with pytest.raises(ValueError, match="weight_decay=1e\\+39 is infinite in float32"):
        rms.init([np.zeros(2), np.zeros(2, np.float32)], weight_decay=1e39)


def test_coefficients_are_formed_in_double():
    numbers = Options(rho=0.9, bias_correction=True).coefficients(2)
    assert numbers.one_minus_rho == 1.0 - 0.9
    assert numbers.bias_correction == 1.0 / (1.0 - 0.9**2)
    inside = Options(momentum=0.5, lr_in_momentum=True, lr=0.25).coefficients(1)
    assert (inside.lr_in, inside.lr_out) == (0.25, 1.0)
    outside = Options(momentum=0.5, lr=0.25).coefficients(1)
    assert (outside.lr_in, outside.lr_out) == (1.0, 0.25)
    assert Options(weight_decay=0.5, decoupled_weight_decay=True, lr=0.5).coefficients(1).shrink == 0.75


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_accumulate_is_a_count(value, error):
    with pytest.raises(error, match="accumulate must be"):
        Options(accumulate=value)
    assert Options(accumulate=np.int64(3)).accumulate == 3


def test_other_refusals():
    with pytest.raises(ValueError, match="on_nonfinite must be 'propagate', 'skip' or 'raise', got 'ignore'"):
        Options(on_nonfinite="ignore")
    with pytest.raises(ValueError, match="clip_value and clip_global_norm are two ways to clip; give one"):
        Options(clip_value=1.0, clip_global_norm=1.0)

"""The specification: what it computes against numbers worked out by hand, and that the product has its bits.

All but the last tests compare with Python arithmetic only, so that the two cannot be wrong alike.
"""

from __future__ import annotations

import ast
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cases import option_sets
from conftest import same_bits, stepped_alike
from hypothesis import given, settings
from hypothesis import strategies as st

import rmsprop_native as rms
from rmsprop_native import reference

LR, RHO, EPS = 0.5, 0.75, 0.125


def stepped(param, grads, *, lr=LR, rho=RHO, eps=EPS, overrides=None, **options):
    """A parameter after a step for each of `grads`, and the state."""
    param = np.array(param)
    state = reference.init(param, lr=lr, rho=rho, eps=eps, overrides=overrides, **options)
    for grad in grads:
        assert reference.update_(param, np.array(grad, param.dtype), state) is param
    return param, state


# ---- the formula ----

# For each option the parameter after one step with a gradient of 3 from a parameter of 2; v is then 0.25 * 9.
V = (1 - RHO) * 3.0 * 3.0
FIRST_STEP = {
    "plain": ({}, 2.0 - LR * 3.0 / (math.sqrt(V) + EPS)),
    "eps_inside_sqrt": ({"eps_inside_sqrt": True}, 2.0 - LR * 3.0 / math.sqrt(V + EPS)),
    "momentum": ({"momentum": 0.5}, 2.0 - LR * (3.0 / (math.sqrt(V) + EPS))),
    "lr_in_momentum": ({"momentum": 0.5, "lr_in_momentum": True}, 2.0 - LR * 3.0 / (math.sqrt(V) + EPS)),
    "nesterov": (
        {"momentum": 0.5, "nesterov": True},
        2.0 - LR * (3.0 / (math.sqrt(V) + EPS) + 0.5 * (3.0 / (math.sqrt(V) + EPS))),
    ),
    "centered": ({"centered": True}, 2.0 - LR * 3.0 / (math.sqrt(V - 0.75 * 0.75) + EPS)),
    "bias_correction": ({"bias_correction": True}, 2.0 - LR * 3.0 / (3.0 + EPS)),
    "initial_square_avg": ({"initial_square_avg": 4.0}, 2.0 - LR * 3.0 / (math.sqrt(RHO * 4.0 + V) + EPS)),
    "weight_decay": ({"weight_decay": 0.5}, 2.0 - LR * 4.0 / (math.sqrt(0.25 * 4.0 * 4.0) + EPS)),
    "decoupled_weight_decay": (
        {"weight_decay": 0.5, "decoupled_weight_decay": True},
        0.75 * 2.0 - LR * 3.0 / (math.sqrt(V) + EPS),
    ),
    "maximize": ({"maximize": True}, 2.0 + LR * 3.0 / (math.sqrt(V) + EPS)),
    "clip_value": ({"clip_value": 2.0}, 2.0 - LR * 2.0 / (math.sqrt(0.25 * 2.0 * 2.0) + EPS)),
    "clip_norm": ({"clip_norm": 1.5}, 2.0 - LR * 1.5 / (math.sqrt(0.25 * 1.5 * 1.5) + EPS)),
    "clip_global_norm": ({"clip_global_norm": 6.0}, 2.0 - LR * 3.0 / (math.sqrt(V) + EPS)),
}


@pytest.mark.parametrize("name", FIRST_STEP)
def test_first_step_by_hand(name):
    options, expected = FIRST_STEP[name]
    param, state = stepped(2.0, [3.0], **options)
    assert float(param) == expected
    assert state.step == 1


def test_second_step_by_hand():
    """What the buffers carry over: momentum, both means, and the sign of a Nesterov step."""
    p, v, b, a = 2.0, 0.0, 0.0, 0.0
    for g in (3.0, -1.0):
        v = RHO * v + 0.25 * g * g
        a = RHO * a + 0.25 * g
        u = g / (math.sqrt(v - a * a) + EPS)
        b = 0.5 * b + u
        p = p - LR * (u + 0.5 * b)
    param, state = stepped(2.0, [3.0, -1.0], momentum=0.5, nesterov=True, centered=True)
    assert (float(param), float(state.square_avg), float(state.momentum_buffer)) == (p, v, b)
    assert float(state.grad_avg) == a


def test_momentum_is_nesterov_s_where_it_is_asked_for():
    numbers = reference.coefficients(rms.Options(momentum=0.5, rho=0.0, eps=0.0), 1, 1.0, 1.0)
    arrays = [np.array([x]) for x in (0.0, 2.0, 0.0, 4.0)]
    assert reference.step(numbers, *arrays)[0] == -3.0
    assert reference.step(numbers, *arrays, nesterov=True)[0] == -2.5


def test_bias_correction_makes_the_mean_of_a_constant_that_constant():
    """With it, every step with the gradient 3 has the root mean square 3, up to rounding."""
    param, state = stepped(0.0, [3.0] * 20, bias_correction=True, eps=0.0)
    assert math.isclose(float(param), -20 * LR)
    numbers = [reference.coefficients(state.options, t, LR, 1.0).bias_correction for t in (1, 2, 3)]
    assert numbers == [1 / (1 - 0.75), 1 / (1 - 0.75 * 0.75), 1 / (1 - 0.75**3)]
    param, _ = stepped(0.0, [3.0], centered=True, bias_correction=True)
    assert float(param) == -LR * 3.0 / EPS  # the variance of one gradient is 0


def test_coefficients_are_formed_in_double():
    numbers = reference.coefficients(rms.Options(rho=0.9, weight_decay=0.1, decoupled_weight_decay=True), 1, 0.3, 2.0)
    assert numbers.one_minus_rho == 1.0 - 0.9
    assert numbers.shrink == 1.0 - 0.3 * 0.1
    assert (numbers.weight_decay, numbers.grad_scale, numbers.clip_value) == (0.0, 2.0, math.inf)
    param, state = stepped(np.float32(0), [1.0], rho=0.9)
    assert param.dtype == state.square_avg.dtype == np.float32
    assert state.square_avg == np.float32(1.0 - 0.9) != np.float32(1) - np.float32(0.9)


def test_order_of_the_square():
    """(1 - rho) * g * g from the left: 0.25 * 1e154**2 is finite only so."""
    g = 1.5e154
    assert math.isinf(g * g)
    _, state = stepped(0.0, [g])
    assert float(state.square_avg) == 0.25 * g * g < math.inf


def test_centered_variance_is_clamped():
    numbers = reference.coefficients(rms.Options(rho=0.0, eps=0.25, centered=True), 1, 1.0, 1.0)
    numbers = numbers._replace(one_minus_rho=1.0, rho=1.0)
    ones, zeros = np.ones(2), np.zeros(2)
    nan = np.array([0.0, np.nan])
    param, _, _, _ = reference.step(numbers, ones, zeros, nan, None, ones)  # the variance: 0 - 1, and NaN
    assert param[0] == 1.0
    assert np.isnan(param[1])
    param, _, _, _ = reference.step(numbers._replace(rho=1.0), zeros, ones, zeros, None, 2 * ones)
    assert same_bits(param, np.full(2, -1 / 0.25))  # 1 - 9 counts as 0


def test_clip_value_keeps_nan_and_clamps_infinity():
    param, _ = stepped(np.zeros(4), [[np.nan, np.inf, -np.inf, 1.0]], clip_value=2.0, rho=0.0, eps=0.0)
    assert np.isnan(param[0])
    assert param[1:].tolist() == [-LR, LR, -LR]


def test_nan_spreads_where_options_need_it_only():
    """Without L2 decay an infinite parameter does not reach the gradient."""
    _, state = stepped(np.inf, [1.0])
    assert float(state.square_avg) == 0.25
    _, state = stepped(np.inf, [1.0], weight_decay=0.1)
    assert math.isinf(state.square_avg)


def test_complex_numbers_are_pairs_of_reals():
    reals, real_state = stepped(np.array([1.0, 2.0, 3.0, 4.0]), [[1.0, -1.0, 0.5, 8.0]], initial_square_avg=1.0)
    param, state = stepped(np.array([1 + 2j, 3 + 4j]), [[1 - 1j, 0.5 + 8j]], initial_square_avg=1.0)
    assert param.view(float).tolist() == reals.tolist()
    assert state.square_avg.view(float).tolist() == real_state.square_avg.tolist()
    assert reference.sumsq(np.array([3 + 4j])) == 25.0


def test_both_reals_of_a_complex_number_have_its_rate():
    param, grad, rates = np.array([1 + 2j, 3 + 4j]), np.array([1 - 1j, 0.5 + 8j]), np.array([0.5, 2.0])
    both, _ = stepped(param, [grad], overrides={"*": {"lr": rates}})
    for i in range(2):
        alone, _ = stepped(param[i], [grad[i]], lr=rates[i])
        assert same_bits(both[i], alone)


# ---- norms ----


def test_sum_of_squares_in_any_length():
    """Integers are summed without rounding, whatever the order."""
    for n in (0, 1, 15, 16, 17, 511, 513, 4097, 10_000):
        x = np.arange(n) % 7 - 3.0
        assert reference.sumsq(x) == int((x * x).sum())
        assert reference.sumsq(x, 0.5) == int((x * x).sum()) / 4
        assert reference.sumsq(np.flip(x).astype(np.float32).reshape(1, -1)) == reference.sumsq(x)


def test_order_of_the_sum_of_squares():
    """Sixteen sums, folded in halves: here the small squares meet each other before they meet the large one."""
    x = np.zeros(40)
    x[0], x[8] = 1.0, 2.0**-27  # folded first: 2**-54 is lost beside 1
    x[3], x[19] = 2.0**-27, 2.0**-27  # in one sum: 2**-53, then lost in a tie
    assert reference.sumsq(x) == 1.0
    x[35] = 2.0**-27  # a third in the same sum
    assert reference.sumsq(x) == 1.0 + 2.0**-52
    blocks = np.zeros(514)
    blocks[0] = 1.0
    blocks[[1, 17, 513]] = 2.0**-27  # the last one is of another block, and lost by itself
    assert reference.sumsq(blocks) == 1.0
    spans = np.zeros(5000)
    spans[0] = 1.0
    spans[[4096, 4112, 4608]] = 2.0**-27  # two blocks of one span, added before they meet the first span
    assert reference.sumsq(spans) == 1.0 + 2.0**-52


def exact_factor(elements, limit, scale):
    """min(1, limit / norm) in rational arithmetic, to about 60 digits."""
    square = sum(Fraction(x) ** 2 for x in elements) * Fraction(scale) ** 2
    if square <= Fraction(limit) ** 2:
        return 1.0
    ratio = Fraction(limit) ** 2 / square
    shift = 4 ** max(0, (ratio.denominator.bit_length() - ratio.numerator.bit_length()) // 2 + 200)
    return float(Fraction(math.isqrt(int(ratio * shift)), math.isqrt(shift)))


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.75, 1e-3, 1e-160, 1e-250, 1e100, 1e200])
@pytest.mark.parametrize("limit", [1e-10, 1.0, 1e100, 1e250])
@pytest.mark.parametrize("size", [1e-100, 1.0, 1e100, 1e155, 1e200, 4e307])
def test_clip_factor_is_the_quotient(size, limit, scale):
    elements = [3.0 * size, -4.0 * size, 0.5 * size]
    (factor,) = reference_factors([np.array(elements)], [limit], None, scale)
    exact = exact_factor(elements, limit, scale)
    # 5 roundings; where a factor is subnormal, half of its last bit
    assert math.isclose(factor, exact, rel_tol=2.0**-50, abs_tol=2.0**-1074)
    (common,) = reference_factors([np.array(elements)], [None], limit, scale)
    assert common == factor


def reference_factors(*args):
    with np.errstate(all="ignore"):
        return reference.clip_factors(*args)


def test_clip_factor_where_squares_overflow():
    """One operation after the other."""
    total_down = (2.0**-88) ** 2  # one element of 2**512
    assert reference.clip_factor(math.inf, total_down, 1.0, 1.0) == 2.0**-512
    assert reference.clip_factor(math.inf, total_down, 3.0, -0.75) == 3.0 / 2.0**-88 / 0.75 * 2.0**-600
    assert reference.clip_factor(math.inf, total_down, 3.0, 2.0**-512) == 1.0  # unscaled the norm is 1
    assert reference.clip_factor(math.inf, total_down, 1.0, 2.0**-511) == 0.5
    for limit in (1.5 * 2.0**512, 2.0**513):
        assert reference.clip_factor(math.inf, total_down, limit, 1.0) == 1.0
    assert reference.clip_factor(math.inf, total_down, 1.0, 0.0) == 1.0
    # the product with the scale overflows, its factors do not
    assert reference.clip_factor(2.0**1000, 0.0, 1.0, 2.0**600) == 2.0**-1100 == 0.0
    assert reference.clip_factor(2.0**1000, 0.0, 2.0**100, 2.0**600) == 2.0**-1000


def test_clip_factor_of_what_is_not_finite():
    assert reference_factors([np.array([1.0, np.inf])], [1.0], None, 1.0) == [0.0]
    assert reference_factors([np.array([1.0, np.nan])], [1.0], None, 1.0) == [1.0]
    assert reference_factors([np.array([np.inf, np.nan])], [1.0], None, 1.0) == [1.0]
    assert reference_factors([np.array([np.inf, 1e300])], [1.0], None, 0.0) == [1.0]
    assert reference_factors([np.array([np.nan]), np.array([1e300])], [None, None], 1.0, 1.0) == [1.0, 1.0]


def test_common_norm_counts_every_leaf():
    grads = [np.array([2.0]), None, np.array([4.0, 4.0], np.float32)]
    assert reference_factors(grads, [None] * 3, 3.0, 1.0) == [0.5] * 3
    assert reference_factors(grads, [1.0, 1.0, None], None, -1.0) == [0.5, 1.0, 1.0]
    huge = [np.array([2.0**520]), None, np.array([2.0**519, 2.0**519, 2.0**519, 2.0**519])]
    assert reference_factors(huge, [None] * 3, 1.0, 1.0) == [1 / math.sqrt(2 * 2.0**-160) * 2.0**-600] * 3
    # each sum of squares is finite, only all of them together are not
    below = [np.array([2.0**511.75])] * 2
    assert math.isfinite(reference.sumsq(below[0]))
    (factor, _) = reference_factors(below, [None] * 2, 1.0, 1.0)
    assert math.isclose(factor, 2.0**-512.25)


# ---- bfloat16 ----


def test_lower_halves_that_do_not_fit_count_as_zero():
    upper = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0]).astype(reference.bfloat16())
    joined = reference.join_halves(upper, np.full(6, 0xFFFF, np.uint16))
    assert same_bits(joined[:5], upper[:5].astype(np.float32))
    assert joined[5] == np.nextafter(np.float32(1), np.float32(0))


# ---- around the step ----


@pytest.mark.parametrize("k", [2, 3, 4])
def test_accumulation_is_a_step_with_the_mean(k):
    grads = np.arange(1.0, k + 1) ** 2
    param, state = stepped(2.0, grads, accumulate=k, clip_value=5.0)
    assert (state.step, state.accumulated, float(state.grad_sum)) == (1, 0, 0.0)
    one, _ = stepped(2.0, [sum(grads) * (1 / k)], clip_value=5.0)
    assert same_bits(param, one)


def test_scale_of_each_accumulated_gradient_is_its_own():
    param = np.array(2.0)
    state = reference.init(param, lr=LR, rho=RHO, eps=EPS, accumulate=2, maximize=True)
    reference.update_(param, np.array(3.0), state, grad_scale=2.0)
    assert (float(param), state.step, state.accumulated, float(state.grad_sum)) == (2.0, 0, 1, -6.0)
    reference.update_(param, np.array(8.0), state, grad_scale=0.25)
    g = (-6.0 - 2.0) / 2
    assert float(param) == 2.0 - LR * g / (math.sqrt(0.25 * g * g) + EPS)


def test_accumulated_leaves_without_gradient_do_not_move():
    params = [np.array(1.0) for _ in range(3)]
    state = reference.init(params, accumulate=2, weight_decay=0.5)
    one = np.array(1.0)
    reference.update_(params, [one, None, None], state)
    assert state.summed == {0}
    reference.update_(params, [None, one, None], state)
    assert [float(p) == 1.0 for p in params] == [False, False, True]
    reference.update_(params, [None, None, one], state)
    assert state.summed == {2}
    with pytest.raises(ValueError, match="gradient '1' is a RowGrad, which cannot be accumulated"):
        reference.update_(params, [one, rms.RowGrad([0], one), None], state)
    assert state.accumulated == 1


def test_averaged_weights():
    param = np.array(2.0)
    state = reference.init(param, lr=LR, rho=RHO, eps=EPS, ema=0.75)
    assert float(state.ema) == 2.0
    reference.update_(param, np.array(3.0), state)
    first = float(param)
    assert float(state.ema) == first != 2.0  # the first step copies
    reference.update_(param, np.array(3.0), state)
    assert float(state.ema) == 0.75 * first + 0.25 * float(param)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_that_are_not_finite(bad):
    params = {"a": np.ones(2), "b": np.ones((3, 5))}
    grads = {"a": np.ones(2), "b": np.ones((3, 5))}
    grads["b"][1, 2] = bad
    for accumulate in (1, 2):
        skips = reference.init(params, on_nonfinite="skip", accumulate=accumulate)
        raises = reference.init(params, on_nonfinite="raise", accumulate=accumulate)
        reference.update_(params, grads, skips)
        with pytest.raises(FloatingPointError, match="gradient 'b' has 1 of 15 elements that are not finite"):
            reference.update_(params, grads, raises)
        assert (skips.skipped, raises.skipped) == (1, 0)
        for state in (skips, raises):
            assert (state.step, state.accumulated) == (0, 0)
            assert not any(array.any() for array in state.square_avg.values())
        assert all((param == 1).all() for param in params.values())


def test_rows_are_steps_of_their_own():
    """Rows in any order, one of them twice, one with several elements: each is a small step; the others stay."""
    options = {"momentum": 0.5, "centered": True, "weight_decay": 0.5, "ema": 0.75, "initial_square_avg": 1.0}
    table = np.arange(10.0).reshape(5, 2)
    before = table.copy()
    state = reference.init(table, lr=LR, rho=RHO, eps=EPS, **options)
    values = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    for _ in range(2):
        reference.update_(table, rms.RowGrad([3, 1, 3], values), state)
    for row, grad in ((1, [3.0, 4.0]), (3, [11.0, 22.0])):
        alone, alone_state = stepped(before[row], [grad, grad], **options)
        assert same_bits(table[row], alone)
        for name in ("square_avg", "momentum_buffer", "grad_avg", "ema"):
            assert same_bits(getattr(state, name)[row], getattr(alone_state, name)), name
    still = [0, 2, 4]
    assert same_bits(table[still], before[still])
    assert same_bits(state.ema[still], before[still])
    assert (state.square_avg[still] == 1).all()
    assert not state.momentum_buffer[still].any()


def test_values_of_a_row_are_added_in_their_order():
    values = np.array([1.0, 2.0**-53, 7.0, 2.0**-53, -1.0])
    rows, merged = reference.merge_rows(np.array([2, 2, 0, 2, 2]), values)
    assert rows.tolist() == [0, 2]
    assert merged.tolist() == [7.0, 0.0]  # another order gives 2**-52
    rows, merged = reference.merge_rows(np.array([], np.intp), np.zeros((0, 3), np.float32))
    assert (rows.shape, merged.shape, merged.dtype) == ((0,), (0, 3), np.float32)


def test_norm_of_rows_is_that_of_their_sums():
    table = np.zeros((4, 1))
    state = reference.init(table, lr=LR, rho=0.0, eps=1.0, clip_norm=2.5)
    reference.update_(table, rms.RowGrad([1, 3, 1], np.array([[1.0], [4.0], [2.0]])), state)
    assert table[:, 0].tolist() == [0.0, -LR * 1.5 / 2.5, 0.0, -LR * 2.0 / 3.0]


# ---- numbers of some leaves, schedules, trees ----


def test_overrides_by_literal_path_and_by_pattern():
    names = ("w", "w[0]", "w0", "b", "*")
    params = {name: np.array(0.0) for name in names}
    overrides = {
        "w*": {"lr": 2.0},
        "w[0]": {"lr": 4.0},  # literally the path of a leaf: not a pattern that "w0" matches
        "*": {"eps": 1.0},  # likewise
        "[bw]": {"rho": 0.75},
    }
    state = reference.init(params, lr=1.0, rho=0.0, eps=0.0, overrides=overrides)
    reference.update_(params, dict.fromkeys(names, np.array(4.0)), state)
    assert {name: float(p) for name, p in params.items()} == {"w": -4.0, "w[0]": -4.0, "w0": -2.0, "b": -2.0, "*": -0.8}
    with pytest.raises(ValueError, match=r"overrides\['c'\] matches none of 'w', 'w\[0\]'"):
        reference.init(params, overrides={"c": {"lr": 1.0}})


def test_limits_of_the_norm_by_leaf():
    params = [np.zeros(2) for _ in range(3)]
    grads = [np.array([3.0, 4.0])] * 3
    overrides = {"1": {"clip_norm": None}, "2": {"clip_norm": 10.0}}
    state = reference.init(params, lr=1.0, rho=0.0, eps=1.0, clip_norm=2.5, overrides=overrides)
    reference.update_(params, grads, state)
    assert [float(p[0]) for p in params] == [-1.5 / 2.5, -3.0 / 4.0, -3.0 / 4.0]


def test_rates_and_schedules():
    calls = []

    def common(taken):
        calls.append(("common", taken))
        return 1.0 / (1 + taken)

    def own(taken):
        calls.append(("own", taken))
        return np.float64(3.0)

    params = [np.array(0.0) for _ in range(5)]
    grads = [np.array(2.0)] * 5
    state = reference.init(params, lr=common, rho=0.0, eps=0.0, overrides={"[23]": {"lr": own}, "4": {"lr": 5.0}})
    assert calls == []
    reference.update_(params, grads, state)
    assert sorted(calls) == [("common", 0), ("own", 0)]
    assert [float(p) for p in params] == [-1.0, -1.0, -3.0, -3.0, -5.0]
    reference.update_(params, grads, state)
    assert sorted(calls[2:]) == [("common", 1), ("own", 1)]
    reference.update_(params, grads, state, lr=10.0)  # in place of the common one only
    assert calls[4:] == [("own", 2)]
    assert [float(p) for p in params] == [-11.5, -11.5, -9.0, -9.0, -15.0]


def test_rates_of_minus_zero_are_zero():
    params = [np.array([-0.0])]
    state = reference.init(params, lr=1.0, rho=0.0, eps=1.0, overrides={"0": {"lr": np.array([-0.0])}})
    reference.update_(params, [np.ones(1)], state)
    assert same_bits(params[0], np.array([-0.0]))  # -0 minus 0; less -0 it would be 0


def test_trees_are_matched_by_key():
    params = {"a": [np.zeros(2), None], "b": (np.ones(3),)}
    state = reference.init(params, lr=1.0, rho=0.0, eps=0.0, momentum=0.5, preset="torch")
    grads = {"b": [np.full(3, 2.0)], "a": (np.full(2, -2.0), None)}
    assert reference.update_(params, grads, state) is params
    assert params["a"][0].tolist() == [1.0, 1.0]
    assert params["b"][0].tolist() == [0.0, 0.0, 0.0]
    assert state.momentum_buffer["b"][0].tolist() == [1.0, 1.0, 1.0]
    assert state.grad_avg is state.ema is state.grad_sum is None
    with pytest.raises(ValueError, match=r"missing \['a'\]"):
        reference.update_(params, {"b": [np.ones(3)]}, state)
    assert state.step == 1


def test_states_are_told_apart_by_identity():
    state, alike = (reference.init(np.zeros(2)) for _ in "ab")
    assert len({state, alike, state}) == 2


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        reference.clip_factors([np.ones(1), np.ones(1)], [1.0], None, 1.0)
    with pytest.raises(ValueError, match="longer"):
        reference.merge_rows(np.array([1]), np.ones(2))


def test_the_arrays_of_a_state_are_plain():
    class Named(np.ndarray):
        pass

    state = reference.init(np.ones(2).view(Named), momentum=0.5, ema=0.5, accumulate=2)
    for name in ("square_avg", "momentum_buffer", "grad_sum"):
        assert type(getattr(state, name)) is np.ndarray


def test_views_are_written():
    memory = np.zeros((2, 6))
    view = memory[:, ::2]
    reference.update_(view, np.ones((2, 3)), reference.init(view, lr=1.0, rho=0.0, eps=0.0))
    assert memory.tolist() == [[-1.0, 0.0] * 3] * 2


def test_no_warnings_and_no_flags_changed():
    param = np.zeros(3, np.float32)
    with np.errstate(all="raise"):
        reference.update_(param, np.full(3, 1e38, np.float32), reference.init(param, clip_value=1e300), lr=1e30)
        assert np.geterr()["over"] == "raise"


# ---- independent of the product, and equal to it ----


def test_coefficients_are_the_reference_s_own():
    """It takes from the product what options and trees are, and nothing that computes."""
    tree = ast.parse(Path(reference.__file__).read_text())
    taken = {}
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Import) and any("rmsprop_native" in name.name for name in node.names))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rmsprop_native"):
            taken.setdefault(node.module.partition(".")[2], set()).update(alias.name for alias in node.names)
    assert set().union(*taken.values()) == {
        "Options",
        "RowGrad",
        "Tree",
        "arithmetic",
        "bfloat16",
        "flatten",
        "make_options",
        "title",
    }
    assert not any("coefficients" in module for module in taken)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"coefficients", "variant", "buffers"}


@settings(max_examples=200, deadline=None)
@given(
    options=option_sets(schedules=True),
    overrides=st.dictionaries(
        st.sampled_from(["0", "1", "2", "[01]", "*"]),
        st.fixed_dictionaries(
            {},
            optional={
                "lr": st.sampled_from([0.5, lambda taken: 0.5**taken]),
                "rho": st.sampled_from([0.25, 0.9]),
                "eps": st.just(1e-4),
                "weight_decay": st.sampled_from([0.0, 0.1]),
            },
        ),
    ),
    per_call=st.fixed_dictionaries({}, optional={"lr": st.just(0.25), "grad_scale": st.sampled_from([0.5, -1.5])}),
    dtype=st.sampled_from(["f4", "f8", "c8", "c16"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_product_has_the_bits_of_the_reference(options, overrides, per_call, dtype, seed):
    rng = np.random.default_rng(seed)
    params, grads = ([rng.standard_normal(n).astype(dtype) for n in (3, 70, 1)] for _ in range(2))
    stepped_alike(options, params, grads, steps=4, overrides=overrides, **per_call)

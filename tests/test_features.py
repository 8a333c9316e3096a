"""What goes around the step: norms, accumulation, averaged weights, rows, NaN, schedules; all to the bit."""

from __future__ import annotations

import math
import pickle

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from cases import DTYPES, ISAS, VARIANTS, hard_numbers, options_of
from conftest import check_alike, on_reference, same_bits, stepped_alike
from hypothesis import given, settings
from hypothesis import strategies as st

import rmsprop_native as rms
from rmsprop_native import _core, reference

# ---- anything with anything ----


@st.composite
def option_sets(draw):
    """Options that do not contradict each other."""
    options = draw(
        st.fixed_dictionaries(
            {"lr": st.sampled_from([0.0, 0.03, 1.0])},
            optional={
                "rho": st.sampled_from([0.0, 0.5, 0.99]),
                "eps": st.sampled_from([1e-10, 1e-3]),
                "eps_inside_sqrt": st.booleans(),
                "momentum": st.sampled_from([0.5, 0.9]),
                "lr_in_momentum": st.booleans(),
                "centered": st.booleans(),
                "weight_decay": st.sampled_from([0.01, 0.5]),
                "decoupled_weight_decay": st.booleans(),
                "maximize": st.booleans(),
                "accumulate": st.integers(1, 3),
                "ema": st.sampled_from([0.0, 0.9]),
                "on_nonfinite": st.sampled_from(["propagate", "skip"]),
            },
        )
    )
    if "momentum" in options:
        options["nesterov"] = draw(st.booleans())
    options |= draw(st.sampled_from([{}, {"bias_correction": True}, {"initial_square_avg": 1.0}]))
    options |= draw(
        st.sampled_from([{}, {"clip_value": 0.5}, {"clip_norm": 0.5}, {"clip_global_norm": 0.5}, {"clip_norm": 1e30}])
    )
    return options


def laid_out(array, layout):
    """`array` with the same values in another layout."""
    if layout == "F":
        return np.array(array, order="F")
    if layout == "reversed" and array.ndim:
        return np.flip(np.flip(array).copy())
    if layout == "strided" and array.ndim:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    return array.copy()


TREES = {
    "list": list,
    "tuple": tuple,
    "dict": lambda leaves: {f"leaf{i}": leaf for i, leaf in enumerate(leaves)},
    "nested": lambda leaves: {"first": [leaves[0], None], "rest": {"layer": tuple(leaves[1:])}},
}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), options=option_sets(), seed=st.integers(0, 2**32 - 1))
def test_anything_with_anything(data, options, seed):
    """Options, trees, dtypes, layouts, gradients that are missing, of rows, or not finite: the bits of the reference."""
    rng = np.random.default_rng(seed)
    layouts = st.sampled_from(["C", "F", "reversed", "strided"])
    shapes = data.draw(st.lists(hnp.array_shapes(min_dims=0, max_dims=3, max_side=7), min_size=1, max_size=4))
    dtypes = [np.dtype(data.draw(st.sampled_from(["f4", "f8", "c8", "c16"]))) for _ in shapes]
    finite = data.draw(st.booleans())

    def draw(shape, dtype):
        real = np.empty(0, dtype).real.dtype
        reals = rng.standard_normal((*shape, 2)).astype(real) if finite else hard_numbers(rng, (*shape, 2), real)
        return reals.view(dtype)[..., 0] if dtype.kind == "c" else np.ascontiguousarray(reals[..., 0])

    params = [laid_out(draw(s, d), data.draw(layouts)) for s, d in zip(shapes, dtypes, strict=True)]
    tree = TREES[data.draw(st.sampled_from(sorted(TREES)))]
    tree_of_params = tree(params)
    ref_params, ref_state = on_reference(tree_of_params, options)
    state = rms.init(tree_of_params, **options)
    for _ in range(data.draw(st.integers(1, 4))):
        grads = []
        for shape, dtype in zip(shapes, dtypes, strict=True):
            kind = data.draw(st.sampled_from(["dense", "dense", "none", "rows"]))
            if kind == "rows" and shape and options.get("accumulate", 1) == 1:
                rows = rng.integers(0, shape[0], data.draw(st.integers(0, 5)))
                grads.append(rms.RowGrad(rows, laid_out(draw((len(rows), *shape[1:]), dtype), data.draw(layouts))))
            else:
                grads.append(None if kind == "none" else laid_out(draw(shape, dtype), data.draw(layouts)))
        scale = data.draw(st.sampled_from([1.0, 0.25, -3.0]))
        assert rms.update_(tree_of_params, tree(grads), state, grad_scale=scale) is tree_of_params
        reference.update_(ref_params, tree(grads), ref_state, grad_scale=scale)
        check_alike(tree_of_params, state, ref_params, ref_state)
        state = pickle.loads(pickle.dumps(state))


# ---- norms ----


@pytest.mark.parametrize("threads", [1, 2])
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


def test_norm_does_not_depend_on_layout(rng):
    grad = rng.standard_normal((60, 70)).astype(np.float32)
    clipped = []
    for g in (grad, np.asfortranarray(grad), np.ascontiguousarray(grad[::-1])[::-1]):
        for order in "CF":
            param = np.zeros((60, 70), np.float32, order=order)
            rms.update_(param, g, rms.init(param, clip_norm=0.1, rho=0.0, eps=1.0))
            clipped.append(param)
    assert all(same_bits(clipped[0], other) for other in clipped[1:])


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


def test_accumulate_cannot_change_halfway():
    param = np.ones(3)
    state = rms.init(param, accumulate=3)
    rms.update_(param, np.ones(3), state)
    with pytest.raises(ValueError, match="accumulate cannot change with 1 gradients accumulated"):
        state.replace(accumulate=2)
    rms.update_(param, np.ones(3), state)
    rms.update_(param, np.ones(3), state)
    state.replace(accumulate=2)
    with pytest.raises(ValueError, match="would need square_avg"):
        state.replace(accumulate=1)


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


# ---- NaN and infinity ----


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8"])
@pytest.mark.parametrize("extra", [{}, {"accumulate": 2}, {"clip_global_norm": 1.0}])
def test_nonfinite_gradients(bad, dtype, extra):
    params = {"a": np.ones(40, dtype), "b": np.ones((3, 5), dtype)}
    good = {"a": np.ones(40, dtype), "b": np.asfortranarray(np.ones((3, 5), dtype))}
    spoiled = {"a": np.ones(40, dtype), "b": good["b"].copy(order="K")}
    spoiled["b"][1, 2] = bad
    for name, error in (("skip", None), ("raise", FloatingPointError)):
        state = rms.init(params, on_nonfinite=name, ema=0.9, **extra)
        rms.update_(params, good, state)
        before = pickle.dumps((params, state._buffers, state.step, state.accumulated))
        if error:
            with pytest.raises(error, match=r"gradient 'b' has 1 of 15 elements that are not finite"):
                rms.update_(params, spoiled, state)
        else:
            rms.update_(params, spoiled, state)
            assert state.skipped == 1
        assert pickle.dumps((params, state._buffers, state.step, state.accumulated)) == before
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


# ---- rows ----


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_are_the_dense_gradient(dtype, variant, rng):
    values = hard_numbers(rng, (9, 5), DTYPES[dtype])
    grad = hard_numbers(rng, (9, 5), DTYPES[dtype])
    options = VARIANTS[variant]
    one, other = values.copy(), values.copy()
    order = rng.permutation(9)
    dense, lazy = rms.init(one, **options), rms.init(other, **options)
    for _ in range(2):
        rms.update_(one, grad, dense)
        rms.update_(other, rms.RowGrad(order, grad[order]), lazy)
    assert same_bits(one, other)
    assert same_bits(dense.square_avg, lazy.square_avg)


def test_other_rows_do_not_move(rng):
    table = rng.standard_normal((10, 3))
    before = table.copy()
    state = rms.init(table, momentum=0.9, centered=True, weight_decay=0.1, ema=0.9, initial_square_avg=1.0)
    rms.update_(table, rms.RowGrad(np.array([7, 2, 7], np.uint8), rng.standard_normal((3, 3))), state)
    moved = [2, 7]
    still = np.setdiff1d(np.arange(10), moved)
    assert (table[moved] != before[moved]).all()
    for array, start in ((table, before), (state.ema, before), (state.square_avg, 1), (state.grad_avg, 0)):
        assert (array[still] == (start[still] if isinstance(start, np.ndarray) else start)).all()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_any_length_over_threads(threads, order, rng):
    _core.set_grain(0)
    rms.set_num_threads(threads)
    for width in (1, 700, _core.SPAN + 5):
        table = np.array(rng.standard_normal((40, width)), np.float32, order=order)
        rows = rng.integers(0, 40, 12)
        other = rng.standard_normal(3 * _core.SPAN).astype(np.float32)
        grads = [rms.RowGrad(rows, rng.standard_normal((12, width)).astype(np.float32)), other.copy()]
        stepped_alike(options_of({"momentum": 0.9, "ema": 0.9, "clip_global_norm": 3.0}), [table, other], grads)


BAD_ROWS = {
    "too large": ([0, 5], (2, 3), IndexError, "gradient 'emb' has row 5 at place 1, its parameter has 5 rows"),
    "negative": ([-1], (1, 3), IndexError, "gradient 'emb' has row -1 at place 0, its parameter has 5 rows"),
    "float": ([0.0], (1, 3), TypeError, "gradient 'emb' has rows of dtype float64, not integers"),
    "bool": (np.array([True]), (1, 3), TypeError, "rows of dtype bool"),
    "2-d": ([[0]], (1, 3), ValueError, r"rows of shape \(1, 1\), its parameter has shape \(5, 3\)"),
    "count": ([0, 1], (3, 3), ValueError, r"has shape \(3, 3\), its parameter has \(5, 3\); the values of 2 rows have"),
    "width": ([0], (1, 1), ValueError, r"has shape \(1, 1\)"),
    "dtype": ([0], (1, 3), TypeError, "gradient 'emb' has dtype float32, its parameter has float64"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_write_nothing(name):
    rows, shape, error, match = BAD_ROWS[name]
    params = {"w": np.zeros(2), "emb": np.zeros((5, 3))}
    state = rms.init(params)
    values = np.ones(shape, np.float32 if name == "dtype" else np.float64)
    with pytest.raises(error, match=match):
        rms.update_(params, {"w": np.ones(2), "emb": rms.RowGrad(rows, values)}, state)
    assert not params["w"].any()
    assert state.step == 0


def test_rows_that_overlap_their_table_are_refused():
    table = np.zeros((5, 3))
    with pytest.raises(ValueError, match="the gradient overlaps its parameter"):
        rms.update_(table, rms.RowGrad([0], table[1:2]), rms.init(table))


def test_rows_cannot_be_accumulated():
    table = np.zeros((5, 3))
    with pytest.raises(ValueError, match="RowGrad, which cannot be accumulated: rows left out would be decayed"):
        rms.update_(table, rms.RowGrad([0], np.ones((1, 3))), rms.init(table, accumulate=2))


def test_a_table_without_rows():
    table = np.zeros((0, 3))
    state = rms.init(table)
    rms.update_(table, rms.RowGrad([], np.zeros((0, 3))), state)
    assert state.step == 1


def test_cost_is_that_of_the_rows():
    """Counted, not timed: what the step copies does not grow with the table."""
    import tracemalloc

    peaks = []
    for length in (10, 100_000):
        table = np.zeros((length, 8))
        state = rms.init(table)
        grad = rms.RowGrad([3, 5, 3], np.ones((3, 8)))
        rms.update_(table, grad, state)
        tracemalloc.start()
        rms.update_(table, grad, state)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= peaks[0] + 1024


# ---- schedules ----


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

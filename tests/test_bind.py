"""Binding: any layout gives the same bits, what overlaps is refused, rows, and arrays that move."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, THREADS, VARIANTS, hard_numbers, options_of
from conftest import as_keywords, check_alike, on_reference, refused, same_bits, stepped_alike

import rmsprop_native as rms
from rmsprop_native import _core, reference

# ---- layouts ----


@pytest.mark.parametrize("shape", [(7,), (3, 5), (40, 31), (4, 1, 5, 3), (2, 700)])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_bits_do_not_depend_on_layout(dtype, shape, rng):
    def draw():
        reals = hard_numbers(rng, (*shape, 2), np.dtype({"c8": "f4", "c16": "f8"}.get(dtype, dtype)))
        return reals.view(dtype)[..., 0] if dtype[0] == "c" else np.ascontiguousarray(reals[..., 0])

    values, grads = draw(), draw()
    options = options_of(VARIANTS["momentum_centered_l2"])
    ref_param, ref_state = on_reference(values, options)
    for _ in range(2):
        reference.update_(ref_param, grads, ref_state)
    for param in (lay_out(values) for lay_out in LAYOUTS.values()):
        for grad in (lay_out(grads) for lay_out in LAYOUTS.values()):
            p = param.copy(order="K") if param.flags.forc else param
            start = p.copy(order="K")
            grad.flags.writeable = False
            state = rms.init(p, **as_keywords(options))
            rms.update_(p, grad, state)
            rms.update_(p, grads, state)
            check_alike(p, state, ref_param, ref_state)
            p[...] = start


def test_memmap_and_subclasses(tmp_path, rng):
    class Named(np.ndarray):
        pass

    values = rng.standard_normal(6)
    for make in (lambda v: np.memmap(tmp_path / "w", v.dtype, "w+", shape=v.shape), lambda v: v.copy().view(Named)):
        param = make(values)
        param[...] = values
        grad = np.ones(6).view(Named)
        state = rms.init(param)
        rms.update_(param, grad, state)
        plain = values.copy()
        rms.update_(plain, np.ones(6), rms.init(plain))
        assert same_bits(np.asarray(param), plain)
        assert type(state.square_avg) is np.ndarray


# ---- overlap ----


@pytest.mark.parametrize("where", ["parameter", "square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum"])
@pytest.mark.parametrize("part", [slice(None), slice(1), slice(-1, None)], ids=["all", "first", "last"])
def test_gradient_that_overlaps_writes_nothing(where, part):
    params = [np.zeros(8, np.float32), np.zeros(32, np.float32)[8:16]]
    state = rms.init(params, momentum=0.9, centered=True, ema=0.9, accumulate=2)
    array = params[1] if where == "parameter" else getattr(state, where)[1]
    grad = np.broadcast_to(array[part], 8)
    refused(ValueError, f"gradient '1' overlaps its {where}", params, [np.ones(8, np.float32), grad], state)


@pytest.mark.parametrize("where", ["parameter", "square_avg", "momentum_buffer", "grad_avg", "ema"])
def test_gradient_that_overlaps_another_leaf_writes_nothing(where):
    """As with f = a * b, where the gradient of a is b itself."""
    params = [np.ones(8), np.ones(8)]
    state = rms.init(params, momentum=0.9, centered=True, ema=0.9)
    other = params[0] if where == "parameter" else getattr(state, where)[0]
    how = "is parameter '0' itself" if where == "parameter" else f"overlaps {where} '0' in memory"
    message = f"gradient '1' {how}, which the step writes; pass a copy"
    refused(ValueError, message, params, [np.ones(8), other], state)


def test_gradient_that_overlaps_a_parameter_without_gradient_writes_nothing():
    """Every parameter counts as written, whether it has a gradient at this call or not."""
    params = [np.ones(8), np.ones(8)]
    refused(ValueError, "gradient '1' is parameter '0' itself", params, [None, params[0]], rms.init(params))


def test_gradients_may_overlap_each_other(rng):
    grad = rng.standard_normal(9)
    params = [rng.standard_normal(8) for _ in range(3)]
    stepped_alike(options_of(), params, [grad[:8], grad[1:], grad[:8]])


def test_overlap_is_looked_for_again_after_a_parameter_moved():
    """The gradient is the same array that overlapped nothing at the last step."""
    grad = np.ones(8)
    state = rms.init([np.ones(8)])
    rms.update_([np.ones(8)], [grad], state)
    refused(ValueError, "gradient '0' overlaps its parameter", [grad[::-1]], [grad], state)


def test_gradients_next_to_each_other_are_fine():
    memory = np.ones(24, np.float32)
    param = memory[8:16]
    state = rms.init(param)
    for grad in (memory[:8], memory[16:]):
        rms.update_(param, grad, state)
    interleaved = np.ones((8, 2), np.float32)
    state = rms.init(interleaved[:, 0])
    view = interleaved[:, 0]
    rms.update_(view, interleaved[:, 1], state)
    assert (interleaved[:, 1] == 1).all()
    assert (interleaved[:, 0] < 1).all()


def test_parameters_that_share_memory_are_refused(rng):
    a = rng.standard_normal(10)
    with pytest.raises(ValueError, match="parameter 'x' and parameter 'y' are the same array"):
        rms.init({"x": a, "y": a})
    with pytest.raises(ValueError, match="parameter 'x' and parameter 'y' overlap in memory"):
        rms.init({"x": a[:6], "y": a[5:]})
    with pytest.raises(ValueError, match="parameter 'y' and parameter 'x' overlap in memory"):
        rms.init({"y": a[::2], "z": rng.standard_normal(3), "x": a[4:5]})
    rms.init({"x": a[:5], "y": a[5:]})
    rms.init({"x": a[::2], "y": a[1::2]})


def test_read_only_parameter_writes_nothing(rng):
    params = [rng.standard_normal(3), rng.standard_normal(3)]
    state = rms.init(params)
    rms.update_(params, [np.ones(3), np.ones(3)], state)
    params[1].flags.writeable = False
    refused(ValueError, "parameter '1' is read-only", params, [np.ones(3), np.ones(3)], state)
    with pytest.raises(ValueError, match="parameter '1' is read-only"):
        rms.init(params)


# ---- arrays that move ----


def test_other_parameters_are_bound_again(rng):
    """The state follows the structure, not the arrays: pure code makes new ones at each step."""
    first, second = ([rng.standard_normal(3), rng.standard_normal(4)] for _ in range(2))
    state = rms.init(first)
    rms.update_(first, [np.ones(3), np.ones(4)], state)
    rms.update_(second, [np.ones(3), np.ones(4)], state)
    first[1] = first[1] * 2
    rms.update_(first, [np.ones(3), np.ones(4)], state)
    assert state.step == 3
    grads = [np.ones(3), np.ones(4)]
    other_shape, other_dtype = [first[0], first[0].copy()], [first[0].astype(np.float32), first[1]]
    refused(ValueError, r"parameter '1' has shape \(3,\), its square_avg has \(4,\)", other_shape, grads, state)
    refused(TypeError, "parameter '0' has dtype float32, its square_avg has float64", other_dtype, grads, state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy 2.5 warns of setting the shape
def test_parameter_moved_in_memory_is_followed(rng):
    param = rng.standard_normal(4)
    state = rms.init(param)
    rms.update_(param, np.ones(4), state)
    param.shape = (2, 2)
    refused(ValueError, r"the parameter has shape \(2, 2\), its square_avg has \(4,\)", param, np.ones(4), state)
    param.shape = (4,)
    rms.update_(param, np.ones(4), state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("grad", [np.ones((4, 8))[:, ::2], rms.RowGrad([1], np.ones((1, 4)))], ids=["strided", "rows"])
def test_a_reshaped_parameter_is_refused_for_every_kind_of_gradient(grad):
    param = np.ones((4, 4))
    state = rms.init(param)
    rms.update_(param, grad, state)
    param.shape = (2, 8)
    refused(ValueError, r"the parameter has shape \(2, 8\), its square_avg has \(4, 4\)", param, grad, state)


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
@pytest.mark.parametrize("threads", THREADS)
def test_rows_of_any_length_over_threads(threads, order, rng):
    _core.set_grain(0)
    rms.set_num_threads(threads)
    for width in (1, 700, _core.SPAN + 5):
        table = np.array(rng.standard_normal((40, width)), np.float32, order=order)
        rows = rng.integers(0, 40, 12)
        other = rng.standard_normal(3 * _core.SPAN).astype(np.float32)
        grads = [rms.RowGrad(rows, rng.standard_normal((12, width)).astype(np.float32)), other.copy()]
        stepped_alike(options_of({"momentum": 0.9, "ema": 0.9, "clip_global_norm": 3.0}), [table, other], grads)


def test_a_table_without_rows():
    table = np.zeros((0, 3))
    state = rms.init(table)
    rms.update_(table, rms.RowGrad([], np.zeros((0, 3))), state)
    assert state.step == 1


def test_cost_is_that_of_the_rows():
    """Counted, not timed: what the step copies does not grow with the table."""
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

"""The memory of state buffers: places in a page, packing, alignment, memory orders, zeros."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cases import LAYOUTS

import rmsprop_native as rms
from rmsprop_native.buffers import PAGE, place

NAMES = ("square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum")
BFLOAT16 = ml_dtypes.bfloat16
LINE = 64


def made(name, models):
    """The buffers of that name of a state whose parameters are `models`, and the memory of all its buffers."""
    state = rms.init(list(models), momentum=0.9, centered=True, ema=0.9, accumulate=2)
    arrays = list(getattr(state, name))
    return arrays, arrays[0].base if arrays else None


def start_of(array):
    return array.ctypes.data


def at_place(place, n, dtype):
    """An array that starts `place` bytes into a page, as NumPy's large arrays do at 16."""
    memory = np.zeros(n * np.dtype(dtype).itemsize + PAGE, np.uint8)
    first = (place - start_of(memory)) % PAGE
    return memory[first : first + n * np.dtype(dtype).itemsize].view(dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_large_buffers_and_their_parameter_start_at_other_places_in_a_page(dtype):
    """Vectors of all arrays can start with a cache line, and there is no 4K aliasing between them."""
    param = at_place(16, 1 << 17, dtype)
    state = rms.init(param, momentum=0.9, centered=True, ema=0.9, accumulate=2)
    starts = [start_of(array) for array in (param, *(getattr(state, name) for name in NAMES))]
    assert {start % LINE for start in starts} == {16}
    places = [start % PAGE for start in starts]
    distances = [(one - other) % PAGE for i, one in enumerate(places) for other in places[:i]]
    assert all(4 * LINE <= distance <= PAGE - 4 * LINE for distance in distances)


def test_so_do_those_of_bfloat16_parameters():
    state = rms.init(at_place(16, 1 << 17, BFLOAT16), momentum=0.9, centered=True, ema=0.9, accumulate=2)
    places = [start_of(getattr(state, name)) % PAGE for name in (*NAMES, "low_half")]
    assert {place % LINE for place in places} == {16}
    assert all(4 * LINE <= (one - two) % PAGE <= PAGE - 4 * LINE for i, one in enumerate(places) for two in places[:i])


@pytest.mark.parametrize("name", NAMES)
def test_every_large_buffer_has_the_place_of_its_name(name):
    models = [np.zeros(n, np.float32) for n in (1024, 3, 5000, 1 << 16)]
    arrays, _ = made(name, models)
    large = [array for array in arrays if array.nbytes >= PAGE]
    assert len(large) == 3
    assert len({start_of(array) % PAGE for array in large}) == 1


def test_small_buffers_are_packed_from_line_to_line():
    models = [np.zeros(n, np.float32) for n in (1, 16, 17, 3)]
    sizes = [model.nbytes for model in models]
    assert place({"square_avg": sizes, "ema": sizes}) == (
        [[0, LINE, 2 * LINE, 4 * LINE], [5 * LINE, 6 * LINE, 7 * LINE, 9 * LINE]],
        9 * LINE + 12,
    )
    arrays, _ = made("square_avg", models)
    starts = [start_of(array) - start_of(arrays[0]) for array in arrays]
    assert starts == [0, LINE, 2 * LINE, 4 * LINE]
    assert start_of(arrays[0]) % PAGE == 0


def test_buffers_lie_in_their_memory_and_do_not_overlap():
    models = [np.zeros(n, dtype) for n in (0, 1, 33, 1024, 9999) for dtype in ("f4", "f8", "c8", "c16")]
    arrays, memory = made("momentum_buffer", models)
    assert memory.dtype == np.uint8
    end = start_of(memory)
    for array in arrays:
        assert start_of(array) >= end
        assert start_of(array) % array.itemsize == 0
        end = start_of(array) + array.nbytes
    assert end <= start_of(memory) + memory.nbytes


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_buffers_are_dense_in_the_order_of_their_model(layout, dtype):
    model = LAYOUTS[layout](np.ones((4, 5, 6), dtype))
    (array,), _ = made("grad_avg", [model])
    assert (array.shape, array.dtype) == (model.shape, model.dtype)
    assert sorted(array.strides) == [array.itemsize, *sorted(array.itemsize * n for n in _inner_lengths(array))]
    assert np.argsort(array.strides).tolist() == np.argsort(np.abs(model.strides)).tolist()
    assert not array.any()
    assert array.flags.writeable


def _inner_lengths(array):
    """The elements that each axis but the fastest steps over in a dense array, by the order of its strides."""
    lengths = np.array(array.shape)[np.argsort(array.strides)]
    return np.cumprod(lengths)[:-1].tolist()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_small_shapes(shape):
    (array,), _ = made("ema", [np.zeros(shape)])
    assert array.shape == shape
    assert not array.any()


def test_no_leaves():
    assert place({"grad_sum": []}) == ([[]], 0)
    assert rms.init([]).square_avg == ()


def test_values_that_a_state_starts_from():
    model = np.arange(6.0).reshape(2, 3)
    state = rms.init([model, model.T.astype(np.complex64)], momentum=0.9, ema=0.9, initial_square_avg=2.0)
    assert [array.tolist() for array in state.ema] == [model.tolist(), model.T.tolist()]
    assert (state.square_avg[0] == 2).all()
    assert (state.square_avg[1] == 2 + 2j).all()
    assert not any(array.any() for array in state.momentum_buffer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy 2.5 warns of setting the shape
def test_a_view_can_be_reshaped_and_neither_resized_nor_confused_with_the_buffer():
    state = rms.init(np.zeros((2, 3)))
    seen = state.square_avg
    seen[...] = 1
    assert (state.square_avg == 1).all()
    seen.shape = (3, 2)
    assert state.square_avg.shape == (2, 3)
    with pytest.raises(ValueError, match="own its data|resize"):
        seen.resize((4, 5), refcheck=False)


def test_a_copy_has_buffers_of_its_own_at_the_same_places(rng):
    models = [rng.standard_normal(n) for n in (3, 1000, 5)]
    state = rms.init(models, momentum=0.9)
    rms.update_(models, [np.ones_like(model) for model in models], state)
    other = state.copy()
    for name in ("square_avg", "momentum_buffer"):
        for one, two in zip(getattr(state, name), getattr(other, name), strict=True):
            assert not np.shares_memory(one, two)
            assert (one == two).all()
            assert start_of(one) % PAGE == start_of(two) % PAGE

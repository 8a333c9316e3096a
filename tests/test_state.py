"""State, init and the doors over them: update, RMSProp, pickling, copies."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from conftest import same_bits

import rmsprop_native as rms


def test_buffers_have_the_shape_dtype_and_memory_order_of_their_parameter():
    params = {
        "c": np.zeros((3, 4), np.float32),
        "f": np.asfortranarray(np.zeros((3, 4))),
        "z": np.zeros(2, np.complex64),
    }
    state = rms.init(params, momentum=0.9, centered=True, initial_square_avg=1.0)
    for trees, value in ((state.square_avg, 1), (state.momentum_buffer, 0), (state.grad_avg, 0)):
        for key, array in trees.items():
            assert array.dtype == params[key].dtype
            assert array.shape == params[key].shape
            assert array.flags.f_contiguous == params[key].flags.f_contiguous
            assert (array.view(array.real.dtype) == value).all() or key == "z"
    assert (state.square_avg["z"].real == 1).all()


def test_arrays_that_an_option_does_not_need_do_not_exist():
    state = rms.init(np.zeros(3))
    assert state.momentum_buffer is None
    assert state.grad_avg is None


COPIES = {
    "copy()": rms.State.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_go_on_alike(how, rng):
    one = [rng.standard_normal(3), np.asfortranarray(rng.standard_normal((2, 2)))]
    grads = [rng.standard_normal(3), rng.standard_normal((2, 2))]
    state = rms.init(one, momentum=0.9, centered=True, bias_correction=True)
    rms.update_(one, grads, state)
    other, twin = [p.copy() for p in one], COPIES[how](state)
    assert twin.step == 1
    rms.update_(one, grads, state)
    rms.update_(other, grads, twin)
    assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))
    assert all(same_bits(a, b) for a, b in zip(state.square_avg, twin.square_avg, strict=True))


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


def test_the_class_gives_the_bits_of_update_(rng):
    one = rng.standard_normal(50)
    other = one.copy()
    opt = rms.RMSProp(one, lr=0.1, centered=True)
    state = rms.init(other, lr=0.1, centered=True)
    for _ in range(3):
        grad = rng.standard_normal(50)
        opt.step(grad, grad_scale=2.0)
        rms.update_(other, grad, state, grad_scale=2.0)
    assert same_bits(one, other)
    opt.lr = 0.01
    assert opt.lr == opt.state.options.lr == 0.01
    opt.step(grad)
    rms.update_(other, grad, state, lr=0.01)
    assert same_bits(one, other)
    with pytest.raises(ValueError, match="lr must be finite"):
        opt.lr = -1


def test_options_change_between_steps(rng):
    param, grad = rng.standard_normal(5), rng.standard_normal(5)
    state = rms.init(param)
    rms.update_(param, grad, state)
    state.replace(lr=0.0)
    before = param.copy()
    rms.update_(param, grad, state)
    assert same_bits(param, before)
    assert state.step == 2
    with pytest.raises(ValueError, match="call init"):
        state.replace(momentum=0.9)


def test_lr_zero_changes_the_state_only(rng):
    param, grad = rng.standard_normal(5), rng.standard_normal(5)
    before = param.copy()
    state = rms.init(param, lr=0.0, momentum=0.9, centered=True)
    rms.update_(param, grad, state)
    assert same_bits(param, before)
    assert all((buffer != 0).all() for buffer in (state.square_avg, state.momentum_buffer, state.grad_avg))


def test_repr():
    assert repr(rms.init([np.zeros(3)], lr=0.5)) == "State(step=0, leaves=1, options=Options(lr=0.5, rho=0.9))"
    assert repr(rms.RMSProp([np.zeros(3)])).startswith("RMSProp(State(step=0")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_large_buffers_share_lines_with_their_parameter_and_not_places_in_a_page(dtype):
    """Vectors of all arrays can start with a cache line then, and loads do not seem to wait for stores elsewhere."""
    param = np.ones(1 << 17, dtype)
    state = rms.init(param, momentum=0.9, centered=True, ema=0.9)
    starts = [a.ctypes.data for a in (param, state.square_avg, state.momentum_buffer, state.grad_avg, state.ema)]
    assert len({start % 64 for start in starts[1:]} | {16}) == 1
    assert len({start % 4096 for start in starts}) == len(starts)

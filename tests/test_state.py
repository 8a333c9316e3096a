"""State and init: buffers, copies, changes between steps."""

from __future__ import annotations

import copy
import dataclasses
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


def test_repr():
    assert repr(rms.init([np.zeros(3)], lr=0.5)) == "State(step=0, leaves=1, options=Options(lr=0.5, rho=0.9))"


# ---- what is read-only, and what may be set ----


def test_arrays_may_be_written_and_not_replaced():
    @dataclasses.dataclass
    class Net:
        w: np.ndarray

    state = rms.init({"net": Net(np.zeros(2)), "rest": [np.zeros(1)]})
    square_avg = state.square_avg
    square_avg["net"].w[...] = 5
    square_avg["rest"][0][...] = 6
    assert (state.square_avg["net"].w == 5).all()
    assert (state.square_avg["rest"][0] == 6).all()
    with pytest.raises(TypeError, match=r"cannot be replaced: write to them, as in state.square_avg\['w'\]\[...\] = 0"):
        square_avg["net"] = np.zeros(2)
    with pytest.raises(TypeError, match=r"cannot be replaced: write to them, as in state.square_avg.w\[...\] = 0"):
        square_avg["net"].w = np.zeros(2)
    with pytest.raises(TypeError, match="does not support item assignment"):
        square_avg["rest"][0] = np.zeros(1)
    with pytest.raises(AttributeError):
        state.square_avg = square_avg


def test_values_that_are_written_are_those_of_the_next_step(rng):
    param = rng.standard_normal(4)
    other = param.copy()
    state = rms.init(param, rho=0.5, eps=0.0, lr=1.0)
    state.square_avg[...] = 2.0
    rms.update_(param, np.ones(4), state)
    assert same_bits(param, other - 1.0 / np.sqrt(0.5 * 2.0 + 0.5))


def test_a_view_of_a_buffer_cannot_disturb_it(rng):
    """Users see views: to reshape or freeze one changes nothing for the next step."""
    param = rng.standard_normal((2, 3))
    state = rms.init(param)
    seen = state.square_avg
    seen.flags.writeable = False
    seen = seen.reshape(6)
    rms.update_(param, np.ones((2, 3)), state)
    assert state.square_avg.shape == (2, 3)
    assert same_bits(state.square_avg.reshape(6), seen)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ("x", TypeError, "step must be an int, got 'x'"),
        (True, TypeError, "step must be an int, got True"),
        (1.0, TypeError, "step must be an int, got 1.0"),
        (-1, ValueError, r"step must be in \[0, 2\*\*53\), got -1"),
        (2**53, ValueError, r"step must be in \[0, 2\*\*53\), got"),
    ],
)
def test_a_bad_step_is_refused_and_not_kept(value, error, match):
    state = rms.init(np.zeros(1))
    state.step = np.int64(7)
    with pytest.raises(error, match=match):
        state.step = value
    assert state.step == 7


def test_the_step_that_is_set_is_that_of_bias_correction_and_schedules():
    asked = []

    def schedule(taken):
        asked.append(taken)
        return 1.0

    param = np.zeros(1)
    state = rms.init(param, lr=schedule, bias_correction=True, rho=0.5, eps=0.0)
    state.step = 1
    asked.clear()
    rms.update_(param, np.ones(1), state)
    assert asked == [1]
    assert param == -1 / np.sqrt(0.5 / (1 - 0.5**2))


def test_a_state_is_made_by_init_only():
    with pytest.raises(TypeError, match=r"a State is made by rmsprop_native.init\(params, ...\)"):
        rms.State()


# ---- one caller at a time ----


@pytest.mark.parametrize(
    "use",
    [
        lambda state: state.copy(),
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        lambda state: state.replace(lr=0.5),
        lambda state: setattr(state, "step", 3),
        lambda state: rms.update_(np.zeros(2), np.zeros(2), state),
        lambda state: rms.update(np.zeros(2), np.zeros(2), state),
    ],
    ids=["copy()", "copy", "deepcopy", "pickle", "replace", "step", "update_", "update"],
)
def test_a_schedule_cannot_use_the_state_that_calls_it(use):
    used = []

    def schedule(taken):
        if used:
            with pytest.raises(RuntimeError, match="this state is inside a step already"):
                use(state)
            used.append("refused")
        return 0.5

    param = np.zeros(2)
    state = rms.init(param, lr=schedule)
    used.append("asked")
    rms.update_(param, np.ones(2), state)
    assert used == ["asked", "refused"]
    assert state.step == 1


# ---- what was saved ----


def saved_state(**options):
    param = np.ones(3)
    state = rms.init(param, **options)
    rms.update_(param, np.ones(3), state)
    return state, state.__getstate__()


SPOILED = {
    "a part is missing": lambda saved: saved.pop("seen"),
    "a buffer is missing": lambda saved: saved["buffers"].pop("momentum_buffer"),
    "a buffer too many": lambda saved: saved["buffers"].update(ema=[np.zeros(3)]),
    "short": lambda saved: saved["buffers"].update(momentum_buffer=[np.zeros(2)]),
    "another dtype": lambda saved: saved["buffers"].update(momentum_buffer=[np.zeros(3, np.float32)]),
    "too few arrays": lambda saved: saved["buffers"].update(momentum_buffer=[]),
    "no arrays": lambda saved: saved["buffers"].update(square_avg=[], momentum_buffer=[]),
    "a list": lambda saved: saved["buffers"].update(square_avg=[[1.0, 2.0, 3.0]]),
    "a negative step": lambda saved: saved.update(step=-1),
    "a fraction of a step": lambda saved: saved.update(step=1.5),
    "too many accumulated": lambda saved: saved.update(accumulated=2),
    "seen is too short": lambda saved: saved.update(seen=b""),
    "seen is no flag": lambda saved: saved.update(seen=b"\2"),
    "no options": lambda saved: saved.update(options=None),
    "bad overrides": lambda saved: saved.update(overrides={"*": {"lr": -1.0}}),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_does_not_fit_together_makes_no_state(how):
    _, saved = saved_state(momentum=0.9, accumulate=2)
    SPOILED[how](saved)
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        rms.State.__new__(rms.State).__setstate__(saved)


def test_what_was_saved_makes_the_same_state():
    state, saved = saved_state(momentum=0.9, accumulate=2)
    new = rms.State.__new__(rms.State)
    new.__setstate__(saved)
    assert (new.step, new.accumulated, new.options) == (state.step, state.accumulated, state.options)
    assert same_bits(new.grad_sum, state.grad_sum)

"""State and init: buffers, copies, changes between steps."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import pickletools
import re

import numpy as np
import pytest
from conftest import Schedule, copied, same_bits
from hostile import everything

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
        lambda state: state.state_dict(),
        lambda state: state.load_state_dict({}),
        lambda state: setattr(state, "step", 3),
        lambda state: rms.update_(np.zeros(2), np.zeros(2), state),
        lambda state: rms.update(np.zeros(2), np.zeros(2), state),
    ],
    ids=[
        "copy()",
        "copy",
        "deepcopy",
        "pickle",
        "replace",
        "state_dict",
        "load_state_dict",
        "step",
        "update_",
        "update",
    ],
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
    return state, state.state_dict()


def test_a_state_is_saved_as_numbers_strings_lists_and_arrays():
    """Everything but the arrays goes through JSON and back."""
    params = {"w": [np.zeros((2, 3), np.float32, order="F"), np.zeros(2, np.complex64)], ("v", 1): np.zeros(())}
    overrides = {"w.*": {"rho": 0.1 + 0.2}, "w.1": {"lr": np.array([0.25, 0.5])}}
    state = rms.init(params, momentum=0.9, accumulate=3, ema=0.5, overrides=overrides)
    rms.update_(params, {"w": [None, np.ones(2, np.complex64)], ("v", 1): np.ones(())}, state)
    saved = state.state_dict()
    arrays = saved.pop("arrays")
    assert list(arrays) == ["lr/0"] + [f"{name}/{i}" for name in state.options.buffers for i in range(3)]
    again = rms.from_state_dict(json.loads(json.dumps(saved)) | {"arrays": arrays})
    assert repr(again) == repr(state)
    assert again.square_avg["w"][0].flags.f_contiguous
    for _ in range(3):
        check_states_alike(params, state, again, {"w": [np.ones((2, 3), np.float32), None], ("v", 1): np.ones(())})


def check_states_alike(params, one, other, grads):
    """A step of copies of `params` by each state gives the same bits everywhere."""
    params = [copied(params), copied(params)]
    for tree, state in zip(params, (one, other), strict=True):
        rms.update_(tree, grads, state)
    assert everything(params[0], one) == everything(params[1], other)


def test_what_is_saved_is_a_copy():
    state, saved = saved_state()
    saved["arrays"]["square_avg/0"][...] = 7
    assert (state.square_avg != 7).all()
    again = rms.from_state_dict(saved)
    saved["arrays"]["square_avg/0"][...] = 8
    assert (again.square_avg == 7).all()


SPOILED = {
    "a part is missing": (lambda saved: saved.pop("seen"), r"missing \['seen'\]"),
    "a part too many": (lambda saved: saved.update(more=1), r"not known \['more'\]"),
    "another format": (lambda saved: saved.update(format="x"), "does not say 'format'"),
    "a later version": (lambda saved: saved.update(version=4), "saved in version 4 .* reads 1 to 3: use a newer"),
    "version 0": (lambda saved: saved.update(version=0), "there is no such version"),
    "a buffer is missing": (lambda saved: saved["arrays"].pop("momentum_buffer/0"), "momentum_buffer/0"),
    "a buffer too many": (lambda saved: saved["arrays"].update({"ema/0": np.zeros(3)}), "and of nothing else"),
    "short": (
        lambda saved: saved["arrays"].update({"momentum_buffer/0": np.zeros(2)}),
        r"momentum_buffer/0 must be an array of float64 of \(3,\), got a float64 of \(2,\)",
    ),
    "another dtype": (
        lambda saved: saved["arrays"].update({"momentum_buffer/0": np.zeros(3, np.float32)}), "got a float32",
    ),
    "a list": (lambda saved: saved["arrays"].update({"square_avg/0": [1.0, 2.0, 3.0]}), "got a list"),
    "no arrays": (lambda saved: saved.update(arrays={}), "and of nothing else"),
    "a negative mean square": (
        lambda saved: saved["arrays"].update({"square_avg/0": np.array([1.0, -1e-300, np.nan])}),
        r"square_avg/0 \(leaf ''\) has a negative mean square, -1e-300",
    ),
    "a negative step": (lambda saved: saved.update(step=-1), r"step must be in \[0, 2\*\*53\), got -1"),
    "a fraction of a step": (lambda saved: saved.update(step=1.5), "step must be an int, got 1.5"),
    "too many accumulated": (lambda saved: saved.update(accumulated=2), "accumulated is 2, with accumulate=2"),
    "seen is too short": (lambda saved: saved.update(seen=[]), "seen must be 0 or 1 for each of 1 leaves"),
    "seen is no flag": (lambda saved: saved.update(seen=[2]), "seen must be 0 or 1 for each of 1 leaves"),
    "no options": (lambda saved: saved.update(options=None), "its options must be a dict, got a NoneType"),
    "an option is missing": (lambda saved: saved["options"].pop("rho"), r"missing \['rho'\]"),
    "an unknown option": (lambda saved: saved["options"].update(beta=1), r"not known \['beta'\]"),
    "an option out of range": (lambda saved: saved["options"].update(rho=1.0), r"rho must be in \[0, 1\), got 1.0"),
    "bad overrides": (lambda saved: saved.update(overrides=[["*", {"lr": -1.0}]]), "lr must be finite and >= 0"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_what_does_not_fit_together_makes_no_state(how):
    state, saved = saved_state(momentum=0.9, accumulate=2)
    spoil, match = SPOILED[how]
    spoil(saved)
    with pytest.raises(ValueError, match=match):
        rms.from_state_dict(saved)
    before = state.state_dict()
    with pytest.raises(ValueError, match=match):
        state.load_state_dict(saved)
    assert str(state.state_dict()) == str(before)


def test_nan_and_infinity_are_loaded_as_saved():
    state, saved = saved_state(momentum=0.9)
    values = np.array([np.nan, np.inf, -0.0])
    saved["arrays"] = {"square_avg/0": values, "momentum_buffer/0": -values}
    state.load_state_dict(saved)
    assert state.square_avg.tobytes() == values.tobytes()
    assert state.momentum_buffer.tobytes() == (-values).tobytes()


def test_a_state_becomes_what_was_saved_and_keeps_its_schedules():
    def schedule(taken):
        return 0.5 / (1 + taken)

    def other(taken):
        return 0.25

    params = {"a": np.zeros(2), "b": np.zeros(2)}
    state = rms.init(params, lr=schedule, overrides={"b": {"lr": other}})
    rms.update_(params, {"a": np.ones(2), "b": np.ones(2)}, state)
    saved = state.state_dict()
    assert saved["options"]["lr"] == {"schedule": f"{schedule.__qualname__}"}
    match = "the learning rate was a schedule, .*schedule, which is not saved: give it again, as lr=... to load"
    with pytest.raises(ValueError, match=match):
        rms.from_state_dict(saved)
    with pytest.raises(ValueError, match=r"the learning rate of overrides\['b'\] was a schedule"):
        rms.from_state_dict(saved, lr=0.5)
    assert rms.from_state_dict(saved, lr=0.5, overrides={}).options.lr == 0.5
    state.load_state_dict(saved)
    assert state.options.lr is schedule
    new = rms.init(params, lr=schedule, overrides={"b": {"lr": other}})
    new.load_state_dict(saved)
    assert new.step == 1
    new.load_state_dict(saved, lr=0.125)
    assert new.options.lr == 0.125
    assert "other" in repr(new)


def test_leaves_must_be_those_of_the_state():
    saved = rms.init({"a": np.zeros(2), "b": np.zeros(3)}).state_dict()
    for params, match in (
        ({"a": np.zeros(2), "c": np.zeros(3)}, r"missing \['c'\], not known \['b'\]"),
        ({"a": np.zeros(2), "b": np.zeros(4)}, r"leaf 'b' was saved with shape \(3,\) and float64, the parameter has"),
        ({"a": np.zeros(2, np.float32), "b": np.zeros(3)}, "the parameter has .* and float32"),
    ):
        with pytest.raises(ValueError, match=match):
            rms.init(params).load_state_dict(saved)
        with pytest.raises(ValueError, match=match):
            rms.from_state_dict(saved, like=params)


def test_leaves_are_matched_by_their_paths_and_lie_as_the_parameters_do():
    params = {"a": np.ones((2, 3)), "b": np.ones(3)}
    state = rms.init(params, accumulate=2)
    rms.update_(params, {"a": np.ones((2, 3)), "b": None}, state)
    like = {"b": np.ones(3), "a": np.ones((2, 3), order="F")}
    again = rms.from_state_dict(state.state_dict(), like=like)
    assert list(again.square_avg) == ["b", "a"]
    assert again.square_avg["a"].flags.f_contiguous
    rms.update_(like, {"b": None, "a": np.ones((2, 3))}, again)
    rms.update_(params, {"a": np.ones((2, 3)), "b": None}, state)
    assert all(same_bits(params[key], like[key]) for key in params)
    assert all(same_bits(state.square_avg[key], again.square_avg[key]) for key in params)


# ---- pickle ----


def test_a_pickle_names_no_private_module():
    @dataclasses.dataclass
    class Net:
        w: np.ndarray

    state = rms.init({"net": Net(np.zeros(2))}, overrides={"*": {"lr": np.array([1.0, 2.0])}})
    pickled = pickle.dumps(state, protocol=2)
    named = {argument for opcode, argument, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"}
    ours = {name for name in named if "rmsprop" in name}
    assert ours == {"rmsprop_native from_state_dict"}
    assert all(name.startswith(("numpy", "_codecs")) for name in named - ours)
    again = pickle.loads(pickle.dumps(state))
    check_states_alike({"net": Net(np.ones(2))}, state, again, {"net": Net(np.ones(2))})


def test_a_pickle_of_another_version_says_so():
    pickled = pickle.dumps(rms.init(np.zeros(1)), protocol=0)
    assert pickled.count(b"Vversion\np4\nI3\n") + pickled.count(b"version") == 2
    with pytest.raises(ValueError, match="saved in version 4 of the format, .* reads 1 to 3: use a newer"):
        pickle.loads(re.sub(rb"(Vversion\np\d+\nI)3\n", rb"\g<1>4\n", pickled))


def test_a_pickle_of_the_layout_before_version_1_says_so():
    """It was an empty State, and a call of __setstate__."""
    old = pickle.dumps(rms.init(np.zeros(1)).options)
    with pytest.raises(ValueError, match="this pickle of a State is of a version before 1 of the format"):
        rms.State.__new__(rms.State).__setstate__({"options": pickle.loads(old)})


class Named(rms.State):
    """A subclass of State."""


def test_a_subclass_is_pickled_as_one():
    state = rms.from_state_dict(rms.init(np.zeros(2)).state_dict(), Named)
    again = pickle.loads(pickle.dumps(state))
    assert type(again) is type(state.copy()) is Named


def test_keys_and_schedules_of_any_kind_can_be_pickled_and_only_plain_ones_saved():
    params = {frozenset({1}): np.zeros(2), (1, "a"): np.zeros(3)}
    state = rms.init(params, lr=Schedule(0.5))
    again = pickle.loads(pickle.dumps(state))
    assert again.square_avg.keys() == params.keys()
    assert again.options.lr(0) == 0.5
    with pytest.raises(ValueError, match=r"a key of the dict '' is frozenset\(\{1\}\): only str, int, bool, None"):
        state.state_dict()


def test_given_overrides_of_the_wrong_kind_are_an_error_of_the_caller():
    """And not one of what was saved."""
    saved = rms.init(np.zeros(2)).state_dict()
    with pytest.raises(TypeError, match="lr must be a number, got 'x'"):
        rms.from_state_dict(saved, overrides={"*": {"lr": "x"}})

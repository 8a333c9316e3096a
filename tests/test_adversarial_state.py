"""States made of altered parts, views that users change, copies, counts; numbers and schedules of the wrong kind."""

from __future__ import annotations

import copy
import decimal
import fractions
import math
import pickle

import numpy as np
import pytest
from conftest import check_alike, same_bits
from hostile import Pair, everything, refused

import rmsprop_native as rms
from rmsprop_native.tree import DICT, EMPTY, LEAF, SEQUENCE, Tree

# ---- states made of altered parts ----


def saved_state():
    params = [np.ones((2, 3)), np.ones(4)]
    state = rms.init(params, momentum=0.9, accumulate=3)
    rms.update_(params, [np.ones((2, 3)), None], state)
    return state.__getstate__()


def with_buffer(array, name="momentum_buffer"):
    def alter(saved):
        saved["buffers"] = {key: list(arrays) for key, arrays in saved["buffers"].items()}
        saved["buffers"][name][0] = array

    return alter


def with_buffers(**changes):
    def alter(saved):
        saved["buffers"] = saved["buffers"] | changes

    return alter


def altered_tree(size, *parts):
    tree = Tree(*parts)
    tree.size = size
    return tree


def with_structure(tree, leaves=2):
    def alter(saved):
        saved["structure"] = tree
        saved["seen"] = b"\0" * leaves
        of_name = {key: (arrays * leaves)[:leaves] for key, arrays in saved["buffers"].items()}
        saved["buffers"] = {key: [arrays[0]] * leaves for key, arrays in of_name.items()}

    return alter


def with_part(**parts):
    return lambda saved: saved.update(parts)


LEAF_TREE = Tree(LEAF)
FORTY = (LEAF_TREE,) * 40
ALTERED = {
    "short": with_buffer(np.zeros((2, 2))),
    "long": with_buffer(np.zeros((2, 300))),
    "other ndim": with_buffer(np.zeros(6)),
    "float32": with_buffer(np.zeros((2, 3), np.float32)),
    "int": with_buffer(np.zeros((2, 3), int)),
    "list": with_buffer([[0.0] * 3] * 2),
    "None": with_buffer(None),
    "masked": with_buffer(np.ma.zeros((2, 3))),
    "subclass": with_buffer(np.zeros((2, 3)).view(type("Named", (np.ndarray,), {}))),
    "byte order": with_buffer(np.zeros((2, 3), ">f8")),
    "square_avg of int": with_buffer(np.zeros((2, 3), int), "square_avg"),
    "square_avg of None": with_buffer(None, "square_avg"),
    "too few": with_buffers(momentum_buffer=[np.zeros((2, 3))]),
    "too many": with_buffers(grad_sum=[np.zeros((2, 3)), np.zeros(4), np.zeros(4)]),
    "no list": with_buffers(momentum_buffer=5),
    "no list of square_avg": with_buffers(square_avg=None),
    "unknown": with_buffers(other=[]),
    "none": with_part(buffers={}),
    "no dict": with_part(buffers=7),
    "steps": with_part(step=-1),
    "huge steps": with_part(step=2**64),
    "text": with_part(step="3"),
    "true": with_part(skipped=True),
    "accumulated": with_part(accumulated=3),
    "seen too short": with_part(seen=b"\0"),
    "seen of others": with_part(seen=b"\0\7"),
    "seen no bytes": with_part(seen=[0, 1]),
    "options": with_part(options=None),
    "overrides": with_part(overrides=5),
    "overrides of nothing": with_part(overrides={"9": {"lr": 1.0}}),
    "overrides of text": with_part(overrides={"0": {"lr": "x"}}),
    "structure": with_part(structure=[0, 1]),
    "other structure": with_part(structure=Tree(SEQUENCE, list, (0,), (LEAF_TREE,))),
    "size too small": with_structure(altered_tree(1, SEQUENCE, list, tuple(range(40)), FORTY), 1),
    "size too large": with_structure(altered_tree(3, SEQUENCE, list, (0, 1), FORTY[:2]), 3),
    "fewer keys": with_structure(Tree(DICT, dict, ("a",), FORTY[:2])),
    "more keys": with_structure(Tree(SEQUENCE, list, (0, 1, 2), FORTY[:2])),
    "empty with children": with_structure(Tree(EMPTY, None, (0, 1), FORTY[:2])),
    "leaf with children": with_structure(altered_tree(3, LEAF, None, (0, 1), FORTY[:2]), 3),
    "leaf among leaves": with_structure(Tree(SEQUENCE, list, (0,), (altered_tree(2, LEAF, None, (0,), FORTY[:1]),))),
    "one path twice": with_structure(Tree(DICT, dict, (1, "1"), FORTY[:2])),
    "kind": with_structure(Tree(9, list, (0, 1), FORTY[:2])),
}


@pytest.mark.parametrize("live", [False, True], ids=["new", "live"])
@pytest.mark.parametrize("name", ALTERED)
def test_no_state_is_made_of_altered_parts(name, live):
    saved = saved_state()
    ALTERED[name](saved)
    params = [np.ones((2, 3)), np.ones(4)]
    state = rms.init(params, momentum=0.9, accumulate=3) if live else rms.State.__new__(rms.State)
    before = everything(params, state) if live else None
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        state.__setstate__(saved)
    if live:
        assert everything(params, state) == before
        rms.update_(params, [np.ones((2, 3)), np.ones(4)], state)


@pytest.mark.parametrize(
    "part", ["structure", "options", "overrides", "step", "skipped", "accumulated", "seen", "buffers"]
)
def test_no_state_is_made_where_a_part_is_missing(part):
    saved = saved_state()
    del saved[part]
    with pytest.raises(ValueError, match=f"no state can be made of what was saved: '{part}'"):
        rms.State.__new__(rms.State).__setstate__(saved)


def test_buffers_given_are_copied_whatever_they_are():
    """Foreign memory, read-only, strided, the same array for two leaves: none of it is kept."""
    params = [np.ones((2, 3)), np.ones((2, 3))]
    shared = np.frombuffer(np.full((2, 3), 0.5).tobytes()).reshape(2, 3)
    wide = np.full((4, 6), 0.25)[::2, ::2]
    saved = rms.init(params, momentum=0.9).__getstate__()
    saved["buffers"] = {"square_avg": [shared, shared], "momentum_buffer": [params[0], wide]}
    state = rms.State.__new__(rms.State)
    state.__setstate__(saved)
    pair = Pair([np.ones((2, 3)), np.ones((2, 3))], momentum=0.9)
    pair.ref_state.square_avg = [np.full((2, 3), 0.5) for _ in range(2)]
    pair.ref_state.momentum_buffer = [np.ones((2, 3)), np.full((2, 3), 0.25)]
    rms.update_(params, [np.ones((2, 3))] * 2, state)
    pair.ref_step([np.ones((2, 3))] * 2)
    check_alike(params, state, pair.ref_params, pair.ref_state)
    assert (shared == 0.5).all()
    assert (wide == 0.25).all()


# ---- views that users change ----


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum"])
def test_views_of_a_state_may_be_changed_and_the_state_is_not(name):
    options = {"momentum": 0.9, "centered": True, "ema": 0.9, "accumulate": 2}
    pair = Pair({"w": np.ones((2, 3)), "b": np.ones(4)}, **options)
    grads = {"w": np.ones((2, 3)), "b": np.ones(4)}

    def changes():
        return {
            "shape": lambda array: setattr(array, "shape", (6,)),
            "dtype": lambda array: setattr(array, "dtype", "i4"),
            "flags": lambda array: setattr(array.flags, "writeable", False),
            "base": lambda array: setattr(array.base.flags, "writeable", False),
            "base shape": lambda array: setattr(array.base, "shape", (1, -1)),
        }

    kept = [getattr(pair.state, name)["w"] for _ in changes()]
    for array, change in zip(kept, changes().values(), strict=True):
        change(array)
        pair.step(grads)
    for array in (kept[0], kept[0].base):
        with pytest.raises(ValueError, match="cannot resize|cannot reference"):
            array.resize((2000,), refcheck=True)
    pair.step(grads)
    assert getattr(pair.state, name)["w"].shape == (2, 3)
    assert getattr(pair.state.copy(), name)["w"].flags.writeable
    assert same_bits(kept[0].reshape(2, 3), getattr(pair.state, name)["w"])


def test_views_outlive_their_state():
    views = [rms.init(np.ones(1000), momentum=0.9, initial_square_avg=2.0).square_avg for _ in range(20)]
    for view in views:
        assert (view == 2).all()
        view[...] = 3


# ---- copies ----


COPIES = {
    "copy": rms.State.copy,
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
}


@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
def test_copies_share_nothing_with_their_original(how):
    """Also what they remember of an accumulation, and their counts."""
    options = {"accumulate": 3, "momentum": 0.9, "ema": 0.9, "initial_square_avg": 1.0}
    grads = [[np.ones(2), None], [None, np.ones(3)], [None, None], [np.ones(2), np.ones(3)]]
    pair = Pair([np.ones(2), np.ones(3)], **options)
    pair.step(grads[0])
    other = Pair([np.ones(2), np.ones(3)], **options)
    other.step(grads[0])
    other.state = how(pair.state)
    for grad in (grads[1], grads[2], grads[3]):
        pair.step(grad)
    other.check()
    for grad in (grads[2], grads[2], grads[1]):
        other.step(grad)
    other.state.replace(lr=0.5)
    other.state.step = 9
    pair.check()
    assert pair.state.options.lr == 1e-3
    pair.step(grads[3])


# ---- counts ----


BAD_COUNTS = {
    "text": ("x", TypeError, "step must be an int, got 'x'"),
    "float": (1.0, TypeError, "step must be an int, got 1.0"),
    "None": (None, TypeError, "step must be an int, got None"),
    "true": (True, TypeError, "step must be an int, got True"),
    "numpy true": (np.True_, TypeError, "step must be an int, got"),
    "array": (np.array([1, 2]), TypeError, "step must be an int, got"),
    "negative": (-1, ValueError, r"step must be in \[0, 2\*\*53\), got -1"),
    "huge": (2**70, ValueError, r"step must be in \[0, 2\*\*53\), got 1180591620717411303424"),
    "just too large": (2**53, ValueError, r"step must be in \[0, 2\*\*53\)"),
}


@pytest.mark.parametrize("name", BAD_COUNTS)
def test_step_must_be_a_count(name):
    value, error, match = BAD_COUNTS[name]
    pair = Pair({"w": np.ones(3)}, bias_correction=True)
    pair.step({"w": np.ones(3)})
    with refused(error, match, pair.params, pair.state):
        pair.state.step = value
    pair.step({"w": np.ones(3)})


@pytest.mark.parametrize("value", [0, 5, np.int64(5), np.array(5), 2**53 - 1])
def test_step_may_be_set(value):
    pair = Pair({"w": np.ones(3)}, bias_correction=True, lr=lambda steps: 1.0 / (1 + steps))
    pair.step({"w": np.ones(3)})
    pair.state.step, pair.ref_state.step = value, int(value)
    pair.step({"w": np.ones(3)})
    assert pair.state.step == int(value) + 1


def test_accumulate_of_2_to_the_40():
    pair = Pair(np.ones(3), accumulate=2**40)
    for _ in range(3):
        pair.step(np.ones(3))
    assert (pair.state.accumulated, pair.state.step) == (3, 0)
    assert (pair.state.grad_sum == 3).all()
    twin = pickle.loads(pickle.dumps(pair.state))
    assert twin.accumulated == 3
    with pytest.raises(ValueError, match="accumulate must be at most 9007199254740992, got a larger int"):
        rms.init(np.ones(3), accumulate=2**53 + 1)


# ---- numbers ----


class Number:
    """No number, and callable as none."""

    def __float__(self):
        return 0.5

    def __repr__(self):
        return "Number()"


class LyingFloat(float):
    def __float__(self):
        return 7.0

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1

    def __lt__(self, other):
        return False

    __le__ = __gt__ = __ge__ = __ne__ = __lt__


WRONG_KIND = {
    "true": True,
    "numpy true": np.True_,
    "array of true": np.array(True),
    "text": "0.5",
    "decimal": decimal.Decimal("0.5"),
    "complex": 0.5 + 0j,
    "list": [0.5],
    "one element": np.array([0.5]),
    "two elements": np.array([0.5, 0.5]),
    "0-d object": np.array(None),
    "number": Number(),
}
OUT_OF_RANGE = {
    "huge int": 10**400,
    "-huge int": -(10**400),
    "nan": math.nan,
    "infinite": math.inf,
    "0-d nan": np.array(np.nan),
}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("option", ["lr", "grad_scale"])
@pytest.mark.parametrize("name", WRONG_KIND | OUT_OF_RANGE)
def test_wrong_number_for_one_call(name, option, warm):
    """Also where one that is equal to it was given before."""
    value = (WRONG_KIND | OUT_OF_RANGE)[name]
    pair = Pair({"w": np.ones(3)})
    if warm:
        for equal in (1.0, 0.5):
            pair.step({"w": np.ones(3)}, **{option: equal})
    error, match = (
        (TypeError, f"{option} must be a number, got")
        if name in WRONG_KIND
        else (ValueError, f"{option} must be finite")
    )
    pair.refused(error, match, {"w": np.ones(3)}, **{option: value})
    with refused(error, match, pair.params, pair.state):
        rms.update(pair.params, {"w": np.ones(3)}, pair.state, **{option: value})
    pair.step({"w": np.ones(3)}, **{option: 0.5})


@pytest.mark.parametrize("option", ["lr", "rho", "eps", "momentum", "weight_decay", "clip_value", "ema"])
@pytest.mark.parametrize("name", WRONG_KIND | OUT_OF_RANGE)
def test_wrong_number_as_an_option(name, option):
    value = (WRONG_KIND | OUT_OF_RANGE)[name]
    error = TypeError if name in WRONG_KIND else ValueError
    with pytest.raises(error, match=f"{option} must be"):
        rms.init(np.ones(3), **{option: value})
    pair = Pair([np.ones(3)], momentum=0.9, ema=0.9)
    with refused(error, f"{option} must be", pair.params, pair.state):
        pair.state.replace(**{option: value})
    is_array_of_rates = option == "lr" and isinstance(value, np.ndarray) and value.ndim > 0
    if option != "ema" and not is_array_of_rates:
        with pytest.raises(error, match=f"overrides for '0': {option} must be"):
            rms.init([np.ones(3)], momentum=0.9, overrides={"0": {option: value}})
    pair.step([np.ones(3)])


HALVES = {
    "float": 0.5,
    "float32": np.float32(0.5),
    "float64": np.float64(0.5),
    "0-d": np.array(0.5),
    "0-d float32": np.array(0.5, np.float32),
    "Fraction": fractions.Fraction(1, 2),
    "lying": LyingFloat(0.5),
}


@pytest.mark.parametrize("number", HALVES.values(), ids=HALVES)
def test_numbers_of_any_real_type(number):
    pair = Pair(np.ones(3), lr=1.0)
    ref = Pair(np.ones(3), lr=1.0)
    for _ in range(2):
        rms.update_(pair.params, np.ones(3), pair.state, lr=number, grad_scale=number)
        ref.step(np.ones(3), lr=0.5, grad_scale=0.5)
    assert same_bits(pair.params, ref.params)
    assert type(rms.init(np.ones(3), lr=number).options.lr) is float


@pytest.mark.parametrize("option", ["lr", "grad_scale"])
def test_0_d_array_changed_in_place_is_read_anew(option):
    number = np.array(0.5)
    pair = Pair(np.ones(3))
    for value in (0.5, 0.25, 2.0, 0.25):
        number[...] = value
        rms.update_(pair.params, np.ones(3), pair.state, **{option: number})
        pair.ref_step(np.ones(3), **{option: value})
        pair.check()
    state = rms.init(np.ones(3), lr=number)
    number[...] = 9.0
    assert state.options.lr == 0.25


def test_zeros_of_another_sign_are_another_number():
    """0.0 == -0.0, and they give other signs of zeros."""
    for option in ("grad_scale", "lr"):
        pair = Pair(np.array([-0.0, 0.0, -0.0]), momentum=0.9)
        for value in (0.0, -0.0, 0.0, -0.0):
            pair.step(np.array([1.0, -1.0, -1.0]), **{option: value})


def test_numbers_that_are_equal_but_of_another_size_are_told_apart():
    pair = Pair(np.ones(3))
    for value in (0.1, np.nextafter(0.1, 1), np.float32(0.1), 0.1):
        pair.step(np.ones(3), lr=value)


LIMITS = {
    "initial_square_avg": ({"initial_square_avg": 1e300}, r"initial_square_avg=1e\+300 is infinite in float32"),
    "small initial_square_avg": ({"initial_square_avg": 1e-60}, "initial_square_avg=1e-60 rounds to 0 in float32"),
    "clip_value": ({"clip_value": 1e-60}, "clip_value=1e-60 rounds to 0 in float32"),
    "eps": ({"eps": 1e-60}, "eps=1e-60 rounds to 0 in float32"),
    "huge eps": ({"eps": 1e60}, r"eps=1e\+60 is infinite in float32"),
    "rho": ({"rho": 1 - 1e-12}, "rho=0.999999999999 rounds to 1 in float32"),
    "momentum": ({"momentum": 1 - 1e-12}, "momentum=0.999999999999 rounds to 1 in float32"),
    "ema": ({"ema": 1 - 1e-12}, "ema=0.999999999999 rounds to 1 in float32"),
    "lr": ({"lr": 1e60}, r"lr=1e\+60 is infinite in float32"),
    "lr outside": ({"lr": 1e60, "momentum": 0.9}, r"lr=1e\+60 is infinite in float32"),
    "weight_decay": ({"weight_decay": 1e60}, r"weight_decay=1e\+60 is infinite in float32"),
    "decoupled": (
        {"lr": 1e30, "weight_decay": 1e30, "decoupled_weight_decay": True},
        r"lr=1e\+30 times weight_decay=1e\+30 is infinite in float32",
    ),
    "schedule": ({"lr": lambda steps: 1e60}, r"lr=1e\+60 is infinite in float32"),
}  # fmt: skip
INTERNAL = ("lr_in", "lr_out", "shrink", "one_minus", "eps_inside", "eps_outside", "coef", "slot", "rmsp_")


@pytest.mark.parametrize("name", LIMITS)
def test_numbers_that_float32_cannot_hold_are_refused_under_the_users_names(name):
    options, match = LIMITS[name]
    with pytest.raises(ValueError, match=match) as caught:
        rms.init([np.ones(3), np.ones(3, np.float32)], **options)
    assert not any(word in str(caught.value) for word in INTERNAL)
    rms.init([np.ones(3)], **options)


@pytest.mark.parametrize("name", [name for name in LIMITS if "initial_square_avg" not in LIMITS[name][0]])
def test_a_state_is_not_given_numbers_that_float32_cannot_hold(name):
    options, match = LIMITS[name]
    pair = Pair(
        [np.ones(3, np.float32)], momentum=0.9 if "momentum" in options else 0.0, ema=0.9 if "ema" in options else None
    )
    with refused(ValueError, match, pair.params, pair.state):
        pair.state.replace(**options)
    pair.step([np.ones(3, np.float32)])


def test_decoupled_decay_that_overflows_float64_is_refused():
    with pytest.raises(ValueError, match=r"lr=1e\+200 times weight_decay=1e\+200 is infinite in float64"):
        rms.init(np.ones(3), lr=1e200, weight_decay=1e200, decoupled_weight_decay=True)
    pair = Pair({"w": np.ones(3)}, weight_decay=1e200, decoupled_weight_decay=True)
    pair.refused(ValueError, r"lr=1e\+200 times weight_decay=1e\+200 is infinite", {"w": np.ones(3)}, lr=1e200)
    pair.step({"w": np.ones(3)})


@pytest.mark.parametrize("option", ["clip_norm", "clip_global_norm"])
@pytest.mark.parametrize("size", [1e155, 1e200, 1e300, 1.7e308])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_of_huge_finite_gradients(option, size, accumulate):
    """Their squares overflow; the step is finite, and of the length of the limit."""
    params = [np.zeros(3), np.zeros((2, 2))]
    grads = [np.array([size, -size, size / 2]), np.full((2, 2), size / 4)]
    pair = Pair(params, accumulate=accumulate, on_nonfinite="skip", **{option: 1.0})
    for _ in range(accumulate):
        pair.step(grads, grad_scale=0.5)
    assert (pair.state.step, pair.state.skipped) == (1, 0)
    assert all(np.isfinite(array).all() for array in (*params, *pair.state.square_avg))
    norms = [
        np.sqrt((array / 0.1).sum()) for array in pair.state.square_avg
    ]  # square_avg = 0.1 * (clipped gradient)**2
    assert math.isclose(norms[0] if option == "clip_norm" else math.hypot(*norms), 1.0, rel_tol=1e-9)


# ---- schedules ----


class Unhashable:
    __hash__ = None

    def __init__(self, rate):
        self.rate = rate

    def __eq__(self, other):
        raise AssertionError("a schedule was compared")

    def __repr__(self):
        return "schedule"

    def __call__(self, steps):
        return self.rate / (1 + steps)


def test_schedules_that_cannot_be_hashed_or_compared_and_print_alike():
    pair = Pair(
        {"a": np.ones(3), "b": np.ones(3), "c": np.ones(3)},
        lr=Unhashable(0.5), overrides={"a": {"lr": Unhashable(0.25)}, "b": {"lr": Unhashable(0.125)}},
    )  # fmt: skip
    for _ in range(3):
        pair.step({key: np.ones(3) for key in "abc"})
    assert len({array.tobytes() for array in pair.params.values()}) == 3
    pair.state.replace(weight_decay=0.0)
    twin = pickle.loads(pickle.dumps(pair.state))
    assert repr(twin) == repr(pair.state)


def test_numbers_that_print_alike_are_two():
    class Same(float):
        def __repr__(self):
            return "0.5"

    pair = Pair([np.ones(3), np.ones(3)], overrides={"0": {"lr": Same(0.25)}, "1": {"lr": Same(0.125)}})
    pair.step([np.ones(3), np.ones(3)])
    assert not same_bits(*pair.params)
    one, other = 0.1 + 0.2, 0.3
    assert f"{one:.15g}" == f"{other:.15g}"
    pair = Pair([np.ones(3), np.ones(3)], overrides={"0": {"rho": np.float32(0.1)}, "1": {"rho": 0.1}})
    pair.step([np.ones(3), np.ones(3)])


USES = {
    "update_": lambda params, state: rms.update_(params, {"w": np.ones(3)}, state),
    "update_ with lr": lambda params, state: rms.update_(params, {"w": np.ones(3)}, state, lr=0.5),
    "update": lambda params, state: rms.update(params, {"w": np.ones(3)}, state),
    "replace": lambda params, state: state.replace(lr=0.5),
    "copy": lambda params, state: state.copy(),
    "copy.copy": lambda params, state: copy.copy(state),
    "deepcopy": lambda params, state: copy.deepcopy(state),
    "pickle": lambda params, state: pickle.dumps(state),
    "step": lambda params, state: setattr(state, "step", 0),
    "__setstate__": lambda params, state: state.__setstate__(saved_state()),
}


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize("use", USES)
def test_schedule_that_uses_its_own_state_is_refused(use, override):
    params, active = {"w": np.ones(3), "v": np.ones(2)}, []

    def schedule(steps):
        if active:
            USES[use](params, state)
        return 0.1

    options = {"overrides": {"v": {"lr": schedule}}} if override else {"lr": schedule}
    state = rms.init(params, **options)
    grads = {"w": np.ones(3), "v": np.ones(2)}
    rms.update_(params, grads, state)
    active.append(1)
    for call in (
        lambda: rms.update_(params, grads, state),
        lambda: rms.update_(params, grads, state, grad_scale=2.0),
        lambda: state.replace(rho=0.5),
    ):
        with refused(RuntimeError, "this state is inside a step already", params, state):
            call()
    active.clear()
    rms.update_(params, grads, state)
    number = {"overrides": {"v": {"lr": 0.1}}} if override else {"lr": 0.1}
    pair = Pair({"w": np.ones(3), "v": np.ones(2)}, **number)
    for _ in range(2):
        pair.step(grads)
    check_alike(params, state, pair.ref_params, pair.ref_state)


def test_schedule_that_catches_the_refusal_goes_on():
    params = {"w": np.ones(3)}

    def schedule(steps):
        if steps:
            with pytest.raises(RuntimeError, match="inside a step"):
                rms.update_(params, {"w": np.ones(3)}, state)
        return 0.1

    state = rms.init(params, lr=schedule)
    pair = Pair({"w": np.ones(3)}, lr=0.1)
    for _ in range(3):
        rms.update_(params, {"w": np.ones(3)}, state)
        pair.step({"w": np.ones(3)})
    assert same_bits(params["w"], pair.params["w"])


@pytest.mark.parametrize(
    "bad", [None, "x", True, np.array([1.0, 2.0]), -1.0, math.nan, 10**400, lambda steps: 0.1, 1e60]
)
def test_schedule_that_returns_no_learning_rate(bad):
    params = {"w": np.ones(3, np.float32)}
    rates = [0.1]
    state = rms.init(params, lr=lambda steps: rates[0])
    rms.update_(params, {"w": np.ones(3, np.float32)}, state)
    rates[0] = bad
    with refused((TypeError, ValueError), "^lr", params, state):
        rms.update_(params, {"w": np.ones(3, np.float32)}, state)
    rates[0] = 0.1
    rms.update_(params, {"w": np.ones(3, np.float32)}, state)
    assert state.step == 2


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_schedule_that_raises_leaves_the_state_as_it_was(error):
    def schedule(steps):
        if active:
            raise error("no rate")
        return 0.1

    active = []
    pair = Pair({"w": np.ones(3)}, lr=schedule, momentum=0.5)
    pair.step({"w": np.ones(3)})
    active.append(1)
    pair.refused(error, "no rate", {"w": np.ones(3)})
    with refused(error, "no rate", pair.params, pair.state):
        pair.state.replace(rho=0.1)
    active.clear()
    pair.step({"w": np.ones(3)})
    assert pair.state.options.rho == 0.9


def test_schedule_that_frees_the_arrays_and_changes_the_lists():
    """It runs before any leaf is read."""
    params, grads = [np.ones(3), np.ones(3)], [np.ones(3), np.ones(3)]

    def schedule(steps):
        if steps:
            params[1] = np.full(3, 5.0)
            grads[:] = [np.full(3, 2.0), None]
        return 0.1

    state = rms.init(params, lr=schedule)
    pair = Pair([np.ones(3), np.ones(3)], lr=0.1)
    rms.update_(params, grads, state)
    pair.step([np.ones(3), np.ones(3)])
    rms.update_(params, grads, state)
    pair.step([np.full(3, 2.0), None])
    assert same_bits(params[0], pair.params[0])
    assert (params[1] == 5).all()

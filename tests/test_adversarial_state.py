"""States made of altered parts, views that users change, copies, counts; numbers and schedules of the wrong kind."""

from __future__ import annotations

import copy
import decimal
import fractions
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from conftest import check_alike, on_reference, same_bits
from hostile import Pair, everything, refused

import rmsprop_native as rms

# ---- states made of altered parts ----


def saved_state():
    params = [np.ones((2, 3)), np.ones(4)]
    state = rms.init(params, momentum=0.9, accumulate=3)
    rms.update_(params, [np.ones((2, 3)), None], state)
    return state.state_dict()


def with_array(array, name="momentum_buffer/0"):
    return lambda saved: saved["arrays"].update({name: array})


def with_part(**parts):
    return lambda saved: saved.update(parts)


def with_leaf(**parts):
    return lambda saved: saved["leaves"][0].update(parts)


def with_option(**options):
    return lambda saved: saved["options"].update(options)


def with_nodes(*nodes):
    return lambda saved: saved.update(structure=list(nodes))


class Lying(int):
    """Is equal to any number, and not negative."""

    def __index__(self):
        return 0

    def __ge__(self, other):
        return True

    __le__ = __lt__ = __gt__ = __ge__

    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


LEAF = ["leaf"]
ALTERED = {
    "short": with_array(np.zeros((2, 2))),
    "long": with_array(np.zeros((2, 300))),
    "other ndim": with_array(np.zeros(6)),
    "float32": with_array(np.zeros((2, 3), np.float32)),
    "int": with_array(np.zeros((2, 3), int)),
    "objects": with_array(np.full((2, 3), None)),
    "list": with_array([[0.0] * 3] * 2),
    "None": with_array(None),
    "masked": with_array(np.ma.zeros((2, 3))),
    "subclass": with_array(np.zeros((2, 3)).view(type("Named", (np.ndarray,), {}))),
    "byte order": with_array(np.zeros((2, 3), ">f8")),
    "negative": with_array(np.full((2, 3), -1.0), "square_avg/0"),
    "square_avg of None": with_array(None, "square_avg/0"),
    "unknown": with_array(np.zeros(1), "other/0"),
    "one too many": with_array(np.zeros(1), "square_avg/2"),
    "none": with_part(arrays={}),
    "no dict": with_part(arrays=7),
    "steps": with_part(step=-1),
    "huge steps": with_part(step=2**64),
    "endless steps": with_part(step=10**5000),
    "lying steps": with_part(step=Lying(-1)),
    "text": with_part(step="3"),
    "true": with_part(skipped=True),
    "accumulated": with_part(accumulated=3),
    "seen too short": with_part(seen=[0]),
    "seen of others": with_part(seen=[0, 7]),
    "seen true": with_part(seen=[0, True]),
    "seen no list": with_part(seen=b"\0\0"),
    "format": with_part(format=None),
    "version": with_part(version="1"),
    "version 4": with_part(version=4),
    "options": with_part(options=None),
    "option of text": with_option(rho="0.9"),
    "option nan": with_option(rho=math.nan),
    "option of a dict": with_option(rho={"a": 1}),
    "options that contradict": with_option(nesterov=True, momentum=0.0),
    "lr is an array": with_option(lr={"array": "lr/0", "shape": [1]}),
    "lr without a name": with_option(lr={"schedule": 3}),
    "numbers that float64 cannot hold": with_option(lr=1e300, weight_decay=1e300, decoupled_weight_decay=True),
    "overrides": with_part(overrides=5),
    "overrides of nothing": with_part(overrides=[["9", {"lr": 1.0}]]),
    "overrides of text": with_part(overrides=[["0", {"lr": "x"}]]),
    "overrides of no pattern": with_part(overrides=[[0, {"lr": 1.0}]]),
    "overrides twice": with_part(overrides=[["0", {"lr": 1.0}], ["0", {"lr": 2.0}]]),
    "overrides no pair": with_part(overrides=["0"]),
    "overrides of no option": with_part(overrides=[["0", {"accumulate": 1}]]),
    "overrides of an array that is missing": with_part(overrides=[["0", {"lr": {"array": "lr/0", "shape": [3]}}]]),
    "overrides of another array": with_part(overrides=[["0", {"lr": {"array": "square_avg/0", "shape": [2, 3]}}]]),
    "path": with_leaf(path="1"),
    "dtype": with_leaf(dtype="object"),
    "dtype of a list": with_leaf(dtype=["float64"]),
    "shape": with_leaf(shape=[3, 2]),
    "huge shape": with_leaf(shape=[2**52, 2**52], axes=[0, 1]),
    "negative shape": with_leaf(shape=[-2, -3]),
    "shape of text": with_leaf(shape="23"),
    "many axes": with_leaf(shape=[1] * 65, axes=list(range(65))),
    "axes": with_leaf(axes=[0, 0]),
    "axes too few": with_leaf(axes=[0]),
    "axes of floats": with_leaf(axes=[0.0, 1.0]),
    "tensor": with_leaf(tensor=1),
    "leaf too many": lambda saved: saved["leaves"].append(saved["leaves"][0]),
    "leaf is a list": lambda saved: saved["leaves"].__setitem__(0, list(saved["leaves"][0].items())),
    "structure": with_part(structure=None),
    "no structure": with_nodes(),
    "structure of one": with_nodes(["list", 1], LEAF),
    "structure too long": with_nodes(["list", 2], LEAF, LEAF, LEAF),
    "structure too short": with_nodes(["list", 2], LEAF),
    "structure of a huge list": with_nodes(["list", 2**52], LEAF, LEAF),
    "structure of negative length": with_nodes(["list", -2], LEAF, LEAF),
    "structure of no node": with_nodes(["list", 2], LEAF, 5),
    "structure of an unknown node": with_nodes(["list", 2], LEAF, ["array"]),
    "leaf with children": with_nodes(["list", 2], LEAF, ["leaf", 1]),
    "none with children": with_nodes(["list", 2], LEAF, ["none", 1], LEAF),
    "too deep": with_nodes(*[["list", 1]] * 100_000, ["list", 2], LEAF, LEAF),
    "a key twice": with_nodes(["dict", ["0", "0"]], LEAF, LEAF),
    "equal keys": with_nodes(["dict", [1, True]], LEAF, LEAF),
    "one path twice": with_nodes(["dict", [1, "1"]], LEAF, LEAF),
    "a key that is a dict": with_nodes(["dict", ["0", {"a": 1}]], LEAF, LEAF),
    "a key that cannot be hashed": with_nodes(["dict", ["0", {"key": []}]], LEAF, LEAF),
    "other paths": with_nodes(["dict", ["0", "2"]], LEAF, LEAF),
    "fields that are no names": with_nodes(["namedtuple", "A", ["a", "b c"]], LEAF, LEAF),
    "fields twice": with_nodes(["dataclass", "A", ["a", "a"]], LEAF, LEAF),
    "fields of the class": with_nodes(["dataclass", "A", ["__class__", "__dict__"]], LEAF, LEAF),
    "class of code": with_nodes(["namedtuple", "A(print())", ["a", "b"]], LEAF, LEAF),
}


class Pickled:
    """What unpickles as a state of these parts, whoever wrote it."""

    def __init__(self, saved):
        self.saved = saved

    def __reduce__(self):
        return rms.from_state_dict, (self.saved,)


MADE = {
    "new": lambda state, saved: rms.from_state_dict(saved),
    "live": lambda state, saved: state.load_state_dict(saved),
    "unpickled": lambda state, saved: pickle.loads(pickle.dumps(Pickled(saved))),
}


def check_no_state(how, params, saved, **options):
    """It is made of none of these parts, and one that there is stays as it was."""
    state = rms.init(params, **options)
    before = everything(params, state)
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        MADE[how](state, saved)
    assert everything(params, state) == before
    rms.update_(params, [np.ones(param.shape, param.dtype) for param in params], state)


NO_PICKLES = {"subclass", "byte order", "low half: byte order"}  # a local class has none, a byte order is not kept


def ways(altered):
    return [(name, how) for name in altered for how in MADE if how != "unpickled" or name not in NO_PICKLES]


@pytest.mark.parametrize(("name", "how"), ways(ALTERED))
def test_no_state_is_made_of_altered_parts(name, how):
    saved = saved_state()
    ALTERED[name](saved)
    check_no_state(how, [np.ones((2, 3)), np.ones(4)], saved, momentum=0.9, accumulate=3)


F32, B16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def saved_split_state():
    params = [np.ones((2, 3), B16), np.ones(4, F32)]
    state = rms.init(params, momentum=0.9, accumulate=2, square_avg_dtype="bfloat16")
    rms.update_(params, [np.ones((2, 3), F32), None], state)
    return state.state_dict()


def without_array(name):
    return lambda saved: saved["arrays"].pop(name)


def with_low_half(array):
    return with_array(array, "low_half/0")


ALTERED_STORAGE = {
    "low half: short": with_low_half(np.zeros((2, 2), np.uint16)),
    "low half: long": with_low_half(np.zeros((2, 300), np.uint16)),
    "low half: flat": with_low_half(np.zeros(6, np.uint16)),
    "low half: int16": with_low_half(np.zeros((2, 3), np.int16)),
    "low half: uint32": with_low_half(np.zeros((2, 3), np.uint32)),
    "low half: float32": with_low_half(np.zeros((2, 3), F32)),
    "low half: bfloat16": with_low_half(np.zeros((2, 3), B16)),
    "low half: byte order": with_low_half(np.zeros((2, 3), ">u2")),
    "low half: objects": with_low_half(np.full((2, 3), None)),
    "low half: masked": with_low_half(np.ma.zeros((2, 3), np.uint16)),
    "low half: None": with_low_half(None),
    "low half: missing": without_array("low_half/0"),
    "low half of float32": with_array(np.zeros(4, np.uint16), "low_half/1"),
    "low halves without master weights": with_option(master_weights=False),
    "low halves of float32": with_leaf(dtype="float32"),
    "low halves of float64": with_leaf(dtype="float64"),
    "no low halves": lambda saved: saved["leaves"][1].update(dtype="bfloat16"),
    "master weights of a number": with_option(master_weights=1),
    "square_avg: float32": with_array(np.zeros((2, 3), F32), "square_avg/0"),
    "square_avg: uint16": with_array(np.zeros((2, 3), np.uint16), "square_avg/0"),
    "square_avg: float16": with_array(np.zeros((2, 3), np.float16), "square_avg/0"),
    "square_avg: negative": with_array(np.full((2, 3), -1.0, B16), "square_avg/0"),
    "square_avg: minus infinity": with_array(np.full(4, -np.inf, B16), "square_avg/1"),
    "square_avg: short": with_array(np.zeros((3, 2), B16), "square_avg/0"),
    "square_avg_dtype None": with_option(square_avg_dtype=None),
    "square_avg_dtype float16": with_option(square_avg_dtype="float16"),
    "square_avg_dtype a dtype": with_option(square_avg_dtype=B16),
    "momentum_buffer: bfloat16": with_array(np.zeros((2, 3), B16), "momentum_buffer/0"),
    "initial value that rounds to 0": with_option(initial_square_avg=1e-45),
    "seed negative": with_option(seed=-1),
    "seed of 65 bits": with_option(seed=2**64),
    "seed of a float": with_option(seed=1.0),
    "dtype: float16": with_leaf(dtype="float16"),
    "dtype: uint16": with_leaf(dtype="uint16"),
    "axes": with_leaf(axes=[1, 1]),
    "version 1": with_part(version=1),
    "version 2": with_part(version=2),
}


@pytest.mark.parametrize(("name", "how"), ways(ALTERED_STORAGE))
def test_no_state_is_made_of_altered_storage(name, how):
    saved = saved_split_state()
    ALTERED_STORAGE[name](saved)
    params = [np.ones((2, 3), B16), np.ones(4, F32)]
    check_no_state(how, params, saved, momentum=0.9, accumulate=2, square_avg_dtype="bfloat16")


@pytest.mark.parametrize("dtypes", [(B16, F32), (F32, B16)], ids=["split", "float32"])
def test_a_state_becomes_none_of_parameters_of_another_dtype(dtypes):
    own, other = (np.ones(3, dtype) for dtype in dtypes)
    state = rms.init(own)
    with refused(ValueError, f"^leaf '' was saved with shape .* and {other.dtype}, the parameter has", own, state):
        state.load_state_dict(rms.init(other).state_dict())
    rms.update_(own, own.copy(), state)


@pytest.mark.parametrize("how", MADE)
def test_any_low_halves_are_taken(how, rng):
    """Each of them is a number: what a parameter makes of it is what the reference makes of it."""
    values = np.concatenate([np.arange(2**16, dtype=np.uint16).view(B16)[::37], rng.standard_normal(3000).astype(B16)])
    halves = rng.integers(0, 2**16, values.size, dtype=np.uint16)
    halves[:8] = 0xFFFF, 0x8000, 0x7FFF, 1, 0, 0xFFFE, 0x8001, 0xFF
    grad = rng.standard_normal(values.size).astype(B16)
    ref_params, ref_state = on_reference([values], {})
    params, state = [values.copy()], rms.init([values])
    saved = state.state_dict()
    saved["arrays"]["low_half/0"] = halves
    ref_state.low_half[0][...] = halves
    state = MADE[how](state, saved) or state
    assert same_bits(state.master(params)[0], rms.reference.join_halves(values, halves))
    rms.update_(params, [grad], state)
    rms.reference.update_(ref_params, [grad], ref_state)
    check_alike(params, state, ref_params, ref_state)


@pytest.mark.parametrize("part", saved_state())
def test_no_state_is_made_where_a_part_is_missing(part):
    saved = saved_state()
    del saved[part]
    with pytest.raises(ValueError, match=f"'{part}'|version must be an int, got None"):
        rms.from_state_dict(saved)


@pytest.mark.parametrize("saved", [None, 5, [], {}, "state", {"format": "rmsprop_native state"}])
def test_no_state_is_made_of_something_else(saved):
    with pytest.raises(ValueError, match="this is no saved state"):
        rms.from_state_dict(saved)


def test_buffers_given_are_copied_whatever_they_are():
    """Foreign memory, read-only, strided, the same array for two leaves: none of it is kept."""
    params = [np.ones((2, 3)), np.ones((2, 3))]
    shared = np.frombuffer(np.full((2, 3), 0.5).tobytes()).reshape(2, 3)
    wide = np.full((4, 6), 0.25)[::2, ::2]
    saved = rms.init(params, momentum=0.9).state_dict()
    given = [shared, shared, params[0], wide]
    saved["arrays"] = dict(zip(saved["arrays"], given, strict=True))
    state = rms.from_state_dict(saved)
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
    "state_dict": lambda params, state: state.state_dict(),
    "load_state_dict": lambda params, state: state.load_state_dict(saved_state()),
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

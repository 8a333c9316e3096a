"""What a state is saved as: structures there and back, and what stands for classes."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json

import numpy as np
import pytest

import rmsprop_native as rms
from rmsprop_native.content import ArraySpec, Leaf, SavedSchedule, axes_of, check_content, in_order, models_of

Pair = collections.namedtuple("Pair", ["a", "b"])


@dataclasses.dataclass
class Net:
    w: object
    rest: object


def array():
    return np.zeros(2)


TREES = {
    "lone": array,
    "empty": list,
    "dict": lambda: {"w": array(), "": array(), 'é\n"\ud800': array()},
    "keys": lambda: {
        1: array(),
        True + 1: array(),
        None: array(),
        0.1: array(),
        (1, ("a", None)): array(),
        nested_key(16): array(),
    },
    "bool": lambda: {True: array(), False: array()},
    "sequences": lambda: [array(), (array(), [array()], ())],
    "nothing": lambda: {"a": None, "b": [None, array()]},
    "namedtuple": lambda: Pair(array(), [array()]),
    "dataclass": lambda: {"net": Net(array(), Pair(array(), Net(array(), None)))},
    "deep": lambda: nested(255),
}


def nested(depth):
    tree = array()
    for _ in range(depth):
        tree = [tree]
    return tree


@pytest.mark.parametrize("name", TREES)
def test_structures_come_back(name):
    params, grads = TREES[name](), TREES[name]()
    state = rms.init(params, lr=0.5)
    saved = state.state_dict()
    arrays = saved.pop("arrays")
    again = rms.from_state_dict(json.loads(json.dumps(saved)) | {"arrays": arrays})
    assert again._paths() == state._paths()
    assert str(again.square_avg) == str(state.square_avg).replace("Pair(a=", "(").replace("b=", "")
    rms.update_(params, grads, again)
    assert again.step == 1
    twice = again.state_dict()
    assert (twice["structure"], twice["leaves"]) == (saved["structure"], saved["leaves"])


def test_a_class_is_replaced_by_one_of_its_fields():
    state = rms.from_state_dict(rms.init([Pair(array(), array()), Net(array(), array())]).state_dict())
    pair, net = state.square_avg
    assert type(pair) is not Pair
    assert type(pair)._fields == Pair._fields
    assert pair.b is pair[1]
    assert type(net).__name__ == "Record"
    like = rms.from_state_dict(state.state_dict(), like=[Pair(array(), array()), Net(array(), array())])
    assert type(like.square_avg[0]) is Pair


def test_a_loaded_dataclass_must_have_the_fields_that_were_saved():
    @dataclasses.dataclass
    class Other:
        w: object

    @dataclasses.dataclass
    class Alike:
        w: object
        rest: object

    state = rms.from_state_dict(rms.init(Net(array(), array())).state_dict())
    rms.update_(Alike(array(), array()), Net(array(), array()), state)
    for wrong in (Other(array()), Net, {"w": array(), "rest": array()}):
        with pytest.raises(ValueError, match=r"^parameters are a \w+, those that init\(\) got a Net$"):
            rms.update_(wrong, Net(array(), array()), state)


def nested_key(depth):
    key = 1
    for _ in range(depth):
        key = (key,)
    return key


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "key",
    [Colour.RED, b"w", np.str_("w"), np.int64(1), float("nan"), float("inf"), (1, b"w"), nested_key(17)],
    ids=repr,
)
def test_keys_that_are_not_plain_are_refused(key):
    with pytest.raises(ValueError, match="a key of the dict 'net' is .*: only str, int, bool, None, finite floats"):
        rms.init({"net": {key: array()}}).state_dict()


def test_what_is_nested_too_deep_is_refused():
    saved = rms.init(nested(256)).state_dict()
    assert len(saved["structure"]) == 257
    saved["structure"].insert(0, saved["structure"][0])
    with pytest.raises(ValueError, match="the structure is nested deeper than 256"):
        rms.from_state_dict(saved)


def test_fields_that_are_no_identifiers_are_refused():
    record = rms.tree.Record(**{"a b": array()})
    with pytest.raises(ValueError, match=r"the fields of '' are \['a b'\]: only identifiers can be saved"):
        rms.init(record).state_dict()


def test_content_says_what_arrays_there_are():
    params = {"w": np.zeros((2, 3), np.float32, order="F"), "b": np.zeros(4)}
    overrides = {"b": {"lr": np.ones(4)}, "w": {"lr": np.ones((2, 1))}}
    state = rms.init(params, lr=lambda step: 0.1, centered=True, overrides=overrides)
    content = check_content({name: part for name, part in state.state_dict().items() if name != "arrays"})
    assert content.options["lr"].name.endswith("<lambda>")
    assert isinstance(content.options["lr"], SavedSchedule)
    w = Leaf("w", np.dtype(np.float32), (2, 3), (1, 0), False)
    assert content.leaves[0] == w
    assert list(content.arrays()) == [
        ArraySpec("lr/0", np.dtype(float), (4,), (0,)),
        ArraySpec("lr/1", np.dtype(float), (2, 1), (0, 1)),
        ArraySpec("square_avg/0", *w[1:4]),
        ArraySpec("square_avg/1", np.dtype(float), (4,), (0,)),
        ArraySpec("grad_avg/0", *w[1:4]),
        ArraySpec("grad_avg/1", np.dtype(float), (4,), (0,)),
    ]
    assert [spec.nbytes for spec in content.arrays()] == [32, 16, 24, 32, 24, 32]


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 3), (1, 1, 1), (2, 1, 3)])
def test_the_order_of_memory(shape):
    for order in ("C", "F"):
        made = np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape).copy(order=order)
        axes = axes_of(made)
        flat = in_order(made, axes)
        assert np.shares_memory(flat, made) or not made.size
        (leaf,) = models_of([Leaf("", made.dtype, shape, axes, False)])
        assert (leaf.shape, leaf.dtype, axes_of(leaf)) == (shape, made.dtype, axes)
    turned = np.moveaxis(np.zeros((2, 3, 4)), 0, 1)
    assert axes_of(turned) == (1, 0, 2)


def test_a_nan_of_bfloat16_is_no_negative_number():
    """Nor a warning: NumPy's comparison of bfloat16 raises one."""
    state = rms.init(np.zeros(3, np.float32), square_avg_dtype="bfloat16")
    state.square_avg[...] = [np.nan, 0.5, 0.0]
    with np.errstate(all="raise"):
        same = rms.from_state_dict(state.state_dict())
    assert np.isnan(same.square_avg[0])
    state.square_avg[1] = -0.5
    with pytest.raises(ValueError, match=r"square_avg \(leaf ''\) has a negative mean square, -0\.5"):
        state.state_dict()

"""Trees: leaves, paths, and back."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from rmsprop_native.tree import flatten


def test_paths_and_order():
    leaves, structure = flatten({"b": [1, {"x": 2}], "a": (3, None), 0: 4})
    assert leaves == [1, 2, 3, 4]
    assert list(structure.paths()) == ["b.0", "b.1.x", "a.0", "0"]
    assert structure.size == 4
    assert structure.unflatten(iter("pqrs")) == {"b": ["p", {"x": "q"}], "a": ("r", None), 0: "s"}


def test_a_lone_leaf_and_nothing():
    assert flatten(7)[0] == [7]
    assert list(flatten(7)[1].paths()) == [""]
    assert flatten(None)[0] == []


def test_structures_compare_and_pickle():
    one, other = flatten({"a": [1, 2]})[1], flatten({"a": [3, 4]})[1]
    assert one == other == pickle.loads(pickle.dumps(one))
    assert one != flatten({"a": (1, 2)})[1]


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"a": [1]}, r"gradients at 'a' are 1, the parameters 2"),
        ({"a": 1}, r"gradients at 'a' are a int, the parameters a list"),
        ({"b": [1, 2]}, r"gradients do not have the keys of the parameters: missing \['a'\], not known \['b'\]"),
    ],
)
def test_other_structures_name_the_place(tree, match):
    with pytest.raises(ValueError, match=match):
        list(flatten({"a": [1, 2]})[1].leaves(tree))


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"a": [1], "c": None}, r"^parameters at 'a' are 1, those that init\(\) got 2$"),
        ([1, 2], r"^parameters are a list, those that init\(\) got a dict$"),
        (
            {"b": [1, 2]},
            r"^parameters do not have the keys of those that init\(\) got: missing \['a', 'c'\], not known",
        ),
        ({"a": [1, 2], "c": 3}, r"^parameter 'c' is a int, in the tree that init\(\) got it is None$"),
    ],
)
def test_other_parameters_than_those_of_init(tree, match):
    with pytest.raises(ValueError, match=match):
        list(flatten({"a": [1, 2], "c": None})[1].leaves(tree, "parameter"))


def test_empty_place_holds_no_gradient():
    with pytest.raises(ValueError, match="gradient 'b' is a int, its parameter is None"):
        list(flatten({"a": 1, "b": None})[1].leaves({"a": 1, "b": 2}))


@dataclasses.dataclass
class Layer:
    w: object
    b: object


class Coded(dict):
    """A dict whose items are given by its own code."""

    def __getitem__(self, key):
        raise KeyError("of its own")


def test_what_goes_missing_while_it_is_walked():
    """A field that was deleted; what the code of another container raises is its own."""
    layer = Layer(1, 2)
    del layer.b
    with pytest.raises(ValueError, match="^gradient 'net.b' is missing$"):
        list(flatten({"net": Layer(1, 2)})[1].leaves({"net": layer}))
    with pytest.raises(KeyError, match="of its own"):
        list(flatten({"a": 1})[1].leaves(Coded(a=1)))


def test_containers_of_a_state_keep_their_arrays():
    tree = flatten({"a": Layer(1, 2), "b": [3]})[1].unflatten(iter("pqr"), read_only=True)
    assert tree["b"] == ("r",)
    for change in (lambda: tree.update(a=1), lambda: tree.pop("a"), lambda: setattr(tree["a"], "w", 1)):
        with pytest.raises(TypeError, match="the arrays of a state cannot be replaced"):
            change()
    with pytest.raises(TypeError, match="the arrays of a state cannot be removed"):
        del tree["a"].w
    for copied in (copy.copy(tree), pickle.loads(pickle.dumps(tree))):
        assert type(copied) is dict
        copied["a"] = 1
    leaves, structure = flatten(tree)
    assert leaves == ["p", "q", "r"]
    assert list(structure.paths()) == ["a.w", "a.b", "b.0"]
    assert list(structure.leaves({"a": Layer(4, 5), "b": [6]})) == [4, 5, 6]

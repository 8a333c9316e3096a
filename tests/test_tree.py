"""Trees: leaves, paths, and back."""

from __future__ import annotations

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

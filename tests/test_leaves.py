"""The walk over containers in C: which it takes, and which are left to Tree.leaves."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
from conftest import check_alike, on_reference, refused, same_bits, small_tree

import rmsprop_native as rms
from rmsprop_native import reference
from rmsprop_native.tree import ReadOnlyDict, Record, Tree, flatten

Layer = collections.namedtuple("Layer", "w b")


@dataclasses.dataclass
class Net:
    first: Layer
    rest: list


@dataclasses.dataclass(frozen=True)
class Frozen:
    w: np.ndarray
    b: np.ndarray | None


def containers(make):
    return {
        "array": make(5),
        "0-d": make(()),
        "empty": make((0, 3)),
        "list": [make(3), make((2, 2))],
        "tuple": (make(3), make((2, 2))),
        "nested": {"a": [make(3), {"b": (make(1),)}], "c": make(())},
        "namedtuple": Layer(make((3, 2)), make(2)),
        "dataclass": Net(Layer(make((3, 2)), make(2)), [make(2), None]),
        "frozen dataclass": Frozen(make(3), None),
        "OrderedDict": collections.OrderedDict(z=make(2), a=make(3)),
        "no leaves": {"a": [], "b": {}},
        "not str keys": {0: make(2), ("x", 1): make(3)},
    }


@pytest.mark.parametrize("kind", list(containers(np.zeros)))
def test_trees_step_like_their_leaves(kind, rng):
    params, grads = (containers(lambda s: rng.standard_normal(s).astype("f4"))[kind] for _ in range(2))
    state = rms.init(params, momentum=0.5, weight_decay=0.1)
    ref_params, ref_state = on_reference(params, state.options)
    for _ in range(3):
        assert rms.update_(params, grads, state) is params
        assert reference.update_(ref_params, grads, ref_state) is ref_params
    check_alike(params, state, ref_params, ref_state)
    read_only = {dict: ReadOnlyDict, collections.OrderedDict: ReadOnlyDict, list: tuple, Net: Record, Frozen: Record}
    assert type(state.square_avg) is read_only.get(type(params), type(params))


def test_keys_match_by_name_not_by_order(rng):
    params, grads = small_tree(rng), small_tree(rng)
    other, swapped = {"layer1": dict(params["layer1"])}, {"layer1": dict(reversed(grads["layer1"].items()))}
    other["layer1"] = {k: v.copy() for k, v in other["layer1"].items()}
    rms.update_(params, grads, rms.init(params))
    rms.update_(other, swapped, rms.init(other))
    assert all(same_bits(params["layer1"][k], other["layer1"][k]) for k in "wb")


# ---- which trees are walked in C ----


KEY = ("x", 1)


class Key(str):
    """A string that may run Python code where it is compared."""

    __slots__ = ()


class Point(collections.namedtuple("Point", "x y")):
    """A namedtuple with a method of its own."""

    __slots__ = ()

    def norm(self):
        return abs(self.x) + abs(self.y)


class LoggedTuple(tuple):
    """A tuple that looks its items up in Python."""

    __slots__ = ()

    def __getitem__(self, i):
        return tuple.__getitem__(self, i)


class LoggedList(list):
    pass


# A tree of two arrays, of parameters and of gradients, which the walk in C takes.
IN_C = {
    "list": (list, list),
    "tuple": (tuple, tuple),
    "list for tuple": (tuple, list),
    "tuple for list": (list, tuple),
    "namedtuple": (lambda a: Layer(*a), lambda a: Layer(*a)),
    "namedtuple with methods": (lambda a: Point(*a), lambda a: Point(*a)),
    "tuple for namedtuple": (lambda a: Layer(*a), tuple),
    "dict": (lambda a: {"w": a[0], "b": a[1]}, lambda a: {"w": a[0], "b": a[1]}),
    "dict in another order": (lambda a: {"w": a[0], "b": a[1]}, lambda a: {"b": a[1], "w": a[0]}),
    "equal strings": (lambda a: {"k" * 9: a[0], "w": a[1]}, lambda a: {"".join(["k"] * 9): a[0], "w": a[1]}),
    "strings beyond ASCII": (lambda a: {"\u03b2": a[0], "w": a[1]}, lambda a: {"w": a[1], chr(0x3B2): a[0]}),
    "int keys": (lambda a: {10**9: a[0], 1: a[1]}, lambda a: {10**9: a[0], 1: a[1]}),
    "int keys in another order": (lambda a: {10**9: a[0], 1: a[1]}, lambda a: {1: a[1], int("1" + "0" * 9): a[0]}),
    "str and int keys": (lambda a: {"1": a[0], 2: a[1]}, lambda a: {2: a[1], "1": a[0]}),
    "the same tuple as key": (lambda a: {KEY: a[0], "w": a[1]}, lambda a: {KEY: a[0], "w": a[1]}),
    "nested": (
        lambda a: {"l": [a[0], {"b": (a[1],)}], "e": {}, "n": None},
        lambda a: {"n": None, "l": ([a[0], {"b": [a[1]]}]), "e": {}},
    ),
}

# The same, which is left to Tree.leaves, since it may run Python code.
IN_PYTHON = {
    "OrderedDict": (
        lambda a: dict(zip("wb", a, strict=True)),
        lambda a: collections.OrderedDict(zip("wb", a, strict=True)),
    ),
    "defaultdict": (
        lambda a: dict(zip("wb", a, strict=True)),
        lambda a: collections.defaultdict(list, zip("wb", a, strict=True)),
    ),
    "subclass of list": (list, LoggedList),
    "tuple that looks items up in Python": (tuple, LoggedTuple),
    "dataclass": (lambda a: Frozen(*a), lambda a: Frozen(*a)),
    "tuple as key": (lambda a: {KEY: a[0], "w": a[1]}, lambda a: {(*KEY,): a[0], "w": a[1]}),
    "subclass of str as key": (lambda a: {"w": a[0], "b": a[1]}, lambda a: {Key("w"): a[0], "b": a[1]}),
    "float for int": (lambda a: {1: a[0], "b": a[1]}, lambda a: {1.0: a[0], "b": a[1]}),
    "bool for int": (lambda a: {1: a[0], "b": a[1]}, lambda a: {True: a[0], "b": a[1]}),
}


@pytest.fixture
def python_walks(monkeypatch):
    """The trees that Tree.leaves walks."""
    walked = []
    leaves = Tree.leaves

    def recorded(self, tree, what="gradient", prefix=""):
        walked.append(tree)
        return leaves(self, tree, what, prefix)

    monkeypatch.setattr(Tree, "leaves", recorded)
    return walked


def check_walk(make_params, make_grads, rng):
    values, grads = ([rng.standard_normal(n).astype("f4") for n in (3, 4)] for _ in range(2))
    params = make_params([value.copy() for value in values])
    rms.update_(params, make_grads(grads), rms.init(params))
    rms.update_(values, grads, rms.init(values))
    assert all(same_bits(one, other) for one, other in zip(flatten(params)[0], values, strict=True))


@pytest.mark.parametrize("kind", IN_C)
def test_trees_that_are_walked_in_c(kind, rng, python_walks):
    check_walk(*IN_C[kind], rng)
    assert python_walks == []


@pytest.mark.parametrize("kind", IN_PYTHON)
def test_trees_that_are_left_to_python(kind, rng, python_walks):
    check_walk(*IN_PYTHON[kind], rng)
    assert python_walks


def test_a_lone_array_is_not_walked(rng, python_walks):
    param, grad = rng.standard_normal(3), rng.standard_normal(3)
    rms.update_(param, grad, rms.init(param))
    assert python_walks == []


@pytest.mark.parametrize(
    ("params", "grads", "match"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, r"missing \['b'\]"),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, r"not known \['c'\]"),
        ({"a": 1, "b": 2}, {"a": 1, "B": 2}, r"missing \['b'\], not known \['B'\]"),
        ({1: 1, 2: 2}, {1: 1, "2": 2}, r"missing \[2\], not known \['2'\]"),
        ([1, 2], [1], "gradients are 1, the parameters 2"),
        ([1, 2], {0: 1, 1: 2}, "gradients are a dict, the parameters a list"),
        ({"a": [1, 2]}, {"a": 1}, "gradients at 'a' are a ndarray, the parameters a list"),
        ({"a": 1, "b": None}, {"a": 1, "b": 2}, "gradient 'b' is a ndarray, its parameter is None"),
    ],
)
def test_another_structure_is_explained(params, grads, match):
    """Where the walk in C fails, Tree.leaves raises the message."""
    leaves, structure = flatten(params)
    params = structure.unflatten(np.zeros(1) for _ in leaves)
    leaves, structure = flatten(grads)
    grads = structure.unflatten(np.zeros(1) for _ in leaves)
    refused(ValueError, match, params, grads, rms.init(params))

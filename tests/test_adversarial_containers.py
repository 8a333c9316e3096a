"""Containers whose code runs at each access, hostile keys, and garbage collection in the middle of a call."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import gc
import pickle
import re
import sys
from typing import Any

import numpy as np
import pytest
from conftest import same_bits
from hostile import Code, Pair, everything, garbage_collected_at, refused

import rmsprop_native as rms
from rmsprop_native.tree import flatten

# ---- containers whose code runs at each access ----


class ViewDict(dict):
    """New views at each access."""

    def __getitem__(self, key):
        return super().__getitem__(key)[...]


class ViewList(list):
    def __iter__(self):
        return iter([array[...] for array in super().__iter__()])

    def __getitem__(self, i):
        return super().__getitem__(i)[...]


class IterList(list):
    """New views by iteration only."""

    def __iter__(self):
        return iter([array[...] for array in super().__iter__()])


class ViewTuple(tuple):
    def __getitem__(self, i):
        return super().__getitem__(i)[...]


class ViewPair(collections.namedtuple("ViewPair", "w b")):
    def __getitem__(self, i):
        return super().__getitem__(i)[...]


@dataclasses.dataclass
class ViewNet:
    w: Any
    b: Any

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return value[...] if name in "wb" else value


class CopyDict(dict):
    """New copies at each access: a step would move none of what is kept."""

    def __getitem__(self, key):
        return super().__getitem__(key).copy()


class CopyList(list):
    def __getitem__(self, i):
        return super().__getitem__(i).copy()


class CopyTuple(tuple):
    def __getitem__(self, i):
        return super().__getitem__(i).copy()


class CopyPair(collections.namedtuple("CopyPair", "w b")):
    def __getitem__(self, i):
        return super().__getitem__(i).copy()


@dataclasses.dataclass
class CopyNet:
    w: Any
    b: Any

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return value.copy() if name in "wb" else value


def make_of(kind, arrays):
    """A container of two arrays."""
    if issubclass(kind, dict):
        return kind(zip("wb", arrays, strict=True))
    return kind(arrays) if issubclass(kind, list) or kind.__base__ is tuple else kind(*arrays)


@pytest.mark.parametrize("kind", [ViewDict, ViewList, IterList, ViewTuple, ViewPair, ViewNet])
def test_views_new_at_each_look_are_stepped(kind, rng):
    params, grads = ([rng.standard_normal((3, 2)), rng.standard_normal(4)] for _ in range(2))
    pair = Pair([array.copy() for array in params])
    tree = make_of(kind, params)
    state = rms.init(tree)
    for _ in range(3):
        assert rms.update_(tree, make_of(kind, grads), state) is tree
        pair.step(grads)
    assert all(same_bits(one, other) for one, other in zip(params, pair.params, strict=True))
    with refused(ValueError, "gradient '.' has shape", params, state):
        rms.update_(tree, make_of(kind, grads[::-1]), state)


@pytest.mark.parametrize("kind", [CopyDict, CopyList, CopyTuple, CopyPair, CopyNet])
def test_copies_new_at_each_look_are_refused(kind):
    params = [np.ones((3, 2)), np.ones(4)]
    tree = make_of(kind, params)
    state = rms.init(tree)
    for _ in range(2):
        with refused(ValueError, "parameter '[w0]' is another array at each access to its container", params, state):
            rms.update_(tree, make_of(kind, [np.ones((3, 2)), np.ones(4)]), state)
    honest_tree = params if isinstance(tree, tuple | list) else honest(kind, params)
    rms.update_(honest_tree, make_of(kind, [np.ones((3, 2)), np.ones(4)]), state)
    assert state.step == 1


def honest(kind, arrays):
    """A container of the same structure that gives what it has."""
    if issubclass(kind, dict):
        return dict(zip("wb", arrays, strict=True))
    plain = ViewNet(*arrays)
    plain.__class__ = type("Plain", (kind,), {"__getattribute__": object.__getattribute__})
    return plain


class Plain(collections.namedtuple("Plain", "w b")):
    """A namedtuple subclass without code of its own."""


class OtherLength(tuple):
    def __len__(self):
        return 7


def test_tuples_of_another_length_than_they_say_are_refused():
    params = (np.ones(3), np.ones(2))
    pair = Pair(params)
    for bad in (OtherLength(params), OtherLength((np.ones(3), np.ones(2)))):
        pair.refused(ValueError, "gradients are 7, the parameters 2", bad)
    pair.step(Plain(np.ones(3), np.ones(2)))


def test_container_that_changes_a_parameter_at_each_access():
    """Its code runs before any array is described."""
    param = np.ones((2, 3))

    class Reshapes(dict):
        def __getitem__(self, key):
            param.resize((3, 2), refcheck=False)
            return super().__getitem__(key)

    state = rms.init({"w": param})
    with refused(ValueError, r"parameter 'w' has shape \(3, 2\), its square_avg has \(2, 3\)", param, state):
        rms.update_({"w": param}, Reshapes(w=np.ones((2, 3))), state)


def test_container_whose_code_clears_the_others():
    """What was collected already is held."""
    params, grads = [np.ones(3), np.ones(3)], [np.ones(3), np.ones(3)]

    class Clears(list):
        def __getitem__(self, i):
            params.clear()
            grads.clear()
            gc.collect()
            return super().__getitem__(i)

    pair = Pair([np.ones(3), np.ones(3)])
    tree = [params, [pair.params[1]]]
    first = params[0]
    state = rms.init(tree)
    rms.update_(tree, [grads, Clears([np.ones(3)])], state)  # the lists are emptied after they were looked into
    assert state.step == 1
    assert not params
    assert (first < 1).all()


def test_container_whose_code_uses_the_state_is_refused():
    params = {"w": np.ones(3)}
    state = rms.init(params)
    refusals = []
    uses = (
        lambda: rms.update_(params, {"w": np.ones(3)}, state),
        lambda: state.replace(lr=0.5),
        state.copy,
        lambda: copy.copy(state),
        lambda: copy.deepcopy(state),
        lambda: pickle.dumps(state),
        lambda: rms.update(params, {"w": np.ones(3)}, state),
        lambda: setattr(state, "step", 5),
        lambda: state.load_state_dict(saved),
    )
    saved = state.state_dict()

    class Uses(dict):
        def __getitem__(self, key):
            for use in uses:
                with refused(RuntimeError, "this state is inside a step already", params, state):
                    use()
                refusals.append(use)
            return super().__getitem__(key)

    pair = Pair({"w": np.ones(3)})
    for warm in (1, 2):
        rms.update_(params, Uses(w=np.ones(3)), state)
        pair.step({"w": np.ones(3)})
        assert len(refusals) == warm * len(uses)
    assert same_bits(params["w"], pair.params["w"])
    rms.update_(params, {"w": rms.RowGrad(Code([0, 2], lambda: Uses(w=0)["w"]), np.ones(2))}, state)
    assert len(refusals) == 3 * len(uses)
    assert state.step == 3


def test_container_whose_code_steps_another_state():
    """A claim is on one state."""
    inner = Pair({"w": np.ones(3)})

    class Steps(dict):
        def __getitem__(self, key):
            inner.step({"w": np.ones(3)})
            return super().__getitem__(key)

    outer = Pair({"w": np.ones(3)})
    outer.step(Steps(w=np.ones(3)), {"w": np.ones(3)})
    assert inner.state.step == outer.state.step == 1


@pytest.mark.parametrize(
    "error", [KeyError, KeyboardInterrupt, RecursionError, MemoryError, StopIteration, GeneratorExit]
)
def test_container_that_raises_leaves_the_state_as_it_was(error):
    class Raises(dict):
        def __getitem__(self, key):
            raise error(key)

    pair = Pair({"v": np.ones(2), "w": np.ones(3)})
    expected = (error, RuntimeError)  # the walk is a generator, which makes a RuntimeError of StopIteration
    for _ in range(2):
        pair.refused(expected, ".", Raises(v=np.ones(2), w=np.ones(3)))
        with refused(expected, ".", pair.params, pair.state):
            rms.update_(
                pair.params, {"v": None, "w": rms.RowGrad(Code([0], lambda: Raises(w=1)["w"]), np.ones(1))}, pair.state
            )
        pair.step({"v": np.ones(2), "w": np.ones(3)})


def test_gradient_with_a_false_class():
    class Lies:
        __class__ = np.ndarray
        shape, dtype, strides, flags = (3,), np.dtype("f8"), (8,), np.ones(1).flags

    class LiesRows:
        __class__ = rms.RowGrad
        rows, values = [0], np.ones((1,))

    pair = Pair({"w": np.ones(3)})
    for lie in (Lies(), LiesRows()):
        pair.refused(TypeError, f"gradient 'w' is a {type(lie).__name__}, not a numpy.ndarray", {"w": lie})
        with pytest.raises(TypeError, match=f"parameter 'w' is a {type(lie).__name__}, not a numpy.ndarray"):
            rms.init({"w": lie})


# ---- keys ----


class Key(str):
    """A key whose comparisons run code."""

    __slots__ = ("run",)

    def __eq__(self, other):
        getattr(self, "run", int)()
        return str.__eq__(self, other)

    def __hash__(self):
        getattr(self, "run", int)()
        return str.__hash__(self)


def test_keys_whose_comparison_runs_code():
    params = {"a": np.ones(3), "b": np.ones(2)}
    pair = Pair(params)
    key = Key("a")
    grads = {"b": np.ones(2), key: np.ones(3)}
    cleared = []

    def run():
        with pytest.raises(RuntimeError, match="inside a step"):
            rms.update_(params, {"a": np.ones(3), "b": np.ones(2)}, pair.state)
        cleared.append(1)

    key.run = run
    rms.update_(params, grads, pair.state)
    key.run = int
    pair.ref_step(grads)
    pair.check()
    assert cleared
    state = rms.init({Key("a"): params["a"], Key("b"): params["b"]})
    rms.update_({"b": params["b"], "a": params["a"]}, {Key("b"): np.ones(2), "a": np.ones(3)}, state)
    assert state.step == 1


def test_dict_that_loses_its_keys_in_the_middle_of_the_walk():
    grads = {}

    class Loses(dict):
        def __getitem__(self, key):
            grads.clear()
            return super().__getitem__(key)

    grads.update(a=Loses(w=np.ones(3)), b=np.ones(3))
    pair = Pair({"a": {"w": np.ones(3)}, "b": np.ones(3)})
    pair.refused(ValueError, "gradient 'b' is missing", grads)
    pair.step({"a": {"w": np.ones(3)}, "b": np.ones(3)})


def test_keys_of_other_kinds(rng):
    keys = [1, 2**70, -1, False, "é", "\ud800", ("x", 1), frozenset({1}), 1.5, b"w", None]
    pair = Pair({key: rng.standard_normal(2) for key in keys})
    pair.step({key: rng.standard_normal(2) for key in keys})
    pair.step({key: rng.standard_normal(2) for key in reversed(keys)})
    pair.refused(ValueError, "do not have the keys of the parameters", {key: np.ones(2) for key in keys[1:]})


def test_a_path_that_two_leaves_share_is_refused():
    for params, path in (
        ({"a.b": np.ones(2), "a": {"b": np.ones(2)}}, "a.b"),
        ({1: np.ones(2), "1": np.ones(2)}, "1"),
        ({"a": [np.ones(2)], "a.0": np.ones(2)}, "a.0"),
        ({"": {"x": np.ones(2)}, "x": np.ones(2)}, "x"),
    ):
        with pytest.raises(ValueError, match=f"two leaves have the path '{path}'; give one of them another key"):
            rms.init(params)
    state = rms.init({"a.b": np.ones(2), "a": {"c": np.ones(2)}})
    assert state.step == 0


def test_a_pattern_with_brackets_names_the_leaf_of_that_path():
    params = {"a[0]": np.ones(2), "a0": np.ones(2), "b[*": np.ones(2)}
    for overrides in ({"a[0]": {"lr": 0.0}}, {"b[*": {"lr": 0.0}}):
        if "a[0]" in overrides:
            with pytest.raises(ValueError, match=r"overrides\['a\[0\]'\] is ambiguous"):
                rms.init(params, overrides=overrides)
            pair = Pair({"a[0]": np.ones(2), "c": np.ones(2)}, overrides=overrides)
            pair.step({"a[0]": np.ones(2), "c": np.ones(2)})
            assert (pair.params["a[0]"] == 1).all()
            assert (pair.params["c"] < 1).all()
        else:
            pair = Pair(params, overrides=overrides)
            pair.step({key: np.ones(2) for key in params})
            assert (pair.params["b[*"] == 1).all()


# ---- structures ----


@dataclasses.dataclass
class Net:
    w: Any
    rest: Any


def test_state_of_dataclasses_and_namedtuples_can_be_pickled_and_copied(rng):
    def make(draw):
        return Net(draw(3), [Plain(draw(2), {"x": draw(())}), (draw(1), None)])

    params = make(rng.standard_normal)
    params.rest[0] = params.rest[0]._replace(b={"x": np.array(0.5)})
    grads = make(lambda shape: np.ones(shape))
    state = rms.init(params, momentum=0.9)
    rms.update_(params, grads, state)
    for made in (pickle.loads(pickle.dumps(state)), copy.copy(state), copy.deepcopy(state)):
        twin = copy.deepcopy(params)
        other, _ = rms.update(params, grads, state)
        rms.update_(twin, grads, made)
        assert everything(twin, made)[1][:5] == everything(other, made)[1][:5]
        assert type(made.square_avg).__name__ == "Record"


class Built(collections.namedtuple("Built", "w b")):
    """Made of other arguments than its fields."""

    def __new__(cls, pair):
        return super().__new__(cls, *pair)


class WithFields(list):
    """No namedtuple, whatever attributes it has."""

    _fields = ("w", "b")


class DictWithFields(dict):
    _fields = ("w",)


@pytest.mark.parametrize("make", [Built, WithFields, lambda pair: DictWithFields(enumerate(pair))])
def test_containers_that_look_like_a_namedtuple_or_are_made_otherwise(make, rng):
    params = make([rng.standard_normal(3), rng.standard_normal(2)])
    grads = make([np.ones(3), np.ones(2)])
    state = rms.init(params, overrides={"w" if make is Built else "0": {"lr": 0.5}})
    new, new_state = rms.update(params, grads, state)
    rms.update_(params, grads, state)
    for one, other in ((new, params), (new_state.square_avg, state.square_avg)):
        leaves, others = flatten(one)[0], flatten(other)[0]
        assert len(leaves) == 2
        assert all(same_bits(a, b) for a, b in zip(leaves, others, strict=True))


MAKE = {"list": lambda t: [t], "tuple": lambda t: (t,), "dict": lambda t: {"k": t}}


def nested(make, depth, leaf):
    for _ in range(depth):
        leaf = make(leaf)
    return leaf


@pytest.mark.parametrize("make", MAKE)
def test_containers_nested_too_deep_are_refused(make):
    rms.init(nested(MAKE[make], 256, np.ones(2)))
    for depth in (257, 20_000):
        with pytest.raises(ValueError, match="nested deeper than 256, or that contain themselves"):
            rms.init(nested(MAKE[make], depth, np.ones(2)))


@pytest.mark.parametrize("make", MAKE)
def test_containers_nested_deep(make):
    leaf = np.ones(2)
    params, grads = nested(MAKE[make], 100, leaf), nested(MAKE[make], 100, np.ones(2))
    state = rms.init(params)
    rms.update_(params, grads, state)
    assert state.step == 1
    assert (leaf < 1).all()
    shallow = grads[0] if not isinstance(grads, dict) else grads["k"]
    with refused(ValueError, "gradient", leaf, state):
        rms.update_(params, shallow, state)


def test_container_that_contains_itself_is_refused():
    params = [np.ones(2)]
    params.append(params)
    with pytest.raises(ValueError, match="or that contain themselves"):
        rms.init(params)
    pair = Pair([np.ones(2), [np.ones(2)]])
    pair.refused(TypeError, r"gradient '1\.0' is a list|gradient", [np.ones(2), [params]])


ONE = np.ones(2)


def set_item(key):
    def change(tree):
        tree[key] = ONE

    return change


REPLACEMENTS = {
    dict: [
        set_item("w"),
        set_item("new"),
        lambda tree: tree.update(w=ONE),
        lambda tree: tree.pop("w"),
        lambda tree: tree.setdefault("new", ONE),
        lambda tree: tree.clear(),
        lambda tree: tree.popitem(),
        lambda tree: tree.__ior__({"w": ONE}),
        lambda tree: tree.__delitem__("w"),
    ],
    list: [set_item(0), set_item("w")],
    tuple: [set_item(0), set_item("w")],
    Plain: [set_item(0), set_item("w"), lambda tree: setattr(tree, "w", ONE)],
    Net: [set_item("w"), lambda tree: setattr(tree, "w", ONE), lambda tree: delattr(tree, "w")],
}


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_arrays_of_a_state_cannot_be_replaced_only_written(kind):
    arrays = [np.ones(2), np.ones(2)]
    params = {dict: lambda: dict(zip("wb", arrays, strict=True)), list: lambda: arrays, tuple: lambda: tuple(arrays)}
    params = params.get(kind, lambda: kind(*arrays))()
    state = rms.init(params, momentum=0.9)
    for name in ("square_avg", "momentum_buffer"):
        for change in REPLACEMENTS[kind]:
            # A namedtuple, like any property without a setter, raises AttributeError for an attribute.
            with refused((TypeError, AttributeError) if kind is Plain else TypeError, ".", params, state):
                change(getattr(state, name))
        tree = getattr(state, name)
        first = tree.w if kind is Net else tree["w" if kind is dict else 0]
        first[...] = 5.0
        assert (flatten(getattr(state, name))[0][0] == 5).all()


# ---- garbage collection in the middle ----

OPTIONS = {
    "plain": {},
    "skip": {"on_nonfinite": "skip"},
    "raise": {"on_nonfinite": "raise"},
    "accumulate": {"accumulate": 2},
}
LAST = {
    "dense": lambda: np.ones((3, 2)),
    "strided": lambda: np.ones((2, 3)).T,
    "rows": lambda: rms.RowGrad([2, 0, 2], np.ones((3, 2))),
    "nan": lambda: np.full((3, 2), np.nan),
    "refused": lambda: np.ones(5),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", LAST)
@pytest.mark.parametrize("lr", [0.5, lambda steps: [0.5, steps][0]], ids=["number", "schedule"])
def test_finalizers_that_empty_the_lists(lr, kind, name):
    """At whatever allocation the collector comes: the step is that of the arrays given, or is refused; no crash."""
    options, outcomes, reached = OPTIONS[name] | {"lr": lr}, set(), 0
    for allocation in range(1, 50):
        pair = Pair([np.ones((3, 2)) for _ in range(4)], **options)
        pair.step([np.ones((3, 2))] * 4)
        params, state = [*pair.params], pair.state
        grads = [np.ones((3, 2)), np.ones((3, 2)), None, LAST[kind]()]
        ref_grads = [*grads]

        def spoil(params=params, grads=grads, state=state):
            with contextlib.suppress(RuntimeError):
                state.copy()
            params.clear()
            grads[:] = [np.full((3, 2), 7.0)] * 4
            grads.clear()

        before = everything(pair.params, state)
        with garbage_collected_at(allocation, spoil) as runs:
            try:
                rms.update_(params, grads, state)
                outcome = "stepped"
            except (ValueError, FloatingPointError) as error:
                outcome = f"{type(error).__name__}: {error}"
            reached += len(runs)
        outcomes.add(outcome)
        if outcome == "stepped":
            pair.ref_step(ref_grads)
            pair.check()
        else:
            assert everything(pair.params, state) == before
    refusal = {
        "refused": r"ValueError: gradient '3' has shape \(5,\), its parameter has \(3, 2\)",
        "nan": "FloatingPointError: gradient '3' has 6 of 6 elements" if name == "raise" else "stepped",
        "rows": "ValueError: gradient '3' is a RowGrad" if name == "accumulate" else "stepped",
    }.get(kind, "stepped")
    assert any(re.match(refusal, outcome) for outcome in outcomes), outcomes
    empty = "ValueError: parameters are 0"
    assert all(re.match(f"{refusal}|{empty}", outcome) for outcome in outcomes), outcomes
    if (callable(lr) and name != "accumulate") or kind in ("rows", "refused"):
        assert reached  # else nothing is allocated where the collector could come


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_finalizers_that_reshape_the_parameters_of_init():
    """Init works on the arrays that it has checked."""
    outcomes = set()
    for allocation in range(1, 120):
        params = [np.zeros(4) for _ in range(6)]

        def reshape(params=params):
            for param in params:
                param.shape = (1,) * 60 + (2, 2)

        with garbage_collected_at(allocation, reshape):
            try:
                state = rms.init(params)
                outcomes.add(state.square_avg[0].ndim)
            except ValueError as error:
                assert "parameter '0' has shape" in str(error)
                outcomes.add("refused")
    assert outcomes == {4 - 3, 62, "refused"}


def test_finalizer_of_a_gradient_that_steps_the_same_state_is_refused():
    """The last reference to a gradient may be the step's own."""
    params = {"w": np.ones((4, 2))}
    state = rms.init(params)
    refusals = []

    class Finalized(np.ndarray):
        def __del__(self):
            try:
                rms.update_(params, {"w": np.ones((4, 2))}, state)
            except RuntimeError as error:
                refusals.append(error)

    class Once(dict):
        """Forgets its gradient when it has given it."""

        def __getitem__(self, key):
            return np.ones((4, 2)).view(Finalized)

    pair = Pair({"w": np.ones((4, 2))})
    for steps in (1, 2):
        rms.update_(params, Once(w=0), state)
        pair.step({"w": np.ones((4, 2))})
        assert (state.step, len(refusals)) == (steps, steps)
    assert same_bits(params["w"], pair.params["w"])


def test_no_reference_is_lost_or_kept_by_calls_that_fail():
    leaf = np.ones((4, 2))
    params = {"w": np.ones((4, 2)), "v": ViewList([np.ones(2)])}
    state = rms.init(params, on_nonfinite="raise")
    calls = [
        {"w": leaf, "v": [np.ones(2)]},
        {"w": leaf, "v": [np.ones(3)]},
        {"w": leaf, "v": [np.full(2, np.nan)]},
        {"w": leaf, "v": [5]},
        {"w": rms.RowGrad([0, 1, 2, 3], leaf), "v": [np.ones(3)]},
        {"w": rms.RowGrad([0, 1, 2, 9], leaf), "v": [np.ones(2)]},
    ]
    before = sys.getrefcount(leaf), sys.getrefcount(params["w"]), sys.getrefcount(None)
    for _ in range(50):
        for grads in calls:
            try:
                rms.update_(params, grads, state)
            except (TypeError, ValueError, IndexError, FloatingPointError):
                continue
    after = sys.getrefcount(leaf), sys.getrefcount(params["w"]), sys.getrefcount(None)
    assert after[:2] == before[:2]
    assert abs(after[2] - before[2]) < 50


def test_a_dataclass_without_one_of_its_fields_is_refused():
    @dataclasses.dataclass
    class Net:
        w: np.ndarray
        b: np.ndarray

    params, grads = (Net(np.ones(2), np.ones(3)) for _ in range(2))
    state = rms.init(params)
    del grads.b
    with pytest.raises(ValueError, match="gradient 'b' is missing"):
        rms.update_(params, grads, state)
    assert (params.w == 1).all()
    assert state.step == 0

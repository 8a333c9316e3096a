"""Overrides: which leaves a pattern names, which share their options, and every refusal."""

from __future__ import annotations

import math
import pickle
from types import MappingProxyType

import numpy as np
import pytest
from cases import LAYOUTS, THREADS, VARIANTS, options_of
from conftest import Schedule, check_alike, on_reference, refused, stepped_alike

import rmsprop_native as rms
from rmsprop_native import Options, _core, reference
from rmsprop_native.overrides import LeafOptions, check_overrides, check_paths, group_leaves


def test_overrides_to_the_bit(rng):
    options = options_of({"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 0.5, "bias_correction": True})
    params = [rng.standard_normal(n) for n in (5, 6, 7)]
    grads = [rng.standard_normal(n) for n in (5, 6, 7)]
    overrides = {"*": {"lr": 0.5}, "1": {"weight_decay": 0.0, "rho": 0.5}, "[12]": {"momentum": 0.1, "clip_norm": None}}
    stepped_alike(options, params, grads, steps=3, overrides=overrides, lr=0.25, grad_scale=2.0)


def test_overrides_by_path(rng):
    def tree(value):
        return {"layer1": {"weight": np.full(3, value), "bias": np.full(2, value)}, "head": [np.full(2, value)]}

    params, grads = tree(1.0), tree(1.0)
    state = rms.init(params, lr=0.5, overrides={"*": {"lr": 0.25}, "*.bias": {"lr": 0.0}, "layer1.*": {"rho": 0.5}})
    rms.update_(params, grads, state, lr=7.0)  # every leaf has a rate of its own
    assert (params["layer1"]["bias"] == 1).all()
    assert (params["layer1"]["weight"] < 1).all()
    assert (state.square_avg["layer1"]["weight"] == 0.5).all()
    assert (state.square_avg["head"][0] == 1 - 0.9).all()
    assert "*.bias" in repr(state)
    state.replace(lr=0.1, rho=0.8)
    rms.update_(params, grads, state)
    assert (params["layer1"]["bias"] == 1).all()
    assert (state.square_avg["layer1"]["weight"] == 0.75).all()


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"*.gamma": {"lr": 1.0}}, r"overrides\['\*\.gamma'\] matches none of 'w', 'b'"),
        ({"w": {"centered": True}}, r"overrides\['w'\] cannot change 'centered'; only lr, rho"),
        ({"w": {"ema": 0.5}}, r"cannot change 'ema'"),
        ({"w": {"alpha": 0.5}}, r"cannot change 'alpha'; did you mean 'rho'\? only lr, rho"),
        ({"w": {"lr": -1.0}}, r"overrides for 'w': lr must be finite"),
        ({"w": {"momentum": 0.5}}, r"overrides for 'w': the state keeps square_avg; momentum=0.5 would need"),
        ({"w": {"clip_norm": 1.0}}, r"overrides for 'w': clip_value and clip_norm are two ways to clip"),
    ],
)
def test_bad_overrides(overrides, match):
    with pytest.raises(ValueError, match=match):
        rms.init({"w": np.zeros(2), "b": np.zeros(2)}, clip_value=1.0, overrides=overrides)


# ---- groups ----


def test_leaves_share_a_group_where_the_same_patterns_match():
    base = Options()
    groups, leaf_groups = group_leaves(
        base, {"*.b": {"lr": 0.5}, "l1.*": {"rho": 0.5}}, ["l1.b", "x", "l2.b", "l3.b", "l1.w"]
    )
    assert groups[0] == LeafOptions(base, False)
    assert groups[0].options is base
    assert leaf_groups == (1, 0, 2, 2, 3)
    assert groups[1:] == [
        LeafOptions(Options(lr=0.5, rho=0.5), True),
        LeafOptions(Options(lr=0.5), True),
        LeafOptions(Options(rho=0.5), False),
    ]


def test_the_first_group_is_the_base_even_if_no_leaf_has_it():
    base = Options()
    groups, leaf_groups = group_leaves(base, {"*": {"eps": 0.5}}, ["a", "b"])
    assert groups[0].options is base
    assert leaf_groups == (1, 1)


def test_where_several_match_the_last_one_wins():
    groups, _ = group_leaves(Options(), {"a": {"lr": 0.5, "eps": 0.5}, "*": {"lr": 0.25}}, ["a"])
    assert groups[1].options == Options(lr=0.25, eps=0.5)


def test_schedules_that_look_alike_stay_apart():
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    overrides = {"a": {"lr": Schedule(0.0)}, "b": {"lr": Schedule(1.0)}}
    state = rms.init(params, lr=Schedule(0.5), overrides=overrides)
    rms.update_(params, {"a": np.ones(1), "b": np.ones(1)}, state)
    assert params["a"] == 0
    assert params["b"] < 0


def test_numbers_that_print_alike_stay_apart():
    class Prints(float):
        def __repr__(self):
            return "0.1"

    groups, leaf_groups = group_leaves(Options(), {"a": {"lr": Prints(0.25)}, "b": {"lr": Prints(0.5)}}, ["a", "b"])
    assert [groups[i].options.lr for i in leaf_groups] == [0.25, 0.5]


def test_an_array_given_as_a_number_is_read_once():
    rate = np.array(0.5)
    param = np.zeros(1)
    state = rms.init(param, overrides={"*": {"lr": rate}})
    rate[()] = 0.0
    state.replace(eps=0.0)
    rms.update_(param, np.ones(1), state)
    assert param == -0.5 / math.sqrt(1 - 0.9)


def test_overrides_are_copied():
    overrides = {"a": {"lr": 0.5}}
    checked = check_overrides(MappingProxyType({"a": MappingProxyType(overrides["a"])}))
    overrides["a"]["lr"] = 0.25
    assert checked == {"a": {"lr": 0.5}}


# ---- what a pattern names ----


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("layers[0].w", ["layers[0].w"]),
        ("layers[[]0].w", ["layers[0].w"]),
        ("layers[[]*", ["layers[0].w", "layers[1].w"]),
        ("head[12]", ["head1", "head2"]),
        ("Head1", ["Head1"]),
        ("*.w", ["layers[0].w", "layers[1].w"]),
        ("?ead1", ["head1", "Head1"]),
    ],
)
def test_patterns(pattern, named):
    paths = ["layers[0].w", "layers[1].w", "head1", "Head1", "head2"]
    _, leaf_groups = group_leaves(Options(), {pattern: {"lr": 0.5}}, paths)
    assert [path for path, group in zip(paths, leaf_groups, strict=True) if group] == named


def test_the_path_of_a_lone_array_is_empty():
    for pattern in ("", "*"):
        assert group_leaves(Options(), {pattern: {"lr": 0.5}}, [""])[1] == (1,)


def test_an_ambiguous_pattern_is_refused_with_both_paths_and_the_remedy():
    paths = ["a", "layers[0].w", "layers0.w"]
    message = (
        r"overrides\['layers\[0\].w'\] is ambiguous: 'layers\[0\].w' .* matches 'layers0.w'; write 'layers\[\[\]0\].w'"
    )
    with pytest.raises(ValueError, match=message):
        group_leaves(Options(), {"layers[0].w": {"lr": 0.5}}, paths)
    assert group_leaves(Options(), {"layers[[]0].w": {"lr": 0.5}}, paths)[1] == (0, 1, 0)
    with pytest.raises(ValueError, match=r"overrides\['\*'\] is ambiguous: .* matches 'b'; write '\[\*\]'"):
        rms.init({"*": np.zeros(2), "b": np.zeros(2)}, overrides={"*": {"lr": 0.5}})


def test_many_paths_are_not_all_listed():
    paths = [f"leaf{i}" for i in range(1000)]
    with pytest.raises(ValueError, match=r"matches none of 'leaf0', 'leaf1', .*'leaf7', \.\.\. \(1000 leaves\)$"):
        group_leaves(Options(), {"x": {"lr": 0.5}}, paths)
    with pytest.raises(ValueError, match="matches none of the leaves: there are none"):
        group_leaves(Options(), {"x": {"lr": 0.5}}, [])


# ---- wrong kinds ----


@pytest.mark.parametrize("overrides", [[], 0, "", [("w", {"lr": 1.0})], {"w"}])
def test_overrides_are_a_mapping(overrides):
    with pytest.raises(TypeError, match="^overrides must be a mapping of patterns to mappings of options, got "):
        rms.init({"w": np.zeros(2)}, overrides=overrides)


@pytest.mark.parametrize("changes", [0.5, None, [("lr", 0.5)], "lr"])
def test_each_override_is_a_mapping(changes):
    with pytest.raises(TypeError, match=r"^overrides\['w'\] must be a mapping of options to numbers, got "):
        rms.init({"w": np.zeros(2)}, overrides={"w": changes})


@pytest.mark.parametrize("pattern", [0, None, ("w",), b"w"])
def test_patterns_are_strings(pattern):
    with pytest.raises(TypeError, match="^the patterns of overrides must be strings, got "):
        rms.init([np.zeros(2)], overrides={pattern: {"lr": 0.5}})


@pytest.mark.parametrize("value", ["0.5", True, None, [0.5, 0.5], np.ones(2, bool), np.ones(2, complex)])
def test_values_of_the_wrong_kind(value):
    with pytest.raises(TypeError, match=r"^overrides for 'w': lr must be a number(, got | or an array of real)"):
        rms.init({"w": np.zeros(2)}, overrides={"w": {"lr": value}})


# ---- paths ----


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"a.b": np.zeros(1), "a": {"b": np.zeros(1)}}, "a.b"),
        ({1: np.zeros(1), "1": np.zeros(1)}, "1"),
        ({"": {"b": np.zeros(1)}, "b": np.zeros(1)}, "b"),
    ],
)
def test_two_leaves_may_not_share_a_path(params, path):
    with pytest.raises(ValueError, match=f"^two leaves have the path '{path}'"):
        rms.init(params)


def test_check_paths():
    check_paths([])
    check_paths(["", "a", "A"])
    with pytest.raises(ValueError, match="'b'"):
        check_paths(["a", "b", "c", "b", "a"])


def test_many_leaves_without_overrides_share_one_group():
    """The paths are not read, so that the cost does not grow with their number."""

    class Paths(list):
        def __iter__(self):
            raise RuntimeError("iterated")

        __getitem__ = __iter__

    groups, leaf_groups = group_leaves(Options(), {}, Paths(["p"] * 300_000))
    assert (len(groups), leaf_groups) == (1, (0,) * 300_000)


# ---- learning rates that are arrays ----

SHAPE = (5, 40, 30)
RATE_SHAPES = [SHAPE, (5, 1, 1), (5, 40, 1), (1, 40, 1), (30,), (40, 30), (5, 1, 30), (1, 1, 1), (1,)]


def rates_like(rng, shape):
    return rng.uniform(0, 0.1, shape)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", RATE_SHAPES, ids=str)
def test_rates_of_every_shape_and_layout(shape, layout, dtype, threads, rng):
    rms.set_num_threads(threads)
    _core.set_grain(0)
    param, grad = (LAYOUTS[layout](rng.standard_normal(SHAPE).astype(dtype)) for _ in range(2))
    stepped_alike({}, [param], [grad], overrides={"0": {"lr": rates_like(rng, shape)}}, lr=7.0)
    # A parameter that lies otherwise than the state, whose order the rates have.
    state = rms.init([param], overrides={"0": {"lr": rates_like(rng, shape)}})
    other = [np.array(param, order="C" if layout == "F" else "F")]
    ref_params, ref_state = on_reference(other, {}, state._overrides)
    rms.update_(other, [grad], state)
    reference.update_(ref_params, [grad], ref_state)
    check_alike(other, state, ref_params, ref_state)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"weight_decay": 0.5, "decoupled_weight_decay": True},
        {"bias_correction": True, "maximize": True},
        {"clip_norm": 0.5},
        {"accumulate": 2, "ema": 0.9},
    ],
    ids=["plain", "decoupled", "corrected", "clipped", "accumulated"],
)
@pytest.mark.parametrize("inside", [False, True], ids=["lr outside", "lr inside"])
@pytest.mark.parametrize("shape", [(9, 70), (9, 1), (70,)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rates_with_every_option(variant, shape, inside, more, rng):
    options = VARIANTS[variant] | {"lr_in_momentum": inside} | more
    params, grads = ({"w": rng.standard_normal((9, 70)), "b": rng.standard_normal(3)} for _ in range(2))
    stepped_alike(options, params, grads, steps=4, overrides={"w": {"lr": rates_like(rng, shape)}})


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", [(8, 30), (8, 1), (30,)], ids=str)
def test_rates_of_rows(shape, order, rng):
    """A RowGrad moves each row by its own rates."""
    param = np.array(rng.standard_normal((8, 30)), order=order)
    grad = rms.RowGrad(np.array([6, 1, 3]), rng.standard_normal((3, 30)))
    stepped_alike({"momentum": 0.9}, [param], [grad], overrides={"*": {"lr": rates_like(rng, shape)}})


def test_a_population_moves_as_its_members_would(rng):
    """Networks in one array, each with a rate, against each network by itself."""
    members, rates = 6, rng.uniform(0.01, 0.1, 6)
    population, grads = (rng.standard_normal((members, 11, 7)).astype(np.float32) for _ in range(2))
    alone = [network.copy() for network in population]
    states = [rms.init(network, lr=rate) for network, rate in zip(alone, rates, strict=True)]
    state = rms.init(population, overrides={"*": {"lr": rates[:, None, None]}})
    for _ in range(3):
        rms.update_(population, grads, state)
        for network, grad, of_one in zip(alone, grads, states, strict=True):
            rms.update_(network, grad, of_one)
    assert np.array_equal(population, np.array(alone))


def test_overrides_change_later(rng):
    params, grads = ({"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)} for _ in range(2))
    state = rms.init(params, lr=0.5, overrides={"w": {"lr": np.full((4, 1), 0.25)}})
    ref_params, ref_state = on_reference(params, {"lr": 0.5}, {"w": {"lr": np.full((4, 1), 0.25)}})
    for overrides in [None, {"b": {"lr": np.full(3, 0.5)}}, {"*": {"rho": 0.5}}, {}, {"w": {"lr": np.ones((4, 3))}}]:
        if overrides is not None:
            state.replace(overrides=overrides)
            ref_state.overrides = overrides
        state = state.copy()
        rms.update_(params, grads, state)
        reference.update_(ref_params, grads, ref_state)
        check_alike(params, state, ref_params, ref_state)
    state.replace(rho=0.5)  # the overrides stay
    assert list(state._overrides) == ["w"]


@pytest.mark.parametrize(
    ("overrides", "error", "match"),
    [
        ({"w": {"lr": np.ones((3, 4))}}, ValueError, r"for 'w': lr has shape \(3, 4\).* broadcast to \(4, 3\)"),
        ({"w": {"lr": np.ones((1, 4, 3))}}, ValueError, r"lr has shape \(1, 4, 3\)"),
        ({"*": {"lr": np.ones((4, 1))}}, ValueError, r"for 'b': lr has shape \(4, 1\)"),
        ({"w": {"lr": np.array([0.1, -0.1, 0.1])}}, ValueError, "finite and >= 0, got an array with -0.1"),
        ({"w": {"lr": np.array([0.1, np.nan, 0.1])}}, ValueError, "got an array with nan"),
        ({"w": {"lr": np.array([0.1, 1e300, 0.1])}}, ValueError, "lr=1e.300 is infinite in float32"),
        ({"w": {"lr": np.ma.masked_array(np.ones(3), [0, 1, 0])}}, TypeError, "a MaskedArray of float64"),
        ({"w": {"lr": np.ones(3, object)}}, TypeError, "an array of object"),
        ({"w": {"rho": np.ones(3)}}, TypeError, "rho"),
        ({"x": {"lr": 0.1}}, ValueError, "matches none of"),
    ],
    ids=repr,
)
def test_a_refused_change_of_overrides_changes_nothing(overrides, error, match):
    params = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    with pytest.raises(error, match=match):
        rms.init(params, overrides=overrides)
    state = rms.init(params, overrides={"w": {"lr": np.full(3, 0.5)}}, rho=0.0, eps=0.0)
    with pytest.raises(error, match=match):
        state.replace(overrides=overrides)
    rms.update_(params, {"w": np.ones((4, 3), np.float32), "b": None}, state)
    assert (params["w"] == 0.5).all()


def test_an_array_of_rates_is_copied_and_stays_in_copies():
    rates = np.array([0.5, 0.25])
    state = rms.init(np.ones(2), overrides={"*": {"lr": rates}}, rho=0.0, eps=0.0)
    rates[...] = 7
    for one in (state, state.copy(), pickle.loads(pickle.dumps(state))):
        assert rms.update(np.ones(2), np.ones(2), one)[0].tolist() == [0.5, 0.75]
    with pytest.raises(ValueError, match="read-only"):
        state._overrides["*"]["lr"][...] = 7


def test_a_negative_zero_among_rates_gives_the_signs_of_zero():
    param = np.array([0.0, -0.0])
    rms.update_(param, np.array([1.0, -1.0]), rms.init(param, overrides={"*": {"lr": np.array([-0.0, 0.0])}}))
    assert np.signbit(param).tolist() == [False, False]


def test_refused_gradients_write_nothing_beside_rates(rng):
    params = {"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}
    state = rms.init(params, overrides={"w": {"lr": np.full((4, 1), 0.25)}}, on_nonfinite="raise")
    grads = {"w": np.full((4, 3), np.inf), "b": np.ones(3)}
    refused(FloatingPointError, "not finite", params, grads, state)

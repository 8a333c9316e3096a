"""The step as functions: any options with any arrays, `update_`, `update`, schedules."""

from __future__ import annotations

import pickle

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, VARIANTS, hard_numbers, option_sets, options_of
from conftest import check_alike, on_reference, refused, same_bits, small_tree, stepped_alike
from hypothesis import given, settings
from hypothesis import strategies as st

import rmsprop_native as rms
from rmsprop_native import reference

# ---- anything with anything ----


TREES = {
    "list": list,
    "tuple": tuple,
    "dict": lambda leaves: {f"leaf{i}": leaf for i, leaf in enumerate(leaves)},
    "nested": lambda leaves: {"first": [leaves[0], None], "rest": {"layer": tuple(leaves[1:])}},
}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), options=option_sets(), seed=st.integers(0, 2**32 - 1))
def test_anything_with_anything(data, options, seed):
    """Any options, trees, dtypes, layouts; gradients missing, of rows or not finite: the bits of the reference."""
    rng = np.random.default_rng(seed)
    layouts = st.sampled_from(sorted(LAYOUTS))
    shapes = data.draw(st.lists(hnp.array_shapes(min_dims=0, max_dims=3, max_side=7), min_size=1, max_size=4))
    dtypes = [np.dtype(data.draw(st.sampled_from(["f4", "f8", "c8", "c16"]))) for _ in shapes]
    finite = data.draw(st.booleans())

    def draw(shape, dtype):
        real = np.empty(0, dtype).real.dtype
        reals = rng.standard_normal((*shape, 2)).astype(real) if finite else hard_numbers(rng, (*shape, 2), real)
        return reals.view(dtype)[..., 0] if dtype.kind == "c" else np.ascontiguousarray(reals[..., 0])

    params = [LAYOUTS[data.draw(layouts)](draw(s, d)) for s, d in zip(shapes, dtypes, strict=True)]
    tree = TREES[data.draw(st.sampled_from(sorted(TREES)))]
    tree_of_params = tree(params)
    ref_params, ref_state = on_reference(tree_of_params, options)
    state = rms.init(tree_of_params, **options)
    for _ in range(data.draw(st.integers(1, 4))):
        grads = []
        for shape, dtype in zip(shapes, dtypes, strict=True):
            kind = data.draw(st.sampled_from(["dense", "dense", "none", "rows"]))
            if kind == "rows" and shape and options.get("accumulate", 1) == 1:
                rows = rng.integers(0, shape[0], data.draw(st.integers(0, 5)))
                grads.append(rms.RowGrad(rows, LAYOUTS[data.draw(layouts)](draw((len(rows), *shape[1:]), dtype))))
            else:
                grads.append(None if kind == "none" else LAYOUTS[data.draw(layouts)](draw(shape, dtype)))
        scale = data.draw(st.sampled_from([1.0, 0.25, -3.0]))
        assert rms.update_(tree_of_params, tree(grads), state, grad_scale=scale) is tree_of_params
        reference.update_(ref_params, tree(grads), ref_state, grad_scale=scale)
        check_alike(tree_of_params, state, ref_params, ref_state)
        state = pickle.loads(pickle.dumps(state))


# ---- update ----


def test_update_is_pure_and_gives_the_bits_of_update_(rng):
    params = {"w": np.asfortranarray(rng.standard_normal((3, 4))), "b": [rng.standard_normal(4), None]}
    grads = {"w": rng.standard_normal((3, 4)), "b": [rng.standard_normal(4), None]}
    state = rms.init(params, momentum=0.9)
    kept = pickle.dumps((params, state))
    for array in (params["w"], params["b"][0]):
        array.flags.writeable = False
    new, new_state = rms.update(params, grads, state, lr=0.5, grad_scale=0.5)
    for array in (params["w"], params["b"][0]):
        array.flags.writeable = True
    assert pickle.dumps((params, state)) == kept
    rms.update_(params, grads, state, lr=0.5, grad_scale=0.5)
    assert same_bits(new["w"], params["w"])
    assert same_bits(new["b"][0], params["b"][0])
    assert same_bits(new_state.momentum_buffer["w"], state.momentum_buffer["w"])
    assert new_state.step == state.step == 1


# ---- numbers of a call ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_call", [{"lr": 0.5}, {"grad_scale": 1 / 1024}, {"lr": 0.0, "grad_scale": -1.5}])
def test_bits_of_per_call_numbers(dtype, per_call, rng):
    params, grads = ([hard_numbers(rng, n, DTYPES[dtype]) for n in (67, 1)] for _ in range(2))
    stepped_alike(options_of(VARIANTS["momentum_centered_l2"]), params, grads, steps=4, **per_call)


@pytest.mark.parametrize(
    ("per_call", "error", "match"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and >= 0, got -1.0"),
        ({"lr": np.nan}, ValueError, "lr must be finite"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"grad_scale": np.inf}, ValueError, "grad_scale must be finite"),
        ({"grad_scale": None}, TypeError, "grad_scale must be a number"),
        ({"lr": 1e300}, ValueError, "infinite in float32"),
    ],
)
def test_bad_number_writes_nothing(per_call, error, match, rng):
    params = small_tree(rng)
    state = rms.init(params)
    refused(error, match, params, small_tree(rng), state, **per_call)
    ref_params, ref_state = on_reference(params, state.options)
    grads = small_tree(rng)
    rms.update_(params, grads, state)  # and the next step has the state's own numbers again
    reference.update_(ref_params, grads, ref_state)
    check_alike(params, state, ref_params, ref_state)


def test_lr_as_a_function_of_the_steps_taken(rng):
    asked = []

    def schedule(taken):
        asked.append(taken)
        return 0.1 / (1 + taken)

    one, other = np.zeros(4), np.zeros(4)
    state, plain = rms.init(one, lr=schedule), rms.init(other)
    asked.clear()
    for t in range(4):
        grad = rng.standard_normal(4)
        rms.update_(one, grad, state)
        rms.update_(other, grad, plain, lr=0.1 / (1 + t))
    assert asked == [0, 1, 2, 3]
    assert same_bits(one, other)
    with pytest.raises(ValueError, match="lr must be finite and >= 0, got -1.0"):
        rms.init(one, lr=lambda taken: -1.0)


# ---- floating-point flags ----


def test_a_step_that_overflows_is_no_error_of_numpy():
    with np.errstate(all="raise"):
        param = np.zeros(3, np.float32)
        rms.update_(param, np.full(3, 1e30, np.float32), rms.init(param))
    assert np.isfinite(param).all()

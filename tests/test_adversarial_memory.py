"""Memory that runs out: at every allocation of every path, either an error and nothing changed, or the whole result."""

from __future__ import annotations

import copy
import gc
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import memory_failures, same_bits
from hostile import everything

import rmsprop_native as rms
from rmsprop_native import _core
from rmsprop_native.tree import flatten

_testcapi = memory_failures()

# What Python says of objects that it could not finish while there was no memory; where the generators of a walk are,
# for instance.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Without memory NumPy returns from some of its functions without setting an exception, which Python makes a SystemError
# of; pickle says of a class that it cannot import it. The step itself must be right to the letter: see EXACT.
ERRORS = (MemoryError, SystemError, pickle.PicklingError)

# The cases whose path between the call and its outcome is the package's own code only.
EXACT = {
    "dense",
    "strided",
    "accumulate",
    "accumulated",
    "clip",
    "global clip and ema",
    "skip",
    "schedule",
    "lr",
    "replace",
    "rates",
    "step",
    "split",
    "split and all rules",
    "rounded",
    "bfloat16 square_avg",
    "split lr",
}

F32, F64, B16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)
PLAIN, NARROW = (F64, F32, F64), (B16, F32, B16)  # the dtypes of the three leaves


def schedule(steps):
    return 0.5 / (1 + steps)


def make_params(dtypes):
    """Dense, strided and Fortran-ordered."""
    a, b, c = dtypes
    return {
        "a": np.asfortranarray(np.arange(12.0).reshape(3, 4).astype(a)),
        "b": [np.arange(24.0).astype(b).reshape(6, 4)[::2], np.ones(3, c)],
    }


def make_dense(dtypes):
    a, b, c = dtypes
    return {"a": np.ones((3, 4), a), "b": [np.ones((3, 4), b), np.full(3, 2.0, c)]}


def make_strided(dtypes):
    a, b, c = dtypes
    return {"a": np.ones((3, 8), a)[:, ::2], "b": [np.ones((4, 3), b).T, np.full(6, 2.0, c)[::2]]}


def make_wide(dtypes):
    """float32 gradients of bfloat16 parameters, in part."""
    return make_strided(dtypes) | {"a": np.ones((3, 4), F32)}


def make_rows(dtypes):
    return make_dense(dtypes) | {"a": rms.RowGrad(np.array([2, 0, 2]), np.ones((3, 4), dtypes[0]))}


def make_nan(dtypes):
    return make_dense(dtypes) | {"a": np.full((3, 4), np.nan, dtypes[0])}


def make_masked(dtypes):
    return make_dense(dtypes) | {"a": np.ma.ones((3, 4))}


def step(params, grads, state):
    rms.update_(params, grads, state)


def step_with_lr(params, grads, state):
    rms.update_(params, grads, state, lr=0.25, grad_scale=2.0)


def set_step(params, grads, state):
    state.step = 7


def replace(params, grads, state):
    state.replace(lr=0.7, clip_norm=3.0)


def init(params, **options):
    return params, rms.init(params, momentum=0.9, ema=0.5, **options)


# Name: options, what makes the gradients, the call.
CASES = {
    "dense": ({}, make_dense, step),
    "strided": ({"momentum": 0.9}, make_strided, step),
    "accumulate": ({"accumulate": 2, "momentum": 0.9}, make_strided, step),
    "accumulated": ({"accumulate": 2}, make_dense, step),
    "clip": ({"clip_norm": 0.1}, make_strided, step),
    "global clip and ema": ({"clip_global_norm": 0.1, "ema": 0.9}, make_strided, step),
    "skip": ({"on_nonfinite": "skip"}, make_nan, step),
    "raise": ({"on_nonfinite": "raise"}, make_nan, step),
    "refused": ({}, make_masked, step),
    "schedule": ({"lr": schedule, "bias_correction": True}, make_dense, step),
    "lr": ({}, make_dense, step_with_lr),
    "rates": ({"overrides": {"a": {"lr": np.array([[1.0], [2.0], [3.0]])}}, "momentum": 0.9}, make_dense, step),
    "rows": ({"centered": True}, make_rows, step),
    "rows and clip": ({"clip_norm": 0.1, "ema": 0.5}, make_rows, step),
    "update": ({"momentum": 0.9}, make_strided, lambda params, grads, state: rms.update(params, grads, state)),
    "copy": ({"momentum": 0.9}, make_dense, lambda params, grads, state: (params, copy.copy(state))),
    "deepcopy": ({}, make_dense, lambda params, grads, state: (params, copy.deepcopy(state))),
    "pickle": ({"accumulate": 3}, make_dense, lambda params, grads, state: (params, pickle.loads(pickle.dumps(state)))),
    "state_dict": ({}, make_dense, lambda params, grads, state: (params, rms.from_state_dict(state.state_dict()))),
    "init": ({}, make_dense, lambda params, grads, state: init(params)),
    "replace": ({}, make_dense, replace),
    "step": ({}, make_dense, set_step),
}  # fmt: skip
ROUNDED, BF16_AVG = {"master_weights": False, "seed": 3}, {"square_avg_dtype": "bfloat16", "seed": 3}
# With bfloat16 parameters. Where NumPy copies, fills or casts a bfloat16 array itself (`update`, `state_dict` with such
# a square_avg, initial_square_avg), it calls a function that it could not make, and crashes.
STORAGES = {
    "split": ({}, make_dense, step),
    "split and all rules": ({"accumulate": 2, "clip_norm": 0.1, "ema": 0.9, "momentum": 0.9}, make_wide, step),
    "split rows": ({"centered": True}, make_rows, step),
    "split lr": ({}, make_strided, step_with_lr),
    "rounded": ({"momentum": 0.9, **ROUNDED}, make_wide, step),
    "bfloat16 square_avg": ({"centered": True, **BF16_AVG}, make_strided, step),
    "rounded rows": (ROUNDED | BF16_AVG, make_rows, step),
    "split master": ({}, make_dense, lambda params, grads, state: (state.master(params), state)),
    "split copy": (BF16_AVG, make_dense, lambda params, grads, state: (params, copy.copy(state))),
    "split pickle": ({}, make_dense, lambda params, grads, state: (params, pickle.loads(pickle.dumps(state)))),
    "split load_state_dict": ({}, make_dense, lambda params, grads, state: state.load_state_dict(state.state_dict())),
    "split init": ({}, make_dense, lambda params, grads, state: init(params, **BF16_AVG)),
    "rounded init": ({}, make_dense, lambda params, grads, state: init(params, **ROUNDED)),
}  # fmt: skip


@pytest.fixture
def _no_collector():
    gc.disable()
    yield
    gc.enable()


def outcome_of(params, made, state):
    """What a call has made, for comparison: of itself where it returns something, else of the state."""
    made_params, made_state = (params, state) if made is None else made
    return everything(made_params, made_state)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("threads", [False, True], ids=["small", "threads"])
@pytest.mark.parametrize("warm", [0, 1])
@pytest.mark.parametrize(
    ("name", "forever"),
    # NumPy's errstate crashes where all allocations fail.
    [(name, False) for name in CASES | STORAGES] + [(name, True) for name in CASES | STORAGES if name in EXACT],
)
def test_memory_that_runs_out_at_every_allocation(name, forever, warm, threads):
    """Fail the allocation, or all from there on, until a call has needed so few that it did not notice."""
    options, make_grads, call = (CASES | STORAGES)[name]
    dtypes = NARROW if name in STORAGES else PLAIN
    if threads:
        _core.set_grain(0)
        rms.set_num_threads(2)
    allowed = ERRORS if name not in EXACT else MemoryError
    expected, failures, unnoticed = None, 0, 0
    for allocation in range(3000):
        params, grads = make_params(dtypes), make_grads(dtypes)
        state = rms.init(params, **options)
        for _ in range(warm):
            rms.update_(params, make_dense(dtypes), state)
        if expected is None:  # the first time nothing fails
            start, stop = 10**9, 0
        else:
            start, stop = allocation, 0 if forever else allocation + 1
        before = everything(params, state)
        error = made = None
        _testcapi.set_nomemory(start, stop)
        try:
            made = call(params, grads, state)
        except BaseException as caught:  # noqa: BLE001 - it is checked below
            error = caught
        finally:
            _testcapi.remove_mem_hooks()
        error_of_case = {"raise": FloatingPointError, "refused": TypeError}.get(name)
        if error is None or (error_of_case and isinstance(error, error_of_case)):
            assert error is not None or error_of_case is None
            outcome = outcome_of(params, made if isinstance(made, tuple) else None, state)
            expected = outcome if expected is None else expected
            assert outcome == expected, allocation
            unnoticed += 1
            if unnoticed > 40:
                break
            continue
        assert isinstance(error, allowed), (allocation, error)
        assert everything(params, state) == before, allocation
        failures += 1
        unnoticed = 0
        rms.update_(params, make_dense(dtypes), state)  # the claim is free, and nothing is left behind
        other = make_params(dtypes)
        other_state = rms.init(other, **options)
        for _ in range(warm + 1):
            rms.update_(other, make_dense(dtypes), other_state)
        assert all(same_bits(a, b) for a, b in zip(flatten(params)[0], flatten(other)[0], strict=True)), allocation
    assert unnoticed > 40
    assert failures or warm  # a step like the one before allocates nothing


@pytest.mark.parametrize("dtypes", [PLAIN, NARROW], ids=["usual", "bfloat16"])
def test_small_steps_allocate_nothing(dtypes):
    """So that the last of them can be taken when there is no memory at all."""
    for options in ({}, {"accumulate": 2, "clip_norm": 0.1, "ema": 0.9, "on_nonfinite": "raise"}):
        params, grads = make_params(dtypes), make_strided(dtypes)
        state = rms.init(params, **options)
        for _ in range(2):
            rms.update_(params, grads, state)
        update_ = rms.update_
        for _ in range(4):
            _testcapi.set_nomemory(0, 0)
            try:
                update_(params, grads, state)
            finally:
                _testcapi.remove_mem_hooks()
        assert state.step == 6 // options.get("accumulate", 1)


# ---- how work grows ----


def lines_of_init(leaves):
    """How many lines of Python `init` runs for so many leaves."""
    params = [np.zeros(1) for _ in range(leaves)]
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        state = rms.init(params)
    finally:
        sys.settrace(None)
    return count, state


def test_init_runs_a_line_a_leaf_and_not_one_a_pair():
    few, _ = lines_of_init(200)
    many, state = lines_of_init(2000)
    assert many < 11 * few
    assert len(state.square_avg) == 2000


def test_300_000_leaves():
    params = [np.zeros(2, np.float32) for _ in range(300_000)]
    state = rms.init(params)
    grads = [np.ones(2, np.float32)] * len(params)
    rms.update_(params, grads, state)
    rms.update_(params[::-1], grads, state)
    assert state.step == 2
    assert all(same_bits(params[i], params[0]) for i in range(0, 300_000, 1000))
    with pytest.raises(ValueError, match=r"parameter '0' and parameter '299999' are the same array"):
        rms.update_([params[-1], *params[1:]], grads, state)


def test_no_memory_is_taken_for_parameters_that_are_refused():
    """A read-only view of one number as 2**45 of them has nothing to be allocated for."""
    with pytest.raises(ValueError, match="the parameter is read-only"):
        rms.init(np.broadcast_to(0.0, (2**45,)))

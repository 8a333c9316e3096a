"""The plan: a step that is refused has written nothing; references, snapshots, memory that runs out."""

from __future__ import annotations

import collections
import contextlib
import copy
import pickle
import sys
import threading
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from conftest import check_alike, memory_failures, on_reference, refused, run_together, same_bits, small_tree

import rmsprop_native as rms
from rmsprop_native import _core, reference

# ---- refusals ----


BAD_STRUCTURES = {
    "missing": ({"layer1": {"w": 0}}, r"gradients at 'layer1' do not have the keys .* missing \['b'\]"),
    "extra": ({"layer1": {"w": 0, "b": 0, "c": 0}}, r"not known \['c'\]"),
    "other key": ({"layer1": {"w": 0, "c": 0}}, r"missing \['b'\], not known \['c'\]"),
    "list": ([1, 2], r"gradients are a list, the parameters a dict"),
    "deeper": ({"layer1": [1, 2]}, r"gradients at 'layer1' are a list, the parameters a dict"),
    "None": (None, r"gradients are a NoneType"),
}


@pytest.mark.parametrize("name", BAD_STRUCTURES)
def test_bad_structure_writes_nothing(name, rng):
    params = small_tree(rng)
    state = rms.init(params)
    grads, match = BAD_STRUCTURES[name]
    refused(ValueError, match, params, grads, state)


def test_wrong_count_writes_nothing(rng):
    params = [rng.standard_normal(3) for _ in range(3)]
    state = rms.init(params)
    refused(ValueError, "gradients are 2, the parameters 3", params, params[:2], state)
    with pytest.raises(ValueError, match=r"parameters are 2, those that init\(\) got 3"):
        rms.update_(params[:2], params, state)


# ---- two threads in one state ----


@pytest.mark.threads
def test_two_threads_on_one_state():
    """While one thread is inside a step with the GIL released, a second one is refused, and nothing is lost."""
    rms.set_num_threads(1)
    param = np.ones(1 << 22, np.float32)
    grad = np.ones_like(param)
    state = rms.init(param)
    done, refusals = [], []

    def work():
        while len(refusals) < 5 and len(done) < 5000:  # where others work too, a thread may wait for a processor first
            try:
                rms.update_(param, grad, state)
                done.append(1)
            except RuntimeError as error:
                refusals.append(str(error))

    run_together(work, work)
    assert state.step == len(done)
    assert refusals
    assert all("inside a step already" in text for text in refusals)
    ref_param, ref_state = on_reference(np.ones(1, np.float32), state.options)
    for _ in done:
        reference.update_(ref_param, np.ones(1, np.float32), ref_state)
    assert (param == ref_param).all()


@pytest.mark.threads
def test_list_mutated_by_another_thread(rng):
    """A step works on the leaves that it found, and counts once for each call that did not raise."""
    params = [np.zeros(64, np.float32) for _ in range(200)]
    grads = [np.ones(64, np.float32) for _ in range(200)]
    state = rms.init(params)
    stop = threading.Event()

    def mutate():
        while not stop.is_set():
            grads[:] = [np.ones(64, np.float32) for _ in range(200)]
            grads.append(None)
            grads.pop()

    worker = threading.Thread(target=mutate)
    worker.start()
    refusals = 0
    try:
        for _ in range(300):
            try:
                rms.update_(params, grads, state)
            except ValueError as error:
                assert "gradients are" in str(error)
                refusals += 1
    finally:
        stop.set()
        worker.join()
    assert state.step == 300 - refusals
    assert all(same_bits(param, params[0]) for param in params)


# ---- references ----


def test_no_reference_is_kept_or_lost(rng):
    params, grads = small_tree(rng), small_tree(rng)
    state = rms.init(params)
    leaf = grads["layer1"]["w"]
    for _ in range(3):
        rms.update_(params, grads, state)
    before = sys.getrefcount(leaf), sys.getrefcount(params["layer1"]["w"])
    for _ in range(100):
        rms.update_(params, grads, state)
        with pytest.raises(ValueError, match="keys"):
            rms.update_(params, {"layer1": {"w": leaf}}, state)
        with pytest.raises(TypeError):
            rms.update_(params, {"layer1": {"w": leaf, "b": 1}}, state)
    assert (sys.getrefcount(leaf), sys.getrefcount(params["layer1"]["w"])) == before


@pytest.mark.parametrize("grain", [0, 1 << 40], ids=["without the GIL", "with the GIL"])
def test_references_are_given_back_after_every_way_through_a_step(grain, rng):
    """Containers of Python code, rows, refusals before and after binding, and skipped steps."""
    _core.set_grain(grain)
    params = [rng.standard_normal((4, 2)), rng.standard_normal(3)]
    rows, values, grad = np.array([1]), np.ones((1, 2)), np.ones(3)
    state = rms.init(params, on_nonfinite="skip")
    kept = (*params, rows, values, grad)

    def all_ways():
        for container in (list, tuple, collections.UserList):
            with contextlib.suppress(ValueError):
                rms.update_(params, container([rms.RowGrad(rows, values), grad]), state)
            with pytest.raises((TypeError, ValueError)):
                rms.update_(params, container([rms.RowGrad(rows, values), grad.astype("f4")]), state)
            rms.update_(params, [rms.RowGrad(rows, values), np.full(3, np.nan)], state)

    for _ in range(3):
        all_ways()
    before = [sys.getrefcount(array) for array in kept]
    for _ in range(100):
        all_ways()
    assert [sys.getrefcount(array) for array in kept] == before


def test_leaves_live_through_a_step_that_drops_them(rng):
    """A container may drop each leaf as soon as it was read; the plan holds references of its own."""

    class Emptied(dict):
        def __getitem__(self, key):
            return dict.pop(self, key)

        def keys(self):
            return {"w", "b"}

    values = [rng.standard_normal(500), rng.standard_normal(500)]
    params = {"w": values[0].copy(), "b": values[1].copy()}
    grads = [rng.standard_normal(500), rng.standard_normal(500)]
    rms.update_(params, Emptied(w=grads[0].copy(), b=grads[1].copy()), rms.init(params))
    rms.update_(values, grads, rms.init(values))
    assert same_bits(params["w"], values[0])
    assert same_bits(params["b"], values[1])


def test_a_container_that_gives_other_arrays_at_each_look_is_refused():
    """A step on such arrays would be lost."""

    class Copies(dict):
        def __getitem__(self, key):
            return dict.__getitem__(self, key).copy()

    state = rms.init({"w": np.ones(3)})
    with pytest.raises(ValueError, match="parameter 'w' is another array at each access to its container"):
        rms.update_(Copies(w=np.ones(3)), {"w": np.ones(3)}, state)
    assert state.step == 0


def test_code_that_runs_while_leaves_are_collected_cannot_step(rng):
    param = np.ones(3)
    refusals = []

    class Steps(dict):
        def __getitem__(self, key):
            with pytest.raises(RuntimeError, match="inside a step already") as caught:
                rms.update_({"w": param}, {"w": np.ones(3)}, state)
            refusals.append(caught)
            return dict.__getitem__(self, key)

    state = rms.init({"w": param})
    rms.update_({"w": param}, Steps(w=np.ones(3)), state)
    assert len(refusals) == 1
    assert state.step == 1


# ---- memory that runs out ----


def fresh(kind):
    """Parameters, gradients and options of a step that has never been taken, by what it must allocate."""
    wide = np.ones((6, 8))
    params = {"w": wide[:, ::2] if kind == "strided" else np.ones((6, 4)), "b": np.ones(3)}
    grads = {"w": np.ones((6, 4)), "b": np.ones(3)}
    if kind == "rows":
        grads["w"] = rms.RowGrad([4, 2, 4], np.ones((3, 4)))
    if kind == "containers":
        grads = collections.OrderedDict(grads)
    options = {
        "clipped": {"clip_norm": 0.5},
        "accumulated": {"accumulate": 2, "clip_norm": 0.5},
        "skipping": {"on_nonfinite": "skip"},
        "schedule": {"lr": lambda taken: 0.5},
    }
    return params, grads, options.get(kind, {})


KINDS = ["dense", "strided", "rows", "containers", "clipped", "accumulated", "skipping", "schedule"]


# A generator that cannot allocate while it is closed warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_runs_out_writes_nothing(kind):
    """One allocation after the other fails; each call has done everything or nothing, and the next one succeeds."""
    testcapi = memory_failures()
    failures, successes, failing = 0, 0, 0
    while successes < 30:  # in a row: the failing allocation is one after the step then
        failing += 1
        params, grads, options = fresh(kind)
        state = rms.init(params, **options)
        ref_params, ref_state = on_reference(params, options)
        failed = False
        testcapi.set_nomemory(failing, failing + 1)
        try:
            rms.update_(params, grads, state)
        except (MemoryError, SystemError):  # NumPy loses some: "error return without exception set"
            failed = True
        finally:
            testcapi.remove_mem_hooks()
        failures += failed
        successes = 0 if failed else successes + 1
        if not failed:
            reference.update_(ref_params, grads, ref_state)
        check_alike(params, state, ref_params, ref_state)
        rms.update_(params, grads, state)
        reference.update_(ref_params, grads, ref_state)
        check_alike(params, state, ref_params, ref_state)
    assert failures > 0


@pytest.mark.parametrize("cuts", [(1000,), (7, 4097), (1, 2, 5001)], ids=str)
@pytest.mark.parametrize("layout", ["dense", "strided"])
def test_parts_of_a_leaf_have_the_random_bits_of_the_whole(cuts, layout, rng):
    """Of leaf 1 of two: the parts begin at even and odd elements, and are stepped by kernels and by blocks."""
    options = {"lr": 0.5, "square_avg_dtype": "bfloat16", "master_weights": False, "seed": 3}
    first, whole, grad = [*rng.standard_normal((3, 9001)).astype(ml_dtypes.bfloat16)]
    pieces = np.split(whole.repeat(2)[::2] if layout == "strided" else whole.copy(), cuts)
    both = [first, whole]
    state, in_parts = rms.init(both, **options), rms.init(pieces, **options)
    in_parts._plan.set_origins([(1, start) for start in (0, *cuts)])
    copy = in_parts.copy()
    rms.update_(both, [None, grad], state)
    copied = [piece.copy() for piece in pieces]
    for params, of_parts in ((pieces, in_parts), (copied, copy)):
        rms.update_(params, np.split(grad, cuts), of_parts)
        assert same_bits(np.concatenate(params), whole)
        assert same_bits(np.concatenate(of_parts.square_avg), state.square_avg[1])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, *(partial(pickle.dumps, protocol=p) for p in range(6))])
def test_plans_and_claims_are_in_no_pickle(copied):
    """Their fields are addresses."""
    state = rms.init([np.zeros(3)])
    for part in (state._plan, state._claim):
        with pytest.raises(TypeError, match="cannot pickle"):
            copied(part)

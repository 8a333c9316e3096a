"""What the tests run in each rank: `mpiexec -n N python ranks.py FOLDER 1,2,...` runs every case and saves its outcome.

A case is a function; what fails in it is saved as text, so that the other cases run. The gradients of ranks are small
multiples of powers of two, whose sum is exact in any order, so that one machine has the same gradients to the bit.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import sys
import traceback
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cases import NUMBERS, VARIANTS
from conftest import copied, same_bits
from mpi4py import MPI
from pages import run_section

import rmsprop_native as rms
from rmsprop_native.arrays import arithmetic
from rmsprop_native.atomic_file import alone_in
from rmsprop_native.interop import mpi
from rmsprop_native.tree import flatten

COMM = MPI.COMM_WORLD
LR = 0.03
CASES = {}


def case(**axes):
    """Run a function once for each combination of the keys of `axes`, whose values it is given."""

    def add(function):
        for chosen in itertools.product(*(values.items() for values in axes.values())):
            name = "-".join([function.__name__, *(key for key, _ in chosen)])
            CASES[name] = lambda chosen=chosen: function(*(value for _, value in chosen))
        return function

    return add


def grads_of(rank, step, like=None):
    """A tree of all dtypes, layouts and sizes: multiples of 1/64, the same wherever it is made."""
    rng = np.random.default_rng([rank, step])

    def array(*shape, dtype=np.float32):
        return (rng.integers(-64, 64, shape) / 64).astype(dtype)

    return {
        "layer": {"w": array(37, 11), "b": array(5)},
        "list": [array(33, dtype=np.float64), np.asfortranarray(array(9, 7)), array(40)[::2]],
        "complex": (array(13) + 1j * array(13)).astype(np.complex64),
        "double complex": array(3, 2, dtype=np.float64) * (1 + 0.5j),
        "empty": np.zeros((0, 3), np.float32),
        "number": np.asarray(array(1)[0]).reshape(()),
    }


def params_of():
    return grads_of(1000, 0)


def narrow_grads_of(rank, step):
    """A tree of float32 and bfloat16: multiples of 1/64, which bfloat16 holds. Leaves and slices begin at odd places;
    some gradients are of the other type.
    """
    rng = np.random.default_rng([rank, step])

    def array(*shape, dtype=ml_dtypes.bfloat16):
        return (rng.integers(-64, 64, shape) / 64).astype(dtype)

    return {
        "w": array(37, 11),
        "wide": array(71, dtype=np.float32),
        "b": array(5),
        "other wide": array(7, 9, dtype=np.float32 if step % 2 else ml_dtypes.bfloat16),
        "list": [np.asfortranarray(array(9, 7)), array(80)[::2], array(0, 3)],
        "other": array(45, dtype=np.float32 if (rank + step) % 2 else ml_dtypes.bfloat16),
    }


def narrow_params():
    params = narrow_grads_of(1000, 0)
    params["other wide"] = params["other wide"].astype(np.float32)
    return params


def reduced(step, reduction="mean", ranks=None, of=grads_of):
    """The gradient that one machine is given: sums of bfloat16 are float32."""
    trees = [of(rank, step) for rank in range(COMM.size if ranks is None else ranks)]
    structure = flatten(trees[0])[1]
    made = []
    for leaves in zip(*(flatten(tree)[0] for tree in trees), strict=True):
        if leaves[0] is None:
            made.append(None)
            continue
        wide = arithmetic(leaves[0].dtype)
        total = np.array(np.sum(np.stack([leaf.astype(wide) for leaf in leaves]), axis=0, dtype=wide), order="C")
        if reduction == "mean":
            reals = total.reshape(-1).view(total.real.dtype)
            reals /= reals.dtype.type(len(trees))
        made.append(total)
    return structure.unflatten(iter(made))


def check_same(params, other):
    paths = list(flatten(params)[1].paths())
    for path, a, b in zip(paths, flatten(params)[0], flatten(other)[0], strict=True):
        assert same_bits(a, b), path


def whole(state, like, name):
    """A buffer of all ranks, in the structure, shapes and dtypes of that of one machine."""
    return joined(state, like, state.buffer(name))


def joined(state, like, parts):
    """What each rank has of the elements of its slices, in the structure, shapes and dtypes of `like`."""
    leaves, structure = flatten(like)
    made = [np.zeros(leaf.size, leaf.dtype) for leaf in leaves]
    places = {path: i for i, path in enumerate(structure.paths())}
    covered = [0] * len(made)
    for slices, buffer in COMM.allgather((state.slices, parts)):
        assert buffer.keys() == slices.keys() & places.keys()
        for path, part in buffer.items():
            start, stop = slices[path]
            assert part.dtype == made[places[path]].dtype
            made[places[path]][start:stop] = part
            covered[places[path]] += stop - start
    assert covered == [leaf.size for leaf in leaves]
    return structure.unflatten(a.reshape(leaf.shape) for a, leaf in zip(made, leaves, strict=True))


def check_states(state, ref):
    for count in ("step", "skipped", "accumulated"):
        assert getattr(state, count) == getattr(ref, count), count
    for name in ref._plan.names:
        check_same(whole(state, getattr(ref, name), name), getattr(ref, name))


# ---- the same bits as one machine ----


def beside_one_machine(
    steps=50,
    reduction="mean",
    of=grads_of,
    bucket_bytes=1024,
    per_call=lambda step: {},
    params_of=params_of,
    **options,
):
    """Step here, and beside it as one machine does, and compare all arrays to the bit."""
    options = {"lr": LR} | options
    params, ref_params = params_of(), params_of()
    state = mpi.init(params, comm=COMM, reduction=reduction, bucket_bytes=bucket_bytes, **options)
    ref = rms.init(ref_params, **options)
    for step in range(steps):
        averaged = reduced(step, reduction, of=of)
        given = of(COMM.rank, step)
        if reduction == "none":
            given = averaged = reduced(step, "mean", of=of)
        elif reduction == "sliced":
            averaged = reduced(step, "mean", of=of)
            given = state.slice_of(averaged)
        assert mpi.update_(params, given, state, **per_call(step)) is params
        rms.update_(ref_params, averaged, ref, **per_call(step))
    check_same(params, ref_params)
    check_states(state, ref)
    master = ref.master(ref_params)
    check_same(joined(state, master, state.master(params)), master)
    return state


@case(variant=VARIANTS)
def every_variant(options):
    beside_one_machine(**options)


@case(number=NUMBERS)
def every_number(options):
    beside_one_machine(steps=5, **options)


@case(reduction={name: name for name in ("sum", "none", "sliced")})
def every_reduction(reduction):
    beside_one_machine(reduction=reduction, momentum=0.9)


@case(bucket={"one line": 1, "odd": 1000, "all": 1 << 20})
def every_bucket(bucket_bytes):
    beside_one_machine(steps=5, bucket_bytes=bucket_bytes, momentum=0.9, ema=0.9)


STORAGES = {
    "split": {},
    "split, avg": {"square_avg_dtype": "bfloat16"},
    "rounded": {"master_weights": False},
    "all": {"master_weights": False, "square_avg_dtype": "bfloat16"},
}
NARROW = {"of": narrow_grads_of, "params_of": narrow_params, "seed": 2**40 + 3}


@case(storage=STORAGES, variant=VARIANTS)
def every_variant_of_storages(storage, options):
    beside_one_machine(bucket_bytes=1 << 20, **NARROW, **storage, **options)


def every_type(rank, step):
    return {"wide": grads_of(rank, step), "narrow": narrow_grads_of(rank, step)}


@case(master={"split": {}, "rounded": {"master_weights": False}})
def every_type_in_one_tree(master):
    """float64 and complex beside bfloat16; a bfloat16 square_avg is one of float32 and bfloat16 parameters only."""
    beside_one_machine(
        of=every_type, params_of=lambda: {"wide": params_of(), "narrow": narrow_params()}, momentum=0.9, **master
    )


@case(storage=STORAGES, reduction={name: name for name in ("sum", "none", "sliced")})
def storages_by_reduction(storage, reduction):
    beside_one_machine(steps=10, reduction=reduction, **NARROW, **storage)


@case(storage=STORAGES, options={
    "ema, accumulate": {"ema": 0.875, "accumulate": 3, "bias_correction": True},
    "overrides": {"overrides": {"w": {"weight_decay": 0.25}, "list.0": {"lr": np.linspace(0.125, 1, 7)}}},
    "skip": {"on_nonfinite": "skip", "maximize": True},
})  # fmt: skip
def storages_with_options(storage, options):
    beside_one_machine(steps=8, **NARROW, **storage, **options)


@case(storage=STORAGES)
def storages_of_spans(storage):
    """Leaves of several spans, of which slices begin at odd elements."""

    def of(rank, step):
        rng = np.random.default_rng([rank, step])
        return [(rng.integers(-64, 64, n) / 64).astype(ml_dtypes.bfloat16) for n in (9001, 7, 12345)]

    beside_one_machine(
        steps=3, bucket_bytes=1 << 20, **NARROW | {"of": of, "params_of": lambda: of(1000, 0)}, **storage
    )


@case(storage=STORAGES, reduction={name: name for name in ("none", "sliced")})
def gradients_of_bfloat16_as_they_are(storage, reduction):
    params, ref_params = narrow_params(), narrow_params()
    state = mpi.init(params, comm=COMM, reduction=reduction, bucket_bytes=512, **storage)
    ref = rms.init(ref_params, **storage)
    for step in range(6):
        grads = narrow_grads_of(0, step)
        mpi.update_(params, state.slice_of(grads) if reduction == "sliced" else grads, state)
        rms.update_(ref_params, grads, ref)
    check_same(params, ref_params)
    check_states(state, ref)


@case()
def written_between_steps():
    """Parameters that are zeroed, negated and replaced: a lower half that is stale is read as on one machine. Options
    that are replaced leave lower halves as they are.
    """
    params, ref_params = narrow_params(), narrow_params()
    state, ref = mpi.init(params, comm=COMM, lr=LR, bucket_bytes=512), rms.init(ref_params, lr=LR)
    for step in range(9):
        for tree in (params, ref_params):
            if step in (3, 6):
                tree["w"][::2] = 0
                tree["w"][1::4] *= ml_dtypes.bfloat16(-1)
                tree["other"][:20] = tree["w"][0, 0]
        if step == 5:
            for one in (state, ref):
                one.replace(lr=0.01)
        mpi.update_(params, narrow_grads_of(COMM.rank, step), state)
        rms.update_(ref_params, reduced(step, of=narrow_grads_of), ref)
    check_same(params, ref_params)
    check_states(state, ref)


EVERY_OPTION = {
    "ema": {"ema": 0.875, "bias_correction": True},
    "accumulate": {"accumulate": 3, "maximize": True, "momentum": 0.5},
    "schedule": {"lr": lambda taken: 0.1 / (1 + taken)},
    "overrides": {
        "overrides": {
            "layer.*": {"lr": 0.5, "weight_decay": 0.25},
            "list.1": {"lr": np.linspace(0.125, 1, 7)},
            "complex": {"lr": lambda taken: 1 / (1 + taken), "rho": 0.5},
            "number": {"clip_value": 0.25},
        }
    },
    "skip": {"on_nonfinite": "skip"},
    "preset": {"preset": "keras", "momentum": 0.9},
}


@case(options=EVERY_OPTION)
def every_option(options):
    beside_one_machine(**options)


def without_some(rank, step):
    grads = grads_of(rank, step)
    grads["layer"]["w"] = None
    if step % 2:
        grads["complex"] = None
    return grads


@case(options={"plain": {}, "accumulate": {"accumulate": 3}, "skip": {"on_nonfinite": "skip"}})
def without_gradient(options):
    beside_one_machine(steps=8, of=without_some, **options)


@case()
def numbers_of_a_call():
    beside_one_machine(steps=6, per_call=lambda step: {"lr": 0.5 / (1 + step), "grad_scale": 0.25})


@case()
def replace():
    params, ref_params = params_of(), params_of()
    state, ref = mpi.init(params, comm=COMM, momentum=0.9, bucket_bytes=512), rms.init(ref_params, momentum=0.9)
    for step in range(6):
        mpi.update_(params, grads_of(COMM.rank, step), state)
        rms.update_(ref_params, reduced(step), ref)
        if step == 2:
            for one in (state, ref):
                one.replace(lr=0.5, overrides={"list.*": {"momentum": 0.5}})
    check_same(params, ref_params)
    check_states(state, ref)


# ---- what all ranks decide ----


@case(options={
    "global": {"clip_global_norm": 0.5}, "each": {"clip_norm": 0.25},
    "global, accumulated": {"clip_global_norm": 0.5, "accumulate": 2},
    "each, accumulated": {"clip_norm": 0.25, "accumulate": 2},
    "some": {"overrides": {"layer.*": {"clip_norm": 0.125}}},
})  # fmt: skip
def norms(options):
    """The factor is a sum in another order, so that it may differ in the last place of a double from one machine's: the
    parameters are near it, and the same in every rank, and in a second run, to the bit.
    """
    made = []
    for bucket_bytes in (512, 512, 1 << 20):
        params, ref_params = params_of(), params_of()
        state = mpi.init(params, comm=COMM, lr=LR, bucket_bytes=bucket_bytes, **options)
        ref = rms.init(ref_params, lr=LR, **options)
        for step in range(6):
            mpi.update_(params, grads_of(COMM.rank, step), state)
            rms.update_(ref_params, reduced(step), ref)
        for a, b in zip(flatten(params)[0], flatten(ref_params)[0], strict=True):
            # 6 steps of lr 0.03 with factors that differ by less than 1e-15, in float32: a few units in the last place
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)
        for other in COMM.allgather(params):
            check_same(params, other)
        made.append(params)
    check_same(made[0], made[1])


@case()
def huge_gradients_are_clipped():
    """Their squares overflow in double."""
    w = np.zeros(40)
    state = mpi.init(w, comm=COMM, lr=1.0, rho=0.0, eps=0.0, clip_global_norm=1.0, momentum=0.5, lr_in_momentum=True)
    mpi.update_(w, np.full(40, 2.0**600), state)
    (norm,) = {float(np.sqrt(sum(COMM.allgather(sum(float(v.sum()) for v in state.buffer("square_avg").values())))))}
    assert abs(norm - 1) < 1e-12
    assert np.array_equal(w, -np.ones(40))


def with_nan(rank, step, where=1):
    grads = grads_of(rank, step)
    if step == where and rank == COMM.size - 1:
        grads["list"][1][3:5, 2] = np.nan
        grads["complex"][-1] = complex(0, np.inf)
    return grads


@case(options={"plain": {}, "accumulate": {"accumulate": 2}})
def nonfinite_is_skipped(options):
    state = beside_one_machine(steps=4, of=with_nan, on_nonfinite="skip", **options)
    assert state.skipped == 1


@case()
def nonfinite_is_propagated():
    params = params_of()
    state = mpi.init(params, comm=COMM)
    mpi.update_(params, with_nan(COMM.rank, 1), state)
    assert np.isnan(params["list"][1]).sum() == 2
    assert state.step == 1


@case()
def nonfinite_is_raised_everywhere():
    params = params_of()
    state = mpi.init(params, comm=COMM, on_nonfinite="raise", bucket_bytes=256)
    refused_everywhere(
        FloatingPointError,
        "gradient 'list.1' has 2 of 63 elements that are not finite",
        params,
        state,
        lambda: mpi.update_(params, with_nan(COMM.rank, 1), state),
    )


# ---- refusals ----


def refused_everywhere(kind, message, params, state, call):
    """Every rank must raise the same error, and nothing be written."""
    before = copied(params)
    buffers = {name: copied(state.buffer(name)) for name in state.options.buffers}
    counts = state.step, state.skipped, state.accumulated
    try:
        call()
    except kind as error:
        found = type(error), str(error)
    else:
        found = None
    every = COMM.allgather(found)
    assert every[0] is not None
    assert every == [every[0]] * COMM.size, every
    assert message in every[0][1], every[0][1]
    check_same(params, before)
    assert counts == (state.step, state.skipped, state.accumulated)
    for name, buffer in buffers.items():
        check_same(state.buffer(name), buffer)
    mpi.update_(params, grads_of(COMM.rank, 0), state)  # it goes on
    assert state.step == counts[0] + 1


LAST = COMM.size - 1


def _bad(change):
    """Gradients that are changed in the last rank only."""

    def make(params):
        grads = grads_of(COMM.rank, 0)
        if COMM.rank == LAST:
            return change(grads, params)
        return grads

    return make


def _with(key, value):
    return lambda grads, params: grads | {key: value(params) if callable(value) else value}


SWAPPED = np.dtype(ml_dtypes.bfloat16).newbyteorder(">" if sys.byteorder == "little" else "<")
WRONG = {
    "shape": (ValueError, _with("complex", np.zeros(4, np.complex64)), "has shape (4,), parameter 'complex' has (13,)"),
    "dtype": (TypeError, _with("number", np.zeros(())), "gradient 'number' has dtype float64, parameter 'number' has"),
    "list": (TypeError, _with("number", [1.0]), "gradient 'number' is a list, not a numpy.ndarray"),
    "missing": (ValueError, lambda grads, params: {"layer": grads["layer"]}, "do not have the keys of the parameters"),
    "rows": (TypeError, _with("complex", rms.RowGrad([0], np.zeros(1))), "gradient 'complex' is a RowGrad"),
    "byte order": (TypeError, _with("number", np.zeros((), ">f4")), "'number' has byte order '>f4'; convert it with"),
    "swapped": (TypeError, _with("number", np.zeros((), np.uint16).view(SWAPPED)), "'number' has byte order '>V2'"),
    "narrow": (TypeError, _with("complex", np.zeros(13, ml_dtypes.bfloat16)), "'complex' has dtype bfloat16, param"),
    "masked": (TypeError, _with("complex", np.ma.zeros(13, np.complex64)), "is a masked array"),
    "itself": (ValueError, _with("complex", lambda params: params["complex"]), "overlaps parameter 'complex' in memo"),
}


@case(what=WRONG)
def gradients_are_refused_everywhere(wrong):
    kind, change, message = wrong
    params = params_of()
    state = mpi.init(params, comm=COMM, momentum=0.9)
    refused_everywhere(kind, f"rank {LAST}: ", params, state, lambda: mpi.update_(params, _bad(change)(params), state))
    refused_everywhere(kind, message, params, state, lambda: mpi.update_(params, _bad(change)(params), state))


@case()
def master_of_other_parameters_is_refused():
    params = narrow_params()
    state = mpi.init(params, comm=COMM)
    for kind, message, other in (
        (TypeError, "parameter 'b' has dtype float32", params | {"b": params["b"].astype(np.float32)}),
        (ValueError, "parameter 'b' has shape (4,)", params | {"b": params["b"][1:]}),
        (ValueError, "do not have the keys of", {"w": params["w"]}),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            state.master(other)
    params["b"].flags.writeable = False
    state.master(params)  # which it only reads


@case(call={
    "lr": ({"lr": -1.0}, ValueError, "lr must be finite and >= 0, got -1.0"),
    "type": ({"lr": "1"}, TypeError, "lr must be"),
    "grad_scale": ({"grad_scale": np.inf}, ValueError, "grad_scale must be"),
})  # fmt: skip
def numbers_are_refused_everywhere(call):
    numbers, kind, message = call
    params = params_of()
    state = mpi.init(params, comm=COMM)
    given = numbers if COMM.rank == LAST else {}
    refused_everywhere(
        kind, message, params, state, lambda: mpi.update_(params, grads_of(COMM.rank, 0), state, **given)
    )


@case()
def a_schedule_that_raises_in_one_rank():
    def schedule(taken):
        if taken == 1 and COMM.rank == LAST:
            raise ZeroDivisionError("no rate")
        return 0.5

    params = params_of()
    state = mpi.init(params, comm=COMM, lr=schedule)
    mpi.update_(params, grads_of(COMM.rank, 0), state)
    for _ in range(2):
        message = ""
        try:
            mpi.update_(params, grads_of(COMM.rank, 1), state)
        except ZeroDivisionError as error:
            message = str(error)
        assert message == f"rank {LAST}: no rate"
    assert state.step == 1


class OddError(Exception):
    """Neither its class nor its text can be sent to others."""

    def __str__(self):
        raise ValueError("no text")


@case(kind={"interrupt": KeyboardInterrupt, "exit": SystemExit, "unknown": OddError, "arguments": UnicodeDecodeError})
def any_error_in_one_rank(kind):
    """The rank that it is in raises what is no Exception as it is, the others say what happened there."""

    def schedule(taken):
        if raises and COMM.rank == LAST:
            raise kind(*(("utf-8", b"x", 0, 1, "no text") if kind is UnicodeDecodeError else ()))
        return 0.5

    raises = False
    params = params_of()
    state = mpi.init(params, comm=COMM, lr=schedule)
    before = copied(params)
    raises = True
    found = None
    try:
        mpi.update_(params, grads_of(COMM.rank, 0), state)
    except BaseException as error:  # noqa: BLE001 - interrupts are among those that are compared below
        found = error
    if COMM.rank == LAST and not issubclass(kind, Exception):
        assert type(found) is kind
    else:
        told = {UnicodeDecodeError: "'utf-8' codec can't decode"}.get(kind, kind.__name__)
        assert f"rank {LAST}: {told}" in str(found), str(found)
        assert isinstance(found, Exception)
    check_same(params, before)
    assert state.step == 0
    raises = False
    mpi.update_(params, grads_of(COMM.rank, 0), state)
    assert state.step == 1


@case()
def communicators():
    """Those of some ranks and of one, beside messages of the user in the same; others are refused."""
    params, ref_params = params_of(), params_of()
    half = COMM.Split(COMM.rank % 2)
    state = mpi.init(params, comm=half, bucket_bytes=512)
    ref = rms.init(ref_params)
    mine = np.full(3, float(COMM.rank))
    received = np.empty(3)
    neighbour = (half.rank + 1) % half.size
    request = half.Irecv(received, MPI.ANY_SOURCE, MPI.ANY_TAG)
    for step in range(3):
        mpi.update_(params, grads_of(half.rank, step), state)
        rms.update_(ref_params, reduced(step, ranks=half.size), ref)
    half.Send(mine, neighbour, tag=7)
    request.Wait()
    assert received[0] in range(COMM.size)
    check_same(params, ref_params)
    alone = mpi.init(params, comm=MPI.COMM_SELF)
    mpi.update_(params, grads_of(COMM.rank, 0), alone)
    assert f"rank={half.rank} of {half.size}, step=3" in repr(state)
    half.Free()
    assert "rank=none, step=3" in repr(state)
    for call in (
        lambda: mpi.update_(params, grads_of(0, 0), state),
        lambda: mpi.save(FOLDER / "never", state),
        lambda: state.replace(lr=0.5),
        lambda: mpi.init(params, comm=COMM.Split(MPI.UNDEFINED)),
        lambda: mpi.load(FOLDER / "never", params, comm=COMM.Split(MPI.UNDEFINED)),
    ):
        with pytest.raises(ValueError, match=r"the communicator is MPI\.COMM_NULL"):
            call()
    for other in (MPI.COMM_NULL, None, MPI.Intercomm()):
        with pytest.raises(TypeError, match="comm must be an mpi4py.MPI.Intracomm, got"):
            mpi.init(params, comm=other)


@case()
def a_forked_process_is_refused():
    """It has no MPI, and would disturb that of its parent."""
    params = params_of()
    state = mpi.init(params, comm=COMM)
    child = os.fork()
    if child == 0:
        try:
            mpi.update_(params, grads_of(COMM.rank, 0), state)
        except RuntimeError as error:
            os._exit(0 if "was forked" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    mpi.update_(params, grads_of(COMM.rank, 0), state)


@case()
def read_only_parameters():
    params = params_of()
    state = mpi.init(params, comm=COMM)
    if COMM.rank == LAST:
        params["complex"].flags.writeable = False
    before = copied(params)
    try:
        mpi.update_(params, grads_of(COMM.rank, 0), state)
    except ValueError as error:
        assert str(error) == f"rank {LAST}: parameter 'complex' is read-only"
        check_same(params, before)
    else:
        raise AssertionError("it was written")


@case()
def parameters_that_overlap():
    """At init, and where others are given later."""
    memory = np.zeros(20, np.float32)
    good = [np.zeros(10, np.float32) for _ in range(2)]
    bad = [memory[:10], memory[9:19]]
    state = mpi.init(good, comm=COMM)
    for call in (lambda: mpi.init(bad, comm=COMM), lambda: mpi.update_(bad, good, state)):
        found = ""
        try:
            call()
        except ValueError as error:
            found = str(error)
        assert "overlap in memory" in found, found
    assert state.step == 0
    assert not memory.any()
    mpi.update_(copied(good), [np.ones(10, np.float32)] * 2, state)  # others are taken


def init_takes_no_memory_of_the_size_of_the_parameters():
    """In processes of its own, which have not had more before."""
    params = np.ones(1 << 24, np.float32)
    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    state = mpi.init(params, comm=COMM, bucket_bytes=1 << 20)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    taken, most = (peaks[1] - peaks[0]) * 1024, state.nbytes + params.nbytes / COMM.size
    assert taken < most + (8 << 20), (taken, most)  # and four buckets, and what the allocator takes


@case()
def init_is_refused_everywhere():
    for change, kind, message in (
        ({"rho": 1.5}, ValueError, f"rank {LAST}: rho must be in [0, 1), got 1.5"),
        ({"overrides": {"nothing": {"lr": 1.0}}}, ValueError, "matches none of"),
        ({"overrides": {"list.1": {"lr": np.ones(5)}}}, ValueError, "does not broadcast to (9, 7)"),
        ({"reduction": "average"}, ValueError, "reduction must be one of"),
        ({"bucket_bytes": 2**31 + 1}, ValueError, "bucket_bytes must be"),
        ({"nothing": 1}, TypeError, "no option 'nothing'"),
        ({"square_avg_dtype": "bfloat16"}, TypeError, "parameter 'list.0' is float64: square_avg_dtype='bfloat16' is"),
    ):
        message_found = ""
        try:
            mpi.init(params_of(), comm=COMM, **(change if COMM.rank == LAST else {}))
        except kind as error:
            message_found = str(error)
        assert message in message_found, message_found
        assert COMM.allgather(message_found) == [message_found] * COMM.size


@case()
def ranks_that_do_not_agree():
    """With one rank there is nobody to disagree."""
    grads = grads_of(COMM.rank, 0)
    params = params_of()
    state = mpi.init(params, comm=COMM)
    other = params_of()
    other["number"] += COMM.rank
    without = grads | {"number": None} if COMM.rank == LAST else grads
    second = mpi.init(params, comm=COMM)
    folder = FOLDER / f"disagree-{COMM.size}"
    mpi.save(folder, second)
    for call, message in (
        (lambda: mpi.init(other, comm=COMM), "the CRC-32 of parameter 'number' is"),
        (lambda: mpi.init(params, comm=COMM, lr=0.1 + COMM.rank), "option lr is 0.1 in rank 0, 1.1 in rank 1"),
        (lambda: mpi.update_(params, grads, state, lr=0.1 + COMM.rank), "lr is [0.1] in rank 0, [1.1] in rank 1"),
        (lambda: mpi.update_(params, without, state), f"which gradients are None is [] in rank 0, [8] in rank {LAST}"),
        (lambda: state.replace(lr=float(COMM.rank)), "option lr is 0.0 in rank 0, 1.0 in rank 1"),
        (lambda: mpi.init(params if COMM.rank == 0 else [params], comm=COMM), "paths is"),
        (
            lambda: mpi.init(params | {"number": np.zeros((), float if COMM.rank else "f4")}, comm=COMM),
            "parameter 'number' is 'float32 of ()' in rank 0, 'float64 of ()' in rank 1",
        ),
        (lambda: mpi.init(params, comm=COMM, bucket_bytes=1 + COMM.rank), "bucket_bytes is 1 in rank 0, 2 in rank 1"),
        (
            lambda: mpi.init(params, comm=COMM, reduction="sum" if COMM.rank else "mean"),
            "reduction is 'mean' in rank 0, 'sum' in rank 1",
        ),
        (lambda: mpi.init(params, comm=COMM, preset="keras" if COMM.rank else "torch"), "option "),
        (lambda: mpi.update_(params, grads, second if COMM.rank else state), "the state is"),
        (lambda: (second if COMM.rank else state).replace(lr=0.5), "the state is"),
        (lambda: mpi.save(folder, second if COMM.rank else state), "the state is"),
        (
            lambda: mpi.save(FOLDER / "never", state) if COMM.rank else mpi.update_(params, grads, state),
            "call is 'update_' in rank 0, 'save' in rank 1",
        ),
        (lambda: state.replace() if COMM.rank else mpi.load(folder, params, comm=COMM), "call is 'load' in rank 0"),
    ):
        found = ""
        try:
            call()
        except ValueError as error:
            found = str(error)
        if COMM.size > 1:
            assert message in found, found
            assert COMM.allgather(found) == [found] * COMM.size
            assert state.step == 0
        else:
            assert not found


@case()
def ranks_of_other_counts():
    """As where one rank has loaded another checkpoint."""
    params = params_of()
    state = mpi.init(params, comm=COMM)
    before = copied(params)
    state._claim.set_counts(COMM.rank, 0, 0, bytes(9))
    for call in (
        lambda: mpi.update_(params, grads_of(COMM.rank, 0), state),
        lambda: mpi.save(FOLDER / "never", state),
    ):
        with pytest.raises(ValueError, match=r"rank 0, 1 in rank 1$") if COMM.size > 1 else contextlib.nullcontext():
            call()
    assert state.step == (COMM.rank if COMM.size > 1 else 1)
    if COMM.size > 1:
        check_same(params, before)


@case()
def a_state_is_not_copied():
    import copy
    import pickle

    state = mpi.init(params_of(), comm=COMM)
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        try:
            call(state)
        except TypeError as error:
            assert "has a communicator" in str(error)
        else:
            raise AssertionError("it was copied")


@case()
def a_second_caller_is_refused():
    """From within the step: a schedule that steps again."""
    found = []

    def schedule(taken):
        try:
            mpi.update_(params, grads_of(COMM.rank, 0), state)
        except RuntimeError as error:
            found.append(str(error))
        return 0.5

    params = params_of()
    state = mpi.init(params, comm=COMM, lr=schedule)
    mpi.update_(params, grads_of(COMM.rank, 0), state)
    assert len(found) == 1
    assert state.step == 1


# ---- memory and bytes ----


TREES = {"wide": params_of, "narrow": narrow_params}


@case(
    tree=TREES,
    options={"plain": {}, "all": {"momentum": 0.9, "centered": True, "ema": 0.9, "accumulate": 2}},
)
def memory(tree, options):
    """The arrays kept are total / n and at most one cache line for each dtype, of all buffers together, or an element
    where it takes more than a line, as complex128 with all five buffers.
    """
    params = tree()
    state, ref = mpi.init(params, comm=COMM, **options), rms.init(params, **options)
    names = ref._plan.names
    total = sum(leaf.nbytes for name in names for leaf in flatten(getattr(ref, name))[0])
    dtypes = {leaf.dtype for leaf in flatten(params)[0]}
    more = sum(max(64, len(state.options.buffers) * arithmetic(dtype).itemsize) for dtype in dtypes)
    assert sum(COMM.allgather(state.nbytes)) == total
    assert state.nbytes <= total / COMM.size + more
    assert more == 64 * len(dtypes) + 16 * ("double complex" in params and len(names) == 5)


@case(ranks={"2": 2, "3": 3, "1000": 1000})
def leaves_that_are_longer_than_an_int(ranks):
    """Of more than 2**31 elements: each element is in one bucket, and no count or place in a bucket is wider than 31
    bits, as MPI has them before version 4.
    """
    sizes = {"a": 2**33 + 5, "b": 3, "c": 2**32 - 1}
    _, structure = flatten(dict.fromkeys(sizes, 0))
    state = mpi._shell(COMM, "mean", 2**31, structure, [((size,), np.dtype("f4"), (0,)) for size in sizes.values()])
    mpi._set_options(state, rms.Options(momentum=0.5), {})
    ends = dict.fromkeys(range(3), 0)
    found = []
    for _, parts in mpi._plans(state, ranks):
        pieces = [piece for part in parts for piece in part]
        assert sum(piece.stop - piece.start for piece in pieces) * 4 <= 2**31
        assert [piece.offset for piece in pieces] == list(
            itertools.accumulate((piece.stop - piece.start for piece in pieces[:-1]), initial=0)
        )
        found += pieces
    for piece in sorted(found):
        assert piece.start == ends[piece.leaf]
        ends[piece.leaf] = piece.stop
    assert list(ends.values()) == list(sizes.values())


class Counting(MPI.Intracomm):
    """A communicator that counts the bytes of buffers which a rank must send to others, whatever the algorithm."""

    def __new__(cls, comm):
        made = super().__new__(cls, comm)
        made.sent = {"reduce": 0, "gather": 0, "agree": 0}
        return made

    def Ireduce_scatter(self, send, receive, counts, op):  # noqa: N802 - the name of mpi4py
        assert sum(counts) == send[0].size
        assert receive[0].size == counts[self.rank]
        self.sent["reduce"] += (sum(counts) - counts[self.rank]) * send[0].itemsize
        return super().Ireduce_scatter(send, receive, counts, op)

    def Iallgatherv(self, send, receive):  # noqa: N802 - the name of mpi4py
        buffer, counts, _, _ = receive
        assert send is MPI.IN_PLACE
        # Each block goes to all others; passed on in a ring, a rank sends all blocks but that of its neighbour.
        self.sent["gather"] += (sum(counts) - counts[(self.rank + 1) % self.size]) * buffer.itemsize
        return super().Iallgatherv(send, receive)

    def Allreduce(self, send, receive, op):  # noqa: N802 - the name of mpi4py
        self.sent["agree"] += send.nbytes
        return super().Allreduce(send, receive, op)

    def Allgather(self, send, receive):  # noqa: N802 - the name of mpi4py
        self.sent["agree"] += self.size * send.nbytes
        return super().Allgather(send, receive)


@case(tree=TREES, reduction={name: name for name in ("mean", "none", "sliced")})
def bytes_sent(tree, reduction):
    """All ranks together send n - 1 times the gradients, unless they are reduced already, those of bfloat16 as float32,
    and the parameters as they are; none sends more than its share and a line.
    """
    comm = Counting(COMM)
    params = tree()
    state = mpi.init(params, comm=comm, reduction=reduction, bucket_bytes=1024)
    comm.sent = dict.fromkeys(comm.sent, 0)
    grads = copied(params)
    mpi.update_(params, state.slice_of(grads) if reduction == "sliced" else grads, state)
    n, leaves = COMM.size, flatten(params)[0]
    lines = 64 * len({leaf.dtype for leaf in leaves})  # a slice of plain state is a line more at most
    totals = {
        "reduce": sum(leaf.size * arithmetic(leaf.dtype).itemsize for leaf in leaves) if reduction == "mean" else 0,
        "gather": sum(leaf.nbytes for leaf in leaves),
    }
    for what, total in totals.items():
        assert sum(COMM.allgather(comm.sent[what])) == (n - 1) * total
        assert comm.sent[what] <= (n - 1) / n * total + lines
    assert comm.sent["agree"] == (24 if n > 1 else 0)


@case(options={
    "global": ({"clip_global_norm": 0.5}, 1), "each": ({"clip_norm": 0.5}, 9), "skip": ({"on_nonfinite": "skip"}, 1),
    "both": ({"clip_global_norm": 0.5, "on_nonfinite": "raise"}, 2),
})  # fmt: skip
def bytes_sent_for_decisions(chosen):
    options, pairs = chosen
    comm = Counting(COMM)
    params = params_of()
    state = mpi.init(params, comm=comm, **options)
    comm.sent = dict.fromkeys(comm.sent, 0)
    mpi.update_(params, grads_of(COMM.rank, 0), state)
    assert comm.sent["agree"] == (24 if COMM.size > 1 else 0) + 16 * COMM.size * pairs


# ---- checkpoints ----

SAVED = {
    "plain": {},
    "all": {"momentum": 0.9, "centered": True, "ema": 0.9, "accumulate": 3, "bias_correction": True},
    "rates": {"overrides": {"list.1": {"lr": np.linspace(0.125, 1, 7)}, "layer.*": {"lr": 0.5, "rho": 0.25}}},
}


@case(options=SAVED)
def saved_here_and_loaded(options):
    """By these ranks with other buckets, by each rank alone, and as the state of one machine; all go on alike. With
    the mean that all have, so that the gradients are the same in any number of ranks.
    """
    saved_and_loaded(params_of(), grads_of, f"here-{COMM.size}-{len(options)}", options)


@case(storage=STORAGES, options={"plain": {}, "all": SAVED["all"]})
def storages_saved_and_loaded(storage, options):
    name = f"narrow-{COMM.size}-{len(options)}-{len(storage)}-{'master_weights' in storage}"
    saved_and_loaded(narrow_params(), narrow_grads_of, name, {"seed": 5} | storage | options)


def saved_and_loaded(params, of, name, options):
    folder = FOLDER / name
    state = mpi.init(params, comm=COMM, reduction="none", bucket_bytes=512, **options)
    for step in range(4):
        mpi.update_(params, reduced(step, ranks=4, of=of), state)
        mpi.save(folder, state)
    assert len(list(folder.iterdir())) == COMM.size + 1  # older parts are gone
    trees = [copied(params) for _ in range(3)]
    states = [
        mpi.load(folder, trees[0], comm=COMM, reduction="none", bucket_bytes=4096),
        mpi.load(folder, trees[1], comm=MPI.COMM_SELF, reduction="none"),
    ]
    whole_state = rms.load(folder)
    for loaded in states:
        assert loaded.options == state.options
    check_states(states[0], whole_state)
    for step in range(4, 8):
        grads = reduced(step, ranks=4, of=of)
        mpi.update_(params, grads, state)
        for tree, loaded in zip(trees, states, strict=False):
            mpi.update_(tree, grads, loaded)
        rms.update_(trees[2], grads, whole_state)
    for tree in trees:
        check_same(params, tree)
    check_states(state, whole_state)


def saved_by_more(ranks):
    """Go on with what so many ranks saved, and fewer."""
    for more in range(COMM.size + 1, ranks + 1):
        saved_by_others(more)


def saved_by_others(ranks):
    """Go on with what so many ranks saved."""
    for name, of, make, storage in (
        ("wide", grads_of, params_of, {}),
        ("split", narrow_grads_of, narrow_params, {}),
        ("all", narrow_grads_of, narrow_params, STORAGES["all"]),
    ):
        saved_by_others_as(f"{name}-by-{ranks}", ranks, of, make, storage)


def saved_by_others_as(name, ranks, of, make, storage):
    params, ref_params = make(), make()
    options = {"lr": LR, "momentum": 0.9, "ema": 0.5, "accumulate": 2, **storage}
    grads = [reduced(step, ranks=4, of=of) for step in range(10)]
    if COMM.size == ranks:
        state = mpi.init(params, comm=COMM, reduction="none", bucket_bytes=300, **options)
        for step in range(5):
            mpi.update_(params, grads[step], state)
        mpi.save(FOLDER / name, state)
    else:
        ref = rms.init(params, **options)
        for step in range(5):
            rms.update_(params, grads[step], ref)
    state = mpi.load(FOLDER / name, params, comm=COMM, reduction="none")
    ref = rms.init(ref_params, **options)
    for step in range(5):
        rms.update_(ref_params, grads[step], ref)
    for step in range(5, 10):
        mpi.update_(params, grads[step], state)
        rms.update_(ref_params, grads[step], ref)
    check_same(params, ref_params)
    check_states(state, ref)


@case(dtype={"float32": np.float32, "bfloat16": ml_dtypes.bfloat16})
def parts_are_as_large_as_their_elements(dtype):
    """A narrow square_avg has fewer bytes than its parameters, and no less than what load expects."""
    folder = FOLDER / f"narrow-avg-{COMM.size}-{np.dtype(dtype)}"
    w = np.ones(20000, dtype)
    state = mpi.init(w, comm=COMM, lr=0.5, square_avg_dtype="bfloat16", master_weights=False)
    mpi.update_(w, w.copy(), state)
    mpi.save(folder, state)
    assert mpi.load(folder, w, comm=COMM).step == rms.load(folder).step == 1


@case()
def a_schedule_is_given_again():
    folder = FOLDER / f"schedule-{COMM.size}"
    params = params_of()
    mpi.save(folder, mpi.init(params, comm=COMM, lr=lambda taken: 0.5))
    found = ""
    try:
        mpi.load(folder, params, comm=COMM)
    except ValueError as error:
        found = str(error)
    assert "the learning rate was a schedule" in found
    assert mpi.load(folder, params, comm=COMM, lr=0.25).options.lr == 0.25


@case()
def loading_is_refused_everywhere():
    """A part is damaged; leaves are others; there is nothing."""
    folder = FOLDER / f"damaged-{COMM.size}"
    params = params_of()
    mpi.save(folder, mpi.init(params, comm=COMM, lr=0.5))
    COMM.Barrier()
    for what, kind, message in (
        ("leaves", ValueError, "not known ['number']"),
        ("damage", ValueError, "is not what it was"),
        ("nothing", FileNotFoundError, "manifest.json"),
    ):
        other, place = dict(params), folder
        if what == "leaves":
            del other["number"]
        elif what == "nothing":
            place = FOLDER / "nothing"
        elif COMM.rank == 0:
            part = next(folder.glob(f"part-*-{COMM.size - 1}.npz"))
            data = bytearray(part.read_bytes())
            npy = data.index(b"\x93NUMPY", data.index(b"square_avg/0.npy"))
            data[data.index(b"\n", npy) + 1] ^= 1  # of the first element
            part.write_bytes(data)
        COMM.Barrier()
        found = ""
        try:
            mpi.load(place, other, comm=COMM)
        except kind as error:
            found = str(error)
        assert message in found, found
        assert COMM.allgather(found) == [found] * COMM.size


@case()
def saving_fails_in_one_rank():
    """The old checkpoint stays, and nothing else; the next one is saved."""
    folder = FOLDER / f"full-{COMM.size}"
    params = params_of()
    state = mpi.init(params, comm=COMM, lr=0.5)
    mpi.save(folder, state)
    before = sorted(path.name for path in folder.iterdir())
    mpi.update_(params, grads_of(COMM.rank, 0), state)
    COMM.Barrier()
    write = mpi.write_content

    def full(*_):
        raise OSError(28, "No space left on device")

    if COMM.rank == LAST:
        mpi.write_content = full
    found = ""
    try:
        mpi.save(folder, state)
    except OSError as error:
        found = str(error)
    finally:
        mpi.write_content = write
    assert f"rank {LAST}: [Errno 28] No space left on device" in found
    COMM.Barrier()
    assert sorted(path.name for path in folder.iterdir()) == before
    assert rms.load(folder).step == 0
    COMM.Barrier()
    mpi.save(folder, state)
    assert rms.load(folder).step == 1


@case()
def a_folder_that_another_job_writes():
    """It is refused, and the checkpoint there stays whole."""
    folder = FOLDER / f"shared-{COMM.size}"
    params = params_of()
    state = mpi.init(params, comm=COMM, lr=0.5)
    mpi.save(folder, state)
    mpi.update_(params, grads_of(COMM.rank, 0), state)
    found = ""
    with alone_in(folder) if COMM.rank == 0 else contextlib.nullcontext():
        try:
            mpi.save(folder, state)
        except BlockingIOError as error:
            found = str(error)
    assert found.startswith("rank 0: [Errno 11] Another process is writing into it"), found
    assert rms.load(folder).step == 0
    COMM.Barrier()
    mpi.save(folder, state)
    assert rms.load(folder).step == 1


@case()
def the_page():
    """The blocks of docs/distributed.md."""
    params = {"w": np.ones(100, np.float32)}
    names = {
        "MPI": MPI,
        "mpi": mpi,
        "rms": rms,
        "folder": FOLDER / f"page-{COMM.size}",
        "params": params,
        "gradient": lambda w, rank: w * np.float32(1 + rank),
    }
    run_section("MPI, for NumPy's users", **names)
    assert (params["w"] < 1).all()


FOLDER = Path()


def main(folder, ranks_of_others):
    """Run the cases; what other numbers of ranks saved is in the folder already."""
    global FOLDER
    FOLDER = Path(folder)
    for ranks in map(int, ranks_of_others.split(",")):
        CASES[f"saved_by-{ranks}"] = lambda ranks=ranks: saved_by_others(ranks)
    found = {}
    for name, function in CASES.items():
        try:
            function()
            found[name] = ""
        except Exception:  # noqa: BLE001 - the test shows it
            found[name] = traceback.format_exc()
        COMM.Barrier()
    Path(folder, f"{COMM.size}-{COMM.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

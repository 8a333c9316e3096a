"""The plan: what it refuses and that nothing is written then, layouts, trees, snapshots, threads and forks."""

from __future__ import annotations

import collections
import ctypes
import ctypes.util
import dataclasses
import os
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest
from cases import DTYPES, VARIANTS, hard_numbers, options_of
from conftest import as_keywords, check_alike, on_reference, same_bits

import rmsprop_native as rms
from rmsprop_native import _core, reference
from rmsprop_native.tree import ReadOnlyDict, Record


def tree(rng, dtype=np.float32):
    return {"layer1": {"w": rng.standard_normal((4, 3)).astype(dtype), "b": rng.standard_normal(3).astype(dtype)}}


def frozen(params, state):
    """A copy of all that a step may write."""
    arrays = [*state._structure.leaves(params), *(a for leaves in state._buffers.values() for a in leaves)]
    return [a.copy() for a in arrays], state.step


def refused(error, match, params, grads, state, **per_call):
    before, step = frozen(params, state)
    with pytest.raises(error, match=match):
        rms.update_(params, grads, state, **per_call)
    after, step_after = frozen(params, state)
    assert step == step_after
    assert all(same_bits(a, b) for a, b in zip(before, after, strict=True))


# Each spoils the last gradient, so that an update made leaf by leaf would have written the first ones.
BAD_GRADIENTS = {
    "dtype": (lambda g: g.astype(np.float64), TypeError, r"gradient 'layer1\.b' has dtype float64, .* float32"),
    "int": (lambda g: g.astype(int), TypeError, r"gradient 'layer1\.b' has dtype int64"),
    "object": (lambda g: g.astype(object), TypeError, r"gradient 'layer1\.b' has dtype object"),
    "float16": (lambda g: g.astype(np.float16), TypeError, r"gradient 'layer1\.b' has dtype float16"),
    "masked": (np.ma.masked_array, TypeError, r"gradient 'layer1\.b' is a masked array"),
    "list": (list, TypeError, r"gradient 'layer1\.b' is a list"),
    "float": (lambda g: 1.0, TypeError, r"gradient 'layer1\.b' is a float"),
    "shape": (lambda g: np.zeros(16, g.dtype), ValueError, r"gradient 'layer1\.b' has shape \(16,\), its .* \(3,\)"),
    "broadcastable": (lambda g: g[:1], ValueError, r"has shape \(1,\), its parameter has \(3,\)"),
    "ndim": (lambda g: g[None], ValueError, r"has shape \(1, 3\), its parameter has \(3,\)"),
    "byte order": (
        lambda g: g.astype(g.dtype.newbyteorder()), TypeError, r"gradient 'layer1\.b' has byte order .*astype\('float32'\)"
    ),
    "misaligned": (
        lambda g: np.frombuffer(b"\0" + g.tobytes(), np.uint8)[1:].view(g.dtype), ValueError, r"'layer1\.b' is misaligned"
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoil", BAD_GRADIENTS)
def test_bad_gradient_writes_nothing(spoil, rng):
    params, grads = tree(rng), tree(rng)
    change, error, match = BAD_GRADIENTS[spoil]
    state = rms.init(params, momentum=0.9, centered=True)
    rms.update_(params, grads, state)
    grads["layer1"]["b"] = change(grads["layer1"]["b"])
    refused(error, match, params, grads, state)


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
    params = tree(rng)
    state = rms.init(params)
    grads, match = BAD_STRUCTURES[name]
    refused(ValueError, match, params, grads, state)


def test_wrong_count_writes_nothing(rng):
    params = [rng.standard_normal(3) for _ in range(3)]
    state = rms.init(params)
    refused(ValueError, "gradients are 2, the parameters 3", params, params[:2], state)
    with pytest.raises(ValueError, match="parameters are 2, the parameters 3"):
        rms.update_(params[:2], params, state)


@pytest.mark.parametrize("where", ["parameter", "square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum"])
@pytest.mark.parametrize("part", [slice(None), slice(1), slice(-1, None)], ids=["all", "first", "last"])
def test_gradient_that_overlaps_writes_nothing(where, part):
    params = [np.zeros(8, np.float32), np.zeros(32, np.float32)[8:16]]
    state = rms.init(params, momentum=0.9, centered=True, ema=0.9, accumulate=2)
    array = params[1] if where == "parameter" else getattr(state, where)[1]
    grad = np.broadcast_to(array[part], 8)
    refused(ValueError, f"gradient '1' overlaps its {where}", params, [np.ones(8, np.float32), grad], state)


def test_gradients_next_to_each_other_are_fine():
    memory = np.ones(24, np.float32)
    param = memory[8:16]
    state = rms.init(param)
    for grad in (memory[:8], memory[16:]):
        rms.update_(param, grad, state)
    interleaved = np.ones((8, 2), np.float32)
    state = rms.init(interleaved[:, 0])
    view = interleaved[:, 0]
    rms.update_(view, interleaved[:, 1], state)
    assert (interleaved[:, 1] == 1).all()
    assert (interleaved[:, 0] < 1).all()


def test_read_only_parameter_writes_nothing(rng):
    params = [rng.standard_normal(3), rng.standard_normal(3)]
    state = rms.init(params)
    rms.update_(params, [np.ones(3), np.ones(3)], state)
    params[1].flags.writeable = False
    refused(ValueError, "parameter '1' is read-only", params, [np.ones(3), np.ones(3)], state)
    with pytest.raises(ValueError, match="parameter '1' is read-only"):
        rms.init(params)


def test_parameters_that_share_memory_are_refused(rng):
    a = rng.standard_normal(10)
    with pytest.raises(ValueError, match="parameter 'x' and parameter 'y' are the same array"):
        rms.init({"x": a, "y": a})
    with pytest.raises(ValueError, match="parameter 'x' and parameter 'y' overlap in memory"):
        rms.init({"x": a[:6], "y": a[5:]})
    with pytest.raises(ValueError, match="parameter 'y' and parameter 'x' overlap in memory"):
        rms.init({"y": a[::2], "z": rng.standard_normal(3), "x": a[4:5]})
    rms.init({"x": a[:5], "y": a[5:]})
    rms.init({"x": a[::2], "y": a[1::2]})


BAD_PARAMETERS = {
    "float16": (np.zeros(3, np.float16), TypeError, "has dtype float16"),
    "longdouble": (np.zeros(3, np.longdouble), TypeError, "has dtype"),
    "int": (np.zeros(3, int), TypeError, "has dtype int64"),
    "masked": (np.ma.zeros(3), TypeError, "is a masked array"),
    "scalar": (1.0, TypeError, "is a float, not a numpy.ndarray"),
    "string": ("w", TypeError, "is a str"),
    "stride 0": (np.lib.stride_tricks.as_strided(np.zeros(1), (3,), (0,)), ValueError, "share memory"),
    "windows": (np.lib.stride_tricks.as_strided(np.zeros(9), (3, 3), (8, 8)), ValueError, "share memory"),
    "byte order": (np.zeros(3, np.dtype("f4").newbyteorder()), TypeError, "byte order"),
    "misaligned": (np.zeros(13, np.uint8)[1:].view(np.float32), ValueError, "is misaligned"),
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameter_is_refused(name):
    array, error, match = BAD_PARAMETERS[name]
    with pytest.raises(error, match=rf"parameter 'net\.1' .*{match}"):
        rms.init({"net": [np.zeros(2), array]})
    with pytest.raises(error, match=f"the parameter .*{match}"):
        rms.init(array)


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
    params = tree(rng)
    state = rms.init(params)
    refused(error, match, params, tree(rng), state, **per_call)
    ref_params, ref_state = on_reference(params, state.options)
    grads = tree(rng)
    rms.update_(params, grads, state)  # and the next step has the state's own numbers again
    reference.update_(ref_params, grads, ref_state)
    check_alike(params, state, ref_params, ref_state)


# ---- trees ----

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
    params, grads = tree(rng), tree(rng)
    other, swapped = {"layer1": dict(params["layer1"])}, {"layer1": dict(reversed(grads["layer1"].items()))}
    other["layer1"] = {k: v.copy() for k, v in other["layer1"].items()}
    rms.update_(params, grads, rms.init(params))
    rms.update_(other, swapped, rms.init(other))
    assert all(same_bits(params["layer1"][k], other["layer1"][k]) for k in "wb")


def test_missing_gradient_moves_nothing(rng):
    params = [rng.standard_normal(3), rng.standard_normal(3)]
    before = params[0].copy()
    state = rms.init(params, weight_decay=0.1, initial_square_avg=1.0)
    rms.update_(params, [None, np.ones(3)], state)
    assert same_bits(params[0], before)
    assert same_bits(state.square_avg[0], np.ones(3))
    assert state.step == 1


def test_other_parameters_are_bound_again(rng):
    """The state follows the structure, not the arrays: pure code makes new ones at each step."""
    first, second = ([rng.standard_normal(3), rng.standard_normal(4)] for _ in range(2))
    state = rms.init(first)
    rms.update_(first, [np.ones(3), np.ones(4)], state)
    rms.update_(second, [np.ones(3), np.ones(4)], state)
    first[1] = first[1] * 2
    rms.update_(first, [np.ones(3), np.ones(4)], state)
    assert state.step == 3
    grads = [np.ones(3), np.ones(4)]
    other_shape, other_dtype = [first[0], first[0].copy()], [first[0].astype(np.float32), first[1]]
    refused(ValueError, r"parameter '1' has shape \(3,\), its square_avg has \(4,\)", other_shape, grads, state)
    refused(TypeError, "parameter '0' has dtype float32, its square_avg has float64", other_dtype, grads, state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy 2.5 warns of setting the shape
def test_parameter_moved_in_memory_is_followed(rng):
    param = rng.standard_normal(4)
    state = rms.init(param)
    rms.update_(param, np.ones(4), state)
    param.shape = (2, 2)
    refused(ValueError, r"the parameter has shape \(2, 2\), its square_avg has \(4,\)", param, np.ones(4), state)
    param.shape = (4,)
    rms.update_(param, np.ones(4), state)


# ---- layouts ----


def layouts(array):
    """The same values in other layouts."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return {
        "C": array.copy(),
        "F": np.asfortranarray(array),
        "every second": wide[..., ::2],
        "reversed": np.ascontiguousarray(array[::-1])[::-1],
        "last axis first": np.ascontiguousarray(np.moveaxis(array, -1, 0)).transpose(*range(1, array.ndim), 0),
        "rows of a wider one": np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, 3)])[..., : array.shape[-1]],
    }


@pytest.mark.parametrize("shape", [(7,), (3, 5), (40, 31), (4, 1, 5, 3), (2, 700)])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_bits_do_not_depend_on_layout(dtype, shape, rng):
    def draw():
        reals = hard_numbers(rng, (*shape, 2), np.dtype({"c8": "f4", "c16": "f8"}.get(dtype, dtype)))
        return reals.view(dtype)[..., 0] if dtype[0] == "c" else np.ascontiguousarray(reals[..., 0])

    values, grads = draw(), draw()
    options = options_of(VARIANTS["momentum_centered_l2"])
    ref_param, ref_state = on_reference(values, options)
    for _ in range(2):
        reference.update_(ref_param, grads, ref_state)
    for param in layouts(values).values():
        for grad in layouts(grads).values():
            p = param.copy(order="K") if param.flags.forc else param
            start = p.copy(order="K")
            grad.flags.writeable = False
            state = rms.init(p, **as_keywords(options))
            rms.update_(p, grad, state)
            rms.update_(p, grads, state)
            check_alike(p, state, ref_param, ref_state)
            p[...] = start


def test_layout_keeps_what_lies_between(rng):
    wide = rng.standard_normal((5, 8))
    before = wide.copy()
    view = wide[:, 1:5]
    rms.update_(view, np.ones((5, 4)), rms.init(view))
    assert (wide[:, 1:5] != before[:, 1:5]).all()
    assert same_bits(wide[:, 5:], before[:, 5:])
    assert same_bits(wide[:, :1], before[:, :1])


def test_broadcast_gradient_has_stride_0():
    param, other = np.zeros((3, 4)), np.zeros((3, 4))
    grad = np.broadcast_to(np.arange(4.0), (3, 4))
    rms.update_(param, grad, rms.init(param))
    rms.update_(other, grad.copy(), rms.init(other))
    assert same_bits(param, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_spans_over_threads(dtype, rng):
    _core.set_grain(0)
    rms.set_num_threads(2)
    values = hard_numbers(rng, (300, 3 * 130), DTYPES[dtype])
    param, grad = values[:, ::3], np.asfortranarray(hard_numbers(rng, (300, 130), DTYPES[dtype]))
    options = options_of(VARIANTS["nesterov_centered"])
    ref_param, ref_state = on_reference(param, options)
    state = rms.init(param, **as_keywords(options))
    rms.update_(param, grad, state)
    reference.update_(ref_param, grad, ref_state)
    check_alike(param, state, ref_param, ref_state)


def test_memmap_and_subclasses(tmp_path, rng):
    class Named(np.ndarray):
        pass

    values = rng.standard_normal(6)
    for make in (lambda v: np.memmap(tmp_path / "w", v.dtype, "w+", shape=v.shape), lambda v: v.copy().view(Named)):
        param = make(values)
        param[...] = values
        grad = np.ones(6).view(Named)
        state = rms.init(param)
        rms.update_(param, grad, state)
        plain = values.copy()
        rms.update_(plain, np.ones(6), rms.init(plain))
        assert same_bits(np.asarray(param), plain)
        assert type(state.square_avg) is np.ndarray


# ---- threads ----


def test_two_threads_on_one_state():
    """While one thread is inside a step with the GIL released, a second one is refused, and nothing is lost."""
    rms.set_num_threads(1)
    param = np.ones(1 << 22, np.float32)
    grad = np.ones_like(param)
    state = rms.init(param)
    done, refusals = [], []
    barrier = threading.Barrier(2)

    def work():
        barrier.wait()
        for _ in range(20):
            try:
                rms.update_(param, grad, state)
                done.append(1)
            except RuntimeError as error:
                refusals.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert state.step == len(done)
    assert refusals
    assert all("inside a step already" in text for text in refusals)
    ref_param, ref_state = on_reference(np.ones(1, np.float32), state.options)
    for _ in done:
        reference.update_(ref_param, np.ones(1, np.float32), ref_state)
    assert (param == ref_param).all()


def test_list_mutated_by_another_thread(rng):
    """A step works on a snapshot; whatever happens to the lists, nothing crashes."""
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
    try:
        for _ in range(300):
            try:
                rms.update_(params, grads, state)
            except ValueError as error:
                assert "gradients are" in str(error)
    finally:
        stop.set()
        worker.join()


def test_two_states_at_once(rng):
    """There is one team of threads; who finds it busy works alone, with the same bits."""
    _core.set_grain(0)
    rms.set_num_threads(2)
    params = [hard_numbers(rng, 5 * _core.SPAN + 3, np.float32) for _ in range(2)]
    grads = [hard_numbers(rng, p.size, np.float32) for p in params]
    twins = [on_reference(p, rms.Options()) for p in params]
    states = [rms.init(p) for p in params]
    barrier = threading.Barrier(2)

    def work(i):
        barrier.wait()
        for _ in range(200):
            rms.update_(params[i], grads[i], states[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, (ref_param, ref_state) in enumerate(twins):
        for _ in range(200):
            reference.update_(ref_param, grads[i], ref_state)
        check_alike(params[i], states[i], ref_param, ref_state)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the number of FE_UPWARD is known for these"
)
def test_threads_round_as_their_caller_does(rng):
    """The rounding mode, and flushing to zero beside it, belong to a thread; the bits must not depend on which."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]
    grad = rng.standard_normal(6 * _core.SPAN)
    results = {}
    _core.set_grain(0)
    for mode, threads in ((0, 2), (upward, 1), (upward, 2), (0, 1)):
        rms.set_num_threads(threads)
        param = np.ones(grad.size)
        state = rms.init(param)
        assert libm.fesetround(mode) == 0
        try:
            rms.update_(param, grad, state)
        finally:
            libm.fesetround(0)
        results[mode, threads] = param
    assert same_bits(results[upward, 1], results[upward, 2])
    assert same_bits(results[0, 1], results[0, 2])
    assert (results[upward, 1] != results[0, 1])[-_core.SPAN :].any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_has_threads_of_its_own():
    """The parent's do not live in the child, and are not waited for."""
    code = """
import os, sys
import numpy as np
import rmsprop_native as rms
from rmsprop_native import _core
from rmsprop_native.tree import ReadOnlyDict, Record

def tasks():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0

_core.set_grain(int(sys.argv[1]))
rms.set_num_threads(2)
param = np.ones(1 << 20, np.float32)
state = rms.init(param)
rms.update_(param, param.copy(), state)
pid = os.fork()
if pid == 0:
    before = tasks()
    rms.update_(param, param.copy(), state)
    os._exit(0 if tasks() == before + (sys.platform == "linux") and rms.num_threads() == 2 else 3)
rms.update_(param, param.copy(), state)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    for grain in (0, _core.grain()):  # every thread does its share, or those that come in time
        subprocess.run([sys.executable, "-c", code, str(grain)], check=True, timeout=60)


def test_no_reference_is_kept_or_lost(rng):
    params, grads = tree(rng), tree(rng)
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

"""The catalogue of bad input over every interface: the exact exception, its message, and not a bit written."""

from __future__ import annotations

import array
import math
import re
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import run_python, same_bits
from hostile import everything

import rmsprop_native as rms

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")

as_strided = np.lib.stride_tricks.as_strided
SHAPE = (3, 4)
OPTIONS = {"momentum": 0.9, "centered": True, "ema": 0.5}


class Step(NamedTuple):
    """An interface that takes a step of a tree: parameters, gradients, a state, numbers for this call."""

    call: Any
    reads_only: bool = False
    """It writes no parameter, so that it takes those that cannot be written."""


def by_object(params, grads, state, **numbers):
    optimizer = rms.RMSProp(np.zeros(1))
    optimizer.params, optimizer.state = params, state
    optimizer.step(grads, **numbers)


STEPS = {"update_": Step(rms.update_), "update": Step(rms.update, reads_only=True), "RMSProp.step": Step(by_object)}


class Bad(NamedTuple):
    """A leaf that is refused."""

    make: Any
    """Makes it of a good array of SHAPE."""
    error: type[Exception]
    message: str
    """What the message says after the name of the leaf, from its first character on."""
    ufunc: type[Exception] | None = TypeError
    """What a ufunc raises; None where NumPy converts or broadcasts the operand first."""


def read_only(a):
    a.flags.writeable = False
    return a


def misaligned(a):
    memory = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    memory[...] = a
    return memory


def cyclic(a):
    tree: list = [a]
    tree.append(tree)
    return tree


def deep(a):
    for _ in range(10_000):
        a = [a]
    return a


UNSUPPORTED = "has dtype {}; supported are float32, complex64, float64, complex128 and bfloat16"
KINDS = {
    "bool": Bad(lambda a: a > 2, TypeError, UNSUPPORTED.format("bool") + "; .astype('float64') converts it", None),
    "int8": Bad(lambda a: a.astype("i1"), TypeError, UNSUPPORTED.format("int8"), None),
    "int64": Bad(lambda a: a.astype("i8"), TypeError, UNSUPPORTED.format("int64"), None),
    "uint32": Bad(lambda a: a.astype("u4"), TypeError, UNSUPPORTED.format("uint32"), None),
    "float16": Bad(
        lambda a: a.astype("f2"),
        TypeError,
        UNSUPPORTED.format("float16") + "; squares of gradients need the range of float32 or bfloat16",
        None,
    ),
    "longdouble": Bad(lambda a: a.astype("g"), TypeError, UNSUPPORTED.format(np.dtype("g"))),
    "complex longdouble": Bad(lambda a: a.astype("G"), TypeError, UNSUPPORTED.format(np.dtype("G"))),
    "object": Bad(lambda a: a.astype(object), TypeError, UNSUPPORTED.format("object") + "; give the arrays in it"),
    "str": Bad(lambda a: a.astype("U3"), TypeError, UNSUPPORTED.format(np.dtype("U3"))),
    "bytes": Bad(lambda a: a.astype("S3"), TypeError, UNSUPPORTED.format("|S3")),
    "void": Bad(lambda a: a.view("V4"), TypeError, UNSUPPORTED.format("|V4")),
    "structured": Bad(lambda a: a.view([("x", "f4")]), TypeError, UNSUPPORTED.format(np.dtype([("x", "f4")]))),
    "datetime64": Bad(lambda a: a.astype("i8").astype("M8[s]"), TypeError, UNSUPPORTED.format("datetime64[s]")),
    "timedelta64": Bad(lambda a: a.astype("i8").astype("m8[s]"), TypeError, UNSUPPORTED.format("timedelta64[s]")),
    "other byte order": Bad(
        lambda a: a.astype(a.dtype.newbyteorder()), TypeError, f"has byte order '{np.dtype('f4').newbyteorder().str}'; "
        "convert it with .astype('float32')", None
    ),
    "masked": Bad(
        lambda a: np.ma.masked_array(a, a > 3), TypeError, "is a masked array; pass its .data or .filled(0)", None
    ),
}  # fmt: skip

NO_ARRAYS = {
    "float": Bad(lambda a: 1.0, TypeError, "is a float, not a numpy.ndarray; numpy.array(x) makes one", None),
    "NumPy scalar": Bad(lambda a: np.float32(1), TypeError, "is a float32, not a numpy.ndarray", None),
    "list": Bad(lambda a: a.tolist(), TypeError, "is a list, not a numpy.ndarray; numpy.array(x) makes one", None),
    "memoryview": Bad(memoryview, TypeError, "is a memoryview, not a numpy.ndarray", None),
    "array.array": Bad(lambda a: array.array("f", a.ravel()), TypeError, "is an array, not a numpy", ValueError),
    "bytearray": Bad(lambda a: bytearray(a), TypeError, "is a bytearray, not a numpy.ndarray", ValueError),
    "string": Bad(lambda a: "w", TypeError, "is a str, not a numpy.ndarray"),
    "set": Bad(lambda a: {1.0}, TypeError, "is a set, not a numpy.ndarray"),
    "dict": Bad(lambda a: {"w": a}, TypeError, "is a dict, not a numpy.ndarray"),
    "generator": Bad(lambda a: (x for x in a), TypeError, "is a generator, not a numpy.ndarray; it can be read only"),
    "object": Bad(lambda a: object(), TypeError, "is an object, not a numpy.ndarray"),
    "class": Bad(lambda a: np.ndarray, TypeError, "is a type, not a numpy.ndarray"),
    "state": Bad(rms.init, TypeError, "is a State, not a numpy.ndarray"),
    "cyclic list": Bad(cyclic, TypeError, "is a list, not a numpy.ndarray", ValueError),
}

GRADIENTS = KINDS | NO_ARRAYS | {
    "float64": Bad(lambda a: a.astype("f8"), TypeError, "has dtype float64, its parameter has float32", None),
    "complex64": Bad(lambda a: a.astype("c8"), TypeError, "has dtype complex64, its parameter has float32"),
    "misaligned": Bad(misaligned, ValueError, "is misaligned in memory; copy it with .copy()", None),
    "transposed": Bad(lambda a: a.T, ValueError, "has shape (4, 3), its parameter has (3, 4)", ValueError),
    "transposed matrix": Bad(lambda a: np.matrix(a.T), ValueError, "has shape (4, 3), its parameter has", ValueError),
    "flat": Bad(lambda a: a.ravel(), ValueError, "has shape (12,), its parameter has (3, 4)", ValueError),
    "row": Bad(lambda a: a[:1], ValueError, "has shape (1, 4), its parameter has (3, 4)", None),
    "column": Bad(lambda a: a[:, :1], ValueError, "has shape (3, 1), its parameter has (3, 4)", None),
    "0-d": Bad(lambda a: a[0, 0, ...], ValueError, "has shape (), its parameter has (3, 4)", None),
    "3-d": Bad(lambda a: a[..., None], ValueError, "has shape (3, 4, 1), its parameter has (3, 4)", ValueError),
    "empty": Bad(lambda a: a[:0], ValueError, "has shape (0, 4), its parameter has (3, 4)", ValueError),
}  # fmt: skip

# Of parameters: where nothing is written to them, as by update, they may be of these layouts.
UNWRITABLE = {
    "read-only": Bad(read_only, ValueError, "is read-only", ValueError),
    "broadcast": Bad(lambda a: np.broadcast_to(a[0], SHAPE), ValueError, "is read-only", ValueError),
    "misaligned": Bad(misaligned, ValueError, "is misaligned in memory; copy it with .copy()", None),
    "stride 0": Bad(
        lambda a: as_strided(a, SHAPE, (0, 4)), ValueError, "has strides (0, 4): some of its elements share memory",
        ValueError,
    ),
    "windows": Bad(
        lambda a: as_strided(a, SHAPE, (4, 4)), ValueError, "has strides (4, 4): some of its elements share memory",
        ValueError,
    ),
}  # fmt: skip

# The outputs of a ufunc must be arrays, to whose dtype NumPy casts floats.
NO_OUTPUTS = {
    name: bad._replace(ufunc=TypeError)
    for name, bad in (KINDS | NO_ARRAYS).items()
    if name not in ("float16", "other byte order", "masked", "cyclic list")
}

PARAMETERS = KINDS | NO_OUTPUTS | UNWRITABLE | {
    "None": Bad(lambda a: None, TypeError, "is a NoneType, not a numpy.ndarray"),
    "float64": Bad(lambda a: a.astype("f8"), TypeError, "has dtype float64, its square_avg has float32", None),
    "complex64": Bad(lambda a: a.astype("c8"), TypeError, "has dtype complex64, its square_avg has float32"),
    "transposed": Bad(lambda a: a.T, ValueError, "has shape (4, 3), its square_avg has (3, 4)", ValueError),
    "flat": Bad(lambda a: a.ravel(), ValueError, "has shape (12,), its square_avg has (3, 4)", ValueError),
    "row": Bad(lambda a: a[:1], ValueError, "has shape (1, 4), its square_avg has (3, 4)", ValueError),
    "0-d": Bad(lambda a: np.array(a[0, 0]), ValueError, "has shape (), its square_avg has (3, 4)", ValueError),
    "empty": Bad(lambda a: a[:0], ValueError, "has shape (0, 4), its square_avg has (3, 4)", ValueError),
}  # fmt: skip


def good():
    return np.arange(12, dtype="f4").reshape(SHAPE) + 1


class Trees:
    """Parameters and gradients whose leaf 'net.1.w' lies between others, and a state that has taken a step."""

    def __init__(self, **options):
        self.params = {"a": np.ones(5, "f4"), "net": [np.ones((5, 4), "f4"), {"w": good()}], "z": np.ones(2, "f4")}
        self.grads = {"a": np.ones(5, "f4"), "net": [np.ones((5, 4), "f4"), {"w": good()}], "z": np.ones(2, "f4")}
        self.state = rms.init(self.params, **OPTIONS | options)
        rms.update_(self.params, self.grads, self.state)

    def refused(self, step, error, message, **numbers):
        """The step raises exactly `error`; parameters, gradients, state and counts keep their bits."""
        arrays = [a for tree in (self.params, self.grads) for a in leaves(tree)]
        before = [np.ndarray.tobytes(a) for a in arrays], everything([], self.state)
        with pytest.raises(error, match=f"^{re.escape(message)}") as caught:
            step.call(self.params, self.grads, self.state, **numbers)
        assert caught.type is error
        assert ([np.ndarray.tobytes(a) for a in arrays], everything([], self.state)) == before


def leaves(tree):
    """The arrays of the two trees, whatever else is in them."""
    found = [tree["a"], tree["net"][0], tree["net"][1]["w"], tree["z"]]
    return [a for a in found if isinstance(a, np.ndarray) and a.dtype != object]


def cases(*catalogues):
    return [pytest.param(role, bad, id=f"{role}-{name}") for role, c in catalogues for name, bad in c.items()]


ALL = cases(("gradient", GRADIENTS), ("parameter", PARAMETERS))
NOT_FOR_UPDATE = {f"parameter-{name}" for name in (*UNWRITABLE, "cyclic list")}  # it copies parameters first
READ = [case for case in ALL if case.id not in NOT_FOR_UPDATE]
STEPPED = [
    pytest.param(STEPS[name], *case.values, id=f"{name}-{case.id}")
    for name in STEPS
    for case in (READ if STEPS[name].reads_only else ALL)
]


@pytest.mark.parametrize(("step", "role", "bad"), STEPPED)
def test_bad_leaf(step, role, bad):
    trees = Trees()
    (trees.grads if role == "gradient" else trees.params)["net"][1]["w"] = bad.make(good())
    trees.refused(step, bad.error, f"{role} 'net.1.w' {bad.message}")


@pytest.mark.parametrize("name", UNWRITABLE)
def test_parameters_that_cannot_be_written_are_read(name):
    trees, copied = Trees(), Trees()
    trees.params["net"][1]["w"] = UNWRITABLE[name].make(good())
    copied.params["net"][1]["w"] = np.array(trees.params["net"][1]["w"])
    new, _ = rms.update(trees.params, trees.grads, trees.state)
    rms.update_(copied.params, copied.grads, copied.state)
    assert same_bits(new["net"][1]["w"], copied.params["net"][1]["w"])


NUMBERS = {"lr": 0.1, "rho": 0.9, "eps": 1e-8}


def operands_of_a_ufunc(role, bad):
    operands = {"parameter": good(), "gradient": good(), "square_avg": np.ones(SHAPE, "f4")}
    operands[role] = bad.make(operands[role])
    return list(operands.values())


@pytest.mark.parametrize(("role", "bad"), [case for case in ALL if case.values[1].ufunc is not None])
def test_bad_operand_of_a_ufunc(role, bad):
    param, grad, square_avg = operands_of_a_ufunc(role, bad)
    written = [a for a in (param, square_avg) if isinstance(a, np.ndarray) and a.dtype != object]
    before = [np.ndarray.tobytes(a) for a in written]
    with pytest.raises(bad.ufunc):
        rms.rmsprop(param, grad, square_avg, **NUMBERS, out=(param, square_avg))
    assert [np.ndarray.tobytes(a) for a in written] == before


@pytest.mark.parametrize(("role", "bad"), [case for case in ALL if case.values[1].ufunc is None])
def test_operand_that_numpy_converts_for_a_ufunc(role, bad):
    """It means the same as an ordinary array of its values and dtype."""
    operands = operands_of_a_ufunc(role, bad)
    # Unlike an array of float64, a Python float does not decide the type of the result.
    arrays = [np.asarray(operand, "f4" if type(operand) is float else None) for operand in operands]
    arrays = [array.astype(array.dtype.newbyteorder("="), order="C") for array in arrays]
    got, want = rms.rmsprop(*operands, **NUMBERS), rms.rmsprop(*arrays, **NUMBERS)
    for one, other in zip(got, want, strict=True):
        assert same_bits(np.ma.getdata(one), other)


# ---- arrays that share memory ----


def overlapping(role, of):
    """Trees in which a leaf lies in the memory of another array, which the step writes."""
    trees = Trees()
    arrays = {"parameter": trees.params, "gradient": trees.grads} | {
        name: getattr(trees.state, name) for name in ("square_avg", "momentum_buffer", "grad_avg", "ema")
    }
    arrays[role]["net"][1]["w"] = arrays[of]["net"][0][1:4]
    return trees


OVERLAPS = {
    ("parameter", "parameter"): "parameter 'net.0' and parameter 'net.1.w' overlap in memory",
    ("parameter", "gradient"): "gradient 'net.0' overlaps parameter 'net.1.w' in memory, which the step writes",
    ("parameter", "square_avg"): "parameter 'net.1.w' and square_avg 'net.0' overlap in memory",
    ("parameter", "momentum_buffer"): "parameter 'net.1.w' and momentum_buffer 'net.0' overlap in memory",
    ("parameter", "grad_avg"): "parameter 'net.1.w' and grad_avg 'net.0' overlap in memory",
    ("parameter", "ema"): "parameter 'net.1.w' and ema 'net.0' overlap in memory",
    ("gradient", "parameter"): "gradient 'net.1.w' overlaps parameter 'net.0' in memory, which the step writes",
    ("gradient", "square_avg"): "gradient 'net.1.w' overlaps square_avg 'net.0' in memory, which the step writes",
    ("gradient", "momentum_buffer"): "gradient 'net.1.w' overlaps momentum_buffer 'net.0' in memory, which the step",
    ("gradient", "grad_avg"): "gradient 'net.1.w' overlaps grad_avg 'net.0' in memory, which the step writes",
    ("gradient", "ema"): "gradient 'net.1.w' overlaps ema 'net.0' in memory, which the step writes",
}


@pytest.mark.parametrize("step", [name for name in STEPS if not STEPS[name].reads_only])
@pytest.mark.parametrize(("role", "of"), OVERLAPS)
def test_overlap(role, of, step):
    overlapping(role, of).refused(STEPS[step], ValueError, OVERLAPS[role, of])


@pytest.mark.parametrize("step", [name for name in STEPS if not STEPS[name].reads_only])
@pytest.mark.parametrize("role", ["parameter", "gradient"])
def test_the_same_array_twice(role, step):
    trees = Trees()
    trees.grads["net"][1]["w"] = good()
    if role == "parameter":
        trees.params["a"] = trees.params["net"][0].ravel()[:5]
        message = "parameter 'a' and parameter 'net.0' overlap in memory"
    else:
        trees.grads["net"][1]["w"] = trees.params["net"][1]["w"]
        message = "gradient 'net.1.w' is its parameter itself, which the step writes; pass a copy"
    trees.refused(STEPS[step], ValueError, message)


# ---- files in memory ----


def mapped(path, values, mode):
    values.tofile(path)
    return np.memmap(path, values.dtype, mode, shape=values.shape)


@pytest.mark.parametrize("step", STEPS)
def test_files_mapped_for_reading(step, tmp_path):
    trees = Trees()
    trees.grads["net"][1]["w"] = mapped(tmp_path / "grad", good(), "r")
    STEPS[step].call(trees.params, trees.grads, trees.state)


@pytest.mark.parametrize("step", [name for name in STEPS if not STEPS[name].reads_only])
def test_parameters_in_a_file_mapped_for_reading(step, tmp_path):
    trees = Trees()
    trees.params["net"][1]["w"] = mapped(tmp_path / "param", good(), "r")
    trees.refused(STEPS[step], ValueError, "parameter 'net.1.w' is read-only")


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_files_mapped_for_writing(mode, tmp_path):
    """A step writes through to the file, or to a copy of it in memory."""
    trees, plain = Trees(), Trees()
    before = plain.params["net"][1]["w"].copy()
    trees.params["net"][1]["w"] = mapped(tmp_path / "param", before, mode)
    for each in (trees, plain):
        rms.update_(each.params, each.grads, each.state)
    after = plain.params["net"][1]["w"]
    assert same_bits(trees.params["net"][1]["w"], after)
    trees.params["net"][1]["w"].flush()
    assert same_bits(np.fromfile(tmp_path / "param", "f4").reshape(SHAPE), after if mode == "r+" else before)


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="no SIGBUS on this system")
@pytest.mark.parametrize("step", ["numpy", "one thread", "two threads"])
def test_file_that_is_cut_while_it_is_mapped(step, tmp_path):
    """No program can go on that reads there: the system ends a step of NumPy's operations in the same way as ours."""
    code = """
import os, sys
import numpy as np
import rmsprop_native as rms
from rmsprop_native import _core
path, step = sys.argv[1:]
np.ones(1 << 16).tofile(path)
param = np.memmap(path, mode="r+")  # its bytes
param = param.view(float)
state = rms.init(param)
grad = np.ones(param.size)
rms.update_(param, grad, state)
os.truncate(path, 4096)
_core.set_grain(0)
rms.set_num_threads(2 if step == "two threads" else 1)
if step == "numpy":
    param -= 0.1 * grad
else:
    rms.update_(param, grad, state)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "param", step], check=False, timeout=60)
    assert done.returncode == -signal.SIGBUS


# ---- trees ----


# What makes trees of good ones, and the message. They are ValueErrors.
BAD_TREES = {
    "no gradient": (
        lambda p, g: (p, {"a": g["a"], "net": g["net"]}),
        "gradients do not have the keys of the parameters: missing ['z'], not known []",
    ),
    "a gradient too many": (
        lambda p, g: (p, g | {"y": g["a"]}),
        "gradients do not have the keys of the parameters: missing [], not known ['y']",
    ),
    "list for a dict": (lambda p, g: (p, list(g.values())), "gradients are a list, the parameters a dict"),
    "shorter list": (lambda p, g: (p, g | {"net": g["net"][:1]}), "gradients at 'net' are 1, the parameters 2"),
    "longer list": (lambda p, g: (p, g | {"net": [*g["net"], 0]}), "gradients at 'net' are 3, the parameters 2"),
    "array for a list": (
        lambda p, g: (p, g | {"net": g["a"]}), "gradients at 'net' are a ndarray, the parameters a list"
    ),
    "None for a list": (
        lambda p, g: (p, g | {"net": None}), "gradients at 'net' are a NoneType, the parameters a list"
    ),
    "deep gradients": (lambda p, g: (p, deep(g)), "gradients are a list, the parameters a dict"),
    "cyclic gradients": (lambda p, g: (p, cyclic(g)), "gradients are a list, the parameters a dict"),
    "no parameter": (
        lambda p, g: ({"a": p["a"], "net": p["net"]}, g),
        "parameters do not have the keys of those that init() got: missing ['z'], not known []",
    ),
    "an array alone": (lambda p, g: (p["a"], g), "parameters are a ndarray, those that init() got a dict"),
    "deep parameters": (lambda p, g: (deep(p), g), "parameters are a list, those that init() got a dict"),
    "cyclic parameters": (lambda p, g: (cyclic(p), g), "parameters are a list, those that init() got a dict"),
}  # fmt: skip


def bits(trees):
    return [a.tobytes() for tree in (trees.params, trees.grads) for a in leaves(tree)], everything([], trees.state)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", BAD_TREES)
def test_bad_tree(name, step):
    change, message = BAD_TREES[name]
    trees = Trees()
    before = bits(trees)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        STEPS[step].call(*change(trees.params, trees.grads), trees.state)
    assert bits(trees) == before


ENDLESS = "the tree has containers that are nested deeper than 256, or that contain themselves"


@pytest.mark.parametrize("make", [deep, cyclic])
def test_trees_without_an_end(make):
    """As parameters of a new state, and in the place of a leaf where parameters are copied."""
    trees = Trees()
    for start in (rms.init, rms.RMSProp, rms.reference.init):
        with pytest.raises(ValueError, match=f"^{ENDLESS}"):
            start(make(trees.params))
    trees.params["net"][1]["w"] = make(good())
    for step in STEPS.values():
        error, message = (ValueError, ENDLESS) if step.reads_only else (TypeError, "parameter 'net.1.w' is a list")
        trees.refused(step, error, message)


def test_trees_without_an_end_where_the_limit_of_calls_was_raised():
    code = """
import sys
import numpy as np
import rmsprop_native as rms
tree = [np.ones(1)]
for _ in range(100_000):
    tree = [tree]
sys.setrecursionlimit(10**6)
try:
    rms.init(tree)
except ValueError as error:
    print(str(error)[:30])
"""
    assert run_python(code) == "the tree has containers that a"


def test_a_bad_leaf_among_a_million():
    params, grads = np.ones((10**6, 1), "f4"), np.ones((10**6, 1), "f4")
    tree = list(params)
    state = rms.init(tree)
    bad = list(grads)
    bad[-1] = np.ones(2, "f4")
    message = r"^gradient '999999' has shape \(2,\), its parameter has \(1,\)$"
    with pytest.raises(ValueError, match=message):
        rms.update_(tree, bad, state)
    assert (params == 1).all()
    assert state.step == 0
    rms.update_(tree, list(grads), state)
    assert (params < 1).all()


# ---- numbers ----


class Raises:
    """A number whose conversion raises."""

    def __float__(self):
        raise KeyError("no number")


BAD_NUMBERS = {
    "NaN": (math.nan, ValueError),
    "infinity": (math.inf, ValueError),
    "-infinity": (-math.inf, ValueError),
    "too large for float32": (1e39, ValueError),
    "too large for a float": (10**400, ValueError),
    "string": ("0.1", TypeError),
    "bool": (True, TypeError),
    "complex": (1j, TypeError),
    "array": (np.array([0.1]), TypeError),
    "list": ([0.1], TypeError),
    "object": (Raises(), TypeError),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", ["lr", "grad_scale"])
@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_bad_number_of_a_call(name, number, step):
    value, error = BAD_NUMBERS[name]
    Trees().refused(STEPS[step], error, number, **{number: value})


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_schedule_that_returns_a_bad_number(name, step):
    value, error = BAD_NUMBERS[name]
    trees = Trees(lr=lambda taken: value if taken else 0.1)
    trees.refused(STEPS[step], error, "lr")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [KeyError, ZeroDivisionError, KeyboardInterrupt, MemoryError])
def test_schedule_that_raises(error, step):
    def schedule(taken):
        if taken:
            raise error("schedule")
        return 0.1

    trees = Trees(lr=schedule)
    trees.refused(STEPS[step], error, "'schedule'" if error is KeyError else "schedule")


@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_learning_rate_that_is_set(name):
    value, error = BAD_NUMBERS[name]
    trees = Trees()
    optimizer = rms.RMSProp(trees.params, lr=0.25)
    with pytest.raises(error, match="^lr"):
        optimizer.lr = value
    with pytest.raises(error, match="^lr"):
        trees.state.replace(lr=value)
    assert (optimizer.lr, trees.state.options.lr) == (0.25, 1e-3)

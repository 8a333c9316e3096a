"""Gradients of rows, and the message for every reason to refuse an array."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import refused, same_bits, small_tree

import rmsprop_native as rms
from rmsprop_native import reference
from rmsprop_native.arrays import merge_rows, refusal, title

# ---- parameters ----


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


class Layer:
    """As people write one."""

    def __init__(self):
        self.w, self.b, self.name = np.zeros((2, 3)), np.zeros(3), "dense"


class WithArrays:
    def __init__(self, count):
        for i in range(count):
            setattr(self, f"a{i}", np.zeros(2))


class Network:
    def __init__(self):
        self.layers = [Layer()]


FIRST_GUESSES = {
    "list of floats": ([0.1, 0.2], "parameter '0' is a float, not a numpy.ndarray; numpy.array(x) makes one, of a"),
    "float": (0.5, "the parameter is a float, not a numpy.ndarray; numpy.array(x) makes one, of a number"),
    "NumPy scalar": ({"w": np.float64(1)}, "parameter 'w' is a float64, not a numpy.ndarray; numpy.array(x) makes one"),
    "int": (1, "the parameter is an int, not a numpy.ndarray; numpy.array(x) makes one, of a number"),
    "layer": (Layer(), "the parameter is a Layer, not a numpy.ndarray; pass its arrays: {'w': x.w, 'b': x.b}"),
    "large layer": (WithArrays(4), "pass its arrays: {'a0': x.a0, 'a1': x.a1, 'a2': x.a2, ...}"),
    "smaller layer": (WithArrays(3), "pass its arrays: {'a0': x.a0, 'a1': x.a1, 'a2': x.a2}"),
    "layers": ([Layer(), Layer()], "parameter '0' is a Layer, not a numpy.ndarray; pass its arrays: {'w': x.w, "),
    "network": (Network(), "is a Network, not a numpy.ndarray; parameters are arrays in dicts, lists, tuples or data"),
    "generator": ((np.zeros(2) for _ in "ab"), "is a generator, not a numpy.ndarray; it can be read only once: "),
    "values": ({"w": np.zeros(2)}.values(), "is a dict_values, not a numpy.ndarray; pass the dict itself, or list"),
    "ints": (np.array([1, 2]), "the parameter has dtype int64; supported are float32, complex64, float64, complex"),
    "ints too": (np.array([1, 2]), "; .astype('float64') converts it"),
    "halves": (np.zeros(2, np.float16), "; squares of gradients need the range of float32 or bfloat16: "),
    "array of arrays": (np.array([np.zeros(1), np.zeros(2)], object), "bfloat16; give the arrays in it as a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_GUESSES)
def test_a_first_guess_that_is_wrong_says_what_to_do(name):
    params, message = FIRST_GUESSES[name]
    with pytest.raises(TypeError, match=re.escape(message)):
        rms.init(params)


def test_a_gradient_that_is_a_list_says_what_to_do():
    w = np.zeros(2)
    message = "the gradient is a list, not a numpy.ndarray; numpy.array(x) makes one, of a number or of a list of num"
    refused(TypeError, re.escape(message), w, [1.0, 2.0], rms.init(w))


def test_sparse_matrices_say_what_to_do():
    sparse = pytest.importorskip("scipy.sparse")
    w = np.zeros((2, 2))
    message = "is a csr_array, not a numpy.ndarray; .toarray() makes one; a gradient of some rows may be a RowGrad"
    refused(TypeError, re.escape(message), w, sparse.csr_array(w), rms.init(w))


SWAPPED = {
    "state before gradients": lambda w, g, s: (w, s, g),
    "state first": lambda w, g, s: (s, w, g),
}


@pytest.mark.parametrize("step", [rms.update_, rms.update], ids=["update_", "update"])
@pytest.mark.parametrize("order", SWAPPED)
def test_swapped_arguments(order, step):
    w, g = np.zeros(2), np.ones(2)
    state = rms.init(w)
    message = r"^state must be a State, which init\(\) makes, got ndarray; the order is \(params, grads, state\)$"
    with pytest.raises(TypeError, match=message):
        step(*SWAPPED[order](w, g, state))
    assert state.step == 0
    with pytest.raises(TypeError, match=r"got RMSProp; an RMSProp has its own: call its step\(grads\), or pass its "):
        step(w, g, rms.RMSProp(w))
    with pytest.raises(TypeError, match=r"^state must be a State, which init\(\) makes, got dict$"):
        step(w, g, {})


def test_a_row_grad_cannot_be_changed():
    grad = rms.RowGrad([1], np.ones((1, 2)))
    with pytest.raises(AttributeError, match="a RowGrad cannot be changed: make another one to have other rows"):
        grad.rows = [0]
    assert repr(grad) == "RowGrad(rows=[1], values=array([[1., 1.]]))"
    for other in (copy.copy(grad), pickle.loads(pickle.dumps(grad))):
        assert type(other) is rms.RowGrad
        assert other.rows == [1]
        assert same_bits(other.values, grad.values)


# ---- gradients ----


# Each makes the last gradient bad, so that an update made leaf by leaf would have written the first ones.
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
        lambda g: g.astype(g.dtype.newbyteorder()),
        TypeError,
        r"gradient 'layer1\.b' has byte order .*astype\('float32'\)",
    ),
    "misaligned": (
        lambda g: np.frombuffer(b"\0" + g.tobytes(), np.uint8)[1:].view(g.dtype),
        ValueError,
        r"'layer1\.b' is misaligned",
    ),
}


@pytest.mark.parametrize("how", BAD_GRADIENTS)
def test_bad_gradient_writes_nothing(how, rng):
    params, grads = small_tree(rng), small_tree(rng)
    change, error, match = BAD_GRADIENTS[how]
    state = rms.init(params, momentum=0.9, centered=True)
    rms.update_(params, grads, state)
    grads["layer1"]["b"] = change(grads["layer1"]["b"])
    refused(error, match, params, grads, state)


# ---- every reason ----

HEADER = (Path(__file__).parent.parent / "src" / "c" / "rmsp.h").read_text()
REASONS = re.findall(r"\bX\(\w+, (\w+)\)", re.search(r"#define RMSP_REASONS\(X\)(.*?)#define", HEADER, re.DOTALL)[1])

ONES = np.ones(3)
READ_ONLY = np.ones(3)
READ_ONLY.flags.writeable = False
SHARED = np.ones(3)
MISALIGNED = np.zeros(25, np.uint8)[1:].view(np.float64)

# For each reason: parameters and gradients, options, and the start of the message.
REFUSALS = {
    "absent": ([None], [ONES], {}, TypeError, "parameter '0' is a NoneType, not a numpy.ndarray"),
    "not_an_array": ([ONES.copy()], [[1, 2, 3]], {}, TypeError, "gradient '0' is a list, not a numpy.ndarray"),
    "masked": (
        [ONES.copy()],
        [np.ma.ones(3)],
        {},
        TypeError,
        r"gradient '0' is a masked array; pass its .data or .filled\(0\)",
    ),
    "unsupported": (
        [ONES.copy()],
        [ONES > 0],
        {},
        TypeError,
        "gradient '0' has dtype bool; supported are float32, complex64, float64, complex128 and bfloat16",
    ),
    "byte_order": (
        [ONES.copy()],
        [ONES.astype(ONES.dtype.newbyteorder())],
        {},
        TypeError,
        r"gradient '0' has byte order '[<>]f8'; convert it with .astype\('float64'\)",
    ),
    "misaligned": (
        [ONES.copy()],
        [MISALIGNED],
        {},
        ValueError,
        r"gradient '0' is misaligned in memory; copy it with .copy\(\)",
    ),
    "other_dtype": (
        [ONES.copy()],
        [ONES.astype("f4")],
        {},
        TypeError,
        "gradient '0' has dtype float32, its parameter has float64",
    ),
    "other_shape": (
        [ONES.copy()],
        [np.ones(4)],
        {},
        ValueError,
        r"gradient '0' has shape \(4,\), its parameter has \(3,\)",
    ),
    "read_only": ([READ_ONLY], [ONES], {}, ValueError, "parameter '0' is read-only"),
    "self_overlap": (
        [np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,))],
        [ONES],
        {},
        ValueError,
        r"parameter '0' has strides \(0,\): some of its elements share memory; copy it with .copy\(\)",
    ),
    "overlap": (
        [SHARED],
        [SHARED[::-1]],
        {},
        ValueError,
        "gradient '0' overlaps its parameter in memory, which the step writes",
    ),
    "rows_accumulated": (
        [ONES.copy()],
        [rms.RowGrad([0], np.ones(1))],
        {"accumulate": 2},
        ValueError,
        "gradient '0' is a RowGrad, which cannot be accumulated: rows left out would be decayed",
    ),
}

# Reasons that no array of NumPy has.
UNREACHABLE = {
    "ok": "it is no refusal",
    "device": "it is one of tensors: tests/peers/test_torch_tensors.py",
    "not_strided": "it is one of tensors",
    "lazy_bits": "it is one of tensors",
    "null_data": "NumPy makes no array with elements and without memory",
    "row_outside": "merge_rows refuses the row first, with its value",
    "row_order": "merge_rows sorts the rows",
    "rows_strided": "merge_rows makes the values contiguous",
    "not_c_order": "it is one of buffers that are given, as tensors are",
    "needs_axes": "the plan allocates axes and binds again",
}


def test_every_reason_is_in_one_of_the_two_lists():
    assert sorted(REASONS) == sorted([*REFUSALS, *UNREACHABLE])


@pytest.mark.parametrize("reason", REFUSALS)
def test_message_of_every_reason(reason):
    params, grads, options, error, match = REFUSALS[reason]
    state = rms.init([ONES.copy()], **options)
    with pytest.raises(error, match=f"^{match}"):
        rms.update_(params, grads, state)
    assert state.step == 0


def test_a_lone_leaf_has_no_path():
    assert (title("gradient", "a.b"), title("gradient", "")) == ("gradient 'a.b'", "the gradient")
    error = refusal("other_shape", "the gradient", ONES, shape=(2,), owner="its parameter")
    assert str(error) == "the gradient has shape (3,), its parameter has (2,)"


def test_messages_do_not_use_the_properties_of_a_subclass():
    """Shape and dtype in a message are those of the ndarray, whatever the subclass returns for them."""

    class Lying(np.ndarray):
        shape = property(lambda self: (7,))
        dtype = property(lambda self: np.dtype(int))

    param = np.zeros(3)
    with pytest.raises(ValueError, match=r"the gradient has shape \(4,\), its parameter has \(3,\)"):
        rms.update_(param, np.zeros(4).view(Lying), rms.init(param))


# ---- rows ----


BAD_ROWS = {
    "too large": ([0, 5], (2, 3), IndexError, "gradient 'emb' has row 5 at place 1, its parameter has 5 rows"),
    "negative": ([-1], (1, 3), IndexError, "gradient 'emb' has row -1 at place 0, its parameter has 5 rows"),
    "float": ([0.0], (1, 3), TypeError, "gradient 'emb' has rows of dtype float64, not integers"),
    "bool": (np.array([True]), (1, 3), TypeError, "rows of dtype bool"),
    "2-d": ([[0]], (1, 3), ValueError, r"rows of shape \(1, 1\), its parameter has shape \(5, 3\)"),
    "count": ([0, 1], (3, 3), ValueError, r"has shape \(3, 3\), its parameter has \(5, 3\); the values of 2 rows have"),
    "width": ([0], (1, 1), ValueError, r"has shape \(1, 1\)"),
    "dtype": ([0], (1, 3), TypeError, "gradient 'emb' has dtype float32, its parameter has float64"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_write_nothing(name):
    rows, shape, error, match = BAD_ROWS[name]
    params = {"w": np.zeros(2), "emb": np.zeros((5, 3))}
    state = rms.init(params)
    values = np.ones(shape, np.float32 if name == "dtype" else np.float64)
    with pytest.raises(error, match=match):
        rms.update_(params, {"w": np.ones(2), "emb": rms.RowGrad(rows, values)}, state)
    assert not params["w"].any()
    assert state.step == 0


def test_rows_that_overlap_their_table_are_refused():
    table = np.zeros((5, 3))
    with pytest.raises(ValueError, match="the gradient overlaps its parameter"):
        rms.update_(table, rms.RowGrad([0], table[1:2]), rms.init(table))


def test_rows_cannot_be_accumulated():
    table = np.zeros((5, 3))
    with pytest.raises(ValueError, match="RowGrad, which cannot be accumulated: rows left out would be decayed"):
        rms.update_(table, rms.RowGrad([0], np.ones((1, 3))), rms.init(table, accumulate=2))


def test_merged_rows_are_in_memory_of_their_own():
    """Another thread that writes to the caller's rows afterwards changes nothing."""
    rows, values = np.array([1, 3]), np.ones((2, 2))
    merged, same = merge_rows("w", rms.RowGrad(rows, values), (5, 2))
    assert not np.shares_memory(merged, rows)
    assert merged.dtype == np.intp
    assert np.shares_memory(same, values)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u8", "list"])
def test_rows_of_any_integer_type(dtype):
    rows = [3, 0, 3] if dtype == "list" else np.array([3, 0, 3], dtype)
    merged, values = merge_rows("w", rms.RowGrad(rows, np.array([[1.0], [2.0], [4.0]])), (5, 1))
    assert (merged.tolist(), values.tolist()) == ([0, 3], [[2.0], [5.0]])


def test_a_row_too_large_for_an_index_is_named():
    with pytest.raises(IndexError, match=f"gradient 'w' has row {2**64 - 1} at place 0, its parameter has 5 rows"):
        merge_rows("w", rms.RowGrad(np.array([2**64 - 1], np.uint64), np.ones(1)), (5,))


@pytest.mark.parametrize("rows", [[0, 2, 1], [0, 1, 1], [2, 2, 2], [0, 1, 2]])
def test_rows_that_are_not_in_order_are_merged(rows):
    values = np.array([[1.0], [2.0], [4.0]])
    merged, sums = merge_rows("w", rms.RowGrad(rows, values), (3, 1))
    assert merged.tolist() == sorted(set(rows))
    assert sums.tolist() == [[values[np.equal(rows, row)].sum()] for row in merged]


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16", "bfloat16"])
def test_merged_values_are_those_of_the_reference(dtype, rng):
    rows = rng.integers(0, 6, 40)
    sum_dtype = "f4" if dtype == "bfloat16" else dtype
    for shape in ((40,), (40, 3), (40, 2, 2)):
        values = (rng.standard_normal(shape) * 10.0 ** rng.integers(-8, 8, shape)).astype(
            reference.bfloat16() if dtype == "bfloat16" else dtype
        )
        merged, sums = merge_rows("w", rms.RowGrad(rows, values), (6, *shape[1:]))
        ref_merged, ref_sums = reference.merge_rows(rows, values.astype(sum_dtype))
        assert same_bits(merged, ref_merged)
        assert sums.dtype == sum_dtype
        assert same_bits(sums, ref_sums)
        assert sums.flags.c_contiguous


def test_values_that_are_no_array_of_as_many_rows_are_left_to_the_binder():
    for values in (None, [1.0], np.ma.ones(1), np.ones(2), np.array(1.0)):
        rows, same = merge_rows("w", rms.RowGrad([2], values), (5,))
        assert rows.tolist() == [2]
        assert same is values or np.shares_memory(same, values)


def test_a_row_gradient_is_a_frozen_pair():
    grad = rms.RowGrad([0], ONES)
    with pytest.raises(AttributeError):
        grad.rows = [1]
    assert grad != rms.RowGrad([0], ONES)  # arrays have no one truth value, so that pairs of them are not compared


def test_no_rows_at_all():
    """An empty list is of no dtype that could be asked for integers; an empty array is."""
    table = np.ones((4, 2))
    state = rms.init(table)
    rms.update_(table, rms.RowGrad([], np.zeros((0, 2))), state)
    assert (state.step, table.min()) == (1, 1)
    with pytest.raises(TypeError, match="^the gradient has rows of dtype float64, not integers$"):
        rms.update_(table, rms.RowGrad(np.zeros(0), np.zeros((0, 2))), state)


@pytest.mark.parametrize(
    ("package", "methods", "hint"),
    [
        ("torch.nn.modules.linear", {"parameters": lambda self: []}, "; pass list(x.parameters())"),
        ("torch.distributed", {}, "; of torch's tensors only torch.Tensor and torch.nn.Parameter are taken, of a "),
        ("mine", {"parameters": lambda self: []}, "; parameters are arrays in dicts, lists, tuples or dataclasses: "),
    ],
)
def test_an_object_of_a_framework_in_the_place_of_its_parameters(package, methods, hint):
    thing = type("Linear", (), {"__module__": package, **methods})()
    with pytest.raises(TypeError, match=f"^the parameter is a Linear, not a numpy.ndarray{re.escape(hint)}"):
        rms.init(thing)


def test_messages_about_tensors():
    """What has no strides is on another device, or sparse."""

    class Tensor:
        shape, dtype = (3,), "torch.float32"

        def __init__(self, device):
            self.device = type("device", (), {"type": device, "__str__": lambda self: self.type})()

        def stride(self):
            raise RuntimeError("it is sparse")

    assert str(refusal("not_strided", "the gradient", Tensor("cpu"))) == (
        "the gradient has no memory laid out by strides (a sparse tensor?); pass .to_dense()"
    )
    moved = "the gradient is on device mps; a step runs on the CPU: move it with .cpu()"
    assert str(refusal("not_strided", "the gradient", Tensor("mps"))) == moved
    assert str(refusal("device", "the gradient", Tensor("mps"))) == moved
    assert str(refusal("read_only", "the gradient", Tensor("mps"))) == "the gradient is read-only"
    error = refusal("overlap", "the gradient", ONES, other="its parameter")
    assert str(error) == "the gradient overlaps its parameter in memory, which the step writes; pass a copy"

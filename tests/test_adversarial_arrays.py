"""Arrays that change between and during calls, that lie about themselves, or that share memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import same_bits
from hostile import Code, Pair, everything, refused

import rmsprop_native as rms
from rmsprop_native import reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy warns of shape and dtype set in place

as_strided = np.lib.stride_tricks.as_strided


# ---- changed in place between calls ----


def strided(shape):
    return np.ones((*shape[:-1], 2 * shape[-1]))[..., ::2]


GRADIENTS = {
    "dense": np.ones,
    "strided": strided,
    "rows": lambda shape: rms.RowGrad([0, 1], np.ones((2, *shape[1:]))),
    "None": lambda shape: None,
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("how", ["shape", "resize"])
def test_parameter_reshaped_between_calls_is_refused(how, kind):
    param = np.arange(6.0).reshape(2, 3).copy()
    pair = Pair(param, momentum=0.5)
    pair.step(GRADIENTS[kind]((2, 3)))
    if how == "shape":
        param.shape = (3, 2)
    else:
        param.resize((3, 2))
    for grad in (GRADIENTS[kind]((3, 2)), GRADIENTS[kind]((2, 3))):
        pair.refused(ValueError, r"the parameter has shape \(3, 2\), its square_avg has \(2, 3\)", grad)
    param.shape = (2, 3)
    pair.step(GRADIENTS[kind]((2, 3)))


@pytest.mark.parametrize("dtype", ["i8", ">f8", "f4", "c16", "M8[s]", "S8"])
def test_parameter_whose_dtype_is_set_in_place_is_refused(dtype):
    param = np.arange(4.0)
    pair = Pair({"w": param})
    pair.step({"w": np.ones(4)})
    param.dtype = dtype
    for grad in (np.ones(4), np.ones(4).view(dtype)):
        pair.refused(TypeError, "parameter 'w' has (dtype|byte order)", {"w": grad})
    param.dtype = "f8"
    pair.step({"w": np.ones(4)})


def test_gradient_whose_dtype_or_shape_is_set_in_place_is_refused():
    pair = Pair({"w": np.arange(4.0)})
    grad = np.ones(4)
    pair.step({"w": grad})
    grad.dtype = "i8"
    pair.refused(TypeError, "gradient 'w' has dtype int64; supported are", {"w": grad})
    grad.dtype = "f8"
    grad.shape = (2, 2)
    pair.refused(ValueError, r"gradient 'w' has shape \(2, 2\), its parameter has \(4,\)", {"w": grad})
    grad.shape = (4,)
    pair.step({"w": grad})


def test_parameter_made_read_only_between_calls_is_refused():
    param = np.ones(3)
    pair = Pair([np.ones(2), param])
    pair.step([np.ones(2), np.ones(3)])
    param.flags.writeable = False
    pair.refused(ValueError, "parameter '1' is read-only", [np.ones(2), np.ones(3)])
    pair.step([np.ones(2), None])
    param.flags.writeable = True
    pair.step([np.ones(2), np.ones(3)])


def test_parameter_made_read_only_during_an_accumulation_is_refused():
    param = np.ones(3)
    pair = Pair([np.ones(2), param], accumulate=3)
    pair.step([np.ones(2), np.ones(3)])
    param.flags.writeable = False
    for grads in ([np.ones(2), np.ones(3)], [np.ones(2), None], [None, None]):
        pair.refused(ValueError, "parameter '1' is read-only", grads)
    param.flags.writeable = True
    pair.step([np.ones(2), None])
    pair.step([None, None])
    assert pair.state.step == 1


def test_parameter_can_be_resized_between_calls_since_the_state_does_not_hold_it():
    param = np.ones(4)
    state = rms.init(param)
    rms.update_(param, np.ones(4), state)
    param.resize(1000, refcheck=True)
    with refused(ValueError, r"the parameter has shape \(1000,\), its square_avg has \(4,\)", param, state):
        rms.update_(param, np.ones(1000), state)


@pytest.mark.parametrize("other", [(16, 32), (32, 16)], ids=str)
def test_other_elements_of_the_same_bytes_are_compared_anew(other):
    """A view with the same first and last byte as the one stepped before."""
    memory = np.arange(16.0)
    first, second = as_strided(memory, (2, 2), (8, 40)), as_strided(memory, (2, 2), other)
    param, between, third = memory[2:5], memory[2:5], np.zeros(3)
    ones = [np.ones((2, 2)), np.ones(3)]
    state = rms.init([first, param])
    rms.update_([first, param], ones, state)
    with refused(ValueError, "parameter '0' and parameter '1' overlap in memory", [second, param], state):
        rms.update_([second, param], ones, state)
    state = rms.init([first, third])
    rms.update_([first, third], [ones[0], between], state)
    with refused(ValueError, "gradient '1' overlaps parameter '0' in memory", [second, third], state):
        rms.update_([second, third], [ones[0], between], state)


def test_gradient_that_was_clear_of_all_is_compared_anew_when_a_parameter_moves():
    memory = np.arange(30.0)
    pair = Pair([memory[0:5], memory[10:15]])
    grad = memory[20:25]
    pair.step([np.ones(5), grad])
    moved = [memory[20:25], memory[10:15]]
    with refused(ValueError, "gradient '1' overlaps parameter '0' in memory", moved, pair.state):
        rms.update_(moved, [np.ones(5), grad], pair.state)
    pair.step([np.ones(5), grad])
    pair.step([np.ones(5), None])
    with refused(ValueError, "gradient '1' overlaps parameter '0' in memory", moved, pair.state):
        rms.update_(moved, [None, grad], pair.state)
    pair.step([np.ones(5), grad])


# ---- changed in the middle of a call ----


CHANGES = {
    "shape": (lambda p: setattr(p, "shape", (2, 2, 3)), ValueError, r"parameter '0' has shape \(2, 2, 3\)"),
    "dtype": (lambda p: setattr(p, "dtype", "i8"), TypeError, "parameter '0' has dtype int64"),
    "flags": (lambda p: setattr(p.flags, "writeable", False), ValueError, "parameter '0' is read-only"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("warm", [False, True])
def test_parameter_changed_by_the_rows_of_another_leaf_is_refused(warm, change):
    param = np.ones((4, 3))
    params = [param, np.ones((4, 3))]
    state = rms.init(params)
    grads = [np.ones((4, 3)), rms.RowGrad([1], np.ones((1, 3)))]
    if warm:
        rms.update_(params, grads, state)
    act, error, match = CHANGES[change]
    with refused(error, match, params, state):
        rms.update_(params, [grads[0], rms.RowGrad(Code([1], lambda: act(param)), np.ones((1, 3)))], state)


def test_array_cannot_be_resized_in_the_middle_of_a_call():
    param = np.ones((4, 3))
    refusals = []

    def resize():
        with pytest.raises(ValueError, match="cannot resize") as caught:
            param.resize((1000, 3), refcheck=True)
        refusals.append(caught.value)

    pair = Pair([param, np.ones((4, 3))])
    pair.step(
        [np.ones((4, 3)), rms.RowGrad(Code([1], resize), np.ones((1, 3)))],
        [np.ones((4, 3)), rms.RowGrad([1], np.ones((1, 3)))],
    )
    assert refusals


# ---- rows ----


def test_rows_changed_by_the_rows_of_another_leaf_are_those_of_the_first_look():
    """``__array__`` may give an array that other code holds, even where NumPy asks for a copy."""
    rows = np.array([0, 2])

    def spoil():
        rows[:] = 10**6, 2 * 10**6

    pair = Pair([np.ones((4, 2)), np.ones((4, 2))], momentum=0.9)
    values = np.ones((2, 2))
    pair.step(
        [rms.RowGrad(Code(rows), values), rms.RowGrad(Code([1, 3], spoil), values)],
        [rms.RowGrad([0, 2], values), rms.RowGrad([1, 3], values)],
    )
    assert rows[0] == 10**6


@pytest.mark.parametrize("where", ["parameter", "square_avg", "momentum_buffer"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_rows_that_lie_in_memory_that_the_step_writes(wrapped, where):
    pair = Pair(np.zeros((4, 3)), momentum=0.9)
    for params, state in ((pair.params, pair.state), (pair.ref_params, pair.ref_state)):
        array = params if where == "parameter" else getattr(state, where)
        array[0].view(np.int64)[...] = 0, 1, 2  # as numbers, the smallest there are
    array = pair.params if where == "parameter" else getattr(pair.state, where)
    rows = array[0].view(np.int64)
    values = np.ones((3, 3))
    pair.step(rms.RowGrad(Code(rows) if wrapped else rows, values), rms.RowGrad([0, 1, 2], values))
    assert rows[1] != 1


def test_values_of_rows_that_overlap_what_is_written_are_refused():
    pair = Pair({"e": np.ones((4, 2)), "b": np.ones(8)}, momentum=0.9)
    b = np.ones(8)
    for array, name in (
        (pair.params["e"][1:3], "its parameter"),
        (pair.params["b"][:4].reshape(2, 2), "parameter 'b'"),
        (pair.state.square_avg["e"][1:3], "its square_avg"),
        (pair.state.momentum_buffer["b"][:4].reshape(2, 2), "momentum_buffer 'b'"),
    ):
        pair.refused(ValueError, f"gradient 'e' overlaps {name}", {"e": rms.RowGrad([0, 1], array), "b": b})


BAD_ROWS = {
    "no values": (rms.RowGrad([0], None), TypeError, "gradient 'e' is a NoneType, not a numpy.ndarray"),
    "list of values": (rms.RowGrad([0], [[1.0, 1.0]]), TypeError, "gradient 'e' is a list"),
    "masked": (rms.RowGrad([1, 0], np.ma.ones((2, 2))), TypeError, "gradient 'e' is a masked array"),
    "strings": (rms.RowGrad([0, 0], np.array([["a", "b"]] * 2)), TypeError, "gradient 'e' has dtype <U1"),
    "float rows": (rms.RowGrad([0.0], np.ones((1, 2))), TypeError, "gradient 'e' has rows of dtype float64"),
    "bool rows": (rms.RowGrad([True] * 4, np.ones((4, 2))), TypeError, "gradient 'e' has rows of dtype bool"),
    "outside": (rms.RowGrad([0, 4], np.ones((2, 2))), IndexError, "gradient 'e' has row 4 at place 1"),
    "negative": (rms.RowGrad([-1], np.ones((1, 2))), IndexError, "gradient 'e' has row -1 at place 0"),
    "huge": (
        rms.RowGrad(np.array([2**63 + 1], np.uint64), np.ones((1, 2))), IndexError,
        "gradient 'e' has row 9223372036854775809"
    ),
    "huge int": (rms.RowGrad([2**70], np.ones((1, 2))), TypeError, "gradient 'e' has rows of dtype object"),
    "fewer values": (rms.RowGrad([0, 1], np.ones((1, 2))), ValueError, r"the values of 2 rows have \(2, 2\)"),
    "flat values": (rms.RowGrad([0, 1], np.ones(2)), ValueError, r"the values of 2 rows have \(2, 2\)"),
    "0-d values": (rms.RowGrad([0], np.array(1.0)), ValueError, r"the values of 1 rows have \(1, 2\)"),
    "2-d rows": (rms.RowGrad([[0]], np.ones((1, 2))), ValueError, r"gradient 'e' has rows of shape \(1, 1\)"),
    "0-d rows": (rms.RowGrad(0, np.ones((1, 2))), ValueError, r"gradient 'e' has rows of shape \(\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_write_nothing(name):
    grad, error, match = BAD_ROWS[name]
    pair = Pair({"b": np.ones(3), "e": np.ones((4, 2))})
    pair.refused(error, match, {"b": np.ones(3), "e": grad})
    pair.step({"b": np.ones(3), "e": np.ones((4, 2))})


def test_rows_of_any_int_dtype_byte_order_and_layout(rng):
    pair = Pair(np.ones((6, 2)), centered=True)
    for dtype in ("i1", "u2", ">i8", "u8", "i4"):
        rows = np.array([5, 9, 1, 9, 3], dtype)[::2]
        misaligned = np.frombuffer(b"\0" + rows.tobytes(), np.uint8)[1:].view(dtype)
        for given in (rows, misaligned, rows[::-1], rows.tolist()):
            pair.step(rms.RowGrad(given, rng.standard_normal((3, 2))[::-1]))


def test_no_rows_and_rows_of_no_elements():
    pair = Pair(np.ones((6, 2)), clip_norm=1.0)
    pair.step(rms.RowGrad([], np.ones((0, 2))))
    pair = Pair([np.ones((6, 0)), np.ones((0, 3))])
    pair.step([rms.RowGrad([1, 4], np.ones((2, 0))), rms.RowGrad([], np.ones((0, 3)))])


# ---- arrays that lie about themselves ----


def liar(**says):
    """A subclass of ndarray that says these things about itself."""

    def says_instead(value):
        return property(lambda self: value)

    return type("Liar", (np.ndarray,), {name: says_instead(value) for name, value in says.items()})


def raises(self, *_, **__):
    raise AssertionError("the code of a subclass was run")


LIES = {
    "shape": {"shape": (1000,)},
    "strides": {"strides": (8000,)},
    "size": {"size": 1000, "nbytes": 8000, "ndim": 3, "itemsize": 1},
    "dtype": {"dtype": np.dtype("f4")},
    "interface": {"__array_interface__": {"data": (16, False), "shape": (99,), "typestr": "<f8", "version": 3}},
    "struct": {"__array_struct__": 5},
    "ctypes": {"ctypes": None, "data": None, "base": None},
    "class": {"__class__": dict},
    "class of rows": {"__class__": rms.RowGrad},
    "class of masked": {"__class__": np.ma.MaskedArray},
}
LYING = {name: liar(**says) for name, says in LIES.items() if name != "class"}
METHODS = ["array", "array_ufunc", "array_function", "getitem", "setitem", "len", "iter", "eq", "hash", "reduce"]
METHODS = [f"__{name}__" for name in METHODS] + ["copy", "view", "astype", "tobytes", "ravel", "reshape"]
LYING["code"] = type("Code", (np.ndarray,), dict.fromkeys(METHODS, raises))


@pytest.mark.parametrize("lie", LYING)
def test_subclasses_are_stepped_as_what_they_are(lie, rng):
    values, grad = rng.standard_normal(6), rng.standard_normal(6)
    liars = [rng.standard_normal(6).view(LYING[lie]) for _ in range(2)]
    memory = [np.ndarray.view(a, np.ndarray) for a in liars]
    memory[0][...], memory[1][...] = values, grad
    pair = Pair([values.copy()], momentum=0.9)
    state = rms.init([liars[0]], momentum=0.9)
    for _ in range(2):
        rms.update_([liars[0]], [liars[1]], state)
        pair.step([grad])
    new, _ = rms.update([liars[0]], [liars[1]], state)
    pair.ref_step([grad])
    assert same_bits(np.ndarray.view(new[0], np.ndarray), pair.ref_params[0])


@pytest.mark.parametrize("lie", LYING)
def test_subclasses_as_values_of_rows(lie, rng):
    values = rng.standard_normal((3, 2))
    for rows in ([0, 1, 3], [3, 1, 0], [1, 3, 1]):
        pair = Pair([np.ones((4, 2))])
        pair.step([rms.RowGrad(rows, values.view(LYING[lie]))], [rms.RowGrad(rows, values)])


@pytest.mark.parametrize("lie", LYING)
def test_subclasses_of_another_shape_or_dtype_are_refused(lie):
    pair = Pair({"w": np.ones((4, 2))})
    for bad, error in (
        (np.ones((2, 4)), ValueError),
        (np.ones((4, 2), np.float32), TypeError),
        (np.ones(8), ValueError),
    ):
        pair.refused(error, "gradient 'w' has", {"w": bad.view(LYING[lie])})
    with pytest.raises(TypeError, match="the parameter has dtype int64"):
        rms.init(np.ones(3, int).view(LYING[lie]))


def test_array_that_says_that_it_is_a_container_is_refused():
    array = np.ones(3).view(liar(**LIES["class"]))
    with pytest.raises((TypeError, ValueError, IndexError)):
        rms.init(array)
    pair = Pair([np.ones(3)])
    pair.step([array], [np.ones(3)])


class ClaimsWritable(np.ndarray):
    @property
    def flags(self):
        return np.ones(1).flags


def test_immutable_bytes_are_never_written():
    text = np.ones(4).tobytes()
    before = bytes(bytearray(text))
    for make in (lambda a: a, lambda a: a.view(ClaimsWritable), lambda a: a[::2], lambda a: a[:1].reshape(())):
        array = make(np.frombuffer(text))
        with pytest.raises(ValueError, match="parameter 'w' is read-only"):
            rms.init({"w": array})
        shape = np.ndarray.shape.__get__(array)
        pair = Pair({"w": np.zeros(shape)}, accumulate=2)
        for grad in (np.ones(shape), np.ones(shape)):
            with refused(ValueError, "parameter 'w' is read-only", {"w": array}, pair.state):
                rms.update_({"w": array}, {"w": grad}, pair.state)
            pair.step({"w": grad})
        with refused(ValueError, "parameter 'w' is read-only", {"w": array}, pair.state):
            rms.update_({"w": array}, {"w": grad}, pair.state)
    assert text == before


# ---- shared memory ----


def test_gradient_that_is_another_parameter_is_refused():
    """F = a * b: the gradient of a is b."""
    pair = Pair({"a": np.arange(3.0), "b": np.ones(3)})
    pair.refused(
        ValueError, "gradient 'a' is parameter 'b' itself, which the step writes; pass a copy",
        {"a": pair.params["b"], "b": np.ones(3)},
    )  # fmt: skip
    pair.refused(ValueError, "gradient 'b' is parameter 'a' itself", {"a": np.ones(3), "b": pair.params["a"]})
    pair.refused(ValueError, "gradient 'b' overlaps parameter 'a' in memory", {"a": None, "b": pair.params["a"][::-1]})
    pair.step({"a": pair.params["b"].copy(), "b": pair.params["a"].copy()})


@pytest.mark.parametrize("name", ["square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum"])
@pytest.mark.parametrize("warm", [False, True])
def test_gradient_that_is_another_leafs_state_is_refused(warm, name):
    pair = Pair([np.ones(3), np.ones(3), np.ones(3)], momentum=0.9, centered=True, ema=0.9, accumulate=2)
    if warm:
        pair.step([np.ones(3)] * 3)
    array = getattr(pair.state, name)[2]
    for grad in (array, array[::-1], np.broadcast_to(array[1:2], 3)):
        pair.refused(ValueError, f"gradient '1' overlaps {name} '2'", [np.ones(3), grad, np.ones(3)])


def test_parameter_that_is_a_state_array_is_refused():
    params = [np.ones(3), np.ones(3)]
    state = rms.init(params)
    with refused(ValueError, "parameter '1' and square_avg '0' overlap in memory", params, state):
        rms.update_([params[0], state.square_avg[0]], [np.ones(3)] * 2, state)


def test_gradients_may_share_memory_with_each_other():
    grad = np.arange(4.0)
    pair = Pair([np.ones(4), np.ones((2, 2)), np.ones(4)])
    pair.step([grad, grad.reshape(2, 2), grad[::-1]])
    pair.step([grad, grad.reshape(2, 2).T, np.broadcast_to(grad[:1], 4)])


def test_overlap_is_decided_by_elements():
    """All pairs of some views of a small piece of memory, against NumPy's own decision."""
    memory = np.zeros(14)
    views = [
        as_strided(memory[start:], (2, 2), (8 * a, 8 * b))
        for start, a, b in itertools.product((0, 1, 3), (1, 2, 3, 5), (1, 2, 4, 5)) if a != b and start + a + b < 14
    ]  # fmt: skip
    views += [memory[10:6:-1].reshape(2, 2), memory[::-3][:4].reshape(2, 2)]
    other = np.ones((2, 2))
    state = rms.init([np.zeros((2, 2)), np.zeros((2, 2))])
    for one, two in itertools.product(views, repeat=2):
        memory[:] = 0
        if np.shares_memory(one, two):
            with refused(ValueError, "parameter '0' and parameter '1'", [memory], state):
                rms.update_([one, two], [other, other], state)
            with refused(ValueError, "the gradient (overlaps|is) its parameter", [memory], state.copy()):
                rms.update_(one, two, rms.init(np.zeros((2, 2))))
        else:
            rms.update_([one, two], [other, other], state)
            rms.update_(one, two, rms.init(np.zeros((2, 2))))


def test_empty_arrays_overlap_nothing():
    memory = np.zeros(20)
    params = [memory[0:20:2], memory[4:4], np.zeros((0, 5, 7)), as_strided(memory[3:], (5, 0), (-8, 2**40))]
    grads = [
        memory[1:20:2],
        memory[6:6],
        as_strided(memory, (0, 5, 7), (2**60, 2**59, -(2**58))),
        memory[:0].reshape(5, 0),
    ]
    pair = Pair([np.zeros(10), *params[1:]])
    for _ in range(2):
        pair.step(grads)
    state = rms.init(params)
    for _ in range(2):
        rms.update_(params, grads, state)
    assert state.step == 2


def test_outputs_of_ufuncs_that_share_memory_are_refused_whatever_their_dtype():
    arrays = [np.ones(3, np.float32) for _ in range(3)]
    numbers = {"lr": 0.1, "rho": 0.9, "eps": 1e-8}
    for dtype in (np.float32, np.float64, np.float16):
        memory = np.ones(5, dtype)
        with pytest.raises(ValueError, match="output 0 and output 1 are the same array"):
            rms.rmsprop(*arrays, **numbers, out=(memory, memory), casting="unsafe")
        with pytest.raises(ValueError, match="output 0 and output 1 overlap in memory"):
            rms.rmsprop(*arrays, **numbers, out=(memory[:3], memory[2:]), casting="unsafe")
        assert (memory == 1).all()


# ---- extreme shapes and strides ----


SHAPES = {"0": (), "64": (1,) * 64, "inner": (1,) * 30 + (2,) + (1,) * 33, "outer": (2, 1, 3) + (1,) * 61}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_0_and_64_dimensions(dtype, shape, rng):
    param, grad = (np.asarray(rng.standard_normal(shape)).astype(dtype) for _ in range(2))
    pair = Pair(param, centered=True, clip_norm=0.1)
    pair.step(grad)
    pair.step(grad.T.copy().T)
    pair.step(np.broadcast_to(grad.reshape(-1)[0], shape))
    if len(shape) == 64 and shape[0] == 2:
        pair.step(rms.RowGrad([1], grad[1:]))


def test_axes_of_length_1_may_have_any_stride():
    memory = np.arange(6.0)
    for strides in ((2**60, 8), (-(2**60), 8), (0, 8), (3, 8)):
        pair = Pair(np.ones((1, 6)), momentum=0.9)
        view = as_strided(memory, (1, 6), strides)
        pair.step(view, np.arange(6.0)[None])
        pair.step(rms.RowGrad([0], view), np.arange(6.0)[None])
        param = as_strided(np.ones(6), (1, 6), strides)
        rms.update_(param, np.arange(6.0)[None], rms.init(param, momentum=0.9))
        reference_param = np.ones((1, 6))
        reference.update_(reference_param, np.arange(6.0)[None], reference.init(reference_param, momentum=0.9))
        assert same_bits(param, reference_param)


def test_shapes_with_huge_axes_and_no_elements():
    shape = (0, 2**40, 2**19)
    pair = Pair(np.empty(shape))
    pair.step(np.empty(shape))
    pair.step(None)
    pair.refused(ValueError, "the gradient has shape", np.empty((0, 2**19, 2**40)))


def test_broadcast_parameters_are_refused():
    for shape, read_only in (((3, 4), True), ((3, 4), False)):
        view = as_strided(np.zeros(4), shape, (0, 8), writeable=not read_only)
        match = "the parameter is read-only" if read_only else "the parameter has strides .* share memory"
        with pytest.raises(ValueError, match=match):
            rms.init(view)
        state = rms.init(np.zeros(shape))
        with refused(ValueError, match, view, state):
            rms.update_(view, np.zeros(shape), state)


def test_memmap_opened_for_reading_is_refused_and_for_writing_is_stepped(tmp_path):
    path = tmp_path / "w"
    np.ones(5).tofile(path)
    with pytest.raises(ValueError, match="the parameter is read-only"):
        rms.init(np.memmap(path, "f8", "r"))
    pair = Pair(np.ones(5))
    param = np.memmap(path, "f8", "r+")
    state = rms.init(param)
    rms.update_(param, np.memmap(path, "f8", "r").copy(), state)
    pair.step(np.ones(5))
    with refused(ValueError, "the parameter is read-only", param, state):
        rms.update_(np.memmap(path, "f8", "r"), np.ones(5), state)
    param.flush()
    assert same_bits(np.fromfile(path), pair.params)


def test_two_maps_of_one_file_are_not_seen_to_overlap_and_do_no_harm(tmp_path):
    """Two addresses of the same memory: this cannot be detected. The result is undefined, and the state sound."""
    path = tmp_path / "w"
    np.ones(5).tofile(path)
    maps = [np.memmap(path, "f8", "r+") for _ in range(2)]
    state = rms.init(maps)
    rms.update_(maps, [np.ones(5), np.ones(5)], state)
    assert state.step == 1


# ---- random sequences ----


def layouts(rng, values):
    """The same values in some layout."""
    wide = np.empty((*values.shape[:-1], 2 * values.shape[-1]))
    wide[..., ::2] = values
    choices = [values.copy(), np.asfortranarray(values), wide[..., ::2], values[::-1].copy()[::-1]]
    return choices[rng.integers(len(choices))]


@pytest.mark.parametrize("seed", range(40))
def test_random_sequences_of_steps_moves_refusals_and_replacements(seed):
    """What one call leaves behind must not reach the next one, whatever comes first."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 4), (2, 2, 3), (5,), (600, 9)][: 2 + seed % 3]
    options = {"momentum": 0.9 * (seed % 2), "accumulate": 1 + (seed // 2) % 3, "ema": [None, 0.9][seed // 8 % 2]}
    options["on_nonfinite"] = ["propagate", "skip", "raise"][seed // 3 % 3]
    pair = Pair([layouts(rng, rng.standard_normal(shape)) for shape in shapes], **options)
    for _ in range(40):
        grads = [layouts(rng, rng.standard_normal(shape)) for shape in shapes]
        i = rng.integers(len(shapes))
        act = rng.integers(10)
        if act == 0:
            grads[i] = None
        elif act == 1 and options["accumulate"] == 1:
            rows = rng.integers(0, shapes[i][0], rng.integers(0, 4))
            grads[i] = rms.RowGrad(rows, rng.standard_normal((len(rows), *shapes[i][1:])))
        elif act == 2:
            new = layouts(rng, pair.params[i])
            pair.params[i] = new
        elif act == 3:
            clip = [None, 0.5, 100.0][rng.integers(3)]
            for state in (pair.state, pair.ref_state):
                changed = {
                    "clip_norm": None,
                    "clip_global_norm": None,
                    rng.choice(["clip_norm", "clip_global_norm"]): clip,
                }
                changed |= (
                    {"clip_norm": clip, "clip_global_norm": None}
                    if seed % 2
                    else {"clip_norm": None, "clip_global_norm": clip}
                )
                if state is pair.state:
                    state.replace(**changed)
                else:
                    state.options = state.options.replace(**changed)
        elif act == 4:
            overlapping = list(grads)
            overlapping[i] = pair.params[i][::-1]
            pair.refused(ValueError, f"gradient '{i}' overlaps its parameter", overlapping)
        elif act == 5:
            short = list(grads)
            short[i] = np.ones(7)
            pair.refused(ValueError, f"gradient '{i}' has shape", short)
        elif act == 6:
            pair.state = pair.state.copy()
        elif act == 7:
            grads[i] = grads[i].copy()
            grads[i].reshape(-1)[-1] = np.nan
            if options["on_nonfinite"] == "raise":
                pair.refused(FloatingPointError, f"gradient '{i}' has 1 of", grads)
                continue
        elif act == 8:
            pair.params[i].flags.writeable = False
            pair.refused(ValueError, f"parameter '{i}' is read-only", grads)
            pair.params[i].flags.writeable = True
        scale = [1.0, -1.0, 0.0, -0.0, 2.0][rng.integers(5)]
        lr = [None, 0.1, 0.0, 0.2][rng.integers(4)]
        pair.step(grads, lr=lr, grad_scale=scale)
    assert everything(pair.params, pair.state)[0][0] > 0

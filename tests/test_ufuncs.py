"""The ufuncs: the bits of the reference whatever the operands are, and what NumPy expects of any ufunc."""

from __future__ import annotations

import inspect
import pickle
import tracemalloc

import numpy as np
import pytest
from cases import DTYPES, ISAS, LAYOUTS, THREADS, hard_numbers
from conftest import same_bits

import rmsprop_native as rms
from rmsprop_native import _core, reference
from rmsprop_native.options import Options

WRAPPERS = {name: getattr(rms, name) for name in _core.UFUNCS}
OPERANDS = [(name, operand) for name, (arrays, _) in _core.UFUNCS.items() for operand in range(len(arrays))]
HYPER_PARAMETERS = [(name, number) for name, (_, numbers) in _core.UFUNCS.items() for number in numbers]
RATE_SHAPES = [(6, 1, 1), (6, 50, 1), (6, 50, 40), (1, 50, 1), (1, 1, 1), (40,), (6, 1, 40)]
NUMBERS = {"lr": 0.03, "rho": 0.9, "momentum": 0.8, "eps": 1e-3, "eps_inside": 0.0}


@pytest.fixture(autouse=True)
def _quiet():
    """Hard numbers overflow. Whether that is reported is tested in the tests of errstate."""
    with np.errstate(all="ignore"):
        yield


def numbers_of(wrapper):
    return {name: NUMBERS[name] for name in _core.UFUNCS[wrapper][1]}


def draw(wrapper, rng, shape, dtype):
    """The arrays of a wrapper in its order; running means of squares are not negative."""
    arrays = [hard_numbers(rng, shape, np.dtype(dtype)) for _ in _core.UFUNCS[wrapper][0]]
    arrays[2] = np.abs(arrays[2])
    return arrays


def expected(wrapper, arrays, *, lr, rho, eps, momentum=None, eps_inside=0.0):
    """What the reference makes of the broadcast operands, one set of hyper-parameters at a time."""
    names, _ = _core.UFUNCS[wrapper]
    dtype = np.result_type(*arrays)
    numbers = [np.asarray(0.0 if x is None else x, np.float64) for x in (lr, rho, momentum, eps, eps_inside)]
    shape = np.broadcast_shapes(*(np.shape(a) for a in arrays), *(x.shape for x in numbers))
    arrays = [np.broadcast_to(a, shape).astype(dtype) for a in arrays]
    numbers = np.stack([np.broadcast_to(x, shape) for x in numbers], axis=-1)
    outs = [np.empty(shape, dtype) for name in names if name != "grad"]
    options = Options(momentum=0.5 if "momentum_buffer" in names else 0.0, centered="grad_avg" in names)
    for values in np.unique(numbers.reshape(-1, 5), axis=0) if numbers.size else ():
        here = (numbers == values).all(axis=-1)
        one_lr, one_rho, one_momentum, one_eps, one_inside = map(float, values)
        coefficients = reference.coefficients(options, 1, one_lr, 1.0)._replace(
            rho=one_rho, one_minus_rho=1 - one_rho, momentum=one_momentum, eps_inside=one_inside, eps_outside=one_eps
        )
        by_name = {name: a[here] for name, a in zip(names, arrays, strict=True)}
        new = reference.step(coefficients, **by_name)
        for out, one in zip(outs, [a for a in new if a is not None], strict=True):
            out[here] = one
    return outs


def check(wrapper, arrays, got, **numbers):
    want = expected(wrapper, arrays, **numbers)
    assert len(got) == len(want)
    for name, one, other in zip([n for n in _core.UFUNCS[wrapper][0] if n != "grad"], got, want, strict=True):
        assert same_bits(one, other), name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("n", [1, 7, 64, 513, 8193, 40_000])
def test_bits_of_the_reference(n, wrapper, dtype, isa, rng):
    rms.use_isa(isa)
    arrays = draw(wrapper, rng, n, DTYPES[dtype])
    check(wrapper, arrays, WRAPPERS[wrapper](*arrays, **numbers_of(wrapper)), **numbers_of(wrapper))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("n", [8193, 40_000])
def test_bits_of_update_(n, wrapper, dtype, isa, rng):
    rms.use_isa(isa)
    names, _ = _core.UFUNCS[wrapper]
    arrays = draw(wrapper, rng, n, DTYPES[dtype])
    param = arrays[0].copy()
    options = {"momentum": 0.8} if "momentum_buffer" in names else {}
    state = rms.init(param, lr=0.03, rho=0.9, eps=1e-3, centered="grad_avg" in names, **options)
    for name, array in zip(names[2:], arrays[2:], strict=True):
        getattr(state, name)[...] = array
    rms.update_(param, arrays[1], state)
    got = WRAPPERS[wrapper](*arrays, **numbers_of(wrapper))
    for one, other in zip(got, (param, *(getattr(state, name) for name in names[2:])), strict=True):
        assert same_bits(one, other)


# ---- layouts: what a function makes of an array of shape (6, 10) ----

OPERAND_LAYOUTS = LAYOUTS | {
    "stride 0": lambda a: np.broadcast_to(a[:1], a.shape),
    "misaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "one row": lambda a: a[:1],
    "one column": lambda a: a[:, :1],
    "one element": lambda a: a[:1, :1],
    "1-d": lambda a: a[0],
    "0-d": lambda a: np.array(a[0, 0]),
}


@pytest.mark.parametrize("layout", OPERAND_LAYOUTS)
@pytest.mark.parametrize(("wrapper", "operand"), OPERANDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_of_any_operand(dtype, wrapper, operand, layout, rng):
    arrays = draw(wrapper, rng, (6, 10), DTYPES[dtype])
    arrays[operand] = OPERAND_LAYOUTS[layout](arrays[operand])
    native = [a.astype(a.dtype.newbyteorder("=")) for a in arrays]
    check(wrapper, native, WRAPPERS[wrapper](*arrays, **numbers_of(wrapper)), **numbers_of(wrapper))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_small_shapes(wrapper, shape, rng):
    arrays = draw(wrapper, rng, shape, np.float32)
    got = WRAPPERS[wrapper](*arrays, **numbers_of(wrapper))
    assert all(np.shape(a) == shape for a in got)
    check(wrapper, arrays, got, **numbers_of(wrapper))


def test_python_floats_give_float64_scalars():
    p, v = rms.rmsprop(1.0, 2.0, 0.0, lr=0.5, rho=0.75, eps=0.0)
    assert type(p) is type(v) is np.float64
    assert (p, v) == (0.0, 1.0)


@pytest.mark.parametrize("lr", [np.float64(0.03), np.float32(0.25), 1, np.array(0.03), 0.03], ids=repr)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_hyper_parameters_do_not_upcast(wrapper, lr, rng):
    arrays = draw(wrapper, rng, 9, np.float32)
    numbers = numbers_of(wrapper) | {"lr": lr}
    got = WRAPPERS[wrapper](*arrays, **numbers)
    assert all(a.dtype == np.float32 for a in got)
    check(wrapper, arrays, got, **numbers)


@pytest.mark.parametrize(("wrapper", "name"), HYPER_PARAMETERS)
@pytest.mark.parametrize("shape", ["element", "row", "column", "runs"])
def test_hyper_parameters_broadcast(shape, wrapper, name, rng):
    arrays = draw(wrapper, rng, (4, 700), np.float32)
    values = {
        "element": rng.uniform(0.1, 0.9, (4, 700)),
        "row": rng.uniform(0.1, 0.9, 700),
        "column": rng.uniform(0.1, 0.9, (4, 1)),
        "runs": np.repeat(rng.uniform(0.1, 0.9, 7), 100),
    }[shape]
    if shape == "element":  # the reference goes one set of numbers at a time
        arrays, values = [a[:, :20] for a in arrays], values[:, :20]
    numbers = numbers_of(wrapper) | {name: values}
    check(wrapper, arrays, WRAPPERS[wrapper](*arrays, **numbers), **numbers)
    outs = tuple(a for i, a in enumerate(arrays) if i != 1)
    want = expected(wrapper, arrays, **numbers)
    WRAPPERS[wrapper](*arrays, **numbers, out=outs)
    assert all(same_bits(a, b) for a, b in zip(outs, want, strict=True))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("shape", RATE_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_rates_of_rows_and_elements_in_place(wrapper, dtype, shape, threads, rng):
    """The wrapper takes what is contiguous to the library directly."""
    rms.set_num_threads(threads)
    _core.set_grain(0)
    arrays = draw(wrapper, rng, (6, 50, 40), DTYPES[dtype])
    lr = rng.choice([0.1, 0.0, 1e-60, 0.3], shape)  # few, since the reference goes one at a time
    numbers = numbers_of(wrapper) | {"lr": lr}
    want = expected(wrapper, arrays, **numbers)
    outs = tuple(a for i, a in enumerate(arrays) if i != 1)
    WRAPPERS[wrapper](*arrays, **numbers, out=outs)
    assert all(same_bits(a, b) for a, b in zip(outs, want, strict=True))


@pytest.mark.parametrize("lr", [np.inf, np.nan, -1.0], ids=str)
def test_rates_are_not_checked(lr, rng):
    """What a number that is no learning rate gives is the same in all ways to give it."""
    arrays = draw("rmsprop", rng, (3, 40), np.float32)
    numbers = numbers_of("rmsprop")
    want = rms.rmsprop(*arrays, **numbers | {"lr": lr})
    for shape in [(3, 40), (3, 1), (40,)]:
        p, g, v = (a.copy() for a in arrays)
        rms.rmsprop(p, g, v, **numbers | {"lr": np.full(shape, lr)}, out=(p, v))
        assert same_bits(p, want[0])
        assert same_bits(v, want[1])


@pytest.mark.parametrize("operand", ["lr", "rho", "eps"])
@pytest.mark.parametrize("array", [0, 1, 2], ids=["param", "grad", "square_avg"])
def test_numbers_that_are_an_operand(array, operand, rng):
    """float64 arrays may be numbers too; where they are written, what was read before counts."""
    arrays = [rng.uniform(0.1, 0.9, 2000) for _ in range(3)]
    numbers = numbers_of("rmsprop") | {operand: arrays[array]}
    want = rms.rmsprop(*[a.copy() for a in arrays], **numbers | {operand: arrays[array].copy()})
    rms.rmsprop(*arrays, **numbers, out=(arrays[0], arrays[2]))
    assert same_bits(arrays[0], want[0])
    assert same_bits(arrays[2], want[1])


# ---- aliasing ----

# Where each operand of rmsprop starts in one piece of memory, in elements: p, g, v, and the outputs p, v.
ALIASING = {
    "in place": (0, 100, 200, 0, 200),
    "swapped outputs": (0, 100, 200, 200, 0),
    "param in place": (0, 100, 200, 0, 300),
    "square_avg in place": (0, 100, 200, 300, 200),
    "param over gradient": (0, 100, 200, 100, 300),
    "square_avg over gradient": (0, 100, 200, 300, 100),
    "gradient is param": (0, 0, 200, 0, 200),
    "gradient is square_avg": (0, 200, 200, 0, 200),
    "all inputs the same": (0, 0, 0, 100, 200),
    "all inputs the same, one in place": (0, 0, 0, 0, 200),
    "param shifted up": (0, 100, 200, 1, 300),
    "param shifted down": (1, 100, 200, 0, 300),
    "square_avg shifted up": (0, 100, 200, 300, 201),
    "param over part of the gradient": (0, 100, 200, 130, 300),
    "square_avg over part of param": (0, 100, 200, 300, 30),
    "both shifted": (0, 100, 200, 3, 205),
}


@pytest.mark.parametrize("step", [1, 2, -1], ids=["contiguous", "strided", "reversed"])
@pytest.mark.parametrize("pattern", ALIASING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [50, 50 * 40], ids=["a block", "many blocks"])
def test_aliasing(n, dtype, pattern, step, rng):
    scale = n // 50
    memory = np.abs(rng.standard_normal(900 * scale)).astype(DTYPES[dtype])

    def piece(start):
        start = start * scale * 2 if start % 10 == 0 else (start // 10 * 10) * scale * 2 + start % 10
        return memory[start : start + n * abs(step)][::step]

    arrays, outs = [piece(s) for s in ALIASING[pattern][:3]], tuple(piece(s) for s in ALIASING[pattern][3:])
    want = expected("rmsprop", [a.copy() for a in arrays], **numbers_of("rmsprop"))
    got = rms.rmsprop(*arrays, **numbers_of("rmsprop"), out=outs)
    assert got[0] is outs[0]
    assert got[1] is outs[1]
    for one, other in zip(outs, want, strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize(
    ("slices", "match"),
    [
        ((slice(0, 8), slice(0, 8)), "output 0 and output 1 overlap in memory"),
        ((slice(0, 8), slice(7, 15)), "output 0 and output 1 overlap in memory"),
        ((slice(0, 16, 2), slice(0, 8)), "output 0 and output 1 overlap in memory"),
    ],
    ids=["same memory", "one element", "strided"],
)
def test_outputs_that_overlap_are_refused(slices, match):
    memory = np.ones(16)
    out = tuple(memory[s] for s in slices)
    with pytest.raises(ValueError, match=match):
        rms.rmsprop(np.ones(8), np.ones(8), np.ones(8), lr=0.1, rho=0.9, eps=0.0, out=out)
    with pytest.raises(ValueError, match="output 0 and output 1 are the same array"):
        rms.rmsprop(np.ones(16), np.ones(16), np.ones(16), lr=0.1, rho=0.9, eps=0.0, out=(memory, memory))
    assert (memory == 1).all()
    same_element, windows = (np.lib.stride_tricks.as_strided(memory, (8, 2), (8, step)) for step in (0, 8))
    for shared in (same_element, windows):
        with pytest.raises(ValueError, match=r"output 1 has strides \(8, .\): some of its elements share memory"):
            rms.rmsprop(*np.ones((3, 8, 2)), lr=0.1, rho=0.9, eps=0.0, out=(np.ones((8, 2)), shared))
    assert (memory == 1).all()
    interleaved = memory[::2], memory[1::2]
    rms.rmsprop(np.ones(8), np.ones(8), np.ones(8), lr=0.1, rho=0.9, eps=0.0, out=interleaved)


@pytest.mark.parametrize("mask", ["none", "all", "every third", "row", "runs"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_where(wrapper, mask, rng):
    arrays = draw(wrapper, rng, (3, 40), np.float32)
    masks = {
        "none": np.zeros((3, 40), bool),
        "all": np.ones((3, 40), bool),
        "every third": np.arange(120).reshape(3, 40) % 3 == 0,
        "row": np.array([[True], [False], [True]]),
        "runs": np.arange(40) // 7 % 2 == 0,
    }
    where = np.broadcast_to(masks[mask], (3, 40))
    outs = tuple(a.copy() for i, a in enumerate(arrays) if i != 1)
    want = [
        np.where(where, new, old)
        for new, old in zip(expected(wrapper, arrays, **numbers_of(wrapper)), outs, strict=True)
    ]
    WRAPPERS[wrapper](*arrays, **numbers_of(wrapper), out=outs, where=masks[mask])
    assert all(same_bits(a, b) for a, b in zip(outs, want, strict=True))


def test_in_place_allocates_nothing_large():
    p, g, v = (np.ones(1_000_000) for _ in range(3))
    tracemalloc.start()
    rms.rmsprop(p, g, v, lr=0.1, rho=0.9, eps=1e-8, out=(p, v))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 1024


@pytest.mark.parametrize("threads", THREADS)
def test_threads_give_the_same_bits(threads, rng):
    _core.set_grain(0)
    rms.set_num_threads(threads)
    p, g, v = draw("rmsprop", rng, 100_001, np.float32)
    want = expected("rmsprop", (p, g, v), **numbers_of("rmsprop"))
    rms.rmsprop(p, g, v, **numbers_of("rmsprop"), out=(p, v))
    assert same_bits(p, want[0])
    assert same_bits(v, want[1])


# ---- what NumPy expects of any ufunc ----


def test_array_ufunc_override():
    class Logged:
        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            return ufunc, method, len(inputs), sorted(kwargs)

    got = rms.rmsprop(Logged(), 1.0, 1.0, lr=0.1, rho=0.9, eps=0.0, where=np.array(True))
    assert got == (rms.rmsprop.ufunc, "__call__", 7, ["where"])


def test_subclasses_are_kept():
    class Named(np.ndarray):
        pass

    got = rms.rmsprop(np.ones(3).view(Named), np.ones(3), np.ones(3), lr=0.1, rho=0.9, eps=0.0)
    assert [type(a) for a in got] == [Named, Named]
    got = rms.rmsprop(np.ones(3).view(Named), np.ones(3), np.ones(3), lr=0.1, rho=0.9, eps=0.0, subok=False)
    assert [type(a) for a in got] == [np.ndarray, np.ndarray]


def test_masked_arrays_keep_their_mask():
    p = np.ma.masked_array(np.ones(3), [False, True, False])
    got = rms.rmsprop(p, np.ones(3), np.ones(3), lr=0.1, rho=0.9, eps=0.0)
    assert all(isinstance(a, np.ma.MaskedArray) for a in got)
    assert all(a.mask.tolist() == [False, True, False] for a in got)


@pytest.mark.parametrize("threads", THREADS)
def test_errstate_of_the_last_element(threads):
    """A floating-point exception in a worker is reported too."""
    _core.set_grain(0)
    rms.set_num_threads(threads)
    p, g, v = (np.ones(4 * _core.SPAN) for _ in range(3))
    v[-1] = -10.0
    with np.errstate(invalid="raise"), pytest.raises(FloatingPointError, match="invalid value"):
        rms.rmsprop(p, g, v, lr=0.1, rho=0.9, eps=0.0, out=(p, v))
    v[-1] = 1.0
    with np.errstate(all="raise"):
        rms.rmsprop(p[:-1], g[:-1], v[:-1], lr=0.1, rho=0.9, eps=0.0, out=(p[:-1], v[:-1]))


@pytest.mark.threads
def test_every_exception_of_a_worker_is_reported_in_place():
    """The share of the second thread ends with it; the first thread may take that chunk, hence the repetitions."""
    _core.set_grain(0)
    rms.set_num_threads(2)
    p, g, v = (np.ones(4 * _core.SPAN, np.float32) for _ in range(3))
    for number, kind in ((np.finfo(np.float32).max, "over"), (np.finfo(np.float32).tiny, "under")):
        g[-1] = number
        for _ in range(100):
            with np.errstate(all="ignore", **{kind: "raise"}), pytest.raises(FloatingPointError, match=f"{kind}flow"):
                rms.rmsprop(p, g, v, lr=0.5, rho=0.5, eps=0.0, out=(p, v))
            v[-1] = 1.0


def test_errstate():
    bad = (np.ones(3), np.ones(3), -10 * np.ones(3))
    with np.errstate(invalid="raise"), pytest.raises(FloatingPointError, match="invalid value"):
        rms.rmsprop(*bad, lr=0.1, rho=0.9, eps=0.0)
    with np.errstate(invalid="ignore"):
        assert np.isnan(rms.rmsprop(*bad, lr=0.1, rho=0.9, eps=0.0)[0]).all()
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError, match="divide by zero"):
        rms.rmsprop(np.ones(3), np.full(3, 1e-300), np.zeros(3), lr=0.1, rho=0.9, eps=0.0)
    with np.errstate(all="raise"):
        rms.rmsprop(np.ones(100), np.ones(100), np.ones(100), lr=0.1, rho=0.9, eps=0.0)


def test_casting():
    f4, f8 = np.ones(3, np.float32), np.ones(3)
    numbers = {"lr": 0.1, "rho": 0.9, "eps": 0.0}
    assert [a.dtype.char for a in rms.rmsprop(f4, f8, f4, **numbers)] == ["d", "d"]
    out = np.empty(3, np.float32), np.empty(3, np.float32)
    rms.rmsprop(f4, f8, f4, **numbers, out=out)  # float64 to float32 is same_kind
    with pytest.raises(TypeError, match="casting rule 'safe'"):
        rms.rmsprop(f4, f8, f4, **numbers, out=out, casting="safe")
    with pytest.raises(TypeError):
        rms.rmsprop(f4, f4, f4, **numbers, out=(np.empty(3, int), out[1]))
    assert [a.dtype.char for a in rms.rmsprop(*[np.ones(3, np.float16)] * 3, **numbers)] == ["f", "f"]
    assert [a.dtype.char for a in rms.rmsprop(1, 1, 1, **numbers)] == ["d", "d"]
    assert [a.dtype.char for a in rms.rmsprop(f8, f8, f8, **numbers, dtype=None)] == ["d", "d"]
    with pytest.raises(TypeError):
        rms.rmsprop(np.ones(3, object), f8, f8, **numbers)
    with pytest.raises(TypeError):
        rms.rmsprop(f8 + 1j, f8, f8, **numbers)


@pytest.mark.parametrize("out", [np.empty(3), [None, None], (None,), (None, None, None)])
def test_out_must_be_a_tuple_of_all_outputs(out):
    with pytest.raises(TypeError, match="out must be a tuple of 2 arrays or None"):
        rms.rmsprop(np.ones(3), np.ones(3), np.ones(3), lr=0.1, rho=0.9, eps=0.0, out=out)


def test_one_output_may_be_none():
    v = np.ones(3)
    p, same = rms.rmsprop(np.ones(3), np.ones(3), v, lr=0.1, rho=0.9, eps=0.0, out=(None, v))
    assert same is v
    assert p.shape == (3,)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_wrapper_and_its_ufunc_agree(wrapper):
    arrays, numbers = _core.UFUNCS[wrapper]
    parameters = inspect.signature(WRAPPERS[wrapper]).parameters
    assert list(parameters) == [*arrays, *numbers, "out", "where", "kwargs"]
    ufunc = WRAPPERS[wrapper].ufunc
    assert isinstance(ufunc, np.ufunc)
    assert (ufunc.nin, ufunc.nout) == (len(arrays) + len(numbers), len(arrays) - 1)
    assert ufunc.__name__ == wrapper
    hyper = "d" * len(numbers)
    outs = len(arrays) - 1
    assert ufunc.types == [f"{c * len(arrays)}{hyper}->{c * outs}" for c in (dtype.char for dtype in DTYPES.values())]
    assert pickle.loads(pickle.dumps(WRAPPERS[wrapper])) is WRAPPERS[wrapper]

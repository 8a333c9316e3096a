"""Arrays of more elements than 2**31, slow: make hardening."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest
from conftest import same_bits

import rmsprop_native as rms
from rmsprop_native import reference

pytestmark = pytest.mark.slow

ROW = 1 << 16
ROWS = (1 << 15) + 3
UNIT = 16 * ROW  # elements of memory, which are those of the whole array again and again
OPTIONS = {"lr": 2.0**-7, "rho": 0.5, "eps": 1e-8, "square_avg_dtype": "bfloat16", "seed": 7}


def repeated(values):
    """A float32 array of shape (ROWS, ROW) over the memory of UNIT elements, which it holds many times."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    read_write, shared, private, fixed, anonymous, unreserved = 3, 1, 2, 0x10, 0x20, 0x4000
    file = os.memfd_create("repeated")
    os.ftruncate(file, values.nbytes)
    size = ROWS * ROW * values.itemsize
    start = libc.mmap(None, size + values.nbytes, 0, private | anonymous | unreserved, -1, 0)
    for place in range(start, start + size, values.nbytes):
        assert libc.mmap(place, values.nbytes, read_write, shared | fixed, file, 0) == place
    os.close(file)
    array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start)).view(values.dtype).reshape(ROWS, ROW)
    array[: UNIT // ROW] = values.reshape(-1, ROW)
    return array


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory cannot be mapped repeatedly on this system")
def test_dense_and_rows(rng):
    """Each element is stepped once, by its own random bits; and rows at the end are found there."""
    before, slope = (rng.standard_normal(UNIT).astype(np.float32) for _ in range(2))
    param, grad = repeated(before), repeated(slope)
    assert param.size > 2**31
    rms.set_num_threads(1)  # threads would write the same memory
    state = rms.init(param, **OPTIONS)
    rms.update_(param, grad, state)

    numbers = reference.coefficients(rms.Options(**OPTIONS), 1, OPTIONS["lr"], 1.0)
    zeros = np.zeros(UNIT, np.float32)
    _, square_avg, _, _ = reference.step(numbers, before, slope, zeros)
    expected = before.copy()
    times, rest = divmod(param.size, UNIT)
    for _ in range(times):
        expected, _, _, _ = reference.step(numbers, expected, slope, zeros)
    expected[:rest], _, _, _ = reference.step(numbers, expected[:rest], slope[:rest], zeros[:rest])
    assert same_bits(param[: UNIT // ROW].ravel(), expected)
    row_of_unit = square_avg.reshape(-1, ROW)

    def check_square_avg(row, values, taken):
        elements = row * ROW + np.arange(ROW)
        random = reference.random_bits(OPTIONS["seed"], taken, 0, elements)
        rounded = reference.round_to_bfloat16(values, random)
        assert state.square_avg[row].tobytes() == rounded.tobytes(), row

    for row in (0, 1, ROWS // 2, 2**15 - 1, 2**15, ROWS - 1):
        check_square_avg(row, row_of_unit[row % 16], 0)

    rows = [3, ROWS - 1]  # of other memory each
    old = state.square_avg[rows].astype(np.float32)
    values = rng.standard_normal((2, ROW)).astype(np.float32)
    expected = expected.reshape(-1, ROW)
    rms.update_(param, rms.RowGrad(rows, values), state)
    for row, value, of_row in zip(rows, values, old, strict=True):
        new, square_avg, _, _ = reference.step(numbers, expected[row % 16], value, of_row)
        assert same_bits(param[row], new)
        check_square_avg(row, square_avg, 1)
    check_square_avg(ROWS - 2, row_of_unit[(ROWS - 2) % 16], 0)

"""The table of storage types: each entry is known to the tests, to NumPy and to the messages."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cases import DTYPES, options_of
from conftest import stepped_alike

import rmsprop_native as rms

HEADER = (Path(__file__).parent.parent / "src" / "c" / "rmsp_dtype.h").read_text()
ARITHMETIC = HEADER.partition("#define RMSP_DTYPES")[2].partition("#define RMSP_STORED")[0]  # others: test_storage.py
TABLE = dict(re.findall(r"X\((\w+), \w+, \w+, \w+, '(\w)'\)", ARITHMETIC))


def test_every_storage_type_is_in_the_list_of_cases():
    assert list(TABLE) == list(DTYPES)


@pytest.mark.parametrize("name", TABLE)
def test_a_storage_type_is_real_and_complex(name, rng):
    """The character of the table is NumPy's, that of the complex type in upper case: a pair of the same reals."""
    real = np.dtype(TABLE[name])
    assert real == DTYPES[name]
    pair = np.dtype(TABLE[name].upper())
    assert pair.itemsize == 2 * real.itemsize
    for dtype in (real, pair):
        param, grad = (rng.standard_normal(5).astype(dtype) for _ in range(2))
        assert stepped_alike(options_of(), [param], [grad]).square_avg[0].dtype == dtype


def test_every_other_type_of_numpy_is_refused():
    supported = {np.dtype(code) for code in TABLE.values()} | {np.dtype(code.upper()) for code in TABLE.values()}
    others = [np.dtype(code) for code in np.typecodes["All"] if np.dtype(code) not in supported]
    assert len(others) > 15
    for dtype in others:
        with pytest.raises(TypeError, match="^the parameter has dtype .*; supported are float32"):
            rms.init(np.zeros(3, dtype))

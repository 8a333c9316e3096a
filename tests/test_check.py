"""The check of an installation by hashes, and the numbers of its cases."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from cases import VARIANTS
from conftest import run_python, same_bits

import rmsprop_native as rms
from rmsprop_native import _check, _core, reference


@pytest.mark.parametrize("dtype", _check.DTYPES)
def test_the_hashes_are_those_of_the_reference(dtype):
    assert _check.hash_of(dtype, reference) == _check.EXPECTED[dtype]


@pytest.mark.threads
def test_this_installation_has_the_bits_and_goes_on_as_before():
    before = rms.isa(), _core.grain(), rms.num_threads()
    assert _check.check() == []
    assert (rms.isa(), _core.grain(), rms.num_threads()) == before


def test_every_variant_and_preset_is_a_case():
    assert set(_check.CASES) == {*VARIANTS, *(f"preset {preset}" for preset in rms.PRESETS)}


def test_the_command():
    code = "import runpy, sys; sys.argv = ['', 'check']; runpy.run_module('rmsprop_native', run_name='__main__')"
    assert run_python(code) == "all bits as specified"


def test_other_bits_are_found_and_named():
    code = """
import runpy, sys
from rmsprop_native import _check
_check.EXPECTED['f32'] = '0' * 64
sys.argv = ['', 'check']
runpy.run_module('rmsprop_native', run_name='__main__')
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "other bits: reference, f32\n" in done.stdout
    assert f"other bits: {rms.isa()}, threads 1, f32\n" in done.stdout
    assert "f64" not in done.stdout


def test_the_numbers_are_those_of_the_description():
    """In Python integers, as another language would make them."""
    expected = []
    for i in range(1, 40):
        z = (7 + i * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        expected.append((-1) ** (z >> 32 & 1) * (1 + (z >> 41) * 2.0**-23) * 2.0 ** (z % 15 - 12))
    assert same_bits(_check.numbers(7, 39, "f64"), np.array(expected))
    assert same_bits(_check.numbers(7, 39, "f32"), np.array(expected, "f4"))
    assert _check.numbers(7, 19, "c64").view("f4").tolist() == expected[:38]

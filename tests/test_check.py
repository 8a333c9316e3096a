"""The check of an installation by hashes, and the numbers of its cases."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import VARIANTS
from conftest import run_python, same_bits

import rmsprop_native as rms
from rmsprop_native import _check, _core, reference


@pytest.mark.parametrize("name", _check.SETS)
def test_the_hashes_are_those_of_the_reference(name):
    assert _check.hash_of(name, reference) == _check.EXPECTED[name]


def mixed(z):
    """The last steps of splitmix64, as numbers() and tests/c/test_fixed.c have them."""
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


@pytest.mark.parametrize("name", [name for name in _check.SETS if not name.startswith("c")])
def test_the_hashes_of_the_c_test_are_those_of_the_reference(name):
    """Those of test_fixed.c, which runs on other processors too: sums of the bits of all numbers, mixed with places."""
    program = (Path(__file__).parent / "c" / "test_fixed.c").read_text()
    expected = int(re.search(rf'^    {{"{name}", .*, 0x([0-9a-f]{{16}})}},$', program, re.MULTILINE)[1], 16)
    storage = _check.SETS[name]
    first, *grads = (_check.numbers(seed, 4133, storage.grad if seed else storage.param) for seed in range(4))
    total, place = np.uint64(0), 0
    for variant in VARIANTS:
        param = first.copy()
        state = reference.init(param, **_check.CASES[variant] | storage.options)
        for grad in grads:
            reference.update_(param, grad, state)
            for array in (param, *(getattr(state, buffer) for buffer in _check.BUFFERS)):
                if array is not None:
                    bits = array.view(f"u{array.itemsize}").astype(np.uint64)
                    places = np.arange(place, place + array.size, dtype=np.uint64)
                    with np.errstate(over="ignore"):
                        total += mixed(bits + places * np.uint64(0x9E3779B97F4A7C15)).sum()
                    place += array.size
    assert total == expected, f"{total:016x}"


@pytest.mark.thread_unsafe
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


def test_the_command_without_ml_dtypes():
    code = """
import runpy, sys
sys.modules["ml_dtypes"] = None
sys.argv = ["", "check"]
runpy.run_module("rmsprop_native", run_name="__main__")
"""
    assert run_python(code) == "all bits as specified, without bfloat16, which needs ml_dtypes"


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

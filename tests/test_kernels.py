"""The compiled loops: every one gives the bits of the reference, and is vectorised."""

from __future__ import annotations

import platform
import re
import subprocess

import numpy as np
import pytest
from cases import DTYPES, ISAS, NUMBERS, THREADS, VARIANTS, hard_numbers, options_of, sizes
from conftest import stepped_alike

import rmsprop_native as rms
from rmsprop_native import _core
from rmsprop_native.coefficients import variant_of

# Starts of an array within a cache line, in elements.
OFFSETS = (0, 1, 3, 7)


def at_offset(values, offset):
    """A copy of `values` that starts `offset` elements into a cache line."""
    size = values.size * values.itemsize
    memory = np.empty(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset * values.itemsize
    array = memory[start : start + size].view(values.dtype)
    array[...] = values
    return array


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("grad_scale", [1.0, 0.75], ids=["neutral", "scaled"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_every_variant(isa, dtype, variant, grad_scale, threads, rng):
    rms.use_isa(isa)
    rms.set_num_threads(threads)
    _core.set_grain(0)
    for n in sizes(isa, DTYPES[dtype]).values():
        values = [hard_numbers(rng, n, DTYPES[dtype]) for _ in range(2)]
        for offset in OFFSETS:
            param, grad = (at_offset(v, offset) for v in values)
            stepped_alike(options_of(VARIANTS[variant]), [param], [grad], grad_scale=grad_scale)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_every_number(isa, dtype, variant, number, rng):
    rms.use_isa(isa)
    options = options_of(VARIANTS[variant], NUMBERS[number])
    params, grads = ([hard_numbers(rng, n, DTYPES[dtype]) for n in (67, 1)] for _ in range(2))
    stepped_alike(options, params, grads, steps=4)


@pytest.mark.parametrize("start", [0, 1, 3, 15])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_arrays_that_start_anywhere_in_a_cache_line(dtype, start, rng):
    """The peel before the first whole cache line is a step by itself."""
    params, grads = ([hard_numbers(rng, (1 << 17) + 99 + start, DTYPES[dtype])[start:]] for _ in range(2))
    stepped_alike(rms.Options(), params, grads)


def test_every_variant_selects_its_own_loop():
    """Two cases with the same variant would leave a compiled loop untested."""
    assert len({variant_of(options_of(options)) for options in VARIANTS.values()}) == len(VARIANTS) == 12


def test_square_avg_overflows_late():
    """(1 - rho) * g * g, in this order, holds gradients ten times larger than (1 - rho) * (g * g) would."""
    param, grad = np.zeros(1, np.float32), np.full(1, 5e19, np.float32)
    state = rms.init(param, rho=0.99)
    rms.update_(param, grad, state)
    assert np.isfinite(state.square_avg).all()
    assert param[0] != 0


def test_centered_with_a_constant_gradient_stays_finite():
    """Rounding takes the variance of the first below 0 at step 1202; without the clamp that is NaN."""
    grads = np.array([0.1, 3.0, 100.0, 1e-3], np.float32)
    param = np.zeros(4, np.float32)
    state = rms.init(param, centered=True, rho=0.99)
    for _ in range(10_000):
        rms.update_(param, grads, state)
    assert np.isfinite(param).all()
    assert np.isfinite(state.square_avg).all()


def packed_square_root(isa, dtype):
    """How a packed square root of the full width looks in a disassembly."""
    machine = platform.machine().lower()
    suffix = {"f32": "s", "f64": "d"}[dtype]
    if machine in ("x86_64", "amd64"):
        register = {16: "xmm", 32: "ymm", 64: "zmm"}[ISAS[isa].vector_bytes]
        return rf"\bv?sqrtp{suffix}\s.*%{register}"
    if machine in ("aarch64", "arm64"):
        return rf"\bfsqrt\s+v\d+\.{ {'f32': '4s', 'f64': '2d'}[dtype] }"
    pytest.skip(f"no pattern for {machine} yet")


@pytest.fixture(scope="module")
def disassembly():
    """The instructions of each function of the installed module, by name."""
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    functions = re.split(r"^[0-9a-f]+ <(.+)>:$", text, flags=re.MULTILINE)
    return dict(zip(functions[1::2], functions[2::2], strict=True))


def code_of(isa, dtype, variant, disassembly):
    """The instructions of a kernel, or of the one that it leaves all to: of x86-64, the baseline has one loop for the
    rates of a structure, and AVX-512 steps most rates as AVX2 does.
    """
    name = f"rmsp_{isa}_{dtype}_step_{variant}"
    code = disassembly[name]
    if not re.search("sqrt", code):
        jump = re.search(r"\sjmp\s.*", code)[0]
        other = re.search(r"<(.*)>", jump)
        code = disassembly[other[1] if other and other[1] in disassembly else name.replace("avx512", "avx2")]
        assert isa == "baseline" or (isa == "avx512" and "*" in jump)
    return code


# The loops that read numbers of each element.
EACH = [
    *[name + "_lr_each" for name in VARIANTS],
    *[name + "_lr_out_each" for name in VARIANTS if "momentum" in name or "nesterov" in name],
    *[
        f"{name}_{kind}"
        for name in ("plain", "centered", "momentum", "momentum_centered")
        for kind in ("lr_each_neutral", "all_each")
    ],
]


def test_every_loop_is_known(disassembly):
    """The lists of names that the tests below go through are complete."""
    found = {name.split("_step_")[1] for name in disassembly if re.match(r"rmsp_[a-z0-9]+_f\d+_step_", name)}
    found = {re.sub(r"\..*", "", name) for name in found}
    assert found == {name + suffix for name in VARIANTS for suffix in ("", "_neutral")} | set(EACH)


@pytest.mark.parametrize("variant", [*[name + suffix for name in VARIANTS for suffix in ("", "_neutral")], *EACH])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_loop_is_vectorised(isa, dtype, variant, disassembly):
    """Scalar square roots cost 8x, and no other test would fail."""
    code = code_of(isa, dtype, variant, disassembly)
    is_of_avx2 = isa == "avx512" and variant in EACH and not variant.endswith("_neutral")
    assert re.search(packed_square_root("avx2" if is_of_avx2 else isa, dtype), code)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads the assembly language of x86")
@pytest.mark.parametrize("variant", [name + suffix for name in VARIANTS for suffix in ("", "_neutral")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_array_is_read_once(isa, dtype, variant, disassembly):
    """With generic tuning gcc reads a gradient three times an element, which costs 1.2x out of the caches."""
    lines = disassembly[f"rmsp_{isa}_{dtype}_step_{variant}"].splitlines()
    root = next(i for i, line in enumerate(lines) if re.search(packed_square_root(isa, dtype), line))
    end = next(i for i in range(root, len(lines)) if re.search(r"\sj[a-z]+\s", lines[i]))
    first = re.search(r"\sj[a-z]+\s+([0-9a-f]+)", lines[end])[1]
    start = next(i for i, line in enumerate(lines) if line.split(":")[0].strip() == first)
    assert start < root
    stack = r"%rsp|-0x[0-9a-f]+\(%rbp\)"  # coefficients for which there is no register
    loads = [line for line in lines[start:end] if re.search(r"\(%r[^)]*\),", line) and not re.search(stack, line)]
    options = options_of(VARIANTS[variant.removesuffix("_neutral")])
    few_registers = (
        ISAS[isa].vector_bytes < 64 and variant_of(options).l2
    )  # the parameter is read for its decay, and again for its step
    assert len(loads) <= 2 + len(options.buffers) + few_registers

"""A bfloat16 square_avg: the bits of the reference wherever it is stepped and whatever it is saved in; rounding."""

from __future__ import annotations

import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from cases import ISAS, LAYOUTS, NUMBERS, THREADS, VARIANTS, hard_numbers, option_sets, options_of, sizes
from conftest import as_keywords, check_alike, on_reference, same_bits, stepped_alike
from hypothesis import given, settings
from hypothesis import strategies as st

import rmsprop_native as rms
from rmsprop_native import _core, reference

BF16 = {"square_avg_dtype": "bfloat16", "seed": 2**40 + 3}
F32 = np.dtype(np.float32)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_every_variant(isa, variant, threads, rng):
    rms.use_isa(isa)
    rms.set_num_threads(threads)
    _core.set_grain(0)
    for n in sizes(isa, F32).values():
        for start in (0, 1):
            params, grads = ([hard_numbers(rng, n + start, F32)[start:]] for _ in range(2))
            stepped_alike(options_of(VARIANTS[variant], BF16), params, grads, grad_scale=0.75 if start else 1.0)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_every_number(isa, number, rng):
    rms.use_isa(isa)
    params, grads = ([hard_numbers(rng, n, F32) for n in (67, 1)] for _ in range(2))
    stepped_alike(options_of(NUMBERS[number], {"momentum": 0.9, "centered": True}, BF16), params, grads, steps=4)


@pytest.mark.parametrize("rates", [None, (40, 1, 1), (40, 5, 30), (30,)], ids=str)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_bits_do_not_depend_on_the_layout(layout, grad_layout, rates, rng):
    values = rng.standard_normal((2, 40, 5, 30)).astype(np.float32)
    params, grads = [LAYOUTS[layout](values[0])], [LAYOUTS[grad_layout](values[1])]
    overrides = None if rates is None else {"0": {"lr": rng.random(rates)}}
    options = options_of({"momentum": 0.9, "ema": 0.9, "clip_norm": 1.0, "accumulate": 2}, BF16)
    state = stepped_alike(options, params, grads, steps=4, overrides=overrides)
    assert state.square_avg[0].flags.c_contiguous


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows(layout, rng):
    table = LAYOUTS[layout](rng.standard_normal((50, 7)).astype(np.float32))
    grad = rms.RowGrad([41, 3, 7, 3], rng.standard_normal((4, 7)).astype(np.float32))
    stepped_alike(options_of({"ema": 0.9}, BF16), [table], [grad], steps=3)


@pytest.mark.threads
def test_chunks_of_large_arrays(rng):
    """Above the size from which elements are peeled, over two threads, with lengths that are no whole pairs."""
    rms.set_num_threads(2)
    _core.set_grain(0)
    params, grads = ([rng.standard_normal((1 << 17) + 99).astype(np.float32)[1:], np.ones(5001, F32)] for _ in range(2))
    stepped_alike(options_of(BF16), params, grads)


@settings(max_examples=100, deadline=None)
@given(option_sets(schedules=True), st.integers(0, 2**64 - 1))
def test_any_options(options, seed):
    rng = np.random.default_rng(seed)
    params, grads = ([rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (), (0, 2))] for _ in "pg")
    stepped_alike({**options, "square_avg_dtype": "bfloat16", "seed": seed}, params, [*grads[:2], None], steps=3)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", "pickle", "copy", "state_dict", "update"])
def test_a_state_goes_on_with_the_same_bits(suffix, tmp_path, rng):
    params, grads = ({"w": np.asfortranarray(rng.standard_normal((30, 7)), F32)} for _ in range(2))
    options = options_of({"accumulate": 2, "ema": 0.9}, BF16)
    ref_params, ref_state = on_reference(params, options)
    state = rms.init(params, **as_keywords(options))
    for step in range(6):
        if step == 3:
            if suffix == "pickle":
                state = pickle.loads(pickle.dumps(state))
            elif suffix == "copy":
                state = state.copy()
            elif suffix == "state_dict":
                state = rms.from_state_dict(state.state_dict())
            elif suffix == "update":
                params, state = rms.update(params, grads, state)
                reference.update_(ref_params, grads, ref_state)
            else:
                rms.save(tmp_path / f"a{suffix}", state)
                state = rms.load(tmp_path / f"a{suffix}", like=params)
        rms.update_(params, grads, state)
        reference.update_(ref_params, grads, ref_state)
        check_alike(params, state, ref_params, ref_state)


def test_files_have_two_bytes_an_element(tmp_path):
    state = rms.init(np.zeros(5, F32), initial_square_avg=2.0, **BF16)
    rms.save(tmp_path / "a.npz", state)
    rms.save(tmp_path / "a.safetensors", state)
    stored = np.load(tmp_path / "a.npz")["square_avg/0"]
    assert stored.dtype == np.uint16
    assert same_bits(stored.view(ml_dtypes.bfloat16), state.square_avg)
    assert b'"dtype":"BF16"' in (tmp_path / "a.safetensors").read_bytes()


def test_rounding_is_unbiased():
    """1e6 draws of a number 0.3 between two neighbours: the share that rounds up is within five standard deviations."""
    n, share = 10**6, 0.3
    x = np.full(n, 1 + share / 128, np.float32)
    up = reference.round_to_bfloat16(x, reference.random_bits(1, 2, 3, np.arange(n))) > 1
    share = (int(x[:1].view(np.uint32)[0]) & 0xFFFF) / 65536
    assert abs(up.mean() - share) < 5 * np.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("other", ["next element", "next pair", "next step", "next leaf", "next seed"])
def test_random_bits_are_uncorrelated(other):
    """The correlation of 1e6 pairs has a standard deviation of 1e-3 if they are independent."""
    at = np.arange(10**6)
    one = reference.random_bits(7, 5, 3, at).astype(float)
    two = {
        "next element": (7, 5, 3, at + 1),
        "next pair": (7, 5, 3, at + 2),
        "next step": (7, 6, 3, at),
        "next leaf": (7, 5, 4, at),
        "next seed": (8, 5, 3, at),
    }[other]
    assert abs(np.corrcoef(one, reference.random_bits(*two).astype(float))[0, 1]) < 5e-3


def test_random_bits_are_uniform():
    counts = np.bincount(reference.random_bits(0, 0, 0, np.arange(2**20)) >> 8, minlength=256)
    assert np.sum((counts - 4096) ** 2 / 4096) < 255 + 6 * np.sqrt(2 * 255)  # chi squared: mean 255, variance 510


def test_what_bfloat16_can_hold_stays():
    bits = np.arange(2**16, dtype=np.uint32)
    x = (bits << 16).view(np.float32)
    for random in (0, 0xFFFF):
        rounded = reference.round_to_bfloat16(x, np.full(x.shape, random, np.uint32))
        nan = np.isnan(x)
        assert np.array_equal(rounded.view(np.uint16)[~nan], bits[~nan])
        assert np.isnan(rounded[nan].astype(np.float32)).all()
    short = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(reference.round_to_bfloat16(short, np.full(3, 0xFFFF, np.uint32)).astype(np.float32)).all()


def test_the_running_mean_has_no_bias(rng):
    """After 1000 steps with rho 0.999, and 1000 more with gradients a tenth as large, where rounding to nearest would
    never decay: its mean over 20,000 elements is that in float32 within 0.5 %.
    """
    n = 20_000
    params = [np.zeros(n, F32) for _ in range(2)]
    options = {"rho": 0.999, "lr": 0.0}
    states = [rms.init(params[0], **options, **BF16), rms.init(params[1], **options)]
    for scale in (1.0, 0.1):
        for _ in range(1000):
            grad = (scale * rng.standard_normal(n)).astype(np.float32)
            for param, state in zip(params, states, strict=True):
                rms.update_(param, grad, state)
        narrow, wide = (state.square_avg.astype(np.float64).mean() for state in states)
        assert abs(narrow / wide - 1) < 0.005


def test_another_seed_gives_other_bits():
    grads = np.full(1000, 0.3, np.float32)
    means = []
    for seed in (0, 1, 2**32):
        state = rms.init(grads, square_avg_dtype="bfloat16", seed=seed)
        rms.update_(grads.copy(), grads, state)
        means.append(state.square_avg.copy())
    assert not any(same_bits(means[i], means[i - 1]) for i in range(3))


@pytest.mark.parametrize("dtype", [np.float64, np.complex64])
def test_other_parameters_are_refused(dtype):
    with pytest.raises(
        TypeError, match=r"^parameter 'b' is .*: square_avg_dtype='bfloat16' is for float32 parameters$"
    ):
        rms.init({"a": np.zeros(2, F32), "b": np.zeros(2, dtype)}, square_avg_dtype="bfloat16")


@pytest.mark.parametrize("initial", [1e-41, 3.4e38])
def test_an_initial_value_that_bfloat16_cannot_hold_is_refused(initial):
    with pytest.raises(ValueError, match="rounds to 0 or infinity in bfloat16"):
        rms.init(np.zeros(2, F32), square_avg_dtype="bfloat16", initial_square_avg=initial)


def test_the_option_cannot_change():
    state = rms.init(np.zeros(2, F32))
    with pytest.raises(
        ValueError, match=r"^the state keeps square_avg with square_avg_dtype=None: call init\(\) again$"
    ):
        state.replace(square_avg_dtype="bfloat16")


@pytest.mark.parametrize("value", [np.float32, 16, "float16", "bf16"])
def test_the_option_is_one_of_two(value):
    error = ValueError if isinstance(value, str) else TypeError
    with pytest.raises(error, match=r"^square_avg_dtype must be None or 'bfloat16', got "):
        rms.Options(square_avg_dtype=value)


def test_without_ml_dtypes_the_message_names_the_extra():
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, rmsprop_native as rms
try:
    rms.init(np.zeros(2, np.float32), square_avg_dtype="bfloat16")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "bfloat16 in NumPy needs ml_dtypes: pip install 'rmsprop_native[bfloat16]'\n"


def test_a_gradient_may_not_overlap_square_avg():
    """Neither its first pair of elements nor its last one."""
    param = np.zeros(65, F32)
    state = rms.init(param, momentum=0.9, square_avg_dtype="bfloat16")
    ends = state.square_avg.view(np.uint16)
    for at in (0, 62):
        grad = np.broadcast_to(ends[at : at + 2].view(np.float32)[0:1], 65)
        with pytest.raises(ValueError, match="overlaps its square_avg in memory"):
            rms.update_(param, grad, state)

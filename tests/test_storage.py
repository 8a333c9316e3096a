"""bfloat16 parameters, gradients and square_avg: the bits of the reference wherever they are stepped and whatever they
are saved in; rounding; lower halves.
"""

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
from rmsprop_native.reference import join_halves

BF16 = {"square_avg_dtype": "bfloat16", "seed": 2**40 + 3}
F32, B16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)

# Every set of storage types: the dtypes of parameters and gradients, and options.
STORAGES = {
    "avg": (F32, F32, BF16),
    "grad": (F32, B16, {"seed": 1}),
    "grad_avg": (F32, B16, BF16),
    "rounded": (B16, B16, {"master_weights": False, "seed": 1}),
    "rounded, wide grad": (B16, F32, {"master_weights": False, "seed": 1}),
    "all": (B16, B16, {"master_weights": False, **BF16}),
    "all, wide grad": (B16, F32, {"master_weights": False, **BF16}),
    "split": (B16, B16, {}),
    "split, wide grad": (B16, F32, {}),
    "split_avg": (B16, B16, BF16),
    "split_avg, wide grad": (B16, F32, BF16),
}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_every_variant(isa, variant, storage, threads, rng):
    rms.use_isa(isa)
    rms.set_num_threads(threads)
    _core.set_grain(0)
    *dtypes, stored = STORAGES[storage]
    for n in sizes(isa, F32).values():
        for start in (0, 1):
            params, grads = ([hard_numbers(rng, n + start, F32)[start:].astype(dtype)] for dtype in dtypes)
            stepped_alike(options_of(VARIANTS[variant], stored), params, grads, grad_scale=0.75 if start else 1.0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_every_number(isa, number, storage, rng):
    rms.use_isa(isa)
    *dtypes, stored = STORAGES[storage]
    params, grads = ([hard_numbers(rng, n, F32).astype(dtype) for n in (67, 1)] for dtype in dtypes)
    stepped_alike(options_of(NUMBERS[number], {"momentum": 0.9, "centered": True}, stored), params, grads, steps=4)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_every_bfloat16_number(isa, storage):
    """As parameter, gradient and running mean, beside NaN with every bit set and with one, infinities and zeros: the
    kernels of bfloat16 alone do not test for NaN before they round.
    """

    def stored_as(dtype, numbers):
        """As float32 a NaN has all bits below set too."""
        with np.errstate(invalid="ignore"):
            wide = numbers.astype(F32)
            wide.view(np.uint32)[np.isnan(numbers)] |= 0xFFFF
        return numbers if dtype == B16 else wide

    rms.use_isa(isa)
    *dtypes, stored = STORAGES[storage]
    every = np.arange(1 << 16, dtype=np.uint16).view(B16)
    beside = np.array([0x0000, 0x8000, 0x3F80, 0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0x7FFF, 0xFFFF], np.uint16).view(B16)
    for role in ("param", "grad", "square_avg"):
        for others in beside:
            numbers = dict.fromkeys(("param", "grad", "square_avg"), np.full(1 << 16, others)) | {role: every}
            params = [stored_as(dtypes[0], numbers["param"]).copy()]
            grads = [stored_as(dtypes[1], numbers["grad"])]
            ref_params, ref_state = on_reference(params, stored)
            state = rms.init(params, **stored)
            for each in (state, ref_state):
                each.square_avg[0][...] = stored_as(each.square_avg[0].dtype, numbers["square_avg"])
            with np.errstate(all="ignore"):
                rms.update_(params, grads, state)
                reference.update_(ref_params, grads, ref_state)
            check_alike(params, state, ref_params, ref_state)


@pytest.mark.parametrize(
    ("storage", "rates"),
    [(storage, None) for storage in STORAGES]
    + [(storage, rates) for storage in ("avg", "all", "split") for rates in ((40, 1, 1), (40, 5, 30), (30,))],
    ids=str,
)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_bits_do_not_depend_on_the_layout(layout, grad_layout, rates, storage, rng):
    *dtypes, stored = STORAGES[storage]
    values = [rng.standard_normal((40, 5, 30)).astype(dtype) for dtype in dtypes]
    params, grads = [LAYOUTS[layout](values[0])], [LAYOUTS[grad_layout](values[1])]
    overrides = None if rates is None else {"0": {"lr": rng.random(rates)}}
    options = options_of({"momentum": 0.9, "ema": 0.9, "clip_norm": 1.0, "accumulate": 2}, stored)
    state = stepped_alike(options, params, grads, steps=4, overrides=overrides)
    if np.dtype(values[0].dtype) == B16 or "square_avg_dtype" in stored:
        assert state.square_avg[0].flags.c_contiguous


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_steps_of_any_layout(layout, storage, rng):
    """Without a norm to sum or a sum to step, which go through other code."""
    *dtypes, stored = STORAGES[storage]
    params, grads = ([LAYOUTS[layout](rng.standard_normal((40, 37)).astype(dtype))] for dtype in dtypes)
    stepped_alike(options_of(stored), params, grads)
    stepped_alike(options_of({"ema": 0.5}, stored), params, grads)
    stepped_alike(options_of({"on_nonfinite": "skip"}, stored), params, grads)


@pytest.mark.parametrize("rows", [[41, 3, 7], [41, 3, 7, 3]], ids=["distinct", "twice"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("width", [7, 64, 65])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows(layout, width, storage, rows, rng):
    """Of an odd length too: a row may begin with the second element of a pair."""
    *dtypes, stored = STORAGES[storage]
    table = LAYOUTS[layout](rng.standard_normal((50, width)).astype(dtypes[0]))
    grad = rms.RowGrad(rows, rng.standard_normal((len(rows), width)).astype(dtypes[1]))
    for options in ({}, {"ema": 0.9}):
        stepped_alike(options_of(options, stored), [table.copy(order="K")], [grad], steps=3)


@pytest.mark.threads
@pytest.mark.parametrize("storage", STORAGES)
def test_chunks_of_large_arrays(storage, rng):
    """Above the size from which elements are peeled, over two threads, with lengths that are no whole pairs."""
    rms.set_num_threads(2)
    _core.set_grain(0)
    *dtypes, stored = STORAGES[storage]
    params, grads = ([rng.standard_normal((1 << 17) + 99).astype(dtype)[1:], np.ones(5001, dtype)] for dtype in dtypes)
    stepped_alike(options_of(stored), params, grads)


@settings(max_examples=200, deadline=None)
@given(option_sets(schedules=True), st.sampled_from(list(STORAGES)), st.integers(0, 2**64 - 1))
def test_any_options(options, storage, seed):
    *dtypes, stored = STORAGES[storage]
    rng = np.random.default_rng(seed)
    params, grads = ([rng.standard_normal(n).astype(dtype) for n in ((3, 24), (), (0, 2))] for dtype in dtypes)
    stepped_alike({**options, **stored, "seed": seed}, params, [*grads[:2], None], steps=3)


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_that_come_and_go_and_change_their_dtype(storage, rng):
    """What was bound at a step holds for the next one only if the gradients are of the same type."""
    *dtypes, stored = STORAGES[storage]
    params = [rng.standard_normal(n).astype(dtypes[0]) for n in (40, 3, 64)]
    ref_params, ref_state = on_reference(params, stored)
    state = rms.init(params, **stored)
    wide = F32 if dtypes[1] == B16 else B16
    for kinds in (
        [dtypes[1], None, None],
        [None, dtypes[1], wide],
        [wide, dtypes[1], wide],
        [dtypes[1], wide, None],
    ) * 2:
        grads = [
            None if kind is None else rng.standard_normal(param.size).astype(kind)
            for param, kind in zip(params, kinds, strict=True)
        ]
        rms.update_(params, grads, state)
        reference.update_(ref_params, grads, ref_state)
        check_alike(params, state, ref_params, ref_state)


def test_a_tree_of_many_dtypes(rng):
    """Each leaf has the buffers of its own dtype; only bfloat16 parameters have lower halves."""
    dtypes = [B16, F32, np.float64, np.complex64]
    params, grads = ([rng.standard_normal(50).astype(dtype) for dtype in dtypes] for _ in range(2))
    state = stepped_alike(options_of({"momentum": 0.9}), params, grads)
    assert [None if half is None else half.dtype.name for half in state.low_half] == ["uint16", None, None, None]
    assert [buffer.dtype for buffer in state.momentum_buffer] == [F32, *dtypes[1:]]
    masters = state.master(params)
    assert [master.dtype for master in masters] == [F32, *dtypes[1:]]
    assert same_bits(masters[2], params[2])
    assert masters[2] is not params[2]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", "pickle", "copy", "state_dict", "update"])
def test_a_state_goes_on_with_the_same_bits(suffix, storage, tmp_path, rng):
    *dtypes, stored = STORAGES[storage]
    params, grads = ({"w": np.asfortranarray(rng.standard_normal((30, 7)), F32).astype(dtype)} for dtype in dtypes)
    options = options_of({"accumulate": 2, "ema": 0.9}, stored)
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
        TypeError, match=r"^parameter 'b' is .*: square_avg_dtype='bfloat16' is for float32 and bfloat16 parameters$"
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


def test_a_gradient_may_not_overlap_a_lower_half():
    param = np.zeros(65, B16)
    state = rms.init(param)
    ends = state.low_half
    for at in (0, 64):
        grad = np.broadcast_to(ends[at : at + 1].view(B16), 65)
        with pytest.raises(ValueError, match="overlaps its low_half in memory"):
            rms.update_(param, grad, state)
    wide = np.zeros(130, B16)
    state = rms.init(wide[:65])
    for start in (0, 32, 64):  # a gradient of twice the bytes may reach into the parameter from either side
        with pytest.raises(ValueError, match="overlaps its parameter"):
            rms.update_(wide[:65], np.broadcast_to(wide[start : start + 2].view(np.float32)[:1], 65), state)


WRITTEN = ("square_avg", "momentum_buffer", "ema", "low_half")


@pytest.mark.parametrize("square_avg_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("dtypes", [(B16, B16), (F32, B16), (B16, F32)], ids=["both", "second", "first"])
@pytest.mark.parametrize("name", WRITTEN)
def test_parameters_may_not_overlap_what_the_state_keeps(name, dtypes, square_avg_dtype):
    """Of whichever leaf: from its first byte on, and to its last one."""
    params = [np.zeros(64, dtype) for dtype in dtypes]
    state = rms.init(params, momentum=0.9, ema=0.9, square_avg_dtype=square_avg_dtype)
    params = [np.zeros(64, dtype) for dtype in dtypes]
    grads = [param.copy() for param in params]
    buffers = [buffer for buffer in getattr(state, name) if buffer is not None]
    assert buffers
    for buffer in buffers:
        memory = buffer.base
        first = buffer.ctypes.data - memory.ctypes.data
        for k, param in enumerate(params):
            for start in (first, max(first + buffer.nbytes - param.nbytes, 0)):
                given = params.copy()
                given[k] = memory[start : start + param.nbytes].view(param.dtype)
                with pytest.raises(ValueError, match=rf"^parameter '{k}' and \w+ '\d' overlap in memory$"):
                    rms.update_(given, grads, state)
    assert state.step == 0
    rms.update_(params, grads, state)


def test_a_wider_gradient_at_the_same_address_is_compared_anew():
    """Its bytes reach into the parameter, where those of the bfloat16 one did not."""
    memory = np.zeros(200, B16)
    param = memory[100:132]
    state = rms.init(param)
    for _ in range(2):
        rms.update_(param, memory[50:82], state)
    with pytest.raises(ValueError, match="overlaps its parameter in memory"):
        rms.update_(param, memory[50:114].view(F32), state)
    assert state.step == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_split_training_is_float32_training(variant, rng):
    """1000 steps on the same bfloat16 gradients: the same float32 parameters, to the bit."""
    narrow = rng.standard_normal(97).astype(B16)
    wide = narrow.astype(F32)
    options = as_keywords(options_of(VARIANTS[variant], {"lr": 1e-3}))
    states = rms.init(narrow, **options), rms.init(wide, **options)
    for _ in range(1000):
        grad = rng.standard_normal(97).astype(B16)
        rms.update_(narrow, grad, states[0])
        rms.update_(wide, grad.astype(F32), states[1])
    assert same_bits(states[0].master(narrow), wide)
    assert same_bits(states[0].square_avg, states[1].square_avg)
    assert np.abs(narrow.astype(F32) - wide).max() <= np.abs(wide).max() * 2**-8


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("change", ["zero", "negative zero", "negate", "replace", "inf", "nan"])
def test_parameters_may_be_written_between_steps(change, isa, rng):
    """A lower half that does not fit any more counts as 0; others are added still, less than a half unit of the last
    place.
    """
    rms.use_isa(isa)
    param, grad = (rng.standard_normal(200).astype(B16) for _ in range(2))
    ref_param, ref_state = on_reference(param, options := {"lr": 1e-2})
    state = rms.init(param, **options)
    for step in range(4):
        rms.update_(param, grad, state)
        reference.update_(ref_param, grad, ref_state)
        check_alike(param, state, ref_param, ref_state)
        assert (state.low_half.view(np.int16) < 0).any()
        before = state.master(param)
        for p in (param, ref_param):
            half = p[:100]
            half[...] = {
                "zero": 0, "negative zero": -0.0, "negate": -half, "replace": step - 7, "inf": np.inf, "nan": np.nan
            }[change]  # fmt: skip
        master = state.master(param)
        if change in ("zero", "negative zero"):
            assert (np.signbit(master[:100]) == (change == "negative zero")).all()
            assert not master[:100].any()
        elif change == "negate":
            assert same_bits(master[:100], -before[:100])
        elif change == "replace":
            assert (np.abs(master[:100] / (step - 7) - 1) <= 2**-8).all()
        else:
            assert same_bits(master[:100], param[:100].astype(F32))
        assert same_bits(master[100:], before[100:])


def test_every_number_has_two_halves(rng):
    """All but those that bfloat16 rounds to an infinity or 0; -0, other subnormals and infinities too."""
    bits = rng.integers(0, 2**32, 10**6, dtype=np.uint32)
    bits[:8] = [0, 0x80000000, 0x8000, 0x80008000, 0x7F800000, 0xFF800000, 0x7F7F7FFF, 0x00008001]
    x = bits.view(np.float32)
    x = x[(~(np.abs(x) > 3.389e38) | np.isinf(x)) & ((np.abs(x) >= 2.0**-134) | (x == 0))]
    assert same_bits(join_halves(*reference.split_halves(x)), x)
    upper, lower = reference.split_halves(np.array([np.finfo(F32).max, np.nan, -1e-45, 2.0**-134 - 1e-45], F32))
    joined = join_halves(upper, lower)
    assert joined[0] == np.inf
    assert np.isnan(joined[1])
    assert same_bits(joined[2:], np.array([-0.0, 0.0], F32))


def test_float32_reaches_what_bfloat16_stalls_before():
    """With g = 1 and lr 1e-3 from 1.0: where everything is bfloat16 and rounded to the nearest, it stays at 0.867."""
    for options in ({}, {"master_weights": False}, {"master_weights": False, **BF16}, BF16):
        param, grad = np.ones(1000, B16), np.ones(1000, B16)
        state = rms.init(param, lr=1e-3, rho=0.99, **options)
        for _ in range(1000):
            rms.update_(param, grad, state)
        assert abs(state.master(param).mean() + 0.124) < 0.002


def test_parameters_and_square_avg_are_rounded_independently(rng):
    """The correlation of 1e6 pairs of roundings has a standard deviation of 1e-3 if they are."""
    bits = reference.random_bits(7, 5, 3, np.arange(10**6))
    swapped = reference.swap_bytes(bits)
    for threshold in (0x3000, 0x8000, 0xC123):
        up = (bits >= threshold).astype(float), (swapped >= threshold).astype(float)
        assert abs(np.corrcoef(*up)[0, 1]) < 8e-3  # the lower bits, of which 2**-8 depends, are shared


def test_master_refuses_other_parameters():
    state = rms.init({"w": np.zeros((2, 3), B16)})
    message = r"^parameter 'w' is bfloat16 of shape \(3, 2\), the state has bfloat16 of \(2, 3\)$"
    with pytest.raises(ValueError, match=message):
        state.master({"w": np.zeros((3, 2), B16)})
    with pytest.raises(ValueError, match=r"^parameter 'w' is float32 of shape \(2, 3\), the state has bfloat16 of"):
        state.master({"w": np.zeros((2, 3), F32)})
    with pytest.raises(TypeError, match=r"^parameter 'w' is a float, not a numpy.ndarray"):
        state.master({"w": 0.0})


def test_master_weights_cannot_change():
    state = rms.init(np.zeros(2, B16))
    with pytest.raises(ValueError, match=r"^the state was made with master_weights=True: call init\(\) again$"):
        state.replace(master_weights=False)


@pytest.mark.parametrize("dtype", [np.float64, np.complex64, np.int16, np.uint16, np.float16])
def test_other_gradients_are_refused(dtype):
    param = np.zeros(3, B16)
    state = rms.init(param)
    with pytest.raises(TypeError, match="^the gradient has dtype"):
        rms.update_(param, np.ones(3, dtype), state)
    assert state.step == 0
    assert not param.any()


def test_a_bfloat16_gradient_of_a_float64_parameter_is_refused():
    param = np.zeros(3)
    with pytest.raises(TypeError, match="^the gradient has dtype bfloat16, its parameter has float64$"):
        rms.update_(param, np.ones(3, B16), rms.init(param))

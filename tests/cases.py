"""The one list of cases that feeds tests and benchmarks: dtypes, variants, options, sizes, and hard numbers."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from rmsprop_native import _core
from rmsprop_native.options import Options

DTYPES = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}

MOMENTUM = {"": {}, "momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True}}
CENTERED = {"": {}, "centered": {"centered": True}}
L2 = {"": {}, "l2": {"weight_decay": 0.03}}

# Every compiled loop, under its name in the C library, with options that select it.
VARIANTS = {
    "_".join(filter(None, names)) or "plain": {key: value for part in parts for key, value in part.items()}
    for (names, parts) in (
        zip(*combination, strict=True)
        for combination in itertools.product(MOMENTUM.items(), CENTERED.items(), L2.items())
    )
}
VARIANTS = {name if name != "l2" else "plain_l2": options for name, options in VARIANTS.items()}

# Every option that is a coefficient, so that it must work with every variant.
NUMBERS = {
    "eps_inside": {"eps_inside_sqrt": True, "eps": 1e-7},
    "eps_0": {"eps": 0.0},
    "decoupled": {"weight_decay": 0.02, "decoupled_weight_decay": True},
    "clip_value": {"clip_value": 0.05},
    "bias_correction": {"bias_correction": True},
    "maximize": {"maximize": True},
    "initial_square_avg": {"initial_square_avg": 1.0},
    "lr_in_momentum": {"lr_in_momentum": True},
    "lr_0": {"lr": 0.0},
    "rho_0": {"rho": 0.0},
}

# Numbers of threads; the tests that need workers carry the marker `threads`.
THREADS = [1, pytest.param(2, marks=pytest.mark.threads)]


def _every_second(array):
    if array.ndim == 0:
        return array.copy()
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _last_axis_slowest(array):
    return np.moveaxis(np.moveaxis(array, -1, 0).copy(), 0, -1) if array.ndim else array.copy()


def _part_of_wider_rows(array):
    if array.ndim == 0:
        return array.copy()
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, 3)])[..., : array.shape[-1]]


# What makes an array of the same values in another layout.
LAYOUTS = {
    "C": lambda array: array.copy(),
    "F": lambda array: np.array(array, order="F"),
    "every second": _every_second,
    "reversed": lambda array: np.asarray(np.flip(np.flip(array).copy())),
    "last axis slowest": _last_axis_slowest,
    "part of wider rows": _part_of_wider_rows,
}


class Isa(NamedTuple):
    """An instruction set: the bytes of its vector registers, and what Linux calls the processor's flags it needs."""

    vector_bytes: int
    cpu_flags: frozenset[str] = frozenset()


# Every instruction set, by its name in the C library; and those of this machine.
ALL_ISAS = {
    "baseline": Isa(16),
    "avx2": Isa(32, frozenset({"avx2"})),
    "avx512": Isa(64, frozenset({"avx512f", "avx512vl", "avx512bw", "avx512dq"})),
}
ISAS = {name: ALL_ISAS[name] for name in _core.isas()}


def sizes(isa: str, dtype: np.dtype) -> dict[str, int]:
    """Sizes around the width W of a vector and the length of a span, under their names."""
    w, span = ISAS[isa].vector_bytes // dtype.itemsize, _core.SPAN
    return {
        "0": 0,
        "1": 1,
        "W-1": w - 1,
        "W": w,
        "W+1": w + 1,
        "4W+3": 4 * w + 3,
        "span-1": span - 1,
        "span": span,
        "span+1": span + 1,
    }


def hard_numbers(rng: np.random.Generator, shape: int | tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Numbers of all magnitudes, with zeros, subnormals, huge ones, infinities and NaN among them."""
    info = np.finfo(dtype)
    numbers = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)
    special = [0.0, -0.0, info.smallest_subnormal, -info.tiny / 2, info.max / 2, -info.max, np.inf, -np.inf, np.nan]
    numbers = np.where(rng.random(shape) < 0.1, rng.choice(special, shape), numbers)
    with np.errstate(all="ignore"):
        return numbers.astype(dtype)


@st.composite
def option_sets(draw, *, schedules=False):
    """Options that do not contradict each other; with `schedules`, lr may be a function."""
    rates = [0.0, 0.03, 1.0, lambda taken: 0.1 / (1 + taken)]
    options = draw(
        st.fixed_dictionaries(
            {"lr": st.sampled_from(rates if schedules else rates[:3])},
            optional={
                "rho": st.sampled_from([0.0, 0.5, 0.99]),
                "eps": st.sampled_from([1e-10, 1e-3]),
                "eps_inside_sqrt": st.booleans(),
                "momentum": st.sampled_from([0.5, 0.9]),
                "lr_in_momentum": st.booleans(),
                "centered": st.booleans(),
                "weight_decay": st.sampled_from([0.01, 0.5]),
                "decoupled_weight_decay": st.booleans(),
                "maximize": st.booleans(),
                "accumulate": st.integers(1, 3),
                "ema": st.sampled_from([0.0, 0.9]),
                "on_nonfinite": st.sampled_from(["propagate", "skip"]),
            },
        )
    )
    if "momentum" in options:
        options["nesterov"] = draw(st.booleans())
    options |= draw(st.sampled_from([{}, {"bias_correction": True}, {"initial_square_avg": 1.0}]))
    options |= draw(
        st.sampled_from([{}, {"clip_value": 0.5}, {"clip_norm": 0.5}, {"clip_global_norm": 0.5}, {"clip_norm": 1e30}])
    )
    return options


def options_of(*parts: dict) -> Options:
    """The options that several cases make together; the default lr is one that shows in the bits."""
    merged = {"lr": 0.03}
    for part in parts:
        merged |= part
    return Options(**merged)

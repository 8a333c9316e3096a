"""What the tests share: how bits are compared, and the run-time settings put back after each test."""

from __future__ import annotations

import numpy as np
import pytest

import rmsprop_native as rms
from rmsprop_native import _core, reference


@pytest.fixture(autouse=True)
def _runtime():
    """Put instruction set, threads and grain back after every test."""
    isa, grain = rms.isa(), _core.grain()
    yield
    rms.use_isa(isa)
    rms.set_num_threads(None)
    _core.set_grain(grain)


@pytest.fixture
def rng():
    return np.random.default_rng(20121006)


def same_bits(one, other):
    """Whether two arrays are equal to the bit; IEEE 754 leaves open only the sign and payload of a NaN."""
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.kind == "c":
        return same_bits(one.real, other.real) and same_bits(one.imag, other.imag)
    integer = f"u{one.itemsize}"
    equal = np.ascontiguousarray(one).view(integer) == np.ascontiguousarray(other).view(integer)
    return bool(np.all(equal | (np.isnan(one) & np.isnan(other))))


class Twin:
    """A state's twin on the reference: the same steps in NumPy, compared array by array."""

    def __init__(self, params, options):
        self.options = options
        self.params = [np.array(p) for p in params]
        fill = options.initial_square_avg
        self.buffers = [
            {name: np.full_like(p, fill if name == "square_avg" else 0) for name in options.buffers}
            for p in self.params
        ]
        self.t = 0

    def step(self, grads, lr=None, grad_scale=1.0):
        self.t += 1
        coefficients = self.options.coefficients(self.t, lr, grad_scale)
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            names = ("square_avg", "momentum_buffer", "grad_avg")
            arrays = [self.buffers[i].get(name) for name in names]
            self.params[i], *arrays = reference.step(self.options.variant, coefficients, self.params[i], grad, *arrays)
            self.buffers[i] = {name: a for name, a in zip(names, arrays, strict=True) if a is not None}

    def check(self, params, state):
        for i, (mine, theirs) in enumerate(zip(self.params, params, strict=True)):
            assert same_bits(mine, theirs), f"param {i}"
        for name in self.options.buffers:
            trees = getattr(state, name)
            leaves = [trees] if isinstance(trees, np.ndarray) else list(state._structure.leaves(trees))
            for i, theirs in enumerate(leaves):
                assert same_bits(self.buffers[i][name], theirs), f"{name} {i}"

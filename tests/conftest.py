"""What the tests share: how bits are compared, and the run-time settings put back after each test."""

from __future__ import annotations

import numpy as np
import pytest

import rmsprop_native as rms
from rmsprop_native import _core, reference
from rmsprop_native.options import override


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
    """A state's twin on the reference: the same calls in NumPy, compared array by array."""

    def __init__(self, params, options, overrides=None, paths=None):
        self.options = options
        paths = [str(i) for i in range(len(params))] if paths is None else paths
        self.of_leaves = override(options, overrides or {}, paths)
        self.params = [np.array(p) for p in params]
        self.buffers = {name: [self.start(name, p) for p in self.params] for name in options.buffers}
        self.seen = [False] * len(params)
        self.step_count = self.skipped = self.accumulated = 0

    def start(self, name, param):
        if name == "ema":
            return param.copy()
        fill = self.options.initial_square_avg if name == "square_avg" else 0.0
        return np.full_like(param, complex(fill, fill) if param.dtype.kind == "c" else fill)

    def step(self, grads, lr=None, grad_scale=1.0):
        o = self.options
        rows = [None] * len(grads)
        grads = list(grads)
        for i, grad in enumerate(grads):
            if isinstance(grad, rms.RowGrad):
                rows[i], grads[i] = reference.merge_rows(np.asarray(grad.rows, np.intp), grad.values)
        if o.on_nonfinite == "skip" and any(g is not None and not np.isfinite(g).all() for g in grads):
            self.skipped += 1
            return
        scale = -grad_scale if o.maximize else grad_scale
        if o.accumulate > 1:
            for i, grad in enumerate(grads):
                if grad is not None:
                    self.buffers["grad_sum"][i] = reference.lerp(self.buffers["grad_sum"][i], grad, 1.0, scale)
                    self.seen[i] = True
            self.accumulated += 1
            if self.accumulated < o.accumulate:
                return
            scale = 1.0 / o.accumulate
            grads = [g if seen else None for g, seen in zip(self.buffers["grad_sum"], self.seen, strict=True)]
        clip_norms = [own.clip_norm for own, _ in self.of_leaves]
        factors = reference.clip_factors(grads, clip_norms, o.clip_global_norm, scale)
        for i, (grad, row, factor) in enumerate(zip(grads, rows, factors, strict=True)):
            if grad is not None:
                self.step_leaf(i, grad, ... if row is None else row, lr, scale * factor)
        if o.accumulate > 1:
            self.buffers["grad_sum"] = [np.zeros_like(p) for p in self.params]
            self.seen = [False] * len(grads)
            self.accumulated = 0
        self.step_count += 1

    def step_leaf(self, i, grad, where, lr, scale):
        own, own_lr = self.of_leaves[i]
        numbers = own.coefficients(self.step_count + 1, None if own_lr else lr)._replace(grad_scale=scale)
        names = ("square_avg", "momentum_buffer", "grad_avg")
        arrays = [self.buffers[name][i][where] if name in self.buffers else None for name in names]
        param, *arrays = reference.step(own.variant, numbers, self.params[i][where], grad, *arrays)
        ema = 0.0 if self.step_count == 0 else own.ema
        if own.ema is not None:
            names += ("ema",)
            arrays.append(reference.lerp(self.buffers["ema"][i][where], param, ema, 1.0 - ema))
        self.params[i][where] = param
        for name, array in zip(names, arrays, strict=True):
            if array is not None:
                self.buffers[name][i][where] = array

    def check(self, params, state):
        assert (state.step, state.skipped, state.accumulated) == (self.step_count, self.skipped, self.accumulated)
        for i, (mine, theirs) in enumerate(zip(self.params, params, strict=True)):
            assert same_bits(mine, theirs), f"param {i}"
        for name in self.options.buffers:
            leaves = list(state._structure.leaves(getattr(state, name)))
            for i, (mine, theirs) in enumerate(zip(self.buffers[name], leaves, strict=True)):
                assert same_bits(mine, theirs), f"{name} {i}"


def stepped_alike(options, params, grads, *, steps=2, overrides=None, **per_call):
    """Step `params` and their twin on the reference side by side, and compare after every step."""
    twin = Twin(params, options, overrides)
    state = rms.init(params, overrides=overrides, **{name: getattr(options, name) for name in options.__slots__})
    for _ in range(steps):
        rms.update_(params, grads, state, **per_call)
        twin.step(grads, **per_call)
        twin.check(params, state)
    return state

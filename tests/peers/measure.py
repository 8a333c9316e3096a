"""What all comparisons with frameworks share: the problem, and how differences are measured."""

from __future__ import annotations

import numpy as np

ULPS = 8
# This and other constants are sums of few powers of two, since Keras holds its learning rate, its limits of clipping
# and its decays of weights in float32 whatever the parameters are.
LR = 2.0**-7
SHAPES = [(7, 5), (5,), (3, 4, 2)]


class Problem:
    """Least squares with the noise of small batches: gradients that shrink, and never vanish."""

    def __init__(self, dtype):
        self.rng = np.random.default_rng(1)
        self.dtype = np.dtype(dtype)
        self.params = self.normals()
        self.targets = self.normals()

    def normals(self, away=0.0):
        """Normal random numbers in all shapes, each moved away from zero; each part of a complex number is one."""
        parts = self.dtype.itemsize // self.dtype.type(0).real.itemsize
        normals = [self.rng.standard_normal((*shape, parts)) for shape in SHAPES]
        real = [(n + away * np.sign(n)).astype(self.dtype.type(0).real.dtype) for n in normals]
        return [r.view(self.dtype).reshape(shape) for r, shape in zip(real, SHAPES, strict=True)]

    def grads(self, params):
        """The gradients at `params`, with the noise of a batch."""
        return [p - t + n for p, t, n in zip(params, self.targets, self.normals(), strict=True)]

    def noise(self):
        """Gradients of random sign, at least 0.25 in size."""
        return self.normals(away=0.25)


def reals(array):
    """An array, of complex numbers as pairs of reals."""
    return np.ascontiguousarray(array).view(array.real.dtype)


def assert_close(ours, expected, label, tolerance=1e-12):
    """Check that arrays which ran freely are this near to each other; test_peers.py says by which measure."""
    ours, expected = reals(ours), reals(expected)
    scale = np.maximum(np.abs(expected), np.abs(expected).max(initial=0) / 1000)
    assert (np.abs(ours - expected) <= tolerance * scale).all(), label


def ulps(ours, before, after, array, i):
    """The largest difference of one step in array `i` of those named `array`, in units in the last place of the largest
    number that the step added or subtracted; `before` and `after` are the arrays of the framework, by their names.
    """
    expected = reals(after[array][i])
    start = reals(before[array][i]) if array in before else np.zeros_like(expected)
    terms = [expected, start, expected - start]
    if array == "ema":
        terms += [reals(arrays["param"][i]) for arrays in (before, after)]
    unit = np.spacing(np.abs(terms).max(axis=0))
    return float((np.abs(reals(ours) - expected) / unit).max(initial=0))

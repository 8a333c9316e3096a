"""The loop of linear.pyx beside the same loop in Python: the same bits, and how long a step takes in each.

Run `python setup.py build_ext --inplace` first, then `python compare.py`.
"""

from __future__ import annotations

import time

import linear
import numpy as np
from numpy.typing import NDArray

import rmsprop_native as rms


def fit(x: NDArray[np.float64], y: NDArray[np.float64], w: NDArray[np.float64]) -> None:
    """Do what linear.fit does, operation by operation."""
    state = rms.init(w)
    for row, target in zip(x, y, strict=True):
        error = -float(target)
        for a, b in zip(row.tolist(), w.tolist(), strict=True):
            error += a * b
        rms.update_(w, 2 * error * row, state)


def main() -> None:
    """Fit twice, and compare."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 8))
    y = x @ np.arange(8.0) + 0.1 * rng.standard_normal(len(x))
    ours, beside = np.zeros(8), np.zeros(8)
    start = time.perf_counter()
    losses = linear.fit(x, y, ours)
    middle = time.perf_counter()
    fit(x, y, beside)
    end = time.perf_counter()
    print(f"loss {losses[:100].mean():.3f} -> {losses[-100:].mean():.3f}")
    print(f"a sample: {(middle - start) / len(x) * 1e9:.0f} ns in C, {(end - middle) / len(x) * 1e9:.0f} ns in Python")
    print(f"the same to the bit: {'yes' if ours.tobytes() == beside.tobytes() else 'no'}")


if __name__ == "__main__":
    main()

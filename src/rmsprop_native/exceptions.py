"""Floating-point exceptions of a ufunc's step in place, reported by NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

__all__ = ["report"]


def report(
    ufunc: np.ufunc, names: tuple[Sequence[str], Sequence[str]], raised: int, bits: Mapping[str, int], dtype: Any
) -> None:
    """Have NumPy report exceptions as np.errstate says, under the name of the ufunc: call it on a few numbers that
    raise the same ones. So no exceptions need be stored between calls.

    Parameters
    ----------
    ufunc : numpy.ufunc
        One of ours.
    names : tuple of (sequence of str, sequence of str)
        Its arrays and its hyper-parameters.
    raised : int
        What was raised, in bits.
    bits : mapping of str to int
        The bit of each exception, by NumPy's name for it.
    dtype : numpy.dtype
        Of the step.

    Raises
    ------
    FloatingPointError
        Where np.errstate says so.
    """
    info = np.finfo(dtype)
    # The gradient and square_avg of a step with rho 1/2 that raises this exception and no other one.
    raising = {
        "divide": (1, -1),  # square_avg becomes 0
        "over": (info.max, 1),
        "under": (info.tiny, 1),
        "invalid": (np.inf, np.inf),  # inf / inf
    }
    grad, square_avg = np.array([pair for kind, pair in raising.items() if raised & bits[kind]], dtype).T
    zeros = np.zeros_like(grad)
    arrays = {"param": zeros, "grad": grad, "square_avg": square_avg, "momentum_buffer": zeros, "grad_avg": -grad}
    numbers = {"lr": 1.0, "rho": 0.5, "momentum": 0.5, "eps": 0.0, "eps_inside": 0.0}
    ufunc(*[arrays[name] for name in names[0]], *[numbers[name] for name in names[1]])

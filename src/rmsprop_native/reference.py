"""The specification in NumPy: what a step is, operation by operation; the oracle of the tests, no compiled code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rmsprop_native.options import Coefficients, Variant

__all__ = ["clip_factors", "lerp", "merge_rows", "step", "sumsq"]


def step(
    variant: Variant,
    coefficients: Coefficients,
    param: NDArray[Any],
    grad: NDArray[Any],
    square_avg: NDArray[Any],
    momentum_buffer: NDArray[Any] | None = None,
    grad_avg: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """One RMSProp step (Tieleman & Hinton 2012; centered: Graves 2013), in plain NumPy.

    The compiled kernels give these results to the bit. The order of operations is part of the specification.
    Nothing is written in place.

    Parameters
    ----------
    variant : Variant
        Which arrays take part.
    coefficients : Coefficients
        The numbers of the step; each is rounded once to the type of `param`.
    param, grad, square_avg : numpy.ndarray
        Of one shape and one dtype, float32, float64, complex64 or complex128; complex numbers are pairs of reals.
    momentum_buffer : numpy.ndarray, optional
        With momentum: of the same shape and dtype.
    grad_avg : numpy.ndarray, optional
        If centered: of the same shape and dtype.

    Returns
    -------
    tuple of (numpy.ndarray or None)
        The new param, square_avg, momentum_buffer and grad_avg; None where the variant has no such array.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.options import Options
    >>> from rmsprop_native.reference import step
    >>> o = Options(lr=0.5, rho=0.75, eps=0.0)
    >>> step(o.variant, o.coefficients(1), np.array([1.0]), np.array([2.0]), np.array([0.0]))
    (array([0.]), array([1.]), None, None)
    """
    if np.iscomplexobj(param):
        real = param.real.dtype
        arrays = (a if a is None else _as_pairs(a, real) for a in (param, grad, square_avg, momentum_buffer, grad_avg))
        new = step(variant, coefficients, *arrays)  # type: ignore[arg-type]
        return tuple(a if a is None else a.view(param.dtype).reshape(param.shape) for a in new)  # type: ignore[return-value]

    p, g, v, b, a = param, grad, square_avg, momentum_buffer, grad_avg
    k = type(coefficients)(*(p.dtype.type(number) for number in coefficients))
    with np.errstate(all="ignore"):
        g = k.grad_scale * g
        g = np.where(g > k.clip_value, k.clip_value, g)
        g = np.where(g < -k.clip_value, -k.clip_value, g)
        if variant.l2:
            g = g + k.weight_decay * p
        v = k.rho * v + (k.one_minus_rho * g) * g
        d = k.bias_correction * v
        if variant.centered:
            assert a is not None
            a = k.rho * a + k.one_minus_rho * g
            mean = k.bias_correction * a
            d = d - mean * mean
            d = np.where(d < 0, p.dtype.type(0), d)
        r = np.sqrt(d + k.eps_inside) + k.eps_outside
        u = (k.lr_in * g) / r
        if variant.momentum != "none":
            assert b is not None
            b = k.momentum * b + u
            u = u + k.momentum * b if variant.momentum == "nesterov" else b
        p = k.shrink * p - k.lr_out * u
    return p, v, b if variant.momentum != "none" else None, a if variant.centered else None


def sumsq(grad: NDArray[Any]) -> float:
    """The sum of squares in double, in the order of the compiled kernels: same bits.

    Over the elements in C order: spans of 4096, in each blocks of 512, in each 16 sums side by side that are folded in
    halves; blocks, and then spans, are added one after another.

    Parameters
    ----------
    grad : numpy.ndarray
        Of any shape and layout; the squares of a complex number are those of its two parts.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import sumsq
    >>> sumsq(np.array([3.0, 4.0], np.float32))
    25.0
    """
    x = _as_pairs(grad, grad.real.dtype).astype(np.float64)
    total = np.float64(0)
    with np.errstate(all="ignore"):
        for span in range(0, x.size, 4096):
            span_total = np.float64(0)
            for block in range(span, min(span + 4096, x.size), 512):
                squares = x[block : block + 512] ** 2
                lanes = np.zeros(16)
                for start in range(0, squares.size, 16):
                    lanes[: squares.size - start] += squares[start : start + 16]
                while lanes.size > 1:
                    lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
                span_total += lanes[0]
            total += span_total
    return float(total)


def clip_factors(
    grads: list[NDArray[Any] | None], clip_norms: list[float | None], clip_global_norm: float | None, scale: float
) -> list[float]:
    """The factor on each gradient that clips norms: ``min(1, limit / norm)``; 1 where the norm is NaN.

    Parameters
    ----------
    grads : list of (numpy.ndarray or None)
        The gradients before unscaling.
    clip_norms : list of (float or None)
        The limit of each gradient's own norm.
    clip_global_norm : float or None
        The limit of their common norm.
    scale : float
        The factor that unscales them.

    Returns
    -------
    list of float

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import clip_factors
    >>> clip_factors([np.array([3.0, 4.0]), None], [2.5, 2.5], None, 1.0)
    [0.5, 1.0]
    """
    sums = [0.0 if grad is None else sumsq(grad) for grad in grads]
    if clip_global_norm is not None:
        total = 0.0
        for one in sums:
            total += one
        sums = [total] * len(sums)
        clip_norms = [clip_global_norm] * len(sums)
    norms = [abs(scale) * math.sqrt(one) for one in sums]
    return [
        limit / norm if limit is not None and norm > limit else 1.0
        for norm, limit in zip(norms, clip_norms, strict=True)
    ]


def lerp(average: NDArray[Any], x: NDArray[Any], a: float, b: float) -> NDArray[Any]:
    """``a * average + b * x``, `a` and `b` rounded once: averaged weights, and with ``a = 1`` accumulated gradients.

    Parameters
    ----------
    average, x : numpy.ndarray
        Of one shape and dtype.
    a, b : float
        The weights.

    Returns
    -------
    numpy.ndarray

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import lerp
    >>> lerp(np.array([1.0]), np.array([3.0]), 0.5, 0.5)
    array([2.])
    """
    real = average.real.dtype
    with np.errstate(all="ignore"):
        sums: NDArray[Any] = real.type(a) * _as_pairs(average, real) + real.type(b) * _as_pairs(x, real)
    return sums.view(average.dtype).reshape(average.shape)


def merge_rows(rows: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each row once, in increasing order; values of a row given more than once are added in the order given.

    Parameters
    ----------
    rows : numpy.ndarray of int, shape (k,)
        Row indices.
    values : numpy.ndarray, shape (k, ...)
        Their gradients.

    Returns
    -------
    rows, values : numpy.ndarray

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import merge_rows
    >>> merge_rows(np.array([7, 3, 7]), np.array([1.0, 2.0, 4.0]))
    (array([3, 7]), array([2., 5.]))
    """
    sums: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for row, value in zip(rows.tolist(), values, strict=True):
            sums[row] = sums[row] + value if row in sums else value
    order = sorted(sums)
    shape = (len(sums), *values.shape[1:])
    return np.array(order, np.intp), np.array([sums[row] for row in order], values.dtype).reshape(shape)


def _as_pairs(array: NDArray[Any], real: np.dtype[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).reshape(-1).view(real)

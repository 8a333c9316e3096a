"""The specification in NumPy: what a step is, operation by operation; the oracle of the tests, no compiled code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rmsprop_native.options import Coefficients, Variant

__all__ = ["step"]


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


def _as_pairs(array: NDArray[Any], real: np.dtype[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).reshape(-1).view(real)

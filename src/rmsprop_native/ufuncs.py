"""Wrappers of the ufuncs with named operands: the step for people who hold their own buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

from rmsprop_native import _core

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = ["rmsprop", "rmsprop_centered", "rmsprop_centered_momentum", "rmsprop_momentum"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class NamedUfunc(Protocol[P, R_co]):
    """A wrapper of a ufunc, which is its attribute."""

    ufunc: np.ufunc

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the ufunc."""
        ...


def _named(function: Callable[P, R_co]) -> NamedUfunc[P, R_co]:
    named = cast("NamedUfunc[P, R_co]", function)
    named.ufunc = getattr(_core, function.__name__)
    return named


def _call(ufunc: np.ufunc, operands: tuple[Any, ...], out: Any, where: Any, kwargs: dict[str, Any]) -> Any:
    if out is not None:
        if not isinstance(out, tuple) or len(out) != ufunc.nout:
            raise TypeError(f"out must be a tuple of {ufunc.nout} arrays or None, one an output of {ufunc.__name__}")
        if where is True and not kwargs and _core.step_in_place(ufunc, operands, out):
            return out
        found = _core.overlapping(out)
        if found is not None:
            first, second = found
            if first == second:
                raise ValueError(f"output {first} has strides {out[first].strides}: some of its elements share memory")
            how = "are the same array" if out[first] is out[second] else "overlap in memory"
            raise ValueError(f"output {first} and output {second} {how}")
        kwargs["out"] = out
    if where is not True:
        kwargs["where"] = where
    return ufunc(*operands, **kwargs)


@_named
def rmsprop(
    param: Any,
    grad: Any,
    square_avg: Any,
    *,
    lr: Any,
    rho: Any,
    eps: Any,
    eps_inside: Any = 0.0,
    out: tuple[Any, Any] | None = None,
    where: Any = True,
    **kwargs: Any,
) -> Any:
    """One RMSProp step (Tieleman & Hinton 2012), element by element, as a NumPy ufunc.

    Parameters
    ----------
    param, grad, square_avg : array_like
        Parameter, gradient, running mean of squared gradients; float32 or float64, of shapes that broadcast.
    lr, rho, eps, eps_inside : array_like
        Learning rate, decay, what is added to the root, what is added under it. Always taken as float64, so that they
        never decide the type of the result; they broadcast with the arrays: one an element, a row, a layer.
    out : tuple of (numpy.ndarray or None), optional
        Where the new param and square_avg go. ``out=(param, square_avg)`` is the step in place; nothing is copied.
    where : array_like of bool, optional
        Where to take the step. Elsewhere `out` stays as it is; without `out` it is not initialised, as in any ufunc.
    **kwargs
        For the ufunc: casting, order, dtype, subok, signature.

    Returns
    -------
    param, square_avg : numpy.ndarray
        After the step.

    Raises
    ------
    ValueError
        If two outputs overlap or elements of one share memory, which NumPy does not notice, or the shapes do not
        broadcast.
    TypeError
        If an array cannot be taken as float32 or float64, or a result cannot be cast to its output.

    Notes
    -----
    ``rmsprop.ufunc`` is the `numpy.ufunc`, with operands in the order of the signature. The bits are those of
    `update_` and of `rmsprop_native.reference`. The numbers are not checked.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> p, g, v = np.array([1.0, -2.0]), np.array([2.0, 2.0]), np.zeros(2)
    >>> rms.rmsprop(p, g, v, lr=0.5, rho=0.75, eps=0.0)
    (array([ 0., -3.]), array([1., 1.]))
    >>> p, v = rms.rmsprop(p, g, v, lr=[0.5, 0.0], rho=0.75, eps=0.0, out=(p, v))
    >>> p
    array([ 0., -2.])
    >>> rms.rmsprop.ufunc.nin, rms.rmsprop.ufunc.nout
    (7, 2)
    """
    return _call(_core.rmsprop, (param, grad, square_avg, lr, rho, eps, eps_inside), out, where, kwargs)


@_named
def rmsprop_momentum(
    param: Any,
    grad: Any,
    square_avg: Any,
    momentum_buffer: Any,
    *,
    lr: Any,
    rho: Any,
    momentum: Any,
    eps: Any,
    eps_inside: Any = 0.0,
    out: tuple[Any, Any, Any] | None = None,
    where: Any = True,
    **kwargs: Any,
) -> Any:
    """One RMSProp step with momentum, element by element, as a NumPy ufunc; lr is applied after the buffer (torch).

    Parameters
    ----------
    param, grad, square_avg, momentum_buffer : array_like
        Parameter, gradient and the two running means; float32 or float64, of shapes that broadcast.
    lr, rho, momentum, eps, eps_inside : array_like
        As for `rmsprop`; momentum is the decay of the buffer.
    out : tuple of (numpy.ndarray or None), optional
        Where the new param, square_avg and momentum_buffer go.
    where : array_like of bool, optional
        As for `rmsprop`.
    **kwargs
        For the ufunc.

    Returns
    -------
    param, square_avg, momentum_buffer : numpy.ndarray
        After the step.

    Raises
    ------
    ValueError, TypeError
        As `rmsprop`.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> p, g, v, b = np.array([1.0]), np.array([2.0]), np.zeros(1), np.array([1.0])
    >>> rms.rmsprop_momentum(p, g, v, b, lr=0.5, rho=0.75, momentum=0.5, eps=0.0)
    (array([-0.25]), array([1.]), array([2.5]))
    """
    operands = (param, grad, square_avg, momentum_buffer, lr, rho, momentum, eps, eps_inside)
    return _call(_core.rmsprop_momentum, operands, out, where, kwargs)


@_named
def rmsprop_centered(
    param: Any,
    grad: Any,
    square_avg: Any,
    grad_avg: Any,
    *,
    lr: Any,
    rho: Any,
    eps: Any,
    eps_inside: Any = 0.0,
    out: tuple[Any, Any, Any] | None = None,
    where: Any = True,
    **kwargs: Any,
) -> Any:
    """One centered RMSProp step (Graves 2013), element by element, as a NumPy ufunc.

    Parameters
    ----------
    param, grad, square_avg, grad_avg : array_like
        Parameter, gradient and the two running means; float32 or float64, of shapes that broadcast.
    lr, rho, eps, eps_inside : array_like
        As for `rmsprop`.
    out : tuple of (numpy.ndarray or None), optional
        Where the new param, square_avg and grad_avg go.
    where : array_like of bool, optional
        As for `rmsprop`.
    **kwargs
        For the ufunc.

    Returns
    -------
    param, square_avg, grad_avg : numpy.ndarray
        After the step.

    Raises
    ------
    ValueError, TypeError
        As `rmsprop`.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> p, g, v, a = np.array([1.0]), np.array([2.0]), np.array([8.0]), np.array([0.0])
    >>> rms.rmsprop_centered(p, g, v, a, lr=0.5, rho=0.5, eps=0.0, eps_inside=3.0)
    (array([0.64644661]), array([6.]), array([1.]))
    """
    return _call(
        _core.rmsprop_centered, (param, grad, square_avg, grad_avg, lr, rho, eps, eps_inside), out, where, kwargs
    )


@_named
def rmsprop_centered_momentum(
    param: Any,
    grad: Any,
    square_avg: Any,
    momentum_buffer: Any,
    grad_avg: Any,
    *,
    lr: Any,
    rho: Any,
    momentum: Any,
    eps: Any,
    eps_inside: Any = 0.0,
    out: tuple[Any, Any, Any, Any] | None = None,
    where: Any = True,
    **kwargs: Any,
) -> Any:
    """One centered RMSProp step with momentum, element by element, as a NumPy ufunc; lr is applied after the buffer.

    Parameters
    ----------
    param, grad, square_avg, momentum_buffer, grad_avg : array_like
        Parameter, gradient and the three running means; float32 or float64, of shapes that broadcast.
    lr, rho, momentum, eps, eps_inside : array_like
        As for `rmsprop_momentum`.
    out : tuple of (numpy.ndarray or None), optional
        Where the new param, square_avg, momentum_buffer and grad_avg go.
    where : array_like of bool, optional
        As for `rmsprop`.
    **kwargs
        For the ufunc.

    Returns
    -------
    param, square_avg, momentum_buffer, grad_avg : numpy.ndarray
        After the step.

    Raises
    ------
    ValueError, TypeError
        As `rmsprop`.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> p, g, v, b, a = np.array([1.0]), np.array([2.0]), np.array([8.0]), np.array([1.0]), np.array([0.0])
    >>> rms.rmsprop_centered_momentum(p, g, v, b, a, lr=0.5, rho=0.5, momentum=0.5, eps=0.0, eps_inside=11.0)
    (array([0.5]), array([6.]), array([1.]), array([1.]))
    """
    operands = (param, grad, square_avg, momentum_buffer, grad_avg, lr, rho, momentum, eps, eps_inside)
    return _call(_core.rmsprop_centered_momentum, operands, out, where, kwargs)

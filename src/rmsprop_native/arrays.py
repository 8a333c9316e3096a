"""What a step can work on: the checks of arrays, in full and with their messages; no compiled code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["check_array", "check_distinct", "check_gradient", "check_parameter", "title"]

_DTYPES = (np.float32, np.float64, np.complex64, np.complex128)


def title(what: str, path: str) -> str:
    """What messages call a leaf: ``gradient 'layer1.w'``."""
    return f"{what} {path!r}" if path else f"the {what}"


def check_array(name: str, array: object) -> None:
    """Refuse what no step can read.

    Parameters
    ----------
    name : str
        What messages call it.
    array : object
        What should be an array.

    Raises
    ------
    TypeError
        If it is not a plain numpy.ndarray of native float32, float64, complex64 or complex128.
    ValueError
        If it is misaligned.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(array).__name__}, not a numpy.ndarray")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; pass its .data or .filled(0)")
    if array.dtype.type not in _DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}; supported are float32, float64, complex64 and complex128")
    if not array.dtype.isnative:
        raise TypeError(f"{name} has byte order {array.dtype.str!r}; convert it with .astype('{array.dtype.name}')")
    if not array.flags.aligned:
        raise ValueError(f"{name} is misaligned in memory; copy it with .copy()")


def check_parameter(name: str, array: object) -> None:
    """Refuse what no step can write to.

    Parameters
    ----------
    name : str
        What messages call it.
    array : object
        What should be a parameter, or an array of the state.

    Raises
    ------
    TypeError, ValueError
        As `check_array`; ValueError also if it is read-only or some of its elements share memory.
    """
    check_array(name, array)
    assert isinstance(array, np.ndarray)
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if _overlaps_itself(array):
        raise ValueError(f"{name} has strides {array.strides}: some of its elements share memory; copy it with .copy()")


def check_gradient(path: str, grad: object, param: NDArray[Any], written: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Refuse a gradient that does not belong to its parameter.

    Parameters
    ----------
    path : str
        The path of the leaf.
    grad : object
        What should be a gradient; it may be read-only and of any layout.
    param : numpy.ndarray
        Its parameter.
    written : iterable of (str, numpy.ndarray)
        The arrays of the leaf that a step writes, with their names.

    Raises
    ------
    TypeError
        If it is not an array, or its dtype is not its parameter's.
    ValueError
        If its shape is not its parameter's, it is misaligned, or it overlaps an array that the step writes.
    """
    name = title("gradient", path)
    check_array(name, grad)
    assert isinstance(grad, np.ndarray)
    if grad.dtype != param.dtype:
        raise TypeError(f"{name} has dtype {grad.dtype}, its parameter has {param.dtype}")
    if grad.shape != param.shape:
        raise ValueError(f"{name} has shape {grad.shape}, its parameter has {param.shape}")
    for other, array in written:
        if _share_memory(grad, array):
            raise ValueError(f"{name} overlaps its {other} in memory")


def check_distinct(named: list[tuple[str, NDArray[Any]]]) -> None:
    """Refuse arrays to be written that share memory.

    Parameters
    ----------
    named : list of (str, numpy.ndarray)
        The arrays and what messages call them.

    Raises
    ------
    ValueError
        If two of them are the same array or overlap.
    """
    bounds = sorted((*np.lib.array_utils.byte_bounds(array), i) for i, (_, array) in enumerate(named) if array.size)
    reaching: list[tuple[int, int]] = []  # the ends of arrays that may reach into the next one, and which they are
    for low, high, i in bounds:
        reaching = [(end, j) for end, j in reaching if end > low]
        for _, j in reaching:
            (name, array), (other_name, other) = named[min(i, j)], named[max(i, j)]
            if array is other:
                raise ValueError(f"{name} and {other_name} are the same array")
            if _share_memory(array, other):
                raise ValueError(f"{name} and {other_name} overlap in memory")
        reaching.append((high, i))


def _overlaps_itself(array: NDArray[Any]) -> bool:
    """Whether elements may share memory: where not, each stride steps over all that the smaller ones span."""
    span = array.itemsize
    axes = sorted(
        (abs(stride), length) for stride, length in zip(array.strides, array.shape, strict=True) if length > 1
    )
    for stride, length in axes if array.size else ():
        if stride < span:
            return True
        span += stride * (length - 1)
    return False


def _share_memory(one: NDArray[Any], other: NDArray[Any]) -> bool:
    try:
        return np.shares_memory(one, other, max_work=1_000_000)  # type: ignore[arg-type] # the stubs know 0 and -1 only
    except np.exceptions.TooHardError:
        return True

"""What a step can work on: the checks of arrays, in full and with their messages; no compiled code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["RowGrad", "check_array", "check_distinct", "check_gradient", "check_parameter", "merge_rows", "title"]

_DTYPES = (np.float32, np.float64, np.complex64, np.complex128)


@dataclass(frozen=True, slots=True, eq=False)
class RowGrad:
    """A gradient that is zero but for some rows of its parameter, as of an embedding table.

    Only those rows of the parameter, and of its state, move ("lazy", as in TensorFlow): the others are not decayed.
    Averaged weights follow likewise. The cost is proportional to the rows given, not to the table.

    Parameters
    ----------
    rows : array_like of int, shape (k,)
        Indices into the first axis of the parameter, from 0. Values of a row that is given more than once are summed
        first, in the order given.
    values : numpy.ndarray, shape (k, ...)
        The gradient of each of these rows, of the dtype of the parameter and the shape of its rows.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> table = np.zeros((1000, 2))
    >>> state = rms.init(table, lr=0.5, rho=0.75, eps=0.0)
    >>> table = rms.update_(table, rms.RowGrad([3, 7, 3], np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]])), state)
    >>> np.flatnonzero(table.any(axis=1))
    array([3, 7])
    >>> table[3], state.square_avg[3]
    (array([-1., -1.]), array([1., 1.]))
    """

    rows: Any
    values: Any


def merge_rows(
    path: str, grad: RowGrad, param: NDArray[Any], written: Iterable[tuple[str, NDArray[Any]]]
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Check a gradient of rows, and sum up rows given more than once.

    Parameters
    ----------
    path, param, written
        As for `check_gradient`.
    grad : RowGrad
        The gradient.

    Returns
    -------
    rows : numpy.ndarray of numpy.intp, shape (k,)
        Each row once, in increasing order.
    values : numpy.ndarray, shape (k, ...)
        Their values, C-contiguous.

    Raises
    ------
    TypeError
        If `rows` are not integers, or `values` not an array of the parameter's dtype.
    ValueError
        If a shape does not fit, or `values` overlap an array that the step writes.
    IndexError
        If the parameter has no such row; the message names it.
    """
    name = title("gradient", path)
    rows, values = np.asarray(grad.rows), grad.values
    if rows.size == 0 and not isinstance(grad.rows, np.ndarray):
        rows = rows.astype(np.intp)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"{name} has rows of dtype {rows.dtype}, not integers")
    if param.ndim == 0 or rows.ndim != 1:
        raise ValueError(f"{name} has rows of shape {rows.shape}, its parameter has shape {param.shape}")
    _check_values(name, values, param, (len(rows), *param.shape[1:]), written)
    outside = np.flatnonzero((rows < 0) | (rows >= len(param)))
    if outside.size:
        raise IndexError(
            f"{name} has row {rows[outside[0]]} at place {outside[0]}, its parameter has {len(param)} rows"
        )
    rows = np.ascontiguousarray(rows, dtype=np.intp)
    if np.all(rows[1:] > rows[:-1]):
        return rows, np.ascontiguousarray(values)
    distinct, first, place = np.unique(rows, return_index=True, return_inverse=True)
    sums = np.ascontiguousarray(values[first])
    again = np.ones(len(rows), bool)
    again[first] = False
    with np.errstate(all="ignore"):
        np.add.at(sums, place[again], values[again])
    return distinct, sums


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
    _check_values(title("gradient", path), grad, param, param.shape, written)


def _check_values(
    name: str, grad: object, param: NDArray[Any], shape: tuple[int, ...], written: Iterable[tuple[str, NDArray[Any]]]
) -> None:
    check_array(name, grad)
    assert isinstance(grad, np.ndarray)
    if grad.dtype != param.dtype:
        raise TypeError(f"{name} has dtype {grad.dtype}, its parameter has {param.dtype}")
    if grad.shape != shape:
        rows = "" if shape == param.shape else f"; the values of {shape[0]} rows have {shape}"
        raise ValueError(f"{name} has shape {grad.shape}, its parameter has {param.shape}{rows}")
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

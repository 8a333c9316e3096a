"""Gradients of rows, and the messages for what is refused in the place of an array or a state; no compiled code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RowGrad", "arithmetic", "bfloat16", "merge_rows", "no_state", "refusal", "title"]


class RowGrad:
    """A gradient that is zero but for some rows of its parameter, as of an embedding table.

    Only those rows of the parameter and of its state change ("lazy", as in TensorFlow): the others are not decayed.
    The same holds for averaged weights. The cost is proportional to the rows given, not to the table.

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

    __slots__ = ("rows", "values")
    rows: Any
    values: Any

    def __init__(self, rows: Any, values: Any) -> None:
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return f"RowGrad(rows={self.rows!r}, values={self.values!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows, self.values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a RowGrad cannot be changed: make another one to have other {name}")


def merge_rows(path: str, grad: RowGrad, shape: tuple[int, ...]) -> tuple[NDArray[np.intp], Any]:
    """Check the rows of a gradient, and sum up values of rows given more than once.

    Parameters
    ----------
    path : str
        The path of the leaf.
    grad : RowGrad
        The gradient.
    shape : tuple of int
        Of its parameter.

    Returns
    -------
    rows : numpy.ndarray of numpy.intp, shape (k,)
        A new array; each row once and in increasing order, if the values are an array of as many rows.
    values : object
        Their values, in C order; or what `grad` has for them, if it is no array of as many rows.

    Raises
    ------
    TypeError
        If the rows are not integers.
    ValueError
        If their array is not one-dimensional, or the parameter has no rows.
    IndexError
        If the parameter has no such row; the message names it.
    """
    name = title("gradient", path)
    # Copied in two steps: __array__ may give an array that other code holds, even where a copy is asked for.
    rows, values = np.array(np.asarray(grad.rows)), grad.values
    if rows.size == 0 and not isinstance(grad.rows, np.ndarray):
        rows = rows.astype(np.intp)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"{name} has rows of dtype {rows.dtype}, not integers")
    if not shape or rows.ndim != 1:
        raise ValueError(f"{name} has rows of shape {rows.shape}, its parameter has shape {shape}")
    outside = np.flatnonzero((rows < 0) | (rows >= shape[0]))
    if outside.size:
        raise IndexError(f"{name} has row {rows[outside[0]]} at place {outside[0]}, its parameter has {shape[0]} rows")
    rows = rows.astype(np.intp, copy=False)
    if not issubclass(type(values), np.ndarray) or issubclass(type(values), np.ma.MaskedArray):
        return rows, values
    values = np.ndarray.view(values, np.ndarray)
    if values.shape[:1] != rows.shape:
        return rows, values
    if np.all(rows[1:] > rows[:-1]):
        return rows, np.ascontiguousarray(values)
    values = values.astype(arithmetic(values.dtype), copy=False)  # sums of bfloat16 are float32
    distinct, first, place = np.unique(rows, return_index=True, return_inverse=True)
    sums = np.ascontiguousarray(values[first])
    again = np.ones(len(rows), bool)
    again[first] = False
    with np.errstate(all="ignore"):
        np.add.at(sums, place[again], values[again])
    return distinct, sums


def bfloat16() -> np.dtype[Any]:
    """NumPy's dtype of bfloat16, that of ml_dtypes.

    Returns
    -------
    numpy.dtype

    Raises
    ------
    ImportError
        If ml_dtypes is not installed.
    """
    try:
        import ml_dtypes  # only for those who store in bfloat16
    except ImportError as error:
        raise ImportError("bfloat16 in NumPy needs ml_dtypes: pip install 'rmsprop_native[bfloat16]'") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that arrays of a dtype are computed with in, which their buffers have: float32 for bfloat16.

    Parameters
    ----------
    dtype : numpy.dtype

    Returns
    -------
    numpy.dtype

    Examples
    --------
    >>> import ml_dtypes
    >>> import numpy as np
    >>> from rmsprop_native.arrays import arithmetic
    >>> arithmetic(np.dtype(ml_dtypes.bfloat16)), arithmetic(np.dtype(float))
    (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.float32) if dtype.name == "bfloat16" else dtype


def title(what: str, path: str) -> str:
    """What messages call a leaf: ``gradient 'layer1.w'``."""
    return f"{what} {path!r}" if path else f"the {what}"


def refusal(
    reason: str,
    name: str,
    array: object,
    *,
    shape: tuple[int, ...] = (),
    dtype: np.dtype[Any] | None = None,
    owner: str = "",
    rows: int | None = None,
    other: str | None = None,
    is_other: bool = False,
    supported: str = "",
) -> Exception:
    """The exception for an array that the compiled library refused.

    Parameters
    ----------
    reason : str
        A name of RMSP_REASONS in ``rmsp.h``.
    name : str
        What the message calls the array.
    array : object
        The array.
    shape, dtype : tuple of int, numpy.dtype
        What it should have, as its owner has.
    owner : str
        What the message calls that.
    rows : int, optional
        For a gradient of rows, how many.
    other : str, optional
        What the message calls the array that it overlaps.
    is_other : bool
        Whether that is the same object.
    supported : str
        The names of the dtypes that the library has.

    Returns
    -------
    TypeError or ValueError
    """
    if issubclass(type(array), RowGrad):
        array = cast("RowGrad", array).values
    if reason in ("absent", "not_an_array"):
        return TypeError(f"{name} is {_a(type(array).__name__)}, not a numpy.ndarray{_remedy(array)}")
    its_shape, its_dtype, strides = _looks(array)
    device = getattr(array, "device", None)
    if reason == "not_strided" and getattr(device, "type", "cpu") != "cpu":
        reason = "device"
    shown = shape if rows is None else f"{shape}; the values of {rows} rows have {(rows, *shape[1:])}"
    if reason == "overlap":
        if name.startswith(("parameter", "the parameter")):
            return ValueError(f"{name} and {other} {'are the same array' if is_other else 'overlap in memory'}")
        how = f"is {other} itself" if is_other else f"overlaps {other} in memory"
        return ValueError(f"{name} {how}, which the step writes; pass a copy")
    accumulated = (
        "is a RowGrad, which cannot be accumulated: rows left out would be decayed. "
        "Values of rows given twice are summed: give the rows of all batches at once"
    )
    byte_order = (
        f"has byte order {getattr(its_dtype, 'str', '')!r}; convert it with .astype('{getattr(its_dtype, 'name', '')}')"
    )
    copy_it = f"copy it with .{'copy' if isinstance(array, np.ndarray) else 'clone'}()"
    messages: dict[str, tuple[type[Exception], str]] = {
        "masked": (TypeError, "is a masked array; pass its .data or .filled(0)"),
        "device": (TypeError, f"is on device {device}; a step runs on the CPU: move it with .cpu()"),
        "not_strided": (TypeError, "has no memory laid out by strides (a sparse tensor?); pass .to_dense()"),
        "lazy_bits": (ValueError, "is a lazy conjugate or negative; pass .resolve_conj() or .resolve_neg()"),
        "unsupported": (TypeError, f"has dtype {its_dtype}; supported are {supported}{_conversion(its_dtype)}"),
        "byte_order": (TypeError, byte_order),
        "misaligned": (ValueError, "is misaligned in memory; copy it with .copy()"),
        "null_data": (ValueError, "has elements and no memory"),
        "other_dtype": (TypeError, f"has dtype {its_dtype}, {owner} has {dtype}"),
        "other_shape": (ValueError, f"has shape {its_shape}, {owner} has {shown}"),
        "read_only": (ValueError, "is read-only"),
        "self_overlap": (ValueError, f"has strides {strides}: some of its elements share memory; {copy_it}"),
        "rows_accumulated": (ValueError, accumulated),
        "row_outside": (IndexError, "has a row that its parameter has not"),
        "row_order": (ValueError, "has rows that are not in increasing order, each once"),
        "not_c_order": (ValueError, "is not in C order, by which random bits are counted; pass its .contiguous()"),
        "rows_strided": (ValueError, "has values that are not C-contiguous"),
    }
    kind, message = messages[reason]
    return kind(f"{name} {message}")


def _looks(array: Any) -> tuple[Any, Any, Any]:
    """The shape, dtype and strides of an array or tensor, for messages."""
    if issubclass(type(array), np.ndarray):  # by the properties of ndarray: a subclass may override them
        shape, dtype, strides = (getattr(np.ndarray, key).__get__(array) for key in ("shape", "dtype", "strides"))
        return shape, dtype, strides
    shape = strides = None
    with contextlib.suppress(RuntimeError):  # a nested tensor has neither, a sparse one no strides
        shape = tuple(array.shape)
        strides = array.stride()
    return shape, str(array.dtype), strides


def _conversion(dtype: Any) -> str:
    """What a message proposes for an array of a dtype that is not supported."""
    kind = getattr(dtype, "kind", "")
    if kind == "O":
        return "; give the arrays in it as a list"
    if str(dtype) in ("float16", "torch.float16"):
        how = ".float()" if str(dtype).startswith("torch") else ".astype('float32')"
        return f"; squares of gradients need the range of float32 or bfloat16: {how} converts it"
    return f"; .astype('{'float32' if kind == 'f' else 'float64'}') converts it" if kind in tuple("biuf") else ""


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1] in "AEIOUaeiou" else f"a {noun}"


# What to do with objects of other libraries, by the name of the package that their class is from.
_REMEDIES = {
    "torch": "; of torch's tensors only torch.Tensor and torch.nn.Parameter are taken, of a DTensor its .to_local()",
    "jaxlib": " and cannot be changed in place; keep the parameters as NumPy arrays, numpy.array(x) copies one",
    "tensorflow": "; keep the parameters as NumPy arrays: v.numpy() reads a variable, v.assign(x) writes it",
    "keras": "; keep the parameters as NumPy arrays: keras.ops.convert_to_numpy(v) reads a variable, v.assign(x) "
    "writes it",
    "autograd": "; it belongs to a trace of autograd: take the step outside of the function that is differentiated",
    "pandas": "; .to_numpy() makes one",
    "scipy": "; .toarray() makes one; a gradient of some rows may be a RowGrad",
}


def _remedy(array: object) -> str:
    """What a message proposes for an object that is no array."""
    if isinstance(array, Iterator):
        return "; it can be read only once: pass list(...) of it"
    if isinstance(array, ValuesView):
        return "; pass the dict itself, or list(...) of it"
    if isinstance(array, int | float | complex | list | tuple | np.generic):
        return "; numpy.array(x) makes one, of a number or of a list of numbers"
    packages = [base.__module__.partition(".")[0] for base in type(array).__mro__]
    if "torch" in packages and callable(getattr(array, "parameters", None)):
        return "; pass list(x.parameters())"
    for package in packages:
        if package in _REMEDIES:
            return _REMEDIES[package]
    return _arrays_of(array)


def _arrays_of(thing: object) -> str:
    """How the arrays of an object, such as a layer, are passed."""
    try:
        attributes = vars(thing)
    except TypeError:
        return ""
    names = [name for name, value in attributes.items() if isinstance(value, np.ndarray)]
    if not names:
        return "; parameters are arrays in dicts, lists, tuples or dataclasses: collect those of this object"
    shown = ", ".join(f"{name!r}: x.{name}" for name in names[:3])
    return f"; pass its arrays: {{{shown}{', ...' if len(names) > 3 else ''}}}"


def no_state(given: object, swapped: bool) -> TypeError:
    """The exception for what was given as a state and is none.

    Parameters
    ----------
    given : object
        In the place of the state.
    swapped : bool
        Whether there is a state in another place.

    Returns
    -------
    TypeError
    """
    hint = "; the order is (params, grads, state)" if swapped else ""
    if type(given).__name__ == "RMSProp":
        hint = "; an RMSProp has its own: call its step(grads), or pass its .state"
    return TypeError(f"state must be a State, which init() makes, got {type(given).__name__}{hint}")

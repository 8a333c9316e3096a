"""RMSProp for autograd: `rmsprop`, the loop of autograd.misc.optimizers.rmsprop over any nest of arrays.

Autograd's own flattens the parameters and the gradients into one array at each iteration, through its tracer; this one
steps them where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from autograd.extend import Box

from rmsprop_native.functional import update_
from rmsprop_native.options import check_number
from rmsprop_native.state import init
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["rmsprop"]


def rmsprop(
    grad: Callable[[Any, int], Any],
    x0: Any,
    callback: Callable[[Any, int, Any], object] | None = None,
    num_iters: int = 100,
    step_size: float = 0.1,
    gamma: float = 0.9,
    eps: float = 10**-8,
) -> Any:
    """Take steps of RMSProp along a gradient, as autograd.misc.optimizers.rmsprop does.

    The formula is that of the preset "autograd": the mean of squares starts from 1, and eps is added to the root.

    Parameters
    ----------
    grad : callable
        ``grad(x, i)``, the gradient at `x` in iteration `i`: numbers and arrays in the structure of `x0`, such as
        ``autograd.grad(loss)`` gives.
    x0 : array, number or nested dict, list, tuple, namedtuple or dataclass of them
        Where to start; it is not changed. Arrays of float32, float64, complex64 or complex128 keep their dtype; numbers
        and other real arrays become float64, as with autograd.
    callback : callable, optional
        ``callback(x, i, g)``, called before each step.
    num_iters : int, default 100
        How many steps.
    step_size, gamma, eps : float, default 0.1, 0.9, 1e-8
        Learning rate, decay of the mean of squares, and what is added to its root.

    Returns
    -------
    array or nested container of arrays
        In the structure of `x0`; numbers become 0-d arrays. `grad` and `callback` get new arrays in each iteration, so
        that they may keep them.

    Raises
    ------
    TypeError
        If a leaf is no number or array, or belongs to a trace: unlike autograd's, this function cannot be
        differentiated.
    ValueError
        If a number is out of its range, or a gradient has another structure or shape than its parameter.

    Examples
    --------
    >>> from autograd import grad
    >>> from rmsprop_native.interop.autograd import rmsprop
    >>> x = rmsprop(lambda x, i: grad(lambda x: (x["w"] - 3.0) ** 2)(x), {"w": 0.0}, num_iters=200)
    >>> float(x["w"].round(3))
    3.0
    """
    leaves, structure = flatten(x0)
    params = [_array(leaf) for leaf in leaves]
    state = init(
        structure.unflatten(iter(params)),
        preset="autograd",
        lr=check_number("step_size", step_size, 0.0),
        rho=check_number("gamma", gamma, 0.0, 1.0),
        eps=check_number("eps", eps, 0.0),
    )
    x = structure.unflatten(iter(params))
    for i in range(num_iters):
        g = grad(x, i)
        if callback is not None:
            callback(x, i, g)
        grads = [
            leaf if type(leaf) is np.ndarray and leaf.dtype == param.dtype else _array(leaf, param.dtype)
            for leaf, param in zip(structure.leaves(g), params, strict=True)
        ]
        params = [param.copy() for param in params]
        x = structure.unflatten(iter(params))
        update_(x, structure.unflatten(iter(grads)), state)
    return x


def _array(leaf: Any, dtype: np.dtype[Any] | None = None) -> Any:
    """A new array of a number or an array, of a dtype that can be stepped; anything else as it is, to be refused."""
    if leaf is None or isinstance(leaf, Box | list | tuple | dict):
        return leaf
    array = np.array(leaf)
    if array.dtype.kind not in "biufc" or (dtype is not None and dtype.kind == "f" and array.dtype.kind == "c"):
        return leaf
    if dtype is None and array.dtype.char not in "fdFD":
        dtype = np.dtype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return array if dtype is None else array.astype(dtype, copy=False)

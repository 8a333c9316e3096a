"""The step as functions: `update_` in place, `update` pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rmsprop_native.state import set_numbers
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from typing import Any

    from rmsprop_native.state import State

__all__ = ["update", "update_"]

Params = TypeVar("Params")


def update_(params: Params, grads: Any, state: State, *, lr: float | None = None, grad_scale: float = 1.0) -> Params:
    """Take one RMSProp step in place.

    Parameters
    ----------
    params : numpy.ndarray or nested container of them
        What `init` was called with, or arrays of the same structure, shapes and dtypes. They are written.
    grads : numpy.ndarray or nested container of them
        The gradients, in the structure of `params`; dicts are matched by key. Shapes and dtypes are those of the
        parameters, memory layouts may be any. They are never written, and may be read-only. Where a parameter has no
        gradient, None: it and its state stay as they are. A `RowGrad` changes some rows only.
    state : State
        Written: its running means, and its number of steps.
    lr : float, optional
        Learning rate of this step, in place of the state's.
    grad_scale : float, default 1.0
        Factor on the gradients, for instance 1 / loss scale.

    Returns
    -------
    numpy.ndarray or nested container of them
        `params` itself.

    Raises
    ------
    TypeError
        If a gradient is no array, or its dtype is not its parameter's.
    ValueError
        If the structures differ, a gradient's shape is not its parameter's, a gradient overlaps its parameter or
        the state, a parameter is read-only, or a number is out of its range. The message names the leaf.
    IndexError
        If a `RowGrad` has a row that its parameter does not have.
    FloatingPointError
        If a gradient is not finite and the state's ``on_nonfinite`` is "raise".
    RuntimeError
        If another thread is inside a step of the same state.

    Notes
    -----
    Whatever is raised, nothing has been written. The result is that of `rmsprop_native.reference`, to the bit, on
    every instruction set and number of threads. A NaN or infinity in a gradient spreads to its own element only.

    The rule is due to Tieleman and Hinton [1]_: ``square_avg = rho * square_avg + (1 - rho) * grad**2`` and
    ``param -= lr * grad / (sqrt(square_avg) + eps)``.

    References
    ----------
    .. [1] T. Tieleman and G. Hinton, "Lecture 6.5 - RMSProp: divide the gradient by a running average of its recent
       magnitude", COURSERA: Neural Networks for Machine Learning, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> w = np.array([1.0, -2.0])
    >>> state = rms.init(w, lr=0.1)
    >>> for _ in range(100):
    ...     w = rms.update_(w, 2 * w, state)  # the gradient of the sum of w**2
    >>> bool(np.abs(w).max() < 0.1), state.step
    (True, 100)
    """
    if not state._plan.step(params, grads, lr, grad_scale):
        with state._claim:  # schedules run Python code; no other step may come between
            set_numbers(state, lr, grad_scale)
            state._plan.step_claimed(params, grads)
    return params


def update(
    params: Params, grads: Any, state: State, *, lr: float | None = None, grad_scale: float = 1.0
) -> tuple[Params, State]:
    """Take one RMSProp step, and leave everything as it was.

    Parameters
    ----------
    params, grads, state, lr, grad_scale
        As for `update_`; `params` may be read-only. Nothing is written.

    Returns
    -------
    new_params : numpy.ndarray or nested container of them
        In the structure of `params`.
    new_state : State

    Raises
    ------
    TypeError, ValueError
        As `update_`.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> w = np.array([1.0, -2.0])
    >>> state = rms.init(w, lr=0.5, rho=0.75, eps=0.0)
    >>> rms.update(w, np.array([2.0, 2.0]), state)
    (array([ 0., -3.]), State(step=1, leaves=1, options=Options(lr=0.5, rho=0.75, eps=0.0)))
    >>> w, state.step
    (array([ 1., -2.]), 0)
    """
    with state._claim:  # no step may come between the two copies
        new_params = state._plan.copy_params(params)
        if new_params is NotImplemented:
            leaves, structure = flatten(params)
            new_params = structure.unflatten(map(_copied, leaves))
        new_state = state._copy()
    return update_(new_params, grads, new_state, lr=lr, grad_scale=grad_scale), new_state


def _copied(leaf: Any) -> Any:
    """A copy of an array, of its class; anything else as it is, for the step to refuse."""
    return np.ndarray.copy(leaf, order="K") if issubclass(type(leaf), np.ndarray) else leaf

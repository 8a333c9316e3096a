"""The step as functions: `update_` in place, `update` pure."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rmsprop_native._plan import check_state, is_torch_tensor, update_
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from typing import Any

    from rmsprop_native.state import State

__all__ = ["update", "update_"]

Params = TypeVar("Params")


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
    check_state(state, params, grads)
    with state._claim:  # no step may come between the two copies
        new_params = state._plan.copy_params(params)
        if new_params is NotImplemented:
            list(state._structure.leaves(params, "parameter"))  # raises as update_ does, before anything is copied
            leaves, structure = flatten(params)
            new_params = structure.unflatten(map(_copied, leaves))
        new_state = state._copy()
    return update_(new_params, grads, new_state, lr=lr, grad_scale=grad_scale), new_state


def _copied(leaf: Any) -> Any:
    """A copy of an array, of its class, or of a tensor; anything else as it is, for the step to refuse."""
    if is_torch_tensor(leaf):
        with contextlib.suppress(RuntimeError):  # a sparse tensor has no address
            if leaf.numel() and leaf.data_ptr() == 0:
                return leaf  # torch would read there
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return np.ndarray.copy(leaf, order="K") if issubclass(type(leaf), np.ndarray) else leaf

"""RMSProp as an object that holds its parameters and its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rmsprop_native.functional import update_
from rmsprop_native.options import by_name
from rmsprop_native.state import init

if TYPE_CHECKING:
    from rmsprop_native.options import Schedule
    from rmsprop_native.state import State

__all__ = ["RMSProp"]


class RMSProp:
    """The RMSProp optimizer (Tieleman & Hinton 2012) over a set of parameters.

    Parameters
    ----------
    params : numpy.ndarray or nested dict, list, tuple, namedtuple or dataclass of them
        The parameters, which `step` changes in place; float32, float64, complex64 or complex128, of any shape.
    **options
        The hyper-parameters, `preset` and `overrides`; see `init`.

    Attributes
    ----------
    params
        The parameters.
    state : State
        Running means, options, number of steps.
    lr : float or callable
        The learning rate; may be assigned.

    Raises
    ------
    TypeError, ValueError
        As `init`.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> w = np.array([1.0, -2.0])
    >>> opt = rms.RMSProp(w, lr=0.1)
    >>> for _ in range(100):
    ...     opt.step(2 * w)  # the gradient of the sum of w**2
    >>> bool(np.abs(w).max() < 0.1)
    True
    >>> opt.lr = 0.01
    """

    __slots__ = ("params", "state")

    @by_name(2, "RMSProp(params, lr=0.01)")
    def __init__(self, params: Any, **options: Any) -> None:
        self.params: Any = params
        self.state: State = init(params, **options)

    def __repr__(self) -> str:
        return f"RMSProp({self.state!r})"

    def step(self, grads: Any, *, lr: float | None = None, grad_scale: float = 1.0) -> None:
        """Take one step in place.

        Parameters
        ----------
        grads : numpy.ndarray or nested container of them
            The gradients, in the structure of the parameters; None where there is none.
        lr : float, optional
            Learning rate of this step.
        grad_scale : float, default 1.0
            Factor on the gradients.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `update_`; nothing has been written then.
        """
        update_(self.params, grads, self.state, lr=lr, grad_scale=grad_scale)

    @property
    def lr(self) -> float | Schedule:
        """The learning rate."""
        return self.state.options.lr

    @lr.setter
    def lr(self, lr: float | Schedule) -> None:
        self.state.replace(lr=lr)

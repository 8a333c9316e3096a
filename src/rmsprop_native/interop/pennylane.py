"""RMSProp for PennyLane: `RMSPropOptimizer`, a drop-in for qml.RMSPropOptimizer whose step is compiled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pennylane as qml

from rmsprop_native.functional import update_
from rmsprop_native.options import check_number
from rmsprop_native.state import init

__all__ = ["RMSPropOptimizer"]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rmsprop_native.state import State

    _Function = Callable[..., Any]

    class _Base:
        """The types of qml.RMSPropOptimizer; PennyLane has none."""

        stepsize: float
        decay: float
        eps: float

        def __init__(self, stepsize: float, decay: float, eps: float) -> None: ...
        def step(self, objective_fn: _Function, *args: Any, grad_fn: _Function | None = None, **kwargs: Any) -> Any: ...
        def step_and_cost(
            self, objective_fn: _Function, *args: Any, grad_fn: _Function | None = None, **kwargs: Any
        ) -> tuple[Any, Any]: ...
        @staticmethod
        def compute_grad(
            objective_fn: _Function, args: Any, kwargs: dict[str, Any], grad_fn: _Function | None = None
        ) -> tuple[Any, Any]: ...
        def reset(self) -> None: ...

else:
    _Base = qml.RMSPropOptimizer


class RMSPropOptimizer(_Base):
    """qml.RMSPropOptimizer with a compiled step: the formula of the preset "pennylane".

    `step`, `step_and_cost`, `compute_grad` and `reset` are PennyLane's own, and so are the meanings of its attributes,
    which may be changed between steps.

    Parameters
    ----------
    stepsize : float, default 0.01
        Learning rate.
    decay : float, default 0.9
        Decay of the mean of squares.
    eps : float, default 1e-8
        Added to the mean of squares, under the root.

    Attributes
    ----------
    stepsize, decay, eps : float
        As above.
    accumulation : tuple or None
        The mean of squares of each argument, 0.0 for one that has not been trained; None before the first step and
        after `reset`. Its arrays may be written with ``[...]``; a list or tuple may be assigned, as from a checkpoint.

    Notes
    -----
    Results differ from PennyLane's by rounding: it divides the learning rate by the root first. Arguments of float32
    are stepped in float32 if their gradients are; all others in float64, complex ones are refused.

    Examples
    --------
    >>> from pennylane import numpy as np
    >>> from rmsprop_native.interop.pennylane import RMSPropOptimizer
    >>> optimizer, x = RMSPropOptimizer(stepsize=0.1), np.array(1.0, requires_grad=True)
    >>> for _ in range(50):
    ...     x, cost = optimizer.step_and_cost(lambda x: np.cos(x), x)
    >>> bool(cost < -0.99)
    True
    """

    def __init__(self, stepsize: float = 0.01, decay: float = 0.9, eps: float = 1e-8) -> None:
        self._state: State | None = None
        self._trained: list[tuple[int, type[Any]]] = []  # the arguments of the leaves of the state, and their dtypes
        self._settings: tuple[Any, ...] = ()  # those that the state has
        self._accumulation: list[Any] | None = None  # of arguments without a leaf; None before the first step
        super().__init__(stepsize, decay, eps)

    @property
    def accumulation(self) -> Any:
        """The mean of squares of each argument."""
        if self._accumulation is None:
            return None
        found = list(self._accumulation)
        if self._state is not None:
            for (index, _), array in zip(self._trained, self._state.square_avg, strict=True):
                found[index] = array
        return tuple(found)

    @accumulation.setter
    def accumulation(self, values: Sequence[Any] | None) -> None:
        self._accumulation = (
            None if values is None else [np.array(value) if np.ndim(value) else value for value in values]
        )
        self._state = None

    def apply_grad(self, grad: Any, args: Any) -> list[Any]:
        """The arguments after a step; those that do not require a gradient as they are.

        Parameters
        ----------
        grad : tuple of array
            The gradient of each argument that requires one, of its shape.
        args : tuple of pennylane.numpy.tensor
            The arguments. They are not changed.

        Returns
        -------
        list of pennylane.numpy.tensor

        Raises
        ------
        TypeError, ValueError
            If the shape of a gradient is not that of its argument, an argument is complex, or a number is out of its
            range. No argument and no mean has been changed then.
        """
        new = list(args)
        trained: list[tuple[int, type[Any]]] = []
        params, grads = [], []
        for i, arg in enumerate(args):
            if not getattr(arg, "requires_grad", False):
                continue
            g = np.asarray(grad[len(trained)])
            if "c" in (arg.dtype.kind, g.dtype.kind):
                raise TypeError(
                    f"argument {i} has dtype {arg.dtype}, its gradient {g.dtype}; only real ones are stepped"
                )
            dtype: type[Any] = np.float32 if arg.dtype == g.dtype == np.float32 else np.float64
            new[i] = arg.astype(dtype)
            trained.append((i, dtype))
            params.append(new[i])
            grads.append(g.astype(dtype, copy=False))
        settings = (self.stepsize, self.decay, self.eps)
        if self._state is None or trained != self._trained:
            self._state = self._make_state(trained, params, len(new))
            self._trained, self._settings = trained, settings
        elif settings != self._settings:
            self._state.replace(**self._options())
            self._settings = settings
        update_(params, grads, self._state)
        return new

    def _options(self) -> dict[str, Any]:
        def number(name: str, high: float = math.inf) -> float:
            value = getattr(self, name)  # an item of PennyLane's 0-d array is one again
            return check_number(name, np.asarray(value) if isinstance(value, np.ndarray) else value, 0.0, high)

        return {"lr": number("stepsize"), "rho": number("decay", 1.0), "eps": number("eps")}

    def _make_state(self, trained: list[tuple[int, type[Any]]], params: list[Any], count: int) -> State:
        """A state for these arguments, with the means that there are."""
        state = init(params, preset="pennylane", **self._options())
        self._accumulation = list(self.accumulation or [0.0] * count)
        for (index, _), array in zip(trained, state.square_avg, strict=True):
            array[...] = self._accumulation[index]
        return state

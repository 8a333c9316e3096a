"""The state of an optimizer: its options, its running means, the number of steps taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rmsprop_native._core import Plan
from rmsprop_native.arrays import check_parameter, title
from rmsprop_native.options import Options
from rmsprop_native.tree import Tree, flatten

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from rmsprop_native.options import Coefficients, Variant

__all__ = ["State", "init"]

_BUFFERS = ("square_avg", "momentum_buffer", "grad_avg")


class State:
    """What RMSProp remembers between steps; made by `init`.

    Attributes
    ----------
    options : Options
        The hyper-parameters in force. Assign ``options.replace(lr=...)`` to change numbers.
    step : int
        Steps taken so far.
    square_avg : array or nested container of arrays
        The running mean of squared gradients: structure, shapes and dtypes of the parameters.
    momentum_buffer, grad_avg : array or nested container of arrays, or None
        Likewise, with momentum and if centered; else None.

    Notes
    -----
    A state can be pickled and copied; `copy` gives one with arrays of its own. Two threads must not step one state
    at once: the second gets a RuntimeError.
    """

    __slots__ = ("_buffers", "_options", "_plan", "_structure", "step")

    def __init__(self, structure: Tree, options: Options, buffers: dict[str, list[NDArray[Any]]], step: int) -> None:
        self._structure = structure
        self._options = options
        self._buffers = buffers
        self._plan: Plan | None = None
        self.step = step

    def __repr__(self) -> str:
        return f"State(step={self.step}, leaves={self._structure.size}, options={self._options!r})"

    @property
    def options(self) -> Options:
        """The hyper-parameters in force."""
        return self._options

    @options.setter
    def options(self, options: Options) -> None:
        self._options = self._options.replace(**{name: getattr(options, name) for name in options.__slots__})

    @property
    def square_avg(self) -> Any:
        """The running mean of squared gradients, in the structure of the parameters."""
        return self._tree("square_avg")

    @property
    def momentum_buffer(self) -> Any:
        """The momentum buffer, in the structure of the parameters; None without momentum."""
        return self._tree("momentum_buffer")

    @property
    def grad_avg(self) -> Any:
        """The running mean of gradients, in the structure of the parameters; None if not centered."""
        return self._tree("grad_avg")

    def _tree(self, name: str) -> Any:
        return self._structure.unflatten(iter(self._buffers[name])) if name in self._buffers else None

    def copy(self) -> Self:
        """A state with the same values in arrays of its own."""
        buffers = {name: [array.copy(order="K") for array in arrays] for name, arrays in self._buffers.items()}
        return type(self)(self._structure, self._options, buffers, self.step)

    def __getstate__(self) -> tuple[Any, ...]:
        return self._structure, self._options, self._buffers, self.step

    def __setstate__(self, saved: tuple[Any, ...]) -> None:
        self._structure, self._options, self._buffers, self.step = saved
        self._plan = None

    def coefficients(self, lr: float | None, grad_scale: float) -> list[tuple[Variant, Coefficients]]:
        """The variant and the numbers of the next step, for each group of leaves."""
        return [(self._options.variant, self._options.coefficients(self.step + 1, lr, grad_scale))]

    def plan(self, params: Any) -> Plan:
        """Bind to `params`: a plan for stepping them, kept for the next step."""
        if self._plan is not None and self._plan.busy:
            raise RuntimeError("another thread is inside a step of this state; give each thread a state of its own")
        leaves = tuple(self._structure.leaves(params, "parameter"))
        for path, leaf, square_avg in zip(self._structure.paths(), leaves, self._buffers["square_avg"], strict=True):
            name = title("parameter", path)
            check_parameter(name, leaf)
            if leaf.dtype != square_avg.dtype:
                raise TypeError(f"{name} has dtype {leaf.dtype}, its square_avg has {square_avg.dtype}")
            if leaf.shape != square_avg.shape:
                raise ValueError(f"{name} has shape {leaf.shape}, its square_avg has {square_avg.shape}")
        nothing = [None] * len(leaves)
        buffers = tuple(zip(*(self._buffers.get(name, nothing) for name in _BUFFERS), strict=True))
        self._plan = Plan(self._structure, leaves, buffers, (0,) * len(leaves))
        return self._plan


def init(params: Any, **options: Any) -> State:
    """Make the state of an optimizer for `params`.

    Parameters
    ----------
    params : numpy.ndarray or nested dict, list, tuple, namedtuple or dataclass of them
        The parameters: float32 or float64, or complex64 or complex128, which count as pairs of reals; of any shape,
        memory order and strides. They are not changed, and not kept alive longer than the state.
    **options
        The hyper-parameters; see `Options`.

    Returns
    -------
    State
        With running means of the shapes, dtypes and memory order of `params`.

    Raises
    ------
    TypeError
        If a leaf is no array, its dtype is another one, or an option is of the wrong kind.
    ValueError
        If a leaf is read-only or misaligned, two leaves share memory, an option is out of its range or contradicts
        another one, or a number cannot be held by the dtype of a leaf.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> state = rms.init({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}, lr=0.01)
    >>> state
    State(step=0, leaves=2, options=Options(lr=0.01, rho=0.9))
    >>> state.square_avg["b"]
    array([0., 0., 0.], dtype=float32)
    """
    checked = Options(**options)
    leaves, structure = flatten(params)
    for path, leaf in zip(structure.paths(), leaves, strict=True):
        check_parameter(title("parameter", path), leaf)
    buffers = {
        name: [
            np.full_like(leaf, checked.initial_square_avg if name == "square_avg" else 0, subok=False)
            for leaf in leaves
        ]
        for name in checked.buffers
    }
    state = State(structure, checked, buffers, 0)
    plan = state.plan(params)
    for _, numbers in state.coefficients(None, 1.0):
        for dtype in plan.dtypes:
            numbers.check_dtype(dtype)
    return state

"""The state of an optimizer: its options, its running means, the number of steps taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rmsprop_native._core import BUFFERS, Plan
from rmsprop_native.arrays import check_parameter, title
from rmsprop_native.options import Options, make_options, override
from rmsprop_native.tree import Tree, flatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from numpy.typing import NDArray

    from rmsprop_native.options import Coefficients, Variant

__all__ = ["State", "init"]


# Where in a page of memory each buffer starts. Large NumPy arrays all start 16 bytes into a page, and streams that
# agree in their last 12 bits get in each other's way: with all of them there, a step with momentum over 64 Ki float32
# took 1.3 times as long on an AMD Zen 4 (bench/NOTES.md). Any distances do that are not near a multiple of 4096.
_PAGE = 4096
_PLACES = {"square_avg": 1104, "momentum_buffer": 2192, "grad_avg": 3280, "ema": 272, "grad_sum": 1616}


def _placed(name: str, like: NDArray[Any], values: Any) -> NDArray[Any]:
    """A new array of the shape, dtype and memory order of `like` with `values`, where a buffer of that name goes."""
    model = np.empty_like(like, subok=False)
    if model.nbytes >= _PAGE:
        memory = np.empty(model.nbytes + _PAGE, np.uint8)
        start = (_PLACES[name] - memory.ctypes.data) % _PAGE
        model = np.ndarray(model.shape, model.dtype, memory, start, model.strides)
    model[...] = values
    return model


class State:
    """What RMSProp remembers between steps; made by `init`.

    Attributes
    ----------
    options : Options
        The hyper-parameters in force; `replace` changes numbers.
    step : int
        Steps taken so far.
    skipped : int
        Calls that did nothing because a gradient was not finite (``on_nonfinite="skip"``).
    accumulated : int
        Calls since the last step, with ``accumulate`` > 1.
    square_avg : array or nested container of arrays
        The running mean of squared gradients: structure, shapes and dtypes of the parameters.
    momentum_buffer, grad_avg, ema, grad_sum : array or nested container of arrays, or None
        Likewise, with momentum, if centered, with averaged weights, and while accumulating; else None.

    Notes
    -----
    A state can be pickled and copied; `copy` gives one with arrays of its own. Two threads must not step one state
    at once: the second gets a RuntimeError.
    """

    __slots__ = (
        "_buffers",
        "_groups",
        "_leaf_groups",
        "_options",
        "_overrides",
        "_plan",
        "_seen",
        "_structure",
        "accumulated",
        "skipped",
        "step",
    )

    _leaf_groups: tuple[int, ...]

    def __init__(
        self,
        structure: Tree,
        options: Options,
        overrides: Mapping[str, Mapping[str, Any]],
        buffers: dict[str, list[NDArray[Any]]],
    ) -> None:
        self._structure = structure
        self._overrides = {pattern: dict(numbers) for pattern, numbers in overrides.items()}
        self._buffers = buffers
        self._seen = bytearray(structure.size)  # the leaves that had a gradient since the last step
        self._plan: Plan | None = None
        self.step = self.skipped = self.accumulated = 0
        self._set_options(options)

    def __repr__(self) -> str:
        overrides = f", overrides={self._overrides}" if self._overrides else ""
        return f"State(step={self.step}, leaves={self._structure.size}, options={self._options!r}{overrides})"

    @property
    def options(self) -> Options:
        """The hyper-parameters in force."""
        return self._options

    def replace(self, **changes: Any) -> None:
        """Change numbers from the next step on; what `overrides` gave a leaf of its own stays.

        Parameters
        ----------
        **changes
            Any options that leave the arrays of the state as they are.

        Raises
        ------
        TypeError, ValueError
            As `Options.replace`; nothing has been changed then.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsprop_native as rms
        >>> state = rms.init(np.zeros(3), lr=0.1)
        >>> state.replace(lr=0.01, weight_decay=0.1)
        >>> state.options
        Options(lr=0.01, rho=0.9, weight_decay=0.1)
        >>> state.replace(momentum=0.9)
        Traceback (most recent call last):
        ...
        ValueError: the state keeps square_avg; momentum=0.9 would need square_avg, momentum_buffer: call init() again
        """
        options = self._options.replace(**changes)
        if options.accumulate != self._options.accumulate and self.accumulated:
            raise ValueError(f"accumulate cannot change with {self.accumulated} gradients accumulated")
        self._set_options(options)

    def _set_options(self, options: Options) -> None:
        """Take `options`, and find the groups of leaves that share theirs."""
        if self._plan is not None and self._plan.busy:
            raise RuntimeError("another thread is inside a step of this state; give each thread a state of its own")
        of_leaves = override(options, self._overrides, list(self._structure.paths()))
        groups = list(dict.fromkeys([(options, False), *of_leaves]))
        leaf_groups = tuple(groups.index(of_leaf) for of_leaf in of_leaves)
        if self._plan is not None and leaf_groups != self._leaf_groups:
            self._plan = None
        self._options, self._groups, self._leaf_groups = options, groups, leaf_groups

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

    @property
    def ema(self) -> Any:
        """The averaged weights, in the structure of the parameters; None without them."""
        return self._tree("ema")

    @property
    def grad_sum(self) -> Any:
        """The sum of the gradients since the last step, in the structure of the parameters; None if not accumulating."""
        return self._tree("grad_sum")

    def _tree(self, name: str) -> Any:
        return self._structure.unflatten(iter(self._buffers[name])) if name in self._buffers else None

    def copy(self) -> Self:
        """A state with the same values in arrays of its own."""
        new = type(self).__new__(type(self))
        structure, options, overrides, buffers, seen, *counts = self.__getstate__()
        new.__setstate__((structure, options, overrides, buffers, bytearray(seen), *counts))
        return new

    def __getstate__(self) -> tuple[Any, ...]:
        counts = self.step, self.skipped, self.accumulated
        return self._structure, self._options, self._overrides, self._buffers, self._seen, *counts

    def __setstate__(self, saved: tuple[Any, ...]) -> None:
        self._structure, options, self._overrides, buffers, self._seen, *counts = saved
        self._buffers = {name: [_placed(name, array, array) for array in arrays] for name, arrays in buffers.items()}
        self.step, self.skipped, self.accumulated = counts
        self._plan = None
        self._set_options(options)

    def coefficients(
        self, lr: float | None = None, grad_scale: float = 1.0
    ) -> Iterator[tuple[Variant, Coefficients, float]]:
        """What the next step is made of, for each group of leaves.

        Parameters
        ----------
        lr : float, optional
            In place of the state's, for leaves that have none of their own.
        grad_scale : float
            Factor on the gradients.

        Yields
        ------
        variant : Variant
        numbers : Coefficients
        ema : float
            The decay of averaged weights; 0 at the first step, which copies.
        """
        for options, own_lr in self._groups:
            numbers = options.coefficients(self.step + 1, None if own_lr else lr, grad_scale)
            yield options.variant, numbers, 0.0 if self.step == 0 else options.ema or 0.0

    @property
    def steady(self) -> bool:
        """Whether the step after the next one will have the same coefficients."""
        return (self.step > 0 or self._options.ema is None) and not any(
            options.bias_correction or callable(options.lr) for options, _ in self._groups
        )

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
        buffers = tuple(zip(*(self._buffers.get(name, nothing) for name in BUFFERS), strict=True))
        self._plan = Plan(self._structure, leaves, buffers, self._leaf_groups, self._seen)
        return self._plan


def init(
    params: Any,
    *,
    preset: str | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> State:
    """Make the state of an optimizer for `params`.

    Parameters
    ----------
    params : numpy.ndarray or nested dict, list, tuple, namedtuple or dataclass of them
        The parameters: float32 or float64, or complex64 or complex128, which count as pairs of reals; of any shape,
        memory order and strides. They are not changed, and not kept alive longer than the state.
    preset : str, optional
        A key of `PRESETS`, for what a framework means by RMSProp; explicit options win over it.
    overrides : mapping of str to mapping, optional
        Other numbers for some leaves: patterns over leaf paths, as of `fnmatch`, to options that change there. Where
        several patterns match, the last one wins.
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
        another one, a number cannot be held by the dtype of a leaf, there is no such preset, or a pattern matches no
        leaf.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> state = rms.init({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}, lr=0.01)
    >>> state
    State(step=0, leaves=2, options=Options(lr=0.01, rho=0.9))
    >>> state.square_avg["b"]
    array([0., 0., 0.], dtype=float32)
    >>> rms.init(np.zeros(3), preset="keras", lr=0.01).options
    Options(lr=0.01, rho=0.9, eps=1e-07, eps_inside_sqrt=True, lr_in_momentum=True, decoupled_weight_decay=True)
    """
    checked = make_options(preset, **options)
    leaves, structure = flatten(params)
    for path, leaf in zip(structure.paths(), leaves, strict=True):
        check_parameter(title("parameter", path), leaf)

    def filled(name: str, leaf: NDArray[Any]) -> NDArray[Any]:
        if name == "ema":
            return _placed(name, leaf, leaf)
        # A complex number starts as two reals: the same in both.
        start = checked.initial_square_avg if name == "square_avg" else 0.0
        return _placed(name, leaf, start if leaf.dtype.kind == "f" else complex(start, start))

    buffers = {name: [filled(name, leaf) for leaf in leaves] for name in checked.buffers}
    state = State(structure, checked, overrides or {}, buffers)
    state.plan(params).check_coefficients(state)
    return state

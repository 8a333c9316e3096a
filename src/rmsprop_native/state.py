"""The state of an optimizer: its options, its running means, the number of steps taken."""

from __future__ import annotations

import operator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from rmsprop_native._core import Claim
from rmsprop_native._plan import Plan, PlanOwner, as_arrays, is_torch_tensor
from rmsprop_native.coefficients import check_dtype, check_initial, check_lr, group_of, largest_number, resolve_lr
from rmsprop_native.options import Options, by_name, check_number
from rmsprop_native.overrides import check_overrides, check_paths, group_leaves, rates_of_leaf
from rmsprop_native.presets import make_options
from rmsprop_native.tree import Tree, flatten

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from numpy.typing import NDArray

    from rmsprop_native.overrides import LeafOptions, Rates

__all__ = ["State", "init", "step_with_new_numbers"]


class State(PlanOwner):
    """What RMSProp remembers between steps; made by `init`.

    Attributes
    ----------
    options : Options
        The hyper-parameters in force; `replace` changes numbers.
    step : int
        Steps taken so far; may be set, to a count that is not negative.
    skipped : int
        Calls that did nothing because a gradient was not finite (``on_nonfinite="skip"``).
    accumulated : int
        Calls since the last step, with ``accumulate`` > 1.
    square_avg : array or nested container of arrays
        The running mean of squared gradients: structure, shapes and dtypes of the parameters. The containers are
        read-only (a dict that cannot be changed, a tuple for a list); their arrays may be written, with ``[...]``. They
        are tensors where the parameters are.
    momentum_buffer, grad_avg, ema, grad_sum : array or nested container of arrays, or None
        Likewise, with momentum, if centered, with averaged weights, and while accumulating; else None.

    Notes
    -----
    A state can be pickled and copied; every copy has arrays of its own. One caller at a time uses a state: a second
    thread, or code that runs during a step (a schedule, a finalizer), gets a RuntimeError from `update_`, `replace`,
    `copy` and pickle.
    """

    __slots__ = (
        "_claim",
        "_dtypes",
        "_groups",
        "_largest",
        "_leaf_groups",
        "_leaf_rates",
        "_options",
        "_overrides",
        "_structure",
        "_tensors",
    )

    _claim: Claim
    _dtypes: frozenset[np.dtype[Any]]
    _groups: list[LeafOptions]
    _largest: float
    _leaf_groups: tuple[int, ...]
    _leaf_rates: list[Rates | None]
    _options: Options
    _overrides: dict[str, dict[str, Any]]
    _structure: Tree
    _tensors: tuple[bool, ...]

    def __init__(self) -> None:
        raise TypeError("a State is made by rmsprop_native.init(params, ...)")

    def __repr__(self) -> str:
        overrides = f", overrides={self._overrides}" if self._overrides else ""
        return f"State(step={self.step}, leaves={self._structure.size}, options={self._options!r}{overrides})"

    @property
    def options(self) -> Options:
        """The hyper-parameters in force."""
        return self._options

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self._claim.steps

    @step.setter
    def step(self, count: int) -> None:
        steps = _count("step", count)
        with self._claim:
            self._claim.set_counts(steps, self.skipped, self.accumulated, self._claim.seen)
            self._plan.forget_numbers()

    @property
    def skipped(self) -> int:
        """Calls that did nothing because a gradient was not finite."""
        return self._claim.skipped

    @property
    def accumulated(self) -> int:
        """Calls since the last step."""
        return self._claim.accumulated

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
        """The sum of gradients since the last step, in the structure of the parameters; None if not accumulating."""
        return self._tree("grad_sum")

    def _tree(self, name: str) -> Any:
        if name not in self._options.buffers:
            return None
        buffers: list[Any] = self._plan.arrays(name)
        if any(self._tensors):
            import torch  # only where parameters are its tensors

            buffers = [torch.from_numpy(b) if is_t else b for b, is_t in zip(buffers, self._tensors, strict=True)]
        return self._structure.unflatten(iter(buffers), read_only=True)

    def replace(self, *, overrides: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> None:
        """Change hyper-parameters from the next step on; those that `overrides` set for a leaf stay.

        Parameters
        ----------
        overrides : mapping of str to mapping, optional
            In place of all overrides that there are, as for `init`; with ``{}`` there are none.
        **changes
            Any options that leave the arrays of the state as they are.

        Raises
        ------
        TypeError, ValueError
            As `Options.replace` and, for `overrides`, as `init`; or if a number cannot be held by the dtype of a leaf.
            Nothing has been changed then.
        RuntimeError
            If the state is inside a step.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsprop_native as rms
        >>> state = rms.init(np.zeros(3), lr=0.1)
        >>> state.replace(lr=0.01, weight_decay=0.1)
        >>> state.options
        Options(lr=0.01, rho=0.9, weight_decay=0.1)
        >>> state.replace(overrides={"*": {"lr": np.array([0.5, 0.25, 0.125])}})
        >>> rms.update_(np.zeros(3), np.ones(3), state).round(2)
        array([-1.58, -0.79, -0.4 ])
        >>> state.replace(momentum=0.9)
        Traceback (most recent call last):
        ...
        ValueError: the state keeps square_avg; momentum=0.9 would need square_avg, momentum_buffer: call init() again
        """
        with self._claim:
            options = self._options.replace(**changes)
            if options.accumulate != self._options.accumulate and self.accumulated:
                raise ValueError(f"accumulate cannot change with {self.accumulated} gradients accumulated")
            checked = self._overrides if overrides is None else check_overrides(overrides)
            paths = self._paths()
            groups, leaf_groups = group_leaves(options, checked, paths)
            leaf_rates = _rates_of_leaves(groups, leaf_groups, paths, self._plan)
            _rates(groups, self._dtypes, None, 1.0, self.step)  # raises what the next step would
            # Nothing fails from here on.
            self._plan.forget_numbers()
            self._options, self._overrides = options, checked
            self._groups, self._leaf_groups, self._leaf_rates = groups, leaf_groups, leaf_rates

    def copy(self) -> Self:
        """A state with the same values in arrays of its own.

        Returns
        -------
        State

        Raises
        ------
        RuntimeError
            If the state is inside a step.
        """
        with self._claim:
            return self._copy()

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def _copy(self) -> Self:
        """`copy` for a caller that has the claim."""
        new = type(self).__new__(type(self))
        for name in State.__slots__:
            setattr(new, name, getattr(self, name))
        new._claim = self._claim.copy()
        new._plan = self._plan.copy(new._claim)
        return new

    def __getstate__(self) -> dict[str, Any]:
        with self._claim:
            return {
                "structure": self._structure,
                "tensors": self._tensors,
                "options": self._options,
                "overrides": self._overrides,
                "step": self.step,
                "skipped": self.skipped,
                "accumulated": self.accumulated,
                "seen": self._claim.seen,
                "buffers": {
                    name: [array.copy(order="K") for array in self._plan.arrays(name)] for name in self._options.buffers
                },
            }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        with getattr(self, "_claim", nullcontext()):  # a state that is new has none
            made = self._of_saved(saved)
            for name in (*State.__slots__, "_plan"):
                setattr(self, name, getattr(made, name))

    @classmethod
    def _of_saved(cls, saved: dict[str, Any]) -> Self:
        """A new state of what `__getstate__` gave."""
        try:
            structure, overrides, buffers = saved["structure"], saved["overrides"], saved["buffers"]
            options = Options(**{name: getattr(saved["options"], name) for name in Options.__dataclass_fields__})
            step, skipped, accumulated = (_count(name, saved[name]) for name in ("step", "skipped", "accumulated"))
            seen = saved["seen"]
            if not isinstance(structure, Tree) or set(buffers) != set(options.buffers) or type(seen) is not bytes:
                raise ValueError("the parts of the state do not fit each other")
            tensors = tuple([bool(is_tensor) for is_tensor in saved["tensors"]])
            if not len(buffers["square_avg"]) == len(tensors) == structure.size:
                raise ValueError("the parts of the state do not fit each other")
            models = as_arrays(structure, list(buffers["square_avg"]))
            if accumulated >= options.accumulate or set(seen) - {0, 1}:
                raise ValueError("the parts of the state do not fit each other")
            made = cls.__new__(cls)
            _fill(made, structure, options, overrides, models, tensors)
            made._take_over(buffers, step, skipped, accumulated, seen)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no state can be made of what was saved: {error}") from error
        return made

    def _take_over(
        self, buffers: Mapping[str, list[Any]], step: int, skipped: int, accumulated: int, seen: bytes
    ) -> None:
        """Copy the values of another state."""
        for name in self._options.buffers:
            arrays = self._plan.arrays(name)
            if len(buffers[name]) != len(arrays):
                raise ValueError(f"{name} has {len(buffers[name])} arrays, the state {len(arrays)} leaves")
            for array, values in zip(arrays, buffers[name], strict=True):
                if type(values) is not np.ndarray or values.dtype != array.dtype or values.shape != array.shape:
                    raise ValueError(f"an array of {name} is not of the shape and dtype of its square_avg")
                array[...] = values
        self._claim.set_counts(step, skipped, accumulated, seen)

    def _paths(self) -> list[str]:
        return list(self._structure.paths())


def _count(name: str, value: object) -> int:
    """`value` as an int that is not negative and fits in 64 bits."""
    if isinstance(value, bool | np.bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        count = operator.index(value)  # type: ignore[arg-type] # it raises what is wanted
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not 0 <= count < 2**53:
        raise ValueError(f"{name} must be in [0, 2**53), got {count}")
    return count


def _rates(
    groups: list[LeafOptions], dtypes: frozenset[np.dtype[Any]], lr: float | None, grad_scale: float, step: int
) -> list[float]:
    """The learning rate of each group for the step after `step` others; all numbers are checked, schedules called."""
    rates = [resolve_lr(leaf.options, None if leaf.own_lr else lr, step) for leaf in groups]
    for leaf, rate in zip(groups, rates, strict=True):
        group = group_of(leaf.options, rate, grad_scale)
        for dtype in dtypes:
            check_dtype(group, leaf.options, dtype)
    return rates


def _rates_of_leaves(
    groups: list[LeafOptions], leaf_groups: tuple[int, ...], paths: list[str], plan: Plan
) -> list[Rates | None]:
    """For each leaf its learning rates, where they are an array; empty if none are."""
    if all(leaf.rates is None for leaf in groups):
        return []
    made: list[Rates | None] = []
    for path, group, buffer in zip(paths, leaf_groups, plan.arrays("square_avg"), strict=True):
        rates = groups[group].rates
        made.append(None if rates is None else rates_of_leaf(rates, path, buffer))
    return made


def step_with_new_numbers(params: Any, grads: Any, state: State, lr: object, grad_scale: object) -> None:
    """Give the plan of `state` the coefficients of its next step, and take it.

    The plan asks for it at its first step, after a change of options, and where a number of a call is no float or so
    large that it must be checked.

    Parameters
    ----------
    params, grads, state, lr, grad_scale
        As for `update_`.

    Raises
    ------
    Exception
        As `update_`; what a schedule raises passes through.
    """
    with state._claim:  # schedules run Python code; no other step may come between
        rate = None if lr is None else check_lr(lr)
        scale = check_number("grad_scale", grad_scale)
        rates = _rates(state._groups, state._dtypes, rate, scale, state.step)
        formed = [group_of(leaf.options, 0.0, 1.0) for leaf in state._groups]
        lrs = [leaf.options.lr for leaf in state._groups]
        own_lrs = [leaf.own_lr for leaf in state._groups]
        state._plan.set_numbers(
            formed, lrs, own_lrs, state._leaf_groups, state._leaf_rates, state._options, state._largest
        )
        state._plan.set_call_numbers(rates, scale, rate)
        state._plan.step_claimed(params, grads)


def _fill(
    state: State,
    structure: Tree,
    options: Options,
    overrides: Mapping[str, Mapping[str, Any]],
    models: list[NDArray[Any]],
    tensors: tuple[bool, ...],
    params: list[Any] | None = None,
) -> None:
    """Make a new state of its parts; buffers are zeros of the shapes, dtypes and memory orders of `models`, shown as
    torch tensors where `tensors` says so.

    `params` are refused if no step could write them.
    """
    paths = list(structure.paths())
    check_paths(paths)
    state._structure = structure
    state._tensors = tensors
    state._options = options
    state._overrides = check_overrides(overrides)
    state._groups, state._leaf_groups = group_leaves(options, state._overrides, paths)
    state._dtypes = frozenset(np.empty(0, dtype).real.dtype for dtype in {model.dtype for model in models})
    state._largest = largest_number(state._dtypes)
    state._claim = Claim(structure.size)
    state._plan = Plan(structure, state._claim, models, options.buffers, params)
    state._leaf_rates = _rates_of_leaves(state._groups, state._leaf_groups, paths, state._plan)


@by_name(1, "init(params, lr=0.01)")
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
        memory order and strides. They are not changed, and not kept alive longer than the state. Tensors of torch on
        the CPU are taken like arrays; the state shows its buffers for them as tensors.
    preset : str, optional
        A key of `PRESETS`, for what a framework means by RMSProp; explicit options win over it.
    overrides : mapping of str to mapping, optional
        Other numbers for some leaves: patterns over leaf paths, as of `fnmatch`, to options that change there. Where
        several patterns match, the last one wins. A leaf's `lr` may be an array that broadcasts to it, as for a
        population of networks in one array; it is copied, and rounded once an element.
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
    models = as_arrays(structure, leaves)
    state = State.__new__(State)
    tensors = tuple([is_torch_tensor(leaf) for leaf in leaves])
    _fill(state, structure, checked, {} if overrides is None else overrides, models, tensors, leaves)
    for dtype in state._dtypes:
        check_initial(checked, dtype)
    _rates(state._groups, state._dtypes, None, 1.0, 0)  # raises what the first step would
    if checked.initial_square_avg != 0:
        for array in state._plan.arrays("square_avg"):
            # A complex number starts as two reals: the same in both.
            start = checked.initial_square_avg
            array.fill(start if array.dtype.kind == "f" else complex(start, start))
    if checked.ema is not None:
        for array, model in zip(state._plan.arrays("ema"), models, strict=True):
            array[...] = model
    return state

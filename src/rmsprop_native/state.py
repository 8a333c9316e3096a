"""The state of an optimizer: its options, its running means, the number of steps taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmsprop_native._core import Claim
from rmsprop_native._plan import Plan, PlanOwner, as_arrays, is_torch_tensor
from rmsprop_native.arrays import arithmetic, bfloat16, title
from rmsprop_native.coefficients import check_dtype, check_initial, check_lr, group_of, largest_number, resolve_lr
from rmsprop_native.content import (
    ArraySpec,
    Content,
    Leaf,
    SavedSchedule,
    axes_of,
    check_content,
    check_count,
    describe,
    match_leaves,
    models_of,
    refuse_negative,
)
from rmsprop_native.options import Options, by_name, check_number
from rmsprop_native.overrides import check_overrides, check_paths, group_leaves, rates_of_leaf
from rmsprop_native.presets import make_options
from rmsprop_native.tree import Tree, flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from rmsprop_native.options import Schedule
    from rmsprop_native.overrides import LeafOptions, Rates

__all__ = [
    "Given",
    "Like",
    "State",
    "as_tensor",
    "check_square_avg",
    "from_state_dict",
    "init",
    "like_of",
    "of_values",
    "options_of",
    "state_of",
]


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

    low_half : array or nested container of arrays, or None
        The lower halves of bfloat16 parameters, uint16, with ``master_weights``; None where there are none.

    Notes
    -----
    The buffers of bfloat16 parameters are float32, in C order.

    A state can be saved, pickled and copied; every copy has arrays of its own. One caller at a time uses a state: a
    second thread, or code that runs during a step (a schedule, a finalizer), gets a RuntimeError from `update_`,
    `replace`, `copy`, `state_dict`, `save` and pickle.
    """

    __slots__ = (
        "_dtypes",
        "_groups",
        "_largest",
        "_leaf_dtypes",
        "_leaf_groups",
        "_leaf_rates",
        "_options",
        "_overrides",
        "_structure",
        "_tensors",
    )

    _dtypes: frozenset[np.dtype[Any]]
    _groups: list[LeafOptions]
    _largest: float
    _leaf_dtypes: tuple[np.dtype[Any], ...]
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
        steps = check_count("step", count)
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

    @property
    def low_half(self) -> Any:
        """The lower halves of bfloat16 parameters, in the structure of the parameters; None where there are none."""
        return self._tree("low_half")

    def master(self, params: Any) -> Any:
        """The parameters in the precision in which they are trained.

        Parameters
        ----------
        params : array or nested container of arrays
            Those of this state. They are not changed.

        Returns
        -------
        array or nested container of arrays
            In their structure, new arrays: float32 for bfloat16 parameters, with the lower halves that the state keeps
            where it does; others are copied. Tensors for tensors.

        Raises
        ------
        TypeError, ValueError
            If the structure, a shape or a dtype is another one.
        RuntimeError
            If the state is inside a step.

        Examples
        --------
        >>> import ml_dtypes
        >>> import numpy as np
        >>> import rmsprop_native as rms
        >>> w = np.ones(2, ml_dtypes.bfloat16)
        >>> state = rms.init(w, lr=1e-4)
        >>> w = rms.update_(w, w.copy(), state)
        >>> w, state.master(w)
        (array([1, 1], dtype=bfloat16), array([0.9996838, 0.9996838], dtype=float32))
        """
        from rmsprop_native.reference import join_halves  # the specification, which few programs import

        with self._claim:
            leaves = list(self._structure.leaves(params, "parameter"))
            arrays = as_arrays(self._structure, leaves)
            has_low = "low_half" in self._plan.names
            halves = self._plan.arrays("low_half") if has_low else [None] * len(arrays)
            masters: list[Any] = []
            for path, array, dtype, half, buffer in zip(
                self._paths(), arrays, self._leaf_dtypes, halves, self._plan.arrays("square_avg"), strict=True
            ):
                if array.dtype != dtype or array.shape != buffer.shape:
                    raise ValueError(
                        f"{title('parameter', path)} is {array.dtype} of shape {array.shape}, the state has {dtype} of "
                        f"{buffer.shape}"
                    )
                wide = arithmetic(dtype)
                masters.append(array.astype(wide) if half is None else join_halves(array, half))
            return self._structure.unflatten(iter(self._seen(masters)))

    def _seen(self, arrays: list[Any]) -> list[Any]:
        """Arrays as users see them: as tensors where the parameters are."""
        if not any(self._tensors):
            return arrays
        try:
            return [
                as_tensor(array) if is_tensor and array is not None else array
                for array, is_tensor in zip(arrays, self._tensors, strict=True)
            ]
        except ImportError:  # a state that was loaded where there is no torch shows arrays
            return arrays

    def _tree(self, name: str) -> Any:
        plan = self._plan  # one: another thread may load other values, with buffers of other names
        if name not in plan.names:
            return None
        buffers = self._seen(plan.arrays(name))
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

    def _step_with_new_numbers(self, params: Any, grads: Any, lr: object, grad_scale: object) -> None:
        """Give the plan the coefficients of its next step, and take it.

        `update_` calls it at the first step, after a change of options, and where a number of a call is no float or so
        large that it must be checked.

        Parameters
        ----------
        params, grads, lr, grad_scale
            As for `update_`.

        Raises
        ------
        Exception
            As `update_`; what a schedule raises passes through.
        """
        with self._claim:  # schedules run Python code; no other step may come between
            rate = None if lr is None else check_lr(lr)
            scale = check_number("grad_scale", grad_scale)
            rates = _rates(self._groups, self._dtypes, rate, scale, self.step)
            formed = [group_of(leaf.options, 0.0, 1.0) for leaf in self._groups]
            lrs = [leaf.options.lr for leaf in self._groups]
            own_lrs = [leaf.own_lr for leaf in self._groups]
            self._plan.set_numbers(
                formed, lrs, own_lrs, self._leaf_groups, self._leaf_rates, self._options, self._largest
            )
            self._plan.set_call_numbers(rates, scale, rate)
            self._plan.step_claimed(params, grads)

    # ---- saved ----

    def state_dict(self) -> dict[str, Any]:
        """All that the state remembers, as plain numbers, strings, lists and arrays, for any format of checkpoints.

        Returns
        -------
        dict
            What JSON can hold, and under ``"arrays"`` a dict of arrays, which are copies. docs/checkpoints.md has all
            names. `load_state_dict` and `from_state_dict` take it.

        Raises
        ------
        ValueError
            If a key of a dict among the parameters is no str, int, bool, None, finite float or tuple of them.
        RuntimeError
            If the state is inside a step.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsprop_native as rms
        >>> saved = rms.init({"w": np.zeros(2)}, lr=0.1).state_dict()
        >>> saved["step"], saved["options"]["lr"], saved["arrays"]
        (0, 0.1, {'square_avg/0': array([0., 0.])})
        """
        return self._saved(plain=True)

    def load_state_dict(
        self,
        saved: Mapping[str, Any],
        *,
        lr: float | Schedule | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Become the state that was saved, of the same parameters.

        Parameters
        ----------
        saved : mapping
            What `state_dict` gave.
        lr, overrides
            As for `from_state_dict`. Where the saved learning rate was a schedule, that of this state stays by default.

        Raises
        ------
        TypeError, ValueError
            As `from_state_dict`; or if paths, shapes or dtypes are not those of this state. Nothing has been changed
            then.
        RuntimeError
            If the state is inside a step.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsprop_native as rms
        >>> saved = rms.init(np.zeros(2), lr=0.1, momentum=0.9).state_dict()
        >>> state = rms.init(np.zeros(2))
        >>> state.load_state_dict(saved)
        >>> state
        State(step=0, leaves=1, options=Options(lr=0.1, rho=0.9, momentum=0.9))
        """
        with self._claim:
            schedules = {None: self._options.lr} | {name: at.get("lr") for name, at in self._overrides.items()}
            given = Given(lr, overrides, {name: lr for name, lr in schedules.items() if callable(lr)})
            like = Like(self._structure, self._models(), self._tensors)
            made = state_of_dict(type(self), saved, given, like)
            made._plan.use_claim(self._claim)
            for name in (*State.__slots__, "_plan"):
                setattr(self, name, getattr(made, name))

    def __reduce__(self) -> tuple[Any, ...]:
        cls = () if type(self) is State else (type(self),)  # so that pickles name the package alone
        return from_state_dict, (self._saved(plain=False), *cls)

    def __setstate__(self, saved: object) -> None:
        raise ValueError(
            "this pickle of a State is of a version before 1 of the format, which names private modules: unpickle it "
            "with the rmsprop_native that made it, and save it again with rmsprop_native.save"
        )

    def _saved(self, *, plain: bool) -> dict[str, Any]:
        with self._claim:
            content, arrays = self._described(plain=plain)
            return content | {"arrays": {name: array.copy(order="K") for name, array in arrays}}

    def _described(self, *, plain: bool) -> tuple[dict[str, Any], list[tuple[str, NDArray[Any]]]]:
        """What `describe` gives, and all arrays in the order of `Content.arrays`; the caller has the claim."""
        models = self._models()
        leaves = [
            Leaf(path, model.dtype, model.shape, axes_of(model), is_tensor)
            for path, model, is_tensor in zip(self._paths(), models, self._tensors, strict=True)
        ]
        counts = {"step": self.step, "skipped": self.skipped, "accumulated": self.accumulated}
        content, rates = describe(
            self._options, self._overrides, self._structure, leaves, counts, self._claim.seen, plain=plain
        )
        arrays = [(f"lr/{i}", array) for i, array in enumerate(rates)]
        for name in self._plan.names:
            arrays += [(f"{name}/{i}", array) for i, array in enumerate(self._plan.arrays(name)) if array is not None]
        for leaf, array in zip(leaves, self._plan.arrays("square_avg"), strict=True):
            refuse_negative("square_avg", leaf.path, array)  # now, and not where somebody wants it back
        return content, arrays

    def _paths(self) -> list[str]:
        return list(self._structure.paths())

    def _models(self) -> list[NDArray[Any]]:
        """For each leaf an array of its dtype, and of the shape and memory order of its buffers; not to be read."""
        return [
            array if array.dtype == dtype else np.empty(array.shape, dtype)
            for array, dtype in zip(self._plan.arrays("square_avg"), self._leaf_dtypes, strict=True)
        ]


def as_tensor(array: NDArray[Any]) -> Any:
    """A tensor of torch over the memory of an array, a buffer of a state; lower halves are int16.

    Parameters
    ----------
    array : numpy.ndarray

    Returns
    -------
    torch.Tensor
    """
    import torch  # only where parameters are its tensors

    if array.dtype.kind in "fc":
        return torch.from_numpy(array)
    tensor = torch.from_numpy(array.view(np.int16))
    return tensor.view(torch.bfloat16) if array.dtype.name == "bfloat16" else tensor


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


def check_square_avg(options: Options, paths: Sequence[str], dtypes: Sequence[np.dtype[Any]]) -> None:
    """Refuse a dtype of square_avg that leaves of these dtypes cannot have, or that cannot hold what it starts from."""
    if options.square_avg_dtype is None:
        return
    for path, dtype in zip(paths, dtypes, strict=True):
        if arithmetic(dtype) != np.float32:
            raise TypeError(
                f"{title('parameter', path)} is {dtype}: "
                f"square_avg_dtype={options.square_avg_dtype!r} is for float32 and bfloat16 parameters"
            )
    initial = options.initial_square_avg
    if initial > 0 and not 0 < float(np.array(initial, bfloat16())) < np.inf:
        raise ValueError(f"initial_square_avg={initial!r} rounds to 0 or infinity in bfloat16")


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
    state._leaf_dtypes = tuple([model.dtype for model in models])
    state._dtypes = frozenset(np.empty(0, arithmetic(dtype)).real.dtype for dtype in set(state._leaf_dtypes))
    state._largest = largest_number(state._dtypes)
    state._claim = Claim(structure.size)
    check_square_avg(options, paths, state._leaf_dtypes)
    names = options.buffers_for(state._leaf_dtypes)
    state._plan = Plan(structure, state._claim, models, names, params, options.square_avg_dtype is not None)
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
        The parameters: float32 or float64, or complex64 or complex128, which count as pairs of reals, or bfloat16 of
        ml_dtypes; of any shape, memory order and strides. They are not changed, and not kept alive longer than the
        state. Tensors of torch on the CPU are taken like arrays; the state shows its buffers for them as tensors.
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
        With running means of the shapes, dtypes and memory order of `params`; those of bfloat16 parameters are float32.
        Where parameters or square_avg are bfloat16, buffers are in C order.

    Raises
    ------
    TypeError
        If a leaf is no array, its dtype is another one, or an option is of the wrong kind.
    ImportError
        If ``square_avg_dtype="bfloat16"`` and ml_dtypes is not installed.
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
            array.fill(complex(start, start) if array.dtype.kind == "c" else start)
    if checked.ema is not None:
        for array, model in zip(state._plan.arrays("ema"), models, strict=True):
            array[...] = model
    return state


# ---- from what was saved ----


class Given(NamedTuple):
    """What is given again for a saved state."""

    lr: float | Schedule | None = None
    overrides: Mapping[str, Mapping[str, Any]] | None = None
    schedules: Mapping[str | None, Schedule] = {}
    """In place of saved ones: of the options under None, of overrides under their pattern."""


class Like(NamedTuple):
    """The parameters for which a saved state is loaded: their structure, arrays of their layout, which are tensors."""

    structure: Tree
    models: list[NDArray[Any]]
    tensors: tuple[bool, ...]


def like_of(params: Any) -> Like:
    """`Like` of parameters.

    Parameters
    ----------
    params : array or nested container
        As for `init`.

    Returns
    -------
    Like

    Raises
    ------
    TypeError
        If a leaf is no array, or its dtype is another one.
    """
    leaves, structure = flatten(params)
    return Like(structure, as_arrays(structure, leaves), tuple([is_torch_tensor(leaf) for leaf in leaves]))


def from_state_dict(
    saved: Mapping[str, Any],
    cls: type[State] = State,
    *,
    lr: float | Schedule | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    like: Any = None,
) -> State:
    """A new state of what `State.state_dict` gave.

    Parameters
    ----------
    saved : mapping
        It is checked as if anybody had written it.
    cls : type, default State
        A subclass of State.
    lr : float or callable, optional
        In place of the saved learning rate; it must be given where that was a schedule.
    overrides : mapping of str to mapping, optional
        In place of all saved overrides; they must be given where one of them has a schedule.
    like : array or nested container, optional
        The parameters. The state then has their structure, the memory order of its buffers is theirs, and they are
        tensors where the parameters are; leaves are matched by their paths. Without it, classes of namedtuples and
        dataclasses are replaced by ones with the same fields, and parameters of any class with these fields are taken.

    Returns
    -------
    State

    Raises
    ------
    ValueError
        If `saved` is not what `state_dict` gives: anything is missing, unknown, of another version, of another shape or
        dtype, out of its range, or a mean square is negative; if the leaves are not those of `like`; or if a schedule
        must be given.
    TypeError
        If `lr`, `overrides` or `like` are of the wrong kind.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> saved = rms.init(np.zeros(2), lr=lambda step: 1 / (1 + step)).state_dict()
    >>> rms.from_state_dict(saved, lr=0.5)
    State(step=0, leaves=1, options=Options(lr=0.5, rho=0.9))
    >>> saved["arrays"]["square_avg/0"] -= 1
    >>> rms.from_state_dict(saved, lr=0.5)
    Traceback (most recent call last):
    ...
    ValueError: square_avg/0 (leaf '') has a negative mean square, -1.0
    """
    return state_of_dict(cls, saved, Given(lr, overrides), None if like is None else like_of(like))


from_state_dict.__module__ = "rmsprop_native"  # by this name it stands in pickles


def state_of_dict(cls: type[State], saved: Mapping[str, Any], given: Given, like: Like | None) -> State:
    """`from_state_dict` for a checked `given` and `like`."""
    content = check_content(saved, extra=("arrays",))
    arrays = saved["arrays"]
    specs = {spec.name: spec for spec in content.arrays()}
    if not isinstance(arrays, dict) or arrays.keys() != specs.keys():
        raise ValueError(f"the arrays must be a dict of {', '.join(list(specs)[:8])} and so on, and of nothing else")
    for name, spec in specs.items():  # all of them, before memory is taken
        array = arrays[name]
        if type(array) is not np.ndarray or array.dtype != spec.dtype or array.shape != spec.shape:
            kind = f"{array.dtype} of {array.shape}" if type(array) is np.ndarray else type(array).__name__
            raise ValueError(f"{name} must be an array of {spec.dtype} of {spec.shape}, got a {kind}")

    def read(spec: ArraySpec, out: NDArray[Any]) -> None:
        out[...] = arrays[spec.name]

    return state_of(cls, content, read, given, like)


def state_of(
    cls: type[State],
    content: Content,
    read: Callable[[ArraySpec, NDArray[Any]], None],
    given: Given,
    like: Like | None,
) -> State:
    """A new state of checked content.

    Parameters
    ----------
    cls : type
        State or a subclass.
    content : Content
        The sizes of its arrays have been found to be there.
    read : callable
        Called for each array of `content.arrays()`, in that order, to write its values into an array of its shape and
        dtype.
    given : Given
    like : Like or None

    Returns
    -------
    State

    Raises
    ------
    TypeError, ValueError
        As `from_state_dict`.
    """
    rates = {}
    specs = content.arrays()
    for _, changes in content.overrides:
        if isinstance(changes.get("lr"), ArraySpec):
            spec = next(specs)
            rates[spec.name] = np.empty(spec.shape, spec.dtype)
            read(spec, rates[spec.name])
    options, overrides = options_of(content, rates, given)
    structure, tensors = content.structure, tuple([leaf.tensor for leaf in content.leaves])
    models = models_of(content.leaves)
    places = list(range(len(models)))
    if like is not None:
        structure, models, tensors = like
        places = match_leaves(content.leaves, structure, models)
    made = cls.__new__(cls)
    try:
        _fill(made, structure, options, overrides, models, tensors)
        _check_numbers(made)
    except TypeError as error:
        if given.overrides is not None:
            raise
        raise ValueError(f"this is no saved state: {error}") from error
    del models
    for name in content.buffers:
        arrays = made._plan.arrays(name)
        for place, leaf in zip(places, content.leaves, strict=True):
            if arrays[place] is None:
                continue
            spec = next(specs)
            read(spec, arrays[place])
            if name == "square_avg":
                refuse_negative(spec.name, leaf.path, arrays[place])
    seen = bytearray(len(places))
    for place, flag in zip(places, content.seen, strict=True):
        seen[place] = flag
    made._claim.set_counts(content.step, content.skipped, content.accumulated, bytes(seen))
    return made


def options_of(
    content: Content, rates: Mapping[str, NDArray[Any]], given: Given
) -> tuple[Options, Mapping[str, Mapping[str, Any]]]:
    """The options and overrides of checked content.

    Parameters
    ----------
    content : Content
    rates : mapping of str to numpy.ndarray
        The learning rates that are arrays, under the names of their `ArraySpec`.
    given : Given

    Returns
    -------
    options : Options
    overrides : mapping

    Raises
    ------
    TypeError, ValueError
        As `from_state_dict`.
    """
    lr = _lr_of(content.options["lr"], given.lr, given.schedules.get(None), "")
    options = Options(**content.options | {"lr": lr})
    if given.overrides is not None:
        return options, given.overrides
    saved = {pattern: dict(changes) for pattern, changes in content.overrides}
    for pattern, changes in saved.items():
        if isinstance(changes.get("lr"), ArraySpec):
            changes["lr"] = rates[changes["lr"].name]
        elif "lr" in changes:
            schedule = given.schedules.get(pattern)
            changes["lr"] = _lr_of(changes["lr"], None, schedule, f" of overrides[{pattern!r}]")
    return options, saved


def _lr_of(saved: Any, given: Any, schedule: Any, where: str) -> Any:
    """The learning rate of the options or an override: given, saved, or the schedule in place of the saved one."""
    if given is not None:
        return given
    if not isinstance(saved, SavedSchedule):
        return saved
    if schedule is None:
        again = "overrides" if where else "lr"
        raise ValueError(
            f"the learning rate{where} was a schedule, {saved.name}, which is not saved: give it again, as "
            f"{again}=... to load, from_state_dict or load_state_dict"
        )
    return schedule


def _check_numbers(state: State) -> None:
    """Refuse what the next step would, without a call of a schedule."""
    for leaf in state._groups:
        group = group_of(leaf.options, 0.0 if callable(leaf.options.lr) else leaf.options.lr, 1.0)
        for dtype in state._dtypes:
            check_dtype(group, leaf.options, dtype)
    for dtype in state._dtypes:
        check_initial(state._options, dtype)


def of_values(
    params: Any,
    values: Mapping[str, list[Any]],
    counts: Mapping[str, int],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> State:
    """The state of another implementation, for its adapter.

    Parameters
    ----------
    params : array or nested container
        As for `init`.
    values : mapping of str to list
        For each buffer of these options an array for each leaf, of its shape and dtype.
    counts : mapping of str to int
        `step` and, while accumulating, `accumulated`: every leaf has had a gradient then.
    overrides, **options
        As for `init`.

    Returns
    -------
    State

    Raises
    ------
    TypeError, ValueError
        As `init` and `from_state_dict`.
    """
    state = init(params, overrides=overrides, **options)
    saved = state.state_dict()
    for name in state.options.buffers:  # a lower half is 0: the parameters are what they are
        for i, array in enumerate(values[name]):
            saved["arrays"][f"{name}/{i}"] = np.asarray(array)
    saved["seen"] = [int(counts.get("accumulated", 0) > 0)] * len(saved["seen"])
    state.load_state_dict({**saved, **counts})
    return state

"""States from and to the state of optax.rmsprop, also within a chain and MultiSteps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from rmsprop_native.presets import make_options
from rmsprop_native.state import State, of_values
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rmsprop_native.options import Options
    from rmsprop_native.tree import Tree

__all__ = ["from_opt_state", "to_opt_state"]


class _Kind(NamedTuple):
    """What a part of optax's state has: our buffers and counts by the names of its fields."""

    buffers: dict[str, str]
    counts: dict[str, str]


# MultiSteps holds the mean of the gradients since the last step, a trace what is added to the parameters.
_KINDS = {
    "ScaleByRmsState": _Kind({"nu": "square_avg"}, {}),
    "ScaleByRmsWithCountState": _Kind({"nu": "square_avg"}, {"count": "step"}),
    "ScaleByRStdDevState": _Kind({"nu": "square_avg", "mu": "grad_avg"}, {}),
    "ScaleByRStdDevWithCountState": _Kind({"nu": "square_avg", "mu": "grad_avg"}, {"count": "step"}),
    "TraceState": _Kind({"trace": "momentum_buffer"}, {}),
    "ScaleByScheduleState": _Kind({}, {"count": "step"}),
    "MultiStepsState": _Kind({"acc_grads": "grad_sum"}, {"mini_step": "accumulated", "gradient_step": "step"}),
    "EmptyState": _Kind({}, {}),
}


def from_opt_state(
    opt_state: Any,
    params: Any,
    *,
    step: int | None = None,
    preset: str | None = "optax",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> State:
    """A State of what optax.rmsprop has kept: the next step is that which optax would take, but for rounding.

    Parameters
    ----------
    opt_state : tuple
        Of optax.rmsprop, alone, in a chain with transformations that keep nothing (clipping, weight decay), or in
        MultiSteps.
    params : array or nested container
        The parameters, of JAX or NumPy; the state is for NumPy arrays in their structure.
    step : int, optional
        The steps taken, where optax does not count them: it does with a schedule, bias correction or MultiSteps.
    preset, overrides, **options
        As for `init`: optax keeps no options in its state, so that those that its functions were called with are given
        again, under the names of `Options`. The learning rate may be the schedule itself.

    Returns
    -------
    State

    Raises
    ------
    TypeError, ValueError
        If a part of `opt_state` is none of these; if the options do not go with what it keeps (a missing buffer, one
        too many); if the number of steps is not known and the learning rate is a function; or as `init`.

    Examples
    --------
    >>> import numpy as np
    >>> import optax
    >>> from rmsprop_native.interop.optax import from_opt_state
    >>> params = {"w": np.ones(2, np.float32)}
    >>> opt_state = optax.rmsprop(0.5, decay=0.99, momentum=0.75).init(params)
    >>> from_opt_state(opt_state, params, step=0, lr=0.5, rho=0.99, momentum=0.75).square_avg
    {'w': array([0., 0.], dtype=float32)}
    """
    checked = make_options(preset, **options)
    parts = list(_parts(opt_state))
    _check_parts(parts, checked)
    leaves, structure = flatten(params)
    arrays = structure.unflatten(iter([np.array(leaf) for leaf in leaves]))
    counts = _counts(parts, checked, step)
    values = {}
    for part in parts:
        for field, name in _KINDS[type(part).__name__].buffers.items():
            found = [np.asarray(leaf) for leaf in structure.leaves(getattr(part, field), field)]
            values[name] = [_other_sign(array, name, counts["accumulated"]) for array in found]
    return of_values(arrays, values, counts, overrides, preset=preset, **options)


def to_opt_state(state: State, opt_state: Any) -> Any:
    """Optax's state with the values of a State, from which its steps go on.

    Parameters
    ----------
    state : State
    opt_state : tuple
        What ``init`` of the optax optimizer gave for the same parameters. The options with which that was made must be
        those of the state; what can be seen in `opt_state` is checked.

    Returns
    -------
    tuple
        Of the kind of `opt_state`, with arrays of JAX.

    Raises
    ------
    TypeError, ValueError
        If a part of `opt_state` is of another kind; if the state keeps other buffers than it, or a buffer has another
        structure, shape or dtype; or if a leaf had no gradient while accumulating.
    RuntimeError
        If the state is inside a step.

    Examples
    --------
    >>> import numpy as np
    >>> import optax
    >>> import rmsprop_native as rms
    >>> from rmsprop_native.interop.optax import to_opt_state
    >>> params = {"w": np.ones(2, np.float32)}
    >>> state = rms.init(params, preset="optax", lr=0.5)
    >>> params = rms.update_(params, {"w": np.ones(2, np.float32)}, state)
    >>> opt_state = to_opt_state(state, optax.rmsprop(0.5).init(params))
    >>> np.array(optax.tree_utils.tree_get(opt_state, "nu")["w"])
    array([0.1, 0.1], dtype=float32)
    """
    saved = state.state_dict()
    parts = list(_parts(opt_state))
    _check_parts(parts, state.options)
    if saved["accumulated"] and not all(saved["seen"]):
        raise ValueError("a leaf had no gradient since the last step: optax would step it by a gradient of 0")
    return _with_values(opt_state, saved, state._structure)


def _parts(opt_state: Any) -> Iterator[Any]:
    """The parts of optax's state that are no bare tuples."""
    if type(opt_state) is tuple:
        for part in opt_state:
            yield from _parts(part)
        return
    name = type(opt_state).__name__
    if name not in _KINDS or not type(opt_state).__module__.startswith("optax."):
        raise TypeError(f"a part of the state is a {name}, which has no counterpart; known are {', '.join(_KINDS)}")
    yield opt_state
    if isinstance(opt_state, optax.MultiStepsState):
        if opt_state.skip_state:
            raise ValueError("MultiSteps skips updates by a function of its own, which has no counterpart")
        yield from _parts(opt_state.inner_opt_state)


def _check_parts(parts: list[Any], options: Options) -> None:
    """Refuse what does not keep what the options need, or more."""
    found = [name for part in parts for name in _KINDS[type(part).__name__].buffers.values()]
    if sorted(found) != sorted(options.buffers):
        raise ValueError(
            f"optax's state keeps {', '.join(found) or 'nothing'}; {options!r} needs {', '.join(options.buffers)}: "
            "give the options that the optimizer was made with"
        )
    counts = any(type(part).__name__.endswith("WithCountState") for part in parts)
    if counts != options.bias_correction:
        raise ValueError(f"optax's state is of bias_correction={counts}, the options have {options.bias_correction}")
    if options.momentum and not options.lr_in_momentum:
        raise ValueError("optax keeps steps times the learning rate in its trace; lr_in_momentum must be True")


def _counts(parts: list[Any], options: Options, step: int | None) -> dict[str, int]:
    found: dict[str, set[int]] = {"step": set(), "accumulated": {0}}
    if step is not None:
        found["step"].add(step)
    for part in parts:
        for field, name in _KINDS[type(part).__name__].counts.items():
            if name == "accumulated":
                found[name].clear()
            found[name].add(int(getattr(part, field)))
    if len(found["step"]) > 1:
        raise ValueError(f"the number of steps is {' and '.join(map(str, sorted(found['step'])))}")
    if not found["step"] and callable(options.lr):
        raise ValueError("optax has not counted the steps that the learning rate depends on: give step=")
    return {name: counts.pop() if counts else 0 for name, counts in found.items()}


def _other_sign(array: Any, name: str, accumulated: int) -> Any:
    """What optax keeps as we keep it: our buffer is subtracted from the parameters, and gradients are summed."""
    if name == "grad_sum":
        return array * array.dtype.type(accumulated)
    return -array if name == "momentum_buffer" else array


def _with_values(part: Any, saved: Mapping[str, Any], structure: Tree) -> Any:
    if type(part) is tuple:
        return tuple([_with_values(inner, saved, structure) for inner in part])
    kind = _KINDS[type(part).__name__]
    changes: dict[str, Any] = {}
    for field, name in kind.counts.items():
        changes[field] = jax.numpy.asarray(saved[name], getattr(part, field).dtype)
    for field, name in kind.buffers.items():
        tree = getattr(part, field)
        list(structure.leaves(tree, field))  # raises if it has another structure
        leaves, own_structure = flatten(tree)
        places = {path: i for i, path in enumerate(structure.paths())}
        values = []
        for path, leaf in zip(own_structure.paths(), leaves, strict=True):
            i = places[path]
            array = saved["arrays"][f"{name}/{i}"]
            if leaf.shape != array.shape or leaf.dtype != array.dtype:
                raise ValueError(
                    f"{name} of leaf {saved['leaves'][i]['path']!r} is {array.dtype} of {array.shape}, optax's {field} "
                    f"{leaf.dtype} of {leaf.shape}"
                )
            if name == "grad_sum":
                array = array / array.dtype.type(max(saved["accumulated"], 1))
            values.append(jax.numpy.asarray(-array if name == "momentum_buffer" else array))
        changes[field] = own_structure.unflatten(iter(values))
    if isinstance(part, optax.MultiStepsState):
        changes["inner_opt_state"] = _with_values(part.inner_opt_state, saved, structure)
    return part._replace(**changes)

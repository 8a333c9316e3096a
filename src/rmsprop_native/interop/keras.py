"""States from and to the variables of Keras 3's RMSprop, in any of its backends."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from rmsprop_native.options import Options
from rmsprop_native.presets import make_options
from rmsprop_native.state import State, like_of, of_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["from_optimizer", "to_optimizer"]

# Our buffers, and where an optimizer keeps its variables for them.
_VARIABLES = {
    "square_avg": "_velocities",
    "momentum_buffer": "_momentums",
    "grad_avg": "_average_gradients",
    "ema": "_model_variables_moving_average",
    "grad_sum": "_accumulated_gradients",
}


def from_optimizer(optimizer: Any, *, like: Any = None) -> State:
    """The state of a Keras optimizer: the next step is that which Keras would take, but for rounding.

    Parameters
    ----------
    optimizer : keras.optimizers.RMSprop
        It must be built. Its options become those of the state; a schedule of the learning rate is called as Keras
        calls it.
    like : array or nested container of arrays, optional
        The parameters, with their leaves in the order of the optimizer's variables. Without it they are a list.

    Returns
    -------
    State

    Raises
    ------
    TypeError
        If it is no RMSprop of Keras itself.
    ValueError
        If the optimizer is not built, a variable is missing or of another shape, or it does something that has no
        counterpart here: `loss_scale_factor`, `ema_overwrite_frequency`, averages while accumulating.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> from rmsprop_native.interop.keras import from_optimizer
    >>> optimizer = keras.optimizers.RMSprop(0.5, momentum=0.75)
    >>> optimizer.build([keras.Variable(np.ones(2, np.float32))])
    >>> state = from_optimizer(optimizer)
    >>> state.options.lr, state.options.momentum, state.options.eps_inside_sqrt
    (0.5, 0.75, True)
    """
    expected = _options_of(optimizer)
    variables = optimizer._trainable_variables
    arrays = [_array(variable) for variable in variables]
    params = arrays if like is None else like
    found = like_of(params)
    if [model.shape for model in found.models] != [array.shape for array in arrays]:
        raise ValueError(
            f"the parameters have the shapes {[model.shape for model in found.models]}, the variables of the "
            f"optimizer {[array.shape for array in arrays]}"
        )
    values = {name: [_array(v) for v in _variables(optimizer, name, len(arrays))] for name in expected.buffers}
    step, accumulated = divmod(int(_array(optimizer._iterations)), expected.accumulate)
    paths = list(found.structure.paths())
    overrides = {
        path: {"weight_decay": 0.0}
        for path, variable in zip(paths, variables, strict=True)
        if expected.weight_decay and not optimizer._use_weight_decay(variable)
    }
    options = {field.name: getattr(expected, field.name) for field in fields(Options)}
    return of_values(params, values, {"step": step, "accumulated": accumulated}, overrides, **options)


def to_optimizer(state: State, optimizer: Any) -> None:
    """Write a state into the variables of a Keras optimizer, which goes on from there.

    Parameters
    ----------
    state : State
        Its leaves are in the order of the optimizer's variables. A learning rate that is a function leaves that of the
        optimizer as it is.
    optimizer : keras.optimizers.RMSprop
        It must be built, and have the options of the state.

    Raises
    ------
    TypeError
        If it is no RMSprop of Keras itself.
    ValueError
        If Keras would not take the steps of the state: another option, as `eps` outside of the root, a learning rate of
        a leaf's own, a leaf without a gradient while accumulating; or a variable is missing or of another shape.
        Nothing has been written then.
    RuntimeError
        If the state is inside a step.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> from rmsprop_native.interop.keras import to_optimizer
    >>> params = [np.ones(2, np.float32)]
    >>> state = rms.init(params, preset="keras", lr=0.5)
    >>> params = rms.update_(params, [np.ones(2, np.float32)], state)
    >>> optimizer = keras.optimizers.RMSprop(0.25)
    >>> optimizer.build([keras.Variable(params[0])])
    >>> to_optimizer(state, optimizer)
    >>> int(optimizer.iterations), float(optimizer.learning_rate)
    (1, 0.5)
    """
    expected = _options_of(optimizer)
    saved = state.state_dict()
    variables = optimizer._trainable_variables
    if len(saved["leaves"]) != len(variables):
        raise ValueError(f"the state has {len(saved['leaves'])} leaves, the optimizer {len(variables)} variables")
    if saved["accumulated"] and not all(saved["seen"]):
        raise ValueError("a leaf had no gradient since the last step: Keras would step it by a gradient of 0")
    for i, (leaf, variable) in enumerate(zip(saved["leaves"], variables, strict=True)):
        of_leaf = state._groups[state._leaf_groups[i]]
        if of_leaf.own_lr:
            raise ValueError(f"leaf {leaf['path']!r} has a learning rate of its own; Keras has one for all")
        decays = optimizer._use_weight_decay(variable)
        _check_alike(leaf["path"], of_leaf.options, expected if decays else expected.replace(weight_decay=0.0))
    writes = []
    for name in state.options.buffers:
        for i, variable in enumerate(_variables(optimizer, name, len(variables))):
            array = saved["arrays"][f"{name}/{i}"]
            if tuple(variable.shape) != array.shape or str(variable.dtype) != array.dtype.name:
                raise ValueError(
                    f"{name} of leaf {saved['leaves'][i]['path']!r} is {array.dtype} of {array.shape}, the variable of "
                    f"the optimizer {variable.dtype} of {tuple(variable.shape)}"
                )
            writes.append((variable, array))
    lr = state.options.lr
    if not callable(lr) and isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        raise ValueError(f"the state has lr={lr!r}, the optimizer a schedule: give one of them what the other has")
    for variable, array in writes:
        variable.assign(array)
    optimizer._iterations.assign(saved["step"] * expected.accumulate + saved["accumulated"])
    if not callable(lr):
        optimizer.learning_rate = lr


def _array(variable: Any) -> NDArray[Any]:
    return np.array(keras.ops.convert_to_numpy(variable))


def _variables(optimizer: Any, name: str, count: int) -> list[Any]:
    found = list(getattr(optimizer, _VARIABLES[name], None) or [])
    if len(found) != count or any(variable is None for variable in found):
        raise ValueError(
            f"the optimizer has {len(found)} variables for {name} ({_VARIABLES[name]}) and {count} parameters: was an "
            "option changed after it was built?"
        )
    return found


def _options_of(optimizer: Any) -> Options:
    """What the options of an optimizer mean here."""
    # Backends have subclasses of Keras' own; one of somebody else may step in another way.
    if not isinstance(optimizer, keras.optimizers.RMSprop) or not type(optimizer).__module__.startswith("keras."):
        hint = "; pass its inner_optimizer" if hasattr(optimizer, "inner_optimizer") else ""
        raise TypeError(f"the optimizer must be a keras.optimizers.RMSprop, got {type(optimizer).__qualname__}{hint}")
    if not optimizer.built:
        raise ValueError("the optimizer has no variables yet: call optimizer.build(model.trainable_variables)")
    for name, meaning in (
        ("loss_scale_factor", "gradients are divided by it; pass grad_scale to each step instead"),
        ("ema_overwrite_frequency", "parameters are overwritten by their averages"),
    ):
        value = getattr(optimizer, name)
        if value is not None:
            raise ValueError(f"the optimizer has {name}={value!r}, which has no counterpart: {meaning}")
    accumulate = optimizer.gradient_accumulation_steps or 1
    if optimizer.use_ema and accumulate > 1:
        raise ValueError("Keras moves its averages at each call, also where it only accumulates; here at each step")
    schedule = optimizer._learning_rate
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):

        def lr(taken: int) -> float:
            # Keras asks by the number of calls, also where most of them only accumulate.
            calls = (taken + 1) * accumulate - 1
            return float(keras.ops.convert_to_numpy(schedule(calls)))
    elif callable(schedule) and not isinstance(schedule, keras.Variable):
        raise ValueError("the learning rate of the optimizer is a function without arguments; a schedule has the step")
    else:
        lr = float(keras.ops.convert_to_numpy(optimizer.learning_rate))  # type: ignore[assignment] # or a number
    return make_options(
        "keras",
        lr=lr,
        rho=optimizer.rho,
        eps=optimizer.epsilon,
        momentum=optimizer.momentum,
        centered=optimizer.centered,
        weight_decay=optimizer.weight_decay or 0.0,
        clip_norm=optimizer.clipnorm,
        clip_value=optimizer.clipvalue,
        clip_global_norm=optimizer.global_clipnorm,
        accumulate=accumulate,
        ema=optimizer.ema_momentum if optimizer.use_ema else None,
    )


def _check_alike(path: str, ours: Options, theirs: Options) -> None:
    """Refuse options by which a leaf would be stepped in another way; `lr` is written, the start has passed."""
    without = {"lr", "initial_square_avg"}
    without |= set() if ours.eps or theirs.eps else {"eps_inside_sqrt"}
    without |= set() if ours.momentum or theirs.momentum else {"lr_in_momentum"}
    without |= set() if ours.weight_decay or theirs.weight_decay else {"decoupled_weight_decay"}
    for field in fields(Options):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name not in without and one != other:
            raise ValueError(
                f"leaf {path!r} has {field.name}={one!r}; the optimizer steps with {field.name}={other!r}, as the "
                'preset "keras" calls it'
            )

"""The state of torch's RMSprop as a State of ours, and back."""

from __future__ import annotations

import glob
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

import torch

from rmsprop_native._plan import as_ndarray
from rmsprop_native.options import OVERRIDABLE, Options
from rmsprop_native.state import State, as_tensor, init
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["EXTRA_TF", "FIXED_TF", "NAMES", "NAMES_TF", "OWN", "STORAGE", "from_state_dict", "to_state_dict"]

# What torch.optim.RMSprop calls our options, and those that it has not, with the values that make it the same.
_TORCH = {
    "lr": "lr", "alpha": "rho", "eps": "eps", "weight_decay": "weight_decay", "momentum": "momentum",
    "centered": "centered", "maximize": "maximize",
}  # fmt: skip
OWN: dict[str, Any] = {
    "nesterov": False, "eps_inside_sqrt": False, "lr_in_momentum": False, "bias_correction": False,
    "decoupled_weight_decay": False, "initial_square_avg": 0.0, "ema": None, "clip_value": None, "clip_norm": None,
    "clip_global_norm": None, "square_avg_dtype": None, "master_weights": True, "seed": 0,
}  # fmt: skip
# Those of them that decide how numbers are stored, and not what is computed.
STORAGE = ("square_avg_dtype", "master_weights", "seed")
NAMES: Mapping[str, str] = {**_TORCH, **{name: name for name in OWN}}

# Those of timm's RMSpropTF; the options that it always has; keys of its groups that decide a step, and are no option.
NAMES_TF: Mapping[str, str] = {
    **_TORCH, "decoupled_decay": "decoupled_weight_decay", "lr_in_momentum": "lr_in_momentum",
    **{name: name for name in STORAGE},
}  # fmt: skip
FIXED_TF: Mapping[str, Any] = {"eps_inside_sqrt": True, "initial_square_avg": 1.0}
EXTRA_TF = ("corrected_weight_decay", "max_lr_snapshot", "caution")


def from_state_dict(state_dict: Mapping[str, Any], params: Any, **options: Any) -> State:
    """Make a State that goes on where an optimizer of torch stopped.

    Parameters
    ----------
    state_dict : mapping
        What ``optimizer.state_dict()`` gives, of torch.optim.RMSprop, timm's RMSpropTF, or the classes of this module.
    params : array, tensor or nested container of them
        The parameters, as for `rmsprop_native.init`; their leaves in the order of the optimizer's groups, or, where it
        was made of named parameters and they are the paths of the leaves, in any order.
    **options
        Options that win over those of the groups, as ``eps_inside_sqrt=True`` for Stable-Baselines3's RMSpropTFLike,
        whose state_dict has the form of torch's.

    Returns
    -------
    State
        Its next step is the one that the optimizer would take. It has copies of the buffers; `step` is the largest
        count of the parameters. Options that differ between groups become overrides. Buffers of bfloat16 parameters
        that torch's class keeps in bfloat16 become float32. Random bits go by the order of the leaves, so that those of
        stochastic rounding are the optimizer's where its parameters are in that order.

    Raises
    ------
    ValueError
        If the numbers of parameters or the shapes differ, a buffer is missing, groups differ in an option that cannot
        differ between leaves, an option is out of its range here, or there is no such option (timm's caution).
    TypeError
        If a buffer is no CPU tensor of the dtype that the state has for it, or as `rmsprop_native.init`.

    Examples
    --------
    >>> import torch
    >>> import rmsprop_native as rms
    >>> from rmsprop_native.interop.torch import from_state_dict
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.RMSprop(model.parameters(), lr=0.25)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> arrays = [p.detach().numpy() for p in model.parameters()]
    >>> state = from_state_dict(optimizer.state_dict(), arrays)
    >>> state
    State(step=1, leaves=2, options=Options(lr=0.25, rho=0.99))
    >>> state.square_avg[1].round(3)
    array([0.01], dtype=float32)
    """
    groups = state_dict["param_groups"]
    keys = [key for group in groups for key in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    paths = list(flatten(params)[1].paths())
    if not groups or len(keys) != len(paths):
        raise ValueError(f"the state_dict has {len(keys)} parameters, params has {len(paths)}")
    if set(names) == set(paths):  # else in the order of the groups
        keys = [dict(zip(names, keys, strict=True))[path] for path in paths]
    formed = [Options(**{**_options_of(group, g), **options}) for g, group in enumerate(groups)]
    group_of = {key: g for g, group in enumerate(groups) for key in group["params"]}
    overrides = _overrides(formed, [group_of[key] for key in keys], paths)
    state = init(params, overrides=overrides, **{f.name: getattr(formed[0], f.name) for f in fields(Options)})
    entries = [state_dict["state"].get(key, {}) for key in keys]
    saved = state.state_dict()
    for name in state._plan.names:
        for i, (path, entry) in enumerate(zip(paths, entries, strict=True)):
            ours = saved["arrays"].get(f"{name}/{i}")
            # A parameter that never had a gradient has no state, one that torch's class has loaded no lower half.
            if entry and ours is not None and (name != "low_half" or _is_int16(entry.get(name))):
                is_bf16 = state._leaf_dtypes[i].name == "bfloat16"
                saved["arrays"][f"{name}/{i}"] = _array(entry, name, path, ours, is_bf16)
    saved["step"] = max([int(entry.get("step", 0)) for entry in entries], default=0)
    state.load_state_dict(saved)
    return state


# For each kind of optimizer its names of options, the options that it always has, and further keys of its groups.
_KINDS: dict[str, tuple[Mapping[str, str], Mapping[str, Any], dict[str, Any]]] = {
    "torch": (_TORCH, {}, {"capturable": False, "foreach": None, "differentiable": False}),
    "native": (NAMES, {}, {"capturable": False, "foreach": None, "differentiable": False}),
    "timm": (NAMES_TF, FIXED_TF, {"corrected_weight_decay": False, "caution": False, "foreach": None}),
}


def to_state_dict(state: State, kind: Literal["torch", "native", "timm"] = "torch") -> dict[str, Any]:
    """The state_dict of an optimizer of torch that goes on where a State stopped.

    Parameters
    ----------
    state : State
        Not in the middle of an accumulation.
    kind : {"torch", "native", "timm"}, default "torch"
        For which class: torch.optim.RMSprop; `RMSprop` of this module, which has more options; or RMSpropTF, timm's or
        ours.

    Returns
    -------
    dict
        For ``optimizer.load_state_dict``: copies of the buffers as tensors, one group for the leaves of each set of
        options, in the order of their first leaves. The optimizer must have as many groups, of the same parameters.

    Raises
    ------
    ValueError
        If there is no such kind, or the state has what such an optimizer does not: a schedule, learning rates in an
        array, gradients that are accumulated, an option; the message names it.

    Examples
    --------
    >>> import torch
    >>> import rmsprop_native as rms
    >>> from rmsprop_native.interop.torch import to_state_dict
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> state = rms.init([p], preset="torch", lr=0.5)
    >>> _ = rms.update_([p], [torch.ones(2)], state)
    >>> optimizer = torch.optim.RMSprop([p])
    >>> optimizer.load_state_dict(to_state_dict(state))
    >>> optimizer.param_groups[0]["lr"], optimizer.state[p]["step"]
    (0.5, tensor(1.))
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be {', '.join(map(repr, _KINDS))}, got {kind!r}")
    with state._claim:
        if state.accumulated:
            raise ValueError(f"{state.accumulated} gradients are accumulated: take the step first")
        members: dict[Options, list[int]] = {}
        for i, g in enumerate(state._leaf_groups):
            if state._groups[g].rates is not None:
                raise ValueError(f"leaf {state._paths()[i]!r} has learning rates in an array, a group of torch one lr")
            members.setdefault(state._groups[g].options, []).append(i)
        buffers = {name: state._plan.arrays(name) for name in state._plan.names if name != "grad_sum"}
        if kind == "torch" and "low_half" in buffers:
            raise ValueError(
                "the state has low_half, the lower halves of bfloat16 parameters, which torch.optim.RMSprop has not: "
                "make one for kind 'native', which that class loads without them"
            )
        return {
            "state": {
                i: {
                    "step": torch.tensor(float(state.step), device="cpu"),
                    **{
                        name: as_tensor(arrays[i].copy(order="K"))
                        for name, arrays in buffers.items()
                        if arrays[i] is not None
                    },
                }
                for i in range(len(state._leaf_groups))
            },
            "param_groups": [{**_group_of(options, kind), "params": indices} for options, indices in members.items()],
        }


def _options_of(group: Mapping[str, Any], g: int) -> dict[str, Any]:
    """The options of a group of a state_dict, of torch's class, timm's or ours."""
    is_timms = "decoupled_decay" in group
    if group.get("caution"):
        raise ValueError(f"param_groups[{g}] has caution=True, which is no option of a State")
    if group.get("corrected_weight_decay") and group.get("decoupled_decay") and group["weight_decay"]:
        raise ValueError(f"param_groups[{g}] has corrected_weight_decay=True, which is no option of a State")
    names, fixed = (NAMES_TF, FIXED_TF) if is_timms else (NAMES, {})
    options = {name: group[key] for key, name in names.items() if key in group}
    return {**options, **fixed, "lr": float(group["lr"])}


def _group_of(options: Options, kind: str) -> dict[str, Any]:
    """The group of a state_dict with these options, without its parameters."""
    names, fixed, further = _KINDS[kind]
    if callable(options.lr):
        raise ValueError("the state has a schedule for lr, a group of torch one lr: state.replace(lr=...)")
    for f in fields(Options):
        value = getattr(options, f.name)
        # initial_square_avg has been used.
        if f.name not in names.values() and f.name != "initial_square_avg" and value != fixed.get(f.name, f.default):
            raise ValueError(
                f"the state has {f.name}={value!r}, an optimizer of kind {kind!r} has no other than "
                f"{fixed.get(f.name, f.default)!r}"
            )
    if kind == "timm":
        further = {**further, "max_lr_snapshot": options.lr}
    return {key: getattr(options, name) for key, name in names.items()} | further


def _overrides(formed: Sequence[Options], groups: Sequence[int], paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of leaves whose group differs from the first, as overrides."""
    changes: list[dict[str, Any]] = []
    for g, options in enumerate(formed):
        changes.append({})
        for f in fields(Options):
            first, value = getattr(formed[0], f.name), getattr(options, f.name)
            if value == first:
                continue
            if f.name not in OVERRIDABLE:
                raise ValueError(
                    f"param_groups[{g}] has {f.name}={value!r}, param_groups[0] {first!r}: "
                    "a State has one value for all leaves"
                )
            changes[g][f.name] = value
    return {glob.escape(path): changes[g] for path, g in zip(paths, groups, strict=True) if changes[g]}


def _is_int16(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is torch.int16


def _array(entry: Mapping[str, Any], name: str, path: str, ours: NDArray[Any], is_bf16: bool) -> NDArray[Any]:
    """A buffer of a state_dict as an array; `ours` is the State's, `is_bf16` says that its parameter is bfloat16."""
    where = f"{name} of {path!r}"
    if name not in entry:
        raise ValueError(f"the state_dict has no {where}, which its options need")
    tensor = entry[name]
    if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        raise TypeError(f"{where} must be a dense tensor on the CPU, got {tensor!r}")
    wanted = as_tensor(ours).dtype
    if is_bf16 and tensor.dtype is torch.bfloat16:
        tensor = tensor.to(wanted)  # torch's class keeps it so
    if tensor.dtype != wanted:
        raise TypeError(f"{where} has dtype {tensor.dtype}, the state of its parameter {wanted}")
    if tensor.shape != ours.shape:
        raise ValueError(f"{where} has shape {tuple(tensor.shape)}, its parameter {ours.shape}")
    return as_ndarray(tensor.resolve_conj().resolve_neg()).view(ours.dtype)

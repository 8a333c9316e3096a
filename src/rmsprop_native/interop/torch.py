"""RMSProp as optimizers of torch: `RMSprop`, a drop-in for torch.optim.RMSprop, and `RMSpropTF`, one for timm's.

a) There is no second state: the buffers are the tensors in ``optimizer.state[p]``, the options those in
   ``optimizer.param_groups``. Both are read at every step, so that whatever changes or replaces them is honoured. The
   plan of the compiled step is a cache of what was found.
b) Parameters that the compiled step refuses, for whatever reason, are stepped by torch's own operations in the same
   call, and `native` says why.
c) The counts of steps in the state are elements of one tensor, so that the compiled step writes them in one loop: to
   increment one through torch takes as long as the steps of ten small parameters.
d) The state of a bfloat16 parameter is in float32, beside the lower halves of its numbers (int16): `load_state_dict` of
   torch would round both to bfloat16, so that ours keeps them from it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.autograd import _profiler_enabled
from torch.optim import optimizer as base
from torch.optim.rmsprop import rmsprop

from rmsprop_native._core import Claim
from rmsprop_native._plan import (
    BUFFERS,
    NEEDS_NUMBERS,
    NEEDS_PLAN,
    NEEDS_STATE,
    NOTHING,
    REFUSED,
    STEPPED,
    TensorPlan,
    find_bfloat16,
)
from rmsprop_native.buffers import PAGE, place_of_tensor
from rmsprop_native.coefficients import check_dtype, group_of, largest_number
from rmsprop_native.interop._torch_state import (
    EXTRA_TF,
    FIXED_TF,
    NAMES,
    NAMES_TF,
    OWN,
    STORAGE,
    from_state_dict,
    to_state_dict,
)
from rmsprop_native.options import Options
from rmsprop_native.presets import PRESETS, make_options
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Native", "RMSprop", "RMSpropTF", "from_state_dict", "to_state_dict"]

Group = dict[str, Any]

# The bit of each buffer that a parameter has; square_avg is array 2 of a leaf.
_BUFFERS = {name: 1 << (i + 2) for i, name in enumerate(BUFFERS)}

# From so many bytes on glibc maps each array by itself, at first; those all start at the same place in a page.
_MAPPED = 1 << 17

_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16)

try:
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.tensor import DTensor, Partial
except ImportError:  # a torch built without distributed
    AsyncCollectiveTensor = DTensor = Partial = None


class _Default(float):
    """A default that a preset may replace: known by identity, shown as the number that it is."""

    def __repr__(self) -> str:
        return repr(int(self)) if self.is_integer() else float.__repr__(self)


class _DefaultFalse(int):
    """The same for a flag."""

    def __repr__(self) -> str:
        return "False"


_LR, _ALPHA, _EPS, _MOMENTUM = _Default(1e-2), _Default(0.99), _Default(1e-8), _Default(0)
_CENTERED: Any = _DefaultFalse(0)


@dataclass(frozen=True, repr=False)
class Native:
    """Which parameters of an optimizer take the compiled step; true if all of them do.

    Attributes
    ----------
    count : int
        All parameters.
    reasons : dict of (int, int) to str
        For each of the others, by the indices of its group and of itself in it, why torch's own operations step it.
    """

    count: int
    reasons: Mapping[tuple[int, int], str]

    def __bool__(self) -> bool:
        return not self.reasons

    def __repr__(self) -> str:
        lines = [f"{self.count - len(self.reasons)} of {self.count} parameters take the native step"]
        lines += [f"  {_place(g, i)} {reason}" for (g, i), reason in self.reasons.items()]
        return "\n".join(lines)


def _is_sharded(tensor: Any) -> bool:
    return DTensor is not None and type(tensor) is DTensor


def _local(tensor: Any, param: Any) -> Any:
    """The part in this process of a DTensor that lies as its parameter does; TypeError says why there is none."""
    if not (_is_sharded(tensor) and _is_sharded(param)):
        raise TypeError(f"is a {type(tensor).__name__}, its parameter a {type(param).__name__}")
    if tensor.placements != param.placements or tensor.device_mesh != param.device_mesh:
        places = [f"{each.placements} on {each.device_mesh}" for each in (tensor, param)]
        raise TypeError(f"is a DTensor of {places[0]}, its parameter one of {places[1]}")
    local = tensor._local_tensor  # what to_local() gives without autograd, which torch.no_grad() takes 4 us to turn off
    return local.trigger_wait() if type(local) is AsyncCollectiveTensor else local


def _whole(tensor: Any) -> Any:
    """What a tensor is over all processes: a DTensor of partial results is not yet reduced."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


@dataclass(frozen=True)
class _Kept:
    """A tensor of a state that is loaded, which torch is not to convert."""

    tensor: Any


def _has_bf16(param: Any, group: Group) -> bool:
    """Whether a parameter, or the square_avg that its group asks for, is bfloat16: its buffers are in C order then."""
    return param.dtype is torch.bfloat16 or group.get("square_avg_dtype") is not None


def _dtype_of(name: str, param: Any, group: Group) -> Any:
    """The dtype of a buffer of a native parameter."""
    if name == "low_half":
        return torch.int16
    if name == "square_avg" and group.get("square_avg_dtype") is not None:
        return torch.bfloat16
    return torch.float32 if param.dtype is torch.bfloat16 else param.dtype


def _join(upper: Any, lower: Any) -> Any:
    """`rmsprop_native.reference.join_halves` in torch's operations."""
    if _is_sharded(upper):
        local = _join(_local(upper, upper), _local(lower, upper))
        return DTensor.from_local(
            local, upper.device_mesh, upper.placements, run_check=False, shape=upper.shape, stride=upper.stride()
        )
    bits = upper.view(torch.int16).int() << 16
    joined = bits + lower
    size = bits & 0x7FFFFFFF
    is_stale = (size == 0) | (size >= 0x7F800000)
    return torch.where(is_stale, bits, joined).view(torch.float32)


def _split(whole: Any, upper: Any, lower: Any) -> None:
    """Write float32 numbers as two halves, of which the upper one is rounded to the nearest."""
    if _is_sharded(upper):
        _split(_local(whole, upper), _local(upper, upper), _local(lower, upper))
        return
    bits = whole.view(torch.int32)
    rounded = torch.where(whole.isnan(), bits, bits + 0x8000) >> 16
    upper.copy_(rounded.to(torch.int16).view(torch.bfloat16))
    lower.copy_(bits.to(torch.int16))


def _hooked(plain: Any) -> Any:
    """A `step` that does what torch's wrapper does where there are hooks or a profiler; that wrapper takes twice the
    time of a small step.
    """
    with_hooks = base.Optimizer.profile_hook_step(plain)

    @functools.wraps(plain)
    def step(*args: Any, **kwargs: Any) -> Any:
        self = args[0]
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or base._global_optimizer_pre_hooks
            or base._global_optimizer_post_hooks
            or _profiler_enabled()
        ):
            return with_hooks(*args, **kwargs)
        return plain(*args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined] # what Optimizer looks at before it wraps a step
    step._torchdynamo_disable = True  # type: ignore[attr-defined]
    return step


class RMSprop(torch.optim.RMSprop):
    """torch.optim.RMSprop whose step is one pass in C: a drop-in.

    Its arguments, defaults, param_groups, hooks, state and checkpoints are those of torch.optim.RMSprop; on the CPU in
    float32, float64, bfloat16, complex64 and complex128 its step is the compiled one of this library, to the bit that
    of `rmsprop_native.update_`. Anything else is stepped by torch's own operations, in the same call; `native` says
    what and why.

    Parameters
    ----------
    params : iterable of torch.Tensor, of dict or of (str, torch.Tensor)
        As for torch.optim.RMSprop.
    lr : float or torch.Tensor, default 1e-2
        Learning rate.
    alpha : float, default 0.99
        Decay of the running mean of squared gradients.
    eps : float, default 1e-8
        Added to the root, or with `eps_inside_sqrt` under it.
    weight_decay, momentum : float, default 0
        As for torch.optim.RMSprop.
    centered : bool, default False
        Divide by the root of the gradient's variance. Where rounding makes that negative it is 0, not NaN.
    capturable : bool, default False
        As for torch.optim.RMSprop, whose operations are used then.
    foreach : bool, optional
        Which of torch's implementations steps what is not native.
    maximize : bool, default False
        Step along the gradient.
    differentiable : bool, default False
        As `capturable`.
    preset : str, optional
        A key of `rmsprop_native.PRESETS`, as "sb3" or "keras": its numbers are the defaults.
    nesterov, eps_inside_sqrt, lr_in_momentum, bias_correction, decoupled_weight_decay : bool, default False
        As for `rmsprop_native.Options`.
    initial_square_avg : float, default 0.0
        What `square_avg` starts from.
    ema : float, optional
        Keep averaged weights in ``optimizer.state[p]["ema"]``, with this decay.
    clip_value, clip_norm, clip_global_norm : float, optional
        As for `rmsprop_native.Options`; `clip_global_norm` must be the same in all groups.
    square_avg_dtype : {None, "bfloat16"}, default None
        Keep ``optimizer.state[p]["square_avg"]`` of float32 and bfloat16 parameters in bfloat16, rounded
        stochastically.
    master_weights : bool, default True
        Keep the lower halves of bfloat16 parameters in ``optimizer.state[p]["low_half"]`` (int16): training is that of
        float32 parameters then, to the bit. False: the parameters are rounded stochastically.
    seed : int, default 0
        Of stochastic rounding; the same in all groups.

    Attributes
    ----------
    native : Native
        Which parameters take the compiled step.

    Raises
    ------
    TypeError, ValueError
        As torch.optim.RMSprop, in its words; for the further options as `rmsprop_native.Options`.

    Notes
    -----
    Large parameters are stepped by as many threads as `torch.get_num_threads` says, unless
    `rmsprop_native.set_num_threads` has been called. The result does not depend on it.

    The buffers of bfloat16 parameters are float32 tensors, contiguous like the lower halves; `master` gives a
    parameter's float32 values. Random bits go by `seed`, the parameter's count of steps, its index among all parameters
    of the groups, and the index of the element in C order, of a DTensor that in the local tensor.

    `bias_correction` goes by one count, the largest of those in the state. Where two optimizers
    share a state, as after ``other.load_state_dict(optimizer.state_dict())``, they share its buffers, as torch's do.

    Examples
    --------
    >>> import torch
    >>> from rmsprop_native.interop.torch import RMSprop
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = RMSprop(model.parameters(), lr=0.01)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(2, 3)).square().sum().backward()
    ...     optimizer.step()
    >>> optimizer.native
    2 of 2 parameters take the native step
    """

    # For pickle and deepcopy, which make an optimizer without __init__.
    _plan: TensorPlan | None = None
    _steps: Sequence[Any] = ()  # for each leaf of the plan the tensor that counts its steps
    _others: tuple[tuple[int, int], ...] = ()  # what is not native, as indices of groups and in them
    _reasons: Mapping[tuple[int, int], str] = {}
    _places: tuple[tuple[int, int], ...] = ()  # of each leaf of the plan
    _refused: Mapping[tuple[int, int], str] = {}  # by the last step
    _names: Mapping[str, str] = NAMES
    _fixed: Mapping[str, Any] = {}
    _extra: tuple[str, ...] = ()  # further keys of groups that decide a step, and are no option

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = _LR,
        alpha: float = _ALPHA,
        eps: float = _EPS,
        weight_decay: float = 0,
        momentum: float = _MOMENTUM,
        centered: bool = _CENTERED,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        preset: str | None = None,
        nesterov: bool | None = None,
        eps_inside_sqrt: bool | None = None,
        lr_in_momentum: bool | None = None,
        bias_correction: bool | None = None,
        decoupled_weight_decay: bool | None = None,
        initial_square_avg: float | None = None,
        ema: float | None = None,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
        square_avg_dtype: Literal["bfloat16"] | None = None,
        master_weights: bool | None = None,
        seed: int | None = None,
    ) -> None:
        if preset is not None:
            make_options(preset)  # raises if there is none
        chosen = {} if preset is None else dict(PRESETS[preset])
        own = {name: value for name, value in locals().items() if name in OWN}
        own = {name: chosen.get(name, OWN[name]) if value is None else value for name, value in own.items()}
        lr = chosen.get("lr", float(lr)) if lr is _LR else lr
        alpha = chosen.get("rho", float(alpha)) if alpha is _ALPHA else alpha
        eps = chosen.get("eps", float(eps)) if eps is _EPS else eps
        momentum = chosen.get("momentum", 0) if momentum is _MOMENTUM else momentum
        centered = chosen.get("centered", False) if centered is _CENTERED else centered
        super().__init__(
            params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize, differentiable
        )
        for g, group in enumerate(self.param_groups):
            if group.get("preset", preset) != preset:
                raise ValueError(f"preset is an argument of the optimizer, param_groups[{g}] has {group['preset']!r}")
        self._take_own(own)

    def _take_own(self, own: dict[str, Any]) -> None:
        """Add options that torch's class does not have to the groups, and check them."""
        self.defaults.update(own)
        for group in self.param_groups:
            for name, value in own.items():
                group.setdefault(name, value)
        for g, group in enumerate(self.param_groups):
            self._check(g, group)

    def _check(self, g: int, group: Group) -> None:
        """Raise what the first step would for the options of a group."""
        if self._is_torchs(group) and all(group.get(name, OWN[name]) == OWN[name] for name in STORAGE):
            return
        self._options(group)
        for i, param in enumerate(group["params"]):
            self._check_storage(param, group, _name_of(group, g, i), self._reason(param, group))

    def _check_storage(self, param: Any, group: Group, name: str, reason: str | None) -> None:
        """Refuse a parameter that asks for stochastic rounding and cannot have it; `reason` is why it is not native."""
        if group.get("square_avg_dtype") is not None and param.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(
                f"{name} is {param.dtype}: square_avg_dtype={group['square_avg_dtype']!r} is for float32 and bfloat16 "
                "parameters"
            )
        is_rounded = param.dtype is torch.bfloat16 and not group.get("master_weights", True)
        if reason is not None and (is_rounded or group.get("square_avg_dtype") is not None):
            option = "master_weights=False" if is_rounded else f"square_avg_dtype={group['square_avg_dtype']!r}"
            raise ValueError(f"{name} {reason}: {option} is for parameters that take the native step")
        if param.dtype is torch.bfloat16 and group.get("differentiable") and not self._is_torchs(group):
            raise ValueError(f"{name} {reason}: with bfloat16 that is for the options that torch's class has")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for entry in self.state.values():
            for name, value in entry.items():
                if isinstance(value, _Kept):
                    entry[name] = value.tensor
        self._plan = None
        for group in self.param_groups:
            for name in (*self._names, *self._extra):
                if name in self.defaults:
                    group.setdefault(name, self.defaults[name])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, of this class or of torch.optim.RMSprop.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` gave. Options that torch's class does not have stay as they are if it has none.

        Raises
        ------
        ValueError
            If it has other groups than the optimizer.
        """
        handle = self.register_load_state_dict_pre_hook(RMSprop._prepare_load)  # the last one
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _prepare_load(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A state to be loaded with the options that torch's class does not have, and with buffers of our dtypes."""
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            return state_dict
        names = (*self._names, *self._extra)
        own = [{name: group[name] for name in names if name in group} for group in self.param_groups]
        groups = [{**mine, **group} for mine, group in zip(own, saved, strict=True)]
        state = dict(state_dict["state"])
        for group, mine in zip(groups, self.param_groups, strict=True):
            for key, param in zip(group["params"], mine["params"], strict=False):  # torch refuses another number
                if isinstance(state.get(key), dict):
                    state[key] = self._kept(state[key], param, group)
        return {**state_dict, "state": state, "param_groups": groups}

    def _kept(self, entry: Mapping[str, Any], param: Any, group: Group) -> dict[str, Any]:
        """The entry of a parameter in a state to be loaded; lower halves that torch's class has converted are none."""
        has_low = getattr(entry.get("low_half"), "dtype", None) is torch.int16
        is_ours = _has_bf16(param, group) and (has_low or self._reason(param, group) is None)
        return {
            name: _Kept(value.to(dtype=_dtype_of(name, param, group), device=param.device))
            if is_ours and name in _BUFFERS and isinstance(value, torch.Tensor)
            else value
            for name, value in entry.items()
            if name != "low_half" or (is_ours and has_low)
        }

    def add_param_group(self, param_group: Group) -> None:
        """As torch's; the options of a new group are checked."""
        super().add_param_group(param_group)
        self._plan = None
        try:
            self._check(len(self.param_groups) - 1, self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @property
    def native(self) -> Native:
        """Which parameters take the compiled step, as far as is known before the next one, and after the last."""
        if self._plan is None:
            self._make_plan()
        count = sum(len(group["params"]) for group in self.param_groups)
        return Native(count, dict(sorted({**self._refused, **self._reasons}.items())))

    def master(self, param: torch.Tensor) -> torch.Tensor:
        """The values of a parameter in the precision in which it is trained.

        Parameters
        ----------
        param : torch.Tensor
            One of this optimizer's.

        Returns
        -------
        torch.Tensor
            A new tensor: float32 for a bfloat16 parameter, with the lower halves that the state keeps where it does;
            of any other parameter a copy.

        Raises
        ------
        ValueError
            If the optimizer has no such parameter.

        Examples
        --------
        >>> import torch
        >>> from rmsprop_native.interop.torch import RMSprop
        >>> p = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        >>> optimizer = RMSprop([p], lr=2**-14, alpha=0.75, eps=0.0)
        >>> p.grad = torch.ones_like(p)
        >>> optimizer.step()
        >>> p.detach().float(), optimizer.master(p)
        (tensor([1., 1.]), tensor([0.9999, 0.9999]))
        """
        if not any(param is each for group in self.param_groups for each in group["params"]):
            raise ValueError(f"the optimizer has no such parameter, a {type(param).__name__} of {tuple(param.shape)}")
        return self._master(param)

    def _master(self, param: Any) -> Any:
        low = self.state.get(param, {}).get("low_half")
        param = param.detach()
        if param.dtype is torch.bfloat16:
            return param.float() if low is None else _join(param, low)
        return param.clone(memory_format=torch.preserve_format)

    # ---- the step ----

    @_hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform a single optimization step.

        Parameters
        ----------
        closure : callable, optional
            Reevaluates the model and returns the loss; called with gradients enabled.

        Returns
        -------
        object
            What `closure` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._plan is None or self._others or self._refused:
            self._step_all()
        else:
            outcome = self._plan.step_groups(self.param_groups, self.state)
            if outcome > NOTHING:
                self._step_all()
        return loss

    def _step_all(self) -> None:
        """The step, with whatever it needs before, and by torch's operations where it is not native.

        Those come after all checks of the native step and before its writes: they may raise.
        """
        refused: dict[int, str] = {}
        # Of two threads that take the first step together one is refused, as in any other step: nobody waits.
        with self.__dict__.setdefault("_preparing", Claim(0)):
            if self._plan is not None and any(
                self._reason(self.param_groups[g]["params"][i], self.param_groups[g]) is None
                for g, i in self._others
                if g < len(self.param_groups) and i < len(self.param_groups[g]["params"])
            ):
                self._plan = None
            attempts = 8 + sum(len(group["params"]) for group in self.param_groups)  # each may be refused by itself
            for _ in range(attempts):
                if self._plan is None:
                    self._make_plan()
                    refused = {}
                assert self._plan is not None
                outcome = self._plan.step_groups(self.param_groups, self.state, set(refused), only_checks=True)
                if outcome in (STEPPED, NOTHING):
                    break
                if outcome in (NEEDS_NUMBERS, NEEDS_PLAN):
                    self._plan = None
                elif outcome == NEEDS_STATE:
                    self._make_state()
                elif outcome == REFUSED:
                    leaf, other, error = self._plan.refused
                    refused[leaf] = str(error)
                    if other >= 0:
                        refused.setdefault(other, str(error))
        self._refused = {self._places[leaf]: reason for leaf, reason in refused.items()}
        for (g, i), why in self._refused.items():
            group = self.param_groups[g]
            self._check_storage(group["params"][i], group, _name_of(group, g, i), f"is refused: {why}")
        others = sorted({*self._others, *self._refused})
        if others:
            with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
                self._step_by_torch(others)
        if self._plan is None or self._plan.step_groups(self.param_groups, self.state, set(refused)) > NOTHING:
            raise RuntimeError("the options, parameters or state of the optimizer change while it takes a step")

    # ---- what is native, and with which numbers ----

    def _options(self, group: Group) -> Options:
        """The options of a group."""
        options = {name: group[key] for key, name in self._names.items() if key in group}
        return Options(**{**options, **self._fixed, "lr": float(group["lr"]), "momentum": float(group["momentum"])})

    def _is_torchs(self, group: Group) -> bool:
        """Whether torch.optim.RMSprop can take a group's step."""
        return not self._fixed and all(
            group.get(name, value) == value for name, value in OWN.items() if name not in STORAGE
        )

    def _reason(self, param: Any, group: Group) -> str | None:
        """Why a parameter is not native, by what it is; or None."""
        local = _local(param, param) if _is_sharded(param) else param
        if type(local) not in (torch.Tensor, torch.nn.Parameter):
            return f"is a {type(local).__name__}"
        if local is not param:
            if any(isinstance(placement, Partial) for placement in param.placements):
                return "is a DTensor of partial sums"
            if group.get("clip_norm") is not None or group.get("clip_global_norm") is not None:
                return "is a DTensor, whose norm is over all processes"
        if local.device.type != "cpu":
            return f"is on device {local.device}"
        if local.layout is not torch.strided:
            return f"has layout {local.layout}"
        if local.dtype is torch.float16:
            return "has dtype torch.float16, whose range is too small for squares of gradients: use bfloat16 or float32"
        if local.dtype not in _DTYPES:
            return f"has dtype {local.dtype}"
        if _has_bf16(local, group) and not find_bfloat16():
            return "has bfloat16 numbers, which need ml_dtypes with this version of torch"
        if local.is_inference():
            return "is an inference tensor"
        for flag in ("differentiable", "capturable", "caution"):
            if group.get(flag):
                return f"is in a group with {flag}=True"
        return None

    def _make_plan(self) -> None:
        """Divide the parameters into those that are native and the others, and form the coefficients."""
        groups = self.param_groups
        formed: list[Options | None] = []
        reasons: dict[tuple[int, int], str] = {}
        count: dict[Any, int] = {}
        for group in groups:
            for param in group["params"]:
                count[param] = count.get(param, 0) + 1
        for g, group in enumerate(groups):
            options: Options | None = None
            why = ""
            try:
                options = self._options(group)
                for dtype in {p.dtype for p in group["params"] if p.dtype in _DTYPES}:
                    check_dtype(group_of(options, _rate(options), 1.0), options, _real_dtype(dtype))
            except (TypeError, ValueError) as error:
                if not self._is_torchs(group):
                    raise
                options, why = None, f"is in a group whose options are not taken: {error}"
            formed.append(options)
            for i, param in enumerate(group["params"]):
                reason = why or self._reason(param, group)
                if reason is None and count[param] > 1:
                    reason = "is there more than once"
                self._check_storage(param, group, _name_of(group, g, i), reason)
                if reason is not None:
                    reasons[g, i] = reason
        limits, seeds = ({group.get(name, OWN[name]) for group in groups} for name in ("clip_global_norm", "seed"))
        for name, values in (("clip_global_norm", limits), ("seed", seeds)):
            if len(values) > 1:
                raise ValueError(f"{name} must be the same in all groups, got {values}")
        if limits != {None} and reasons:
            # One norm of all gradients, which torch takes where any of them is not native.
            for g, group in enumerate(groups):
                for i in range(len(group["params"])):
                    reasons.setdefault((g, i), "has a common norm with parameters that are not native")
        self._build(formed, reasons)

    def _build(self, formed: list[Options | None], reasons: dict[tuple[int, int], str]) -> None:
        groups = self.param_groups
        every = [(g, i, param) for g, group in enumerate(groups) for i, param in enumerate(group["params"])]
        own = [(g, i, param) for g, i, param in every if (g, i) not in reasons]
        seen = [_local(p, p) if _is_sharded(p) else p for _, _, p in own]
        indices = {(g, i): leaf for leaf, (g, i, _) in enumerate(own)}
        names = [_name_of(groups[g], g, i) for g, i, _ in own]
        if len(set(names)) < len(names):  # those of two models
            names = [_place(g, i) for g, i, _ in own]
        plan = TensorPlan(
            flatten(dict(zip(names, seen, strict=True)))[1],
            seen,
            [param for _, _, param in every],
            [indices.get((g, i), -1) for g, i, _ in every],
            [groups[g].get("square_avg_dtype") is not None for g, _, _ in own],
            _local,
            torch.get_num_threads,
        )
        neutral = Options()
        options = [neutral if of_group is None else of_group for of_group in formed]
        dtypes = {_real_dtype(tensor.dtype) for tensor in seen}
        common = Options(
            clip_global_norm=next((o.clip_global_norm for o in options if o.clip_global_norm is not None), None),
            ema=0.0 if any(o.ema is not None for o in options) else None,
            seed=next((o.seed for o in formed if o is not None), 0),
        )
        rates = [_rate(o) for o in options]
        plan.set_numbers(
            [group_of(o, rate, 1.0) for o, rate in zip(options, rates, strict=True)],
            rates,
            [True] * len(groups),
            tuple([g for g, _, _ in own]),
            [],
            common,
            largest_number(dtypes),
        )
        saved = [self.state[param].get("step") for _, _, param in own if param in self.state]
        is_double = any(isinstance(step, torch.Tensor) and step.dtype == torch.float64 for step in saved)
        counts = torch.zeros(len(own), dtype=torch.float64 if is_double else base._get_scalar_dtype(), device="cpu")
        watched = {*self._names, *self._extra, "differentiable", "capturable"}  # what decides a step; lr apart
        used = {g for g, _, _ in own}
        plan.set_groups(
            [
                tuple(
                    [
                        x
                        for key in group
                        if key in watched and (key != "lr" or g not in used or group.get("corrected_weight_decay"))
                        for x in (key, group[key])
                    ]
                )
                for g, group in enumerate(groups)
            ],
            [sum(_BUFFERS[name] for name in _buffers_of(o)) if g in used else 0 for g, o in enumerate(options)],
            counts,
            steps := list(counts.unbind()),
        )
        self._places, self._steps = tuple([(g, i) for g, i, _ in own]), steps
        self._reasons, self._others, self._refused = reasons, tuple(reasons), {}
        self._plan = plan

    # ---- the state ----

    def _make_state(self) -> None:
        """Make what native parameters with a gradient lack in the state, and take over the counts that it has."""
        for (g, i), count in zip(self._places, self._steps, strict=True):
            group = self.param_groups[g]
            param = group["params"][i]
            with torch.no_grad():
                if param.grad is not None:
                    self._make_buffers(param, group, _name_of(group, g, i))
                entry = self.state.get(param, {})
                if len(entry) > 0 and entry.get("step") is not count:
                    count.fill_(float(entry.get("step", 0)))
                    entry["step"] = count

    def _make_buffers(self, param: Any, group: Group, name_of_param: str) -> None:
        """Make the state of a parameter that has none; refuse one without a buffer that the options need."""
        entry = self.state[param]
        is_new = len(entry) == 0
        made = {}  # taken over as a whole: memory may run out in between
        if is_new:
            made["step"] = torch.zeros((), dtype=base._get_scalar_dtype(), device="cpu")
        dense = torch.contiguous_format if _has_bf16(param, group) else torch.preserve_format
        for name in _buffers_of(self._options(group), param):
            if name in entry:
                made[name] = _widened(entry[name], name, param, group)
                continue
            if not is_new and name not in ("ema", "low_half"):  # without these the parameters are what they are
                raise ValueError(
                    f"the state of {name_of_param} has no {name}: it was made with other options; "
                    f"put zeros there to go on with these"
                )
            made[name] = _zeros(name, param, _dtype_of(name, param, group), dense)
            if name == "ema":
                made[name].copy_(self._master(param))
            start = {**group, **self._fixed}.get("initial_square_avg", 0.0)
            if name == "square_avg" and start != 0:
                made[name].fill_(complex(start, start) if param.is_complex() else start)
        entry.update(made)

    # ---- by torch's operations ----

    def _step_by_torch(self, others: list[tuple[int, int]]) -> None:
        """Step parameters as torch.optim.RMSprop does, or where it lacks an option by the same operations."""
        self._check_shapes(others)
        common = self._common_factor(others)
        for g, group in enumerate(self.param_groups):
            params = [group["params"][i] for of, i in others if of == g]
            params = [param for param in params if param.grad is not None]
            if not params:
                continue
            is_torchs = self._is_torchs(group) and not group.get("caution")
            if plain := [param for param in params if is_torchs and not self._is_wide(param)]:
                self._step_as_torch({**group, "params": plain})
            for param in [param for param in params if not is_torchs or self._is_wide(param)]:
                if param.grad.is_sparse:
                    raise RuntimeError("RMSprop does not support sparse gradients")
                self._make_buffers(param, group, "a parameter")
                entry = self.state[param]
                entry["step"] += 1
                steps = max([float(each["step"]) for each in self.state.values() if "step" in each])
                whole = self._master(param) if "low_half" in entry else param
                grad = param.grad.to(whole.dtype)
                _step_one(whole, grad, entry, self._options(group), common, steps, bool(group.get("caution")))
                if whole is not param:
                    _split(whole, param, entry["low_half"])

    def _check_shapes(self, others: list[tuple[int, int]]) -> None:
        """Refuse a state that torch's operations would have changed, or read outside of, before they see its shape."""
        for g, i in others:
            group = self.param_groups[g]
            param = group["params"][i]
            shape = param.shape
            entry = {} if param.grad is None else self.state.get(param, {})
            for name, buffer in entry.items():
                if name in _BUFFERS and getattr(buffer, "shape", shape) != shape:
                    shapes = f"has shape {tuple(buffer.shape)}, its parameter {tuple(shape)}"
                    raise ValueError(f"{name} of {_name_of(group, g, i)} {shapes}")

    def _is_wide(self, param: Any) -> bool:
        """Whether the state of a parameter is one that the native step made of a bfloat16 parameter."""
        return param.dtype is torch.bfloat16 and "low_half" in self.state.get(param, {})

    def _step_as_torch(self, group: Group) -> None:
        lists: list[list[Any]] = [[] for _ in range(6)]
        params, grads, square_avgs, momentum_buffers, grad_avgs, steps = lists
        has_complex = self._init_group(group, params, grads, square_avgs, momentum_buffers, grad_avgs, steps)
        names = ("foreach", "maximize", "differentiable", "capturable", "lr", "alpha", "eps", "weight_decay")
        rmsprop(
            params,
            grads,
            square_avgs,
            grad_avgs,
            momentum_buffers,
            steps,
            has_complex=has_complex,
            momentum=group["momentum"],
            centered=group["centered"],
            **{name: group[name] for name in names},
        )

    def _common_factor(self, others: list[tuple[int, int]]) -> float:
        """What clip_global_norm multiplies the gradients of `others` by."""
        limit = self.param_groups[0].get("clip_global_norm")
        grads = [self.param_groups[g]["params"][i].grad for g, i in others]
        grads = [grad for grad in grads if grad is not None]
        if limit is None or not grads:
            return 1.0
        norm = math.sqrt(sum(_norm(grad) ** 2 for grad in grads))
        return limit / norm if norm > limit else 1.0


def _place(g: int, i: int) -> str:
    return f"param_groups[{g}]['params'][{i}]"


def _name_of(group: Group, g: int, i: int) -> str:
    name: str = group["param_names"][i] if "param_names" in group else _place(g, i)
    return name


def _buffers_of(options: Options, param: Any = None) -> tuple[str, ...]:
    """The names of the buffers of a parameter; without one, of a bfloat16 parameter."""
    is_split = options.master_weights and (param is None or param.dtype is torch.bfloat16)
    return (*options.buffers, "low_half") if is_split else options.buffers


def _zeros(name: str, param: Any, dtype: Any, memory_format: Any) -> Any:
    """A new buffer of a parameter; a large one at a place in a page that does not conflict (buffers.py)."""
    if _is_sharded(param) and param.is_contiguous():
        local = _zeros(name, _local(param, param), dtype, memory_format)
        return DTensor.from_local(
            local, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
        )
    is_plain = type(param) in (torch.Tensor, torch.nn.Parameter) and param.layout is torch.strided
    if not (is_plain and param.device.type == "cpu" and param.numel() * dtype.itemsize >= _MAPPED):
        return torch.zeros_like(param, dtype=dtype, memory_format=memory_format)
    form = torch.empty_like(param, dtype=dtype, memory_format=memory_format, device="meta")
    nbytes = form.numel() * dtype.itemsize
    memory = np.zeros(nbytes + 2 * PAGE, np.uint8)  # by NumPy, which asks Linux for huge pages
    first = -memory.ctypes.data % PAGE
    storage = torch.from_numpy(memory[first : first + PAGE + nbytes]).untyped_storage()
    place = place_of_tensor(name) // dtype.itemsize
    # By set_ it is no view, whose base users would see.
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, place, form.size(), form.stride())


def _widened(buffer: Any, name: str, param: Any, group: Group) -> Any:
    """A buffer of a parameter in float32 and in C order, where torch's class has made it in bfloat16."""
    if not isinstance(buffer, torch.Tensor) or not _has_bf16(param, group):
        return buffer
    dtype = _dtype_of(name, param, group)
    if buffer.dtype is torch.bfloat16 and dtype is torch.float32:
        return buffer.to(dtype, memory_format=torch.contiguous_format)
    return buffer.contiguous() if name in ("square_avg", "low_half") else buffer


def _rate(options: Options) -> float:
    assert not callable(options.lr)
    return options.lr


def _real_dtype(dtype: Any) -> Any:
    """The NumPy dtype of the reals that numbers of one of torch's dtypes are computed with in."""
    if dtype is torch.bfloat16:
        return np.dtype(np.float32)
    return torch.empty((), dtype=dtype, device="cpu").numpy().real.dtype


def _norm(grad: Any) -> float:
    """The norm of a gradient; of a sharded one over all processes, which must ask for it in the same order."""
    grad = torch.view_as_real(grad) if grad.is_complex() else grad
    if _is_sharded(grad):
        grad = grad.double()  # the partial norms are joined in the gradient's dtype
    return float(_whole(torch.linalg.vector_norm(grad, dtype=torch.float64)))


def _step_one(
    param: Any, grad: Any, entry: dict[str, Any], options: Options, common: float, steps: float, caution: bool
) -> None:
    """One step of one parameter in torch's operations: the formula of `rmsprop_native.reference`."""
    tensors: list[Any] = [param, grad, *(entry.get(name) for name in BUFFERS[:4])]
    if param.is_complex():
        tensors = [None if tensor is None else torch.view_as_real(tensor) for tensor in tensors]
    param, grad, v, b, a, average = tensors
    lr, rho, ema = _rate(options), options.rho, options.ema
    factor = -common if options.maximize else common
    if options.clip_norm is not None:
        norm = _norm(grad)
        factor *= options.clip_norm / norm if norm > options.clip_norm else 1.0
    grad = grad * factor
    if options.clip_value is not None:
        grad = grad.clamp(-options.clip_value, options.clip_value)
    if options.weight_decay != 0 and not options.decoupled_weight_decay:
        grad = grad.add(param, alpha=options.weight_decay)
    v.mul_(rho).addcmul_(grad, grad, value=1 - rho)
    correction = 1 / (1 - rho**steps) if options.bias_correction else 1.0
    d: Any = v * correction
    if options.centered:
        a.mul_(rho).add_(grad, alpha=1 - rho)
        d = (d - (a * correction) ** 2).clamp_(min=0)
    r = d.add_(options.eps).sqrt_() if options.eps_inside_sqrt else d.sqrt_().add_(options.eps)
    outside = options.momentum != 0 and not options.lr_in_momentum
    u = (grad if outside else grad * lr) / r
    if options.momentum != 0:
        b.mul_(options.momentum).add_(u)
        u = u.add(b, alpha=options.momentum) if options.nesterov else b
        if caution:
            mask = (u * grad > 0).to(grad.dtype)
            u = u * mask.div_(_whole(mask.mean()).clamp_(min=1e-3))
    if options.decoupled_weight_decay:
        param.mul_(1 - lr * options.weight_decay)
    param.add_(u, alpha=-lr if outside else -1)
    if ema is not None:
        average.copy_(param) if float(entry["step"]) == 1 else average.mul_(ema).add_(param, alpha=1 - ema)


class RMSpropTF(RMSprop):
    """timm's RMSpropTF whose step is one pass in C: a drop-in.

    eps is under the root and square_avg starts from 1, as in TensorFlow 1.

    Parameters
    ----------
    params : iterable of torch.Tensor, of dict or of (str, torch.Tensor)
        As for torch's optimizers.
    lr, alpha, eps, weight_decay, momentum : float
        As for `RMSprop`.
    centered : bool, default False
        Divide by the root of the gradient's variance.
    decoupled_decay : bool, default False
        Shrink the parameter by ``1 - lr * weight_decay`` instead of adding the decay to the gradient.
    corrected_weight_decay : bool, default False
        With `decoupled_decay`, shrink it by ``1 - lr**2 / max_lr * weight_decay``; max_lr is the `lr` given here.
    lr_in_momentum : bool, default True
        Keep ``lr * step`` in the momentum buffer.
    caution : bool, default False
        Step only where the momentum buffer and the gradient agree; by torch's operations, not natively.
    foreach : bool, optional
        As for `RMSprop`.
    square_avg_dtype, master_weights, seed
        As for `RMSprop`.

    Raises
    ------
    TypeError, ValueError
        As `RMSprop`.

    Examples
    --------
    >>> import torch
    >>> from rmsprop_native.interop.torch import RMSpropTF
    >>> p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = RMSpropTF([p], lr=0.5, alpha=0.75, eps=0.0)
    >>> p.grad = torch.ones(2)
    >>> optimizer.step()
    >>> p.detach()
    tensor([ 0.5000, -2.5000])
    """

    _names: Mapping[str, str] = NAMES_TF
    _fixed: Mapping[str, Any] = FIXED_TF
    _extra = EXTRA_TF

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-2,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0,
        momentum: float = 0.0,
        centered: bool = False,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        lr_in_momentum: bool = True,
        caution: bool = False,
        foreach: bool | None = None,
        *,
        square_avg_dtype: Literal["bfloat16"] | None = None,
        master_weights: bool = True,
        seed: int = 0,
    ) -> None:
        torch.optim.RMSprop.__init__(self, params, lr, alpha, eps, weight_decay, momentum, centered, False, foreach)
        if corrected_weight_decay and float(lr) <= 0:
            raise ValueError(f"corrected_weight_decay needs the largest lr, which is positive; lr is {float(lr)!r}")
        self._take_own(
            {
                "decoupled_decay": decoupled_decay,
                "corrected_weight_decay": corrected_weight_decay,
                "max_lr_snapshot": float(lr),
                "lr_in_momentum": lr_in_momentum,
                "caution": caution,
                "square_avg_dtype": square_avg_dtype,
                "master_weights": master_weights,
                "seed": seed,
            }
        )

    def _options(self, group: Group) -> Options:
        options = super()._options(group)
        if not (group.get("corrected_weight_decay") and options.decoupled_weight_decay):
            return options
        return options.replace(weight_decay=options.weight_decay * float(group["lr"]) / group["max_lr_snapshot"])

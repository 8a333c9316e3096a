"""Hyper-parameters: what they are called, what they may be, and the coefficients they make of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cache
from numbers import Integral, Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from typing import Self

__all__ = ["OVERRIDABLE", "PRESETS", "Coefficients", "Options", "Variant", "make_options", "override"]

Schedule: TypeAlias = Callable[[int], float]


class Variant(NamedTuple):
    """The options that decide which loop runs: where they differ, so do the arrays or the spread of NaN."""

    momentum: str
    """``"none"``, ``"classic"`` or ``"nesterov"``."""
    centered: bool
    l2: bool


class Coefficients(NamedTuple):
    """The numbers of one step, in the order of ``rmsp_coef`` in ``rmsp.h``; each is rounded once to the array's type."""

    grad_scale: float
    clip_value: float
    weight_decay: float
    rho: float
    one_minus_rho: float
    bias_correction: float
    eps_inside: float
    eps_outside: float
    lr_in: float
    momentum: float
    shrink: float
    lr_out: float

    def check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Refuse numbers that `dtype` cannot hold.

        Parameters
        ----------
        dtype : numpy.dtype
            float32 or float64.

        Raises
        ------
        ValueError
            If a positive eps rounds to 0 or a finite number to infinity.
        """
        largest, least_normal, least = _range(dtype)
        for i, value in enumerate(self):
            if largest < abs(value) < math.inf:
                raise ValueError(f"{self._fields[i]}={value!r} is infinite in {dtype}")
        for eps in (self.eps_inside, self.eps_outside):
            if 0 < eps <= least / 2:
                raise ValueError(f"eps={eps!r} rounds to 0 in {dtype}; give an eps of at least {least_normal!r}")


@cache
def _range(dtype: np.dtype[Any]) -> tuple[float, float, float]:
    """The largest, the least normal and the least number above 0."""
    info = np.finfo(dtype)
    return float(info.max), float(info.tiny), float(info.smallest_subnormal)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The hyper-parameters of RMSProp, checked.

    The formula is that of Tieleman and Hinton (2012): a step is divided by the root of a running mean of squared
    gradients. Everything else here is what later implementations added to it; `reference.py` says what each does.

    Parameters
    ----------
    lr : float or callable, default 1e-3
        Learning rate, finite and >= 0; or a function of the number of steps already taken, for a schedule.
    rho : float, default 0.9
        Decay of the running means, 0 <= rho < 1. torch and TF1 write alpha and decay.
    eps : float, default 1e-8
        Added to the denominator, finite and >= 0. With 0, an element whose gradients were all 0 becomes NaN (0/0).
    eps_inside_sqrt : bool, default False
        Add `eps` to the mean square (Keras, TF1) and not to its root (torch).
    momentum : float, default 0.0
        Decay of the momentum buffer, 0 <= momentum < 1; 0 keeps no buffer.
    nesterov : bool, default False
        Nesterov's momentum, in optax's form: ``u + momentum * buffer``.
    lr_in_momentum : bool, default False
        Keep ``lr * step`` in the momentum buffer (Keras, TF1), not the bare step (torch).
    centered : bool, default False
        Divide by the root of the gradient's variance (Graves 2013), with a second running mean `grad_avg`.
    bias_correction : bool, default False
        Divide both running means by ``1 - rho**t``, t the number of the step, 1 at the first.
    initial_square_avg : float, default 0.0
        What `square_avg` starts from, finite and >= 0; TF1 starts from 1.
    weight_decay : float, default 0.0
        Finite and >= 0. Added to the gradient as ``weight_decay * param``, unless decoupled.
    decoupled_weight_decay : bool, default False
        Shrink the parameter by ``1 - lr * weight_decay`` instead (Keras).
    maximize : bool, default False
        Step along the gradient, not against it.
    clip_value : float, optional
        Clamp each gradient element to ``[-clip_value, clip_value]``; positive.
    clip_norm : float, optional
        Scale each gradient array whose Euclidean norm is larger down to this norm; positive.
    clip_global_norm : float, optional
        Scale all gradients alike so that their common Euclidean norm is at most this; positive.
    accumulate : int, default 1
        Take a step at every `accumulate`-th call only, with the mean of the gradients since the last one.
    ema : float, optional
        Keep averaged weights, ``ema * average + (1 - ema) * param`` after each step, 0 <= ema < 1; the first step copies.
    on_nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a call does with a NaN or infinity in any gradient: spread it to its own elements, do nothing but count
        itself in ``state.skipped``, or raise FloatingPointError before anything is written.

    Raises
    ------
    TypeError
        If a value is of the wrong kind.
    ValueError
        If a number is not finite or out of its range, or two options contradict each other.

    Notes
    -----
    The order, whatever is chosen: unscale (``grad_scale``), accumulate, clip, weight decay, step, averaged weights.

    Examples
    --------
    >>> from rmsprop_native import Options
    >>> Options(lr=0.01, rho=0.99)
    Options(lr=0.01, rho=0.99)
    >>> Options(rho=1.0)
    Traceback (most recent call last):
    ...
    ValueError: rho must be in [0, 1), got 1.0
    """

    lr: float | Schedule = 1e-3
    rho: float = 0.9
    eps: float = 1e-8
    eps_inside_sqrt: bool = False
    momentum: float = 0.0
    nesterov: bool = False
    lr_in_momentum: bool = False
    centered: bool = False
    bias_correction: bool = False
    initial_square_avg: float = 0.0
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    maximize: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    on_nonfinite: Literal["propagate", "skip", "raise"] = "propagate"

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not (value is None and name == "ema") and not (callable(value) and name == "lr"):
                object.__setattr__(self, name, _number(name, value, low, high))
        for name in _FLAGS:
            flag = getattr(self, name)
            if not isinstance(flag, bool | np.bool):
                raise TypeError(f"{name} must be a bool, got {flag!r}")
            object.__setattr__(self, name, bool(flag))
        clips = [name for name in _CLIPS if getattr(self, name) is not None]
        for name in clips:
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        object.__setattr__(self, "accumulate", _count("accumulate", self.accumulate))
        if self.on_nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f"on_nonfinite must be 'propagate', 'skip' or 'raise', got {self.on_nonfinite!r}")
        if len(clips) > 1:
            raise ValueError(f"{' and '.join(clips)} are two ways to clip; give one")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum > 0")
        if self.bias_correction and self.initial_square_avg != 0:
            raise ValueError(
                "bias_correction assumes a square_avg that starts from 0: it would also divide the part of "
                f"initial_square_avg={self.initial_square_avg!r} that is still in it"
            )

    def __repr__(self) -> str:
        changed = (f for f in fields(self) if f.name in ("lr", "rho") or getattr(self, f.name) != f.default)
        return f"Options({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    @property
    def variant(self) -> Variant:
        """The structure of the step."""
        momentum = "none" if self.momentum == 0 else "nesterov" if self.nesterov else "classic"
        return Variant(momentum, self.centered, self.weight_decay != 0 and not self.decoupled_weight_decay)

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of the arrays kept for each parameter."""
        wanted = {
            "square_avg": True,
            "momentum_buffer": self.momentum != 0,
            "grad_avg": self.centered,
            "ema": self.ema is not None,
            "grad_sum": self.accumulate > 1,
        }
        return tuple(name for name, kept in wanted.items() if kept)

    def coefficients(self, t: int, lr: float | None = None, grad_scale: float = 1.0) -> Coefficients:
        """The numbers of step `t`.

        Parameters
        ----------
        t : int
            The number of the step, 1 at the first.
        lr : float, optional
            In place of `lr` for this step.
        grad_scale : float, default 1.0
            Factor on the gradient, finite: for instance 1 / loss scale.

        Returns
        -------
        Coefficients

        Raises
        ------
        TypeError, ValueError
            If `lr` or `grad_scale` is not a finite number, or `lr` is negative.
        """
        if lr is None:
            lr = self.lr(t - 1) if callable(self.lr) else self.lr
        lr = _number("lr", lr, *_RANGES["lr"])
        grad_scale = _number("grad_scale", grad_scale, -math.inf, math.inf)
        lr_outside = self.momentum != 0 and not self.lr_in_momentum
        return Coefficients(
            grad_scale=-grad_scale if self.maximize else grad_scale,
            clip_value=math.inf if self.clip_value is None else self.clip_value,
            weight_decay=self.weight_decay,
            rho=self.rho,
            one_minus_rho=1.0 - self.rho,
            bias_correction=1.0 / (1.0 - self.rho**t) if self.bias_correction else 1.0,
            eps_inside=self.eps if self.eps_inside_sqrt else 0.0,
            eps_outside=0.0 if self.eps_inside_sqrt else self.eps,
            lr_in=1.0 if lr_outside else lr,
            momentum=self.momentum,
            shrink=1.0 - lr * self.weight_decay if self.decoupled_weight_decay else 1.0,
            lr_out=lr if lr_outside else 1.0,
        )

    def replace(self, **changes: Any) -> Self:
        """A copy with other numbers, for the same arrays.

        Parameters
        ----------
        **changes
            Any options that leave the arrays of the state as they are.

        Returns
        -------
        Options

        Raises
        ------
        TypeError
            If there is no option of that name.
        ValueError
            If the change needs other arrays than the state has, or a check fails.
        """
        new: Self = replace(self, **changes)
        if new.buffers != self.buffers:
            raise ValueError(
                f"the state keeps {', '.join(self.buffers)}; {_changed(changes)} would need "
                f"{', '.join(new.buffers)}: call init() again"
            )
        if new.initial_square_avg != self.initial_square_avg:
            raise ValueError("initial_square_avg has been used: call init() again")
        return new


# What the frameworks mean by RMSProp, as far as it differs from the defaults of Options. docs/meanings.md says where
# each number comes from. TF1, optax and paddle have no default learning rate.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "torch": {"lr": 1e-2, "rho": 0.99, "eps": 1e-8},
        "keras": {
            "lr": 1e-3, "rho": 0.9, "eps": 1e-7, "eps_inside_sqrt": True, "lr_in_momentum": True,
            "decoupled_weight_decay": True,
        },
        "tf1": {
            "rho": 0.9, "eps": 1e-10, "eps_inside_sqrt": True, "lr_in_momentum": True, "initial_square_avg": 1.0,
        },
        "optax": {"rho": 0.9, "eps": 1e-8, "eps_inside_sqrt": True, "lr_in_momentum": True},
        "timm": {
            "lr": 1e-2, "rho": 0.9, "eps": 1e-10, "eps_inside_sqrt": True, "lr_in_momentum": True,
            "initial_square_avg": 1.0,
        },
        "sb3": {"lr": 1e-2, "rho": 0.99, "eps": 1e-8, "eps_inside_sqrt": True, "initial_square_avg": 1.0},
        "paddle": {"rho": 0.95, "eps": 1e-6, "eps_inside_sqrt": True, "lr_in_momentum": True},
        "graves": {
            "lr": 1e-4, "rho": 0.95, "eps": 1e-4, "eps_inside_sqrt": True, "momentum": 0.9, "lr_in_momentum": True,
            "centered": True,
        },
    }
)  # fmt: skip

# What overrides may change for some leaves: numbers that decide neither which arrays exist nor when a step is taken.
OVERRIDABLE = ("lr", "rho", "eps", "momentum", "weight_decay", "clip_value", "clip_norm")


def make_options(preset: str | None, **explicit: Any) -> Options:
    """The options of a preset, where `explicit` ones win.

    Parameters
    ----------
    preset : str or None
        A key of `PRESETS`, or None for the defaults of `Options`.
    **explicit
        As for `Options`.

    Returns
    -------
    Options

    Raises
    ------
    ValueError
        If there is no such preset, or a check of `Options` fails.
    TypeError
        If there is no option of that name, or it is of the wrong kind.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; choose from {', '.join(map(repr, PRESETS))}")
    return Options(**{**(PRESETS[preset] if preset else {}), **explicit})


def override(
    options: Options, overrides: Mapping[str, Mapping[str, Any]], paths: list[str]
) -> list[tuple[Options, bool]]:
    """The options of each leaf.

    Parameters
    ----------
    options : Options
        Those of leaves that no pattern changes.
    overrides : mapping of str to mapping
        Patterns over leaf paths, as of `fnmatch`, to the options they change; where several match, the last one wins.
    paths : list of str
        The paths of the leaves.

    Returns
    -------
    list of (Options, bool)
        For each leaf its options, and whether its learning rate is its own; leaves with the same ones share the object.

    Raises
    ------
    ValueError
        If a pattern matches no leaf, names an option that cannot differ between leaves, or a check of `Options` fails.
    """
    changes: list[dict[str, Any]] = [{} for _ in paths]
    for pattern, numbers in overrides.items():
        for name in numbers:
            if name not in OVERRIDABLE:
                raise ValueError(f"overrides[{pattern!r}] cannot change {name!r}; only {', '.join(OVERRIDABLE)}")
        matched = [i for i, path in enumerate(paths) if fnmatchcase(path, pattern)]
        if not matched:
            raise ValueError(f"overrides[{pattern!r}] matches none of {', '.join(map(repr, paths))}")
        for i in matched:
            changes[i] |= numbers
    made = {"{}": (options, False)}
    for path, change in zip(paths, changes, strict=True):
        if repr(change) not in made:
            try:
                made[repr(change)] = options.replace(**change), "lr" in change
            except (TypeError, ValueError) as error:
                raise type(error)(f"overrides for {path!r}: {error}") from None
    return [made[repr(change)] for change in changes]


def _changed(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in changes.items())


_RANGES = {
    "lr": (0.0, math.inf),
    "rho": (0.0, 1.0),
    "eps": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "initial_square_avg": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "ema": (0.0, 1.0),
}
_CLIPS = ("clip_value", "clip_norm", "clip_global_norm")
_FLAGS = (
    "eps_inside_sqrt",
    "nesterov",
    "lr_in_momentum",
    "centered",
    "bias_correction",
    "decoupled_weight_decay",
    "maximize",
)


def _number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a finite float in [low, high)."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if type(value) is not float and (isinstance(value, bool | np.bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and low <= number < high):
        raise ValueError(f"{name} must be {_range_text(low, high)}, got {number!r}")
    return number


def _range_text(low: float, high: float) -> str:
    if high < math.inf:
        return f"in [{low:g}, {high:g})"
    return "finite" if low == -math.inf else f"finite and >= {low:g}"


def _count(name: str, value: object) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def _positive(name: str, value: object) -> float:
    number = _number(name, value, 0.0, math.inf)
    if number == 0:
        raise ValueError(f"{name} must be positive, got 0.0")
    return number

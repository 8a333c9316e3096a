"""Hyper-parameters: what they are called, what they may be, and the coefficients they make of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Coefficients", "Options", "Variant"]


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
        largest = float(np.finfo(dtype).max)
        for name, value in self._asdict().items():
            if math.isfinite(value) and abs(value) > largest:
                raise ValueError(f"{name}={value!r} is infinite in {dtype}")
        for eps in (self.eps_inside, self.eps_outside):
            if eps > 0 and dtype.type(eps) == 0:
                raise ValueError(f"eps={eps!r} rounds to 0 in {dtype}; give an eps of at least {_least(dtype)!r}")


def _least(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).tiny)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The hyper-parameters of RMSProp, checked.

    The formula is that of Tieleman and Hinton (2012): a step is divided by the root of a running mean of squared
    gradients. Everything else here is what later implementations added to it; `reference.py` says what each does.

    Parameters
    ----------
    lr : float, default 1e-3
        Learning rate, finite and >= 0.
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

    Raises
    ------
    TypeError
        If a value is of the wrong kind.
    ValueError
        If a number is not finite or out of its range, or two options contradict each other.

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

    lr: float = 1e-3
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

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), low, high))
        for name in _FLAGS:
            flag = getattr(self, name)
            if not isinstance(flag, bool | np.bool):
                raise TypeError(f"{name} must be a bool, got {flag!r}")
            object.__setattr__(self, name, bool(flag))
        if self.clip_value is not None:
            object.__setattr__(self, "clip_value", _positive("clip_value", self.clip_value))
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
        wanted = {"square_avg": True, "momentum_buffer": self.momentum != 0, "grad_avg": self.centered}
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
        lr = self.lr if lr is None else _number("lr", lr, *_RANGES["lr"])
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
        new = replace(self, **changes)
        if new.buffers != self.buffers:
            raise ValueError(
                f"the state keeps {', '.join(self.buffers)}; {_changed(changes)} would need "
                f"{', '.join(new.buffers)}: make a new state with init()"
            )
        if new.initial_square_avg != self.initial_square_avg:
            raise ValueError("initial_square_avg has been used: make a new state with init()")
        return new


def _changed(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in changes.items())


_RANGES = {
    "lr": (0.0, math.inf),
    "rho": (0.0, 1.0),
    "eps": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "initial_square_avg": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
}
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
    if isinstance(value, bool | np.bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and low <= number < high):
        raise ValueError(f"{name} must be {_range_text(low, high)}, got {number!r}")
    return number


def _range_text(low: float, high: float) -> str:
    if high < math.inf:
        return f"in [{low:g}, {high:g})"
    return "finite" if low == -math.inf else f"finite and >= {low:g}"


def _positive(name: str, value: object) -> float:
    number = _number(name, value, 0.0, math.inf)
    if number == 0:
        raise ValueError(f"{name} must be positive, got 0.0")
    return number

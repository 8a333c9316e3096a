"""Hyper-parameters: what each is called, what it may be, and which of them contradict each other."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["OVERRIDABLE", "Options", "Schedule", "by_name", "check_number", "check_option", "did_you_mean"]

T = TypeVar("T")
P = ParamSpec("P")
Schedule: TypeAlias = Callable[[int], float]
Check: TypeAlias = Callable[[str, object], Any]


# ---- checks of one value ----


def check_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, *, positive: bool = False
) -> float:
    """`value` as a finite float in ``[low, high)``.

    Parameters
    ----------
    name : str
        What to call it in messages.
    value : object
        A real number of any type, or a 0-d array of one. It is converted once, to an exact float.
    low, high : float
        The range.
    positive : bool, default False
        Refuse 0 too.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If `value` is no real number: a bool, a string, a Decimal, a complex number, an array of one or more elements.
    ValueError
        If it is not finite, too large for a float, or out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.options import check_number
    >>> check_number("rho", np.float32(0.5), 0.0, 1.0)
    0.5
    >>> check_number("rho", 1, 0.0, 1.0)
    Traceback (most recent call last):
    ...
    ValueError: rho must be in [0, 1), got 1.0
    """
    number = value if type(value) is float else _as_float(name, value, low, high)
    if not (math.isfinite(number) and low <= number < high):
        raise ValueError(f"{name} must be {_range_text(low, high)}, got {number!r}")
    if positive and number == 0:
        raise ValueError(f"{name} must be positive, got {number!r}")
    return number


def _as_float(name: str, value: Any, low: float, high: float) -> float:
    value = _without_array(value)
    if isinstance(value, float):
        return float.__float__(value)  # an exact float, whatever a subclass overrides
    if isinstance(value, bool | np.bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be {_range_text(low, high)}, got a number too large for a float") from None


def _without_array(value: object) -> Any:
    """The element of a 0-d array; any other value as it is."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _range_text(low: float, high: float) -> str:
    if high < math.inf:
        return f"in [{low:g}, {high:g})"
    return "finite" if low == -math.inf else f"finite and >= {low:g}"


# ---- first guesses that are wrong ----

# What others call our options; docs/meanings.md says who.
_CALLED_ELSEWHERE = {
    "learning_rate": "lr", "step_size": "lr", "stepsize": "lr", "step_rate": "lr", "eta": "lr",
    "alpha": "rho", "decay": "rho", "beta": "rho", "beta2": "rho", "gamma": "rho", "smoothing": "rho",
    "epsilon": "eps", "delta": "eps", "eps_in_sqrt": "eps_inside_sqrt", "centred": "centered",
    "initial_scale": "initial_square_avg", "initial_accumulator_value": "initial_square_avg",
    "decoupled_decay": "decoupled_weight_decay", "wd": "weight_decay", "l2": "weight_decay", "mu": "momentum",
    "clipvalue": "clip_value", "clipnorm": "clip_norm", "global_clipnorm": "clip_global_norm",
    "ema_momentum": "ema", "gradient_accumulation_steps": "accumulate",
}  # fmt: skip


def did_you_mean(name: str, names: Collection[str], elsewhere: dict[str, str] | None = None) -> str:
    """What a message adds about a name that is not known.

    Parameters
    ----------
    name : str
        What was given.
    names : collection of str
        Those that there are.
    elsewhere : dict of str to str, optional
        Names used elsewhere, in lower case, with one of `names` each; those of options if left out.

    Returns
    -------
    str
        ``"; did you mean 'lr'?"``, or ``""`` if no name is near.

    Examples
    --------
    >>> from rmsprop_native.options import did_you_mean
    >>> did_you_mean("learning_rate", ["lr", "rho"])
    "; did you mean 'lr'?"
    """
    meant = (_CALLED_ELSEWHERE if elsewhere is None else elsewhere).get(name.lower())
    if meant not in names:
        import difflib  # only for this message

        meant = next(iter(difflib.get_close_matches(name.lower(), names, 1)), None)
    return "" if meant is None else f"; did you mean {meant!r}?"


def by_name(positional: int, what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function say what to do where it is given options by position.

    Parameters
    ----------
    positional : int
        How many arguments it takes by position, with `self`.
    what : str
        A call of it, in which ``lr=...`` is given by name; for the message.

    Examples
    --------
    >>> from rmsprop_native import Options
    >>> Options(0.01)
    Traceback (most recent call last):
    ...
    TypeError: options are given by name, as in Options(lr=0.01): got 0.01 by position
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            if len(args) > positional:
                raise TypeError(f"options are given by name, as in {what}: got {args[positional]!r} by position")
            return function(*args, **kwargs)

        return checked

    return decorate


# ---- declarations: each makes a field that carries the check of its option ----


def _option(default: T, check: Check, *, overridable: bool = False, way_to: str = "") -> T:
    """A field with its check.

    Parameters
    ----------
    default : object
        Passes the check.
    check : callable
        Takes the name of the option and a value; returns the value to keep, or raises.
    overridable : bool
        Whether it may differ between leaves: it decides neither which arrays exist nor when a step is taken.
    way_to : str
        At most one of the options that are ways to the same thing may be given; the others are None.
    """
    return field(default=default, metadata={"check": check, "overridable": overridable, "way_to": way_to})


def _number(
    default: T,
    low: float = 0.0,
    high: float = math.inf,
    *,
    positive: bool = False,
    optional: bool = False,
    schedule: bool = False,
    overridable: bool = False,
    way_to: str = "",
) -> T:
    """A finite number in ``[low, high)``; if `optional`, or None; if `schedule`, or a callable."""

    def check(name: str, value: object) -> Any:
        if (optional and value is None) or (schedule and callable(value)):
            return value
        return check_number(name, value, low, high, positive=positive)

    return _option(default, check, overridable=overridable, way_to=way_to)


def _flag(*, default: bool = False) -> bool:
    """A bool."""

    def check(name: str, value: object) -> bool:
        if not isinstance(value, bool | np.bool):
            raise TypeError(f"{name} must be a bool, got {value!r}")
        return bool(value)

    return _option(default, check)


def _count(default: int, low: int, high: int) -> int:
    """An int in ``[low, high]``."""

    def check(name: str, value: object) -> int:
        value = _without_array(value)
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an int, got {value!r}")
        count = operator.index(value)
        if count < low:
            raise ValueError(f"{name} must be at least {low}, got {count}")
        if count > high:
            raise ValueError(f"{name} must be at most {high}, got a larger int")
        return count

    return _option(default, check)


def _choice(default: T, *others: T) -> T:
    """One of some strings."""
    choices = (default, *others)

    def check(name: str, value: object) -> str:
        text = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        if not isinstance(value, str):
            raise TypeError(f"{name} must be {text}, got {value!r}")
        chosen = str.__str__(value)  # an exact str, whose == cannot be overridden
        if chosen not in choices:
            raise ValueError(f"{name} must be {text}, got {chosen!r}")
        return chosen

    return _option(default, check)


def _optional_choice(only: str) -> Any:
    """None, or one string."""

    def check(name: str, value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise TypeError(f"{name} must be None or {only!r}, got {value!r}")
        if str.__str__(value) != only:
            raise ValueError(f"{name} must be None or {only!r}, got {str.__str__(value)!r}")
        return only

    return _option(None, check)


class _Listed(type):
    """A class whose `dir`, and with it `help`, leaves out what `dataclass` made."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("__")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(metaclass=_Listed):
    """The hyper-parameters of RMSProp, checked.

    The formula is that of Tieleman and Hinton (2012): a step is divided by the root of a running mean of squared
    gradients. All other options were added by later implementations; `rmsprop_native.reference` specifies each.

    Parameters
    ----------
    lr : float or callable, default 1e-3
        Learning rate, finite and >= 0; or a function of the number of steps already taken, for a schedule. Any callable
        will do, hashable or not; what it returns is checked at each step. An array of rates is given in the
        `overrides` of `init`.
    rho : float, default 0.9
        Decay of the running means, 0 <= rho < 1. torch calls it alpha, TF1 decay.
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
        Take a step at every `accumulate`-th call only, with the mean of the gradients since the last one; 1 to 2**53.
    ema : float, optional
        Keep averaged weights, ``ema * average + (1 - ema) * param`` after each step, 0 <= ema < 1; the first step
        copies.
    on_nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a call does with a NaN or infinity in any gradient: spread it to its own elements, do nothing but count
        itself in ``state.skipped``, or raise FloatingPointError before anything is written.
    square_avg_dtype : {None, "bfloat16"}, default None
        Keep `square_avg` of float32 and bfloat16 parameters in bfloat16, rounded stochastically: half the bytes. It
        needs ml_dtypes. None: in the dtype that the parameters are computed with in.
    master_weights : bool, default True
        Keep the lower halves of bfloat16 parameters in the state: with them training is that of float32 parameters, to
        the bit. False: the parameters are rounded stochastically. Of no effect on other parameters.
    seed : int, default 0
        Of stochastic rounding, 0 to 2**64-1. The same seed gives the same bits everywhere.

    Raises
    ------
    TypeError
        If a value is of the wrong kind.
    ValueError
        If a number is not finite or out of its range, or two options contradict each other.

    Notes
    -----
    A number may be of any real type, and a 0-d array of one; it is converted to a float at once. A flag must be a bool.
    Whether the dtypes of the arrays can hold a number is checked by `init` and by the step.

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

    lr: float | Schedule = _number(1e-3, schedule=True, overridable=True)  # noqa: RUF009 - it is a field
    rho: float = _number(0.9, high=1.0, overridable=True)
    eps: float = _number(1e-8, overridable=True)
    eps_inside_sqrt: bool = _flag()
    momentum: float = _number(0.0, high=1.0, overridable=True)
    nesterov: bool = _flag()
    lr_in_momentum: bool = _flag()
    centered: bool = _flag()
    bias_correction: bool = _flag()
    initial_square_avg: float = _number(0.0)
    weight_decay: float = _number(0.0, overridable=True)
    decoupled_weight_decay: bool = _flag()
    maximize: bool = _flag()
    clip_value: float | None = _number(None, positive=True, optional=True, overridable=True, way_to="clip")
    clip_norm: float | None = _number(None, positive=True, optional=True, overridable=True, way_to="clip")
    clip_global_norm: float | None = _number(None, positive=True, optional=True, way_to="clip")
    accumulate: int = _count(1, low=1, high=2**53)
    ema: float | None = _number(None, high=1.0, optional=True)
    on_nonfinite: Literal["propagate", "skip", "raise"] = _choice("propagate", "skip", "raise")
    square_avg_dtype: Literal["bfloat16"] | None = _optional_choice("bfloat16")
    master_weights: bool = _flag(default=True)
    seed: int = _count(0, low=0, high=2**64 - 1)

    def __post_init__(self) -> None:
        given: dict[str, str] = {}
        for option in fields(self):
            value = option.metadata["check"](option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
            way_to = option.metadata["way_to"]
            if way_to and value is not None:
                if way_to in given:
                    raise ValueError(f"{given[way_to]} and {option.name} are two ways to {way_to}; give one")
                given[way_to] = option.name
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

    def buffers_for(self, dtypes: Iterable[np.dtype[Any]]) -> tuple[str, ...]:
        """The names of the arrays kept for parameters of these dtypes.

        Parameters
        ----------
        dtypes : iterable of numpy.dtype

        Returns
        -------
        tuple of str
            Those in `buffers`, and "low_half" where there are bfloat16 parameters with master weights.
        """
        is_split = self.master_weights and any(dtype.name == "bfloat16" for dtype in dtypes)
        return (*self.buffers, "low_half") if is_split else self.buffers

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
        if new.square_avg_dtype != self.square_avg_dtype:
            raise ValueError(
                f"the state keeps square_avg with square_avg_dtype={self.square_avg_dtype!r}: call init() again"
            )
        if new.master_weights != self.master_weights:
            raise ValueError(f"the state was made with master_weights={self.master_weights}: call init() again")
        return new


def _known_names_only(make: Callable[..., None]) -> Callable[..., None]:
    """`Options.__init__`, which names the nearest option where there is none of a name."""

    @functools.wraps(make)
    @by_name(1, "Options(lr=0.01)")
    def init(self: Options, **options: Any) -> None:
        for name in options:
            if name not in _CHECKS:
                raise TypeError(f"no option {name!r}{did_you_mean(name, _CHECKS)}")
        make(self, **options)

    return init


Options.__init__ = _known_names_only(Options.__init__)  # type: ignore[method-assign]

OVERRIDABLE = tuple(option.name for option in fields(Options) if option.metadata["overridable"])
"""The options that may differ between leaves."""

_CHECKS: dict[str, Check] = {option.name: option.metadata["check"] for option in fields(Options)}


def check_option(name: str, value: object) -> Any:
    """The value to keep of option `name`, checked by itself and not against other options.

    Parameters
    ----------
    name : str
        A field of `Options`.
    value : object
        Any value.

    Returns
    -------
    object
        A float, int, bool or str of the exact type; a schedule and None as they are.

    Raises
    ------
    TypeError, ValueError
        As `Options`.

    Examples
    --------
    >>> from rmsprop_native.options import check_option
    >>> check_option("momentum", 0)
    0.0
    """
    return _CHECKS[name](name, value)


def _changed(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in changes.items())

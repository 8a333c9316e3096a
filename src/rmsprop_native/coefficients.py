"""Coefficients: the numbers that options make of one step, and which of them a dtype can hold."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import numpy as np

from rmsprop_native.options import Options, check_option

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

__all__ = [
    "Coefficients",
    "Group",
    "Variant",
    "check_dtype",
    "check_initial",
    "check_lr",
    "flat_of",
    "group_of",
    "largest_number",
    "resolve_lr",
    "variant_of",
]


class Variant(NamedTuple):
    """The options that decide which loop runs: where they differ, so do the arrays or the spread of NaN."""

    momentum: Literal["none", "classic", "nesterov"]
    centered: bool
    l2: bool


class Source(NamedTuple):
    """The option a coefficient is formed from, and the values that rounding must not give it."""

    option: str
    """The option that users set."""
    not_0: bool = False
    """A positive number must stay positive."""
    below_1: bool = False
    """The decay of a running mean, which never decays if it rounds to 1."""


class Coefficients(NamedTuple):
    """The numbers of one step, in the order of ``rmsp_coef`` in ``rmsp.h``.

    Each is rounded once to the arithmetic type of the array.
    """

    grad_scale: Annotated[float, Source("grad_scale")]
    clip_value: Annotated[float, Source("clip_value", not_0=True)]
    weight_decay: Annotated[float, Source("weight_decay")]
    rho: Annotated[float, Source("rho", below_1=True)]
    one_minus_rho: Annotated[float, Source("rho")]
    bias_correction: Annotated[float, Source("bias_correction")]
    eps_inside: Annotated[float, Source("eps", not_0=True)]
    eps_outside: Annotated[float, Source("eps", not_0=True)]
    lr_in: Annotated[float, Source("lr")]
    momentum: Annotated[float, Source("momentum", below_1=True)]
    shrink: Annotated[float, Source("weight_decay")]
    lr_out: Annotated[float, Source("lr")]


class Group(NamedTuple):
    """What a step is given for each group of leaves, those that share their hyper-parameters."""

    variant: Variant
    bias_correction: bool
    """Whether the running means are divided by ``1 - rho**t``, which is formed where t is counted."""
    ema: Annotated[float, Source("ema", below_1=True)]
    """The decay of averaged weights; 0.0 where there are none."""
    clip_norm: float
    """The largest norm of a gradient, in double; infinite where there is none."""
    lr_outside: bool
    """Whether lr is applied to what a momentum buffer gives, not to what it takes."""
    decay: float
    """Decoupled weight decay; 0.0 where there is none."""
    numbers: Coefficients
    """``bias_correction`` is 1 in these, and ``grad_scale`` that of the call, with the sign of `maximize`."""


def flat_of(group: Group, accumulate: int) -> tuple[float, ...]:
    """The numbers of a group as the compiled plan reads them, one after another.

    Parameters
    ----------
    group : Group
    accumulate : int
        Calls of which the gradients are summed; the sum is scaled already, but for their number.

    Returns
    -------
    tuple of float

    Examples
    --------
    >>> from rmsprop_native.coefficients import flat_of, group_of
    >>> from rmsprop_native.options import Options
    >>> flat_of(group_of(Options(decoupled_weight_decay=True, weight_decay=0.5), 0.5, 1.0), 1)[:7]
    (False, False, False, False, 0.5, 0.0, inf)
    """
    numbers = group.numbers if accumulate == 1 else group.numbers._replace(grad_scale=1.0 / accumulate)
    _, centered, l2 = group.variant
    return centered, l2, group.bias_correction, group.lr_outside, group.decay, group.ema, group.clip_norm, *numbers


def variant_of(options: Options) -> Variant:
    """The structure of the step that `options` make.

    Parameters
    ----------
    options : Options

    Returns
    -------
    Variant

    Examples
    --------
    >>> from rmsprop_native.coefficients import variant_of
    >>> from rmsprop_native.options import Options
    >>> variant_of(Options(momentum=0.9, weight_decay=0.1))
    Variant(momentum='classic', centered=False, l2=True)
    """
    momentum: Literal["none", "classic", "nesterov"] = "none"
    if options.momentum != 0:
        momentum = "nesterov" if options.nesterov else "classic"
    return Variant(momentum, options.centered, options.weight_decay != 0 and not options.decoupled_weight_decay)


def resolve_lr(options: Options, lr: object, steps_taken: int) -> float:
    """The learning rate of the next step.

    Parameters
    ----------
    options : Options
        Their `lr`, which may be a schedule, is taken where the call gives none.
    lr : float or None
        That of the call.
    steps_taken : int
        What a schedule is called with.

    Returns
    -------
    float
        Finite and >= 0.

    Raises
    ------
    TypeError, ValueError
        As `Options`, for `lr` and for what a schedule returns. What a schedule raises passes through.

    Examples
    --------
    >>> from rmsprop_native.coefficients import resolve_lr
    >>> from rmsprop_native.options import Options
    >>> options = Options(lr=lambda taken: 0.5 / (1 + taken))
    >>> resolve_lr(options, None, 1), resolve_lr(options, 0.125, 1)
    (0.25, 0.125)
    """
    if lr is None:
        if not callable(options.lr):
            return options.lr
        lr = options.lr(steps_taken)
    return check_lr(lr)


def check_lr(lr: object) -> float:
    """A learning rate as a float.

    Parameters
    ----------
    lr : object
        What a call gave, or a schedule returned.

    Returns
    -------
    float
        Finite and >= 0.

    Raises
    ------
    TypeError, ValueError
        As `Options`; a schedule in its place is refused too.
    """
    if callable(lr):
        raise TypeError(f"lr must be a number, got {lr!r}")
    rate: float = check_option("lr", lr)
    return rate


def group_of(options: Options, lr: float, grad_scale: float) -> Group:
    """What a step is given for the leaves that have these options.

    Parameters
    ----------
    options : Options
    lr : float
        The learning rate of the step, as `resolve_lr` gives it.
    grad_scale : float
        Factor on the gradient, finite: for instance 1 / loss scale.

    Returns
    -------
    Group
        Its numbers are formed in double.

    Examples
    --------
    >>> from rmsprop_native.coefficients import group_of
    >>> from rmsprop_native.options import Options
    >>> numbers = group_of(Options(rho=0.75, maximize=True), lr=0.5, grad_scale=1.0).numbers
    >>> numbers.grad_scale, numbers.one_minus_rho, numbers.lr_in, numbers.lr_out
    (-1.0, 0.25, 0.5, 1.0)
    """
    lr_outside = options.momentum != 0 and not options.lr_in_momentum
    numbers = Coefficients(
        grad_scale=-grad_scale if options.maximize else grad_scale,
        clip_value=math.inf if options.clip_value is None else options.clip_value,
        weight_decay=options.weight_decay,
        rho=options.rho,
        one_minus_rho=1.0 - options.rho,
        bias_correction=1.0,
        eps_inside=options.eps if options.eps_inside_sqrt else 0.0,
        eps_outside=0.0 if options.eps_inside_sqrt else options.eps,
        lr_in=1.0 if lr_outside else lr,
        momentum=options.momentum,
        shrink=1.0 - lr * options.weight_decay if options.decoupled_weight_decay else 1.0,
        lr_out=lr if lr_outside else 1.0,
    )
    return Group(
        variant=variant_of(options),
        bias_correction=options.bias_correction,
        ema=0.0 if options.ema is None else options.ema,
        clip_norm=math.inf if options.clip_norm is None else options.clip_norm,
        lr_outside=lr_outside,
        decay=options.weight_decay if options.decoupled_weight_decay else 0.0,
        numbers=numbers,
    )


# ---- what a dtype can hold ----


class _Limits(NamedTuple):
    """The bounds beyond which numbers round to infinity, 0 or 1. A tie rounds to even, so it counts as beyond."""

    infinite: float
    """The least number that rounds to infinity; infinity itself in float64."""
    zero: float
    """The largest number that rounds to 0."""
    one: float
    """The least number that rounds to 1."""
    least_normal: float
    below_1: float
    """The largest number below 1."""


@cache
def _limits(dtype: np.dtype[Any]) -> _Limits:
    info = np.finfo(dtype)
    return _Limits(
        infinite=float(info.max) + math.ldexp(1.0, int(info.maxexp) - int(info.nmant) - 2),
        zero=float(info.smallest_subnormal) / 2,
        one=1.0 - float(info.epsneg) / 2,
        least_normal=float(info.tiny),
        below_1=1.0 - float(info.epsneg),
    )


def _source(owner: type, name: str) -> Source:
    source = get_type_hints(owner, include_extras=True)[name].__metadata__[0]
    assert isinstance(source, Source)
    return source


_NUMBERS = tuple(_source(Coefficients, name) for name in Coefficients._fields)
_EMA = _source(Group, "ema")


@cache
def _bounds(dtype: np.dtype[Any]) -> tuple[_Limits, tuple[float, ...], tuple[float, ...]]:
    """The limits; and for each coefficient what its magnitude must lie between, where it is not 0 or infinite."""
    limits = _limits(dtype)
    lows = tuple(limits.zero if source.not_0 else 0.0 for source in _NUMBERS)
    highs = tuple(limits.one if source.below_1 else limits.infinite for source in _NUMBERS)
    return limits, lows, highs


def check_dtype(group: Group, options: Options, dtype: np.dtype[Any]) -> None:
    """Refuse numbers that the arithmetic type cannot hold.

    `clip_norm` and `clip_global_norm` are used in double, and never rounded.

    Parameters
    ----------
    group : Group
        What `group_of` made of `options`.
    options : Options
    dtype : numpy.dtype
        float32 or float64.

    Raises
    ------
    ValueError
        If a finite number rounds to infinity, a positive `eps` or `clip_value` to 0, a decay of a running mean to 1,
        or if the learning rate times a decoupled weight decay is infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.coefficients import check_dtype, group_of
    >>> from rmsprop_native.options import Options
    >>> options = Options(eps=1e-60)
    >>> check_dtype(group_of(options, 0.1, 1.0), options, np.dtype(np.float64))
    >>> check_dtype(group_of(options, 0.1, 1.0), options, np.dtype(np.float32))
    Traceback (most recent call last):
    ...
    ValueError: eps=1e-60 rounds to 0 in float32; give an eps of at least 1.1754943508222875e-38
    """
    numbers = group.numbers
    limits, lows, highs = _bounds(dtype)
    if abs(numbers.shrink) >= limits.infinite:
        lr = numbers.lr_in * numbers.lr_out  # one of them is 1
        raise ValueError(f"lr={lr!r} times weight_decay={numbers.weight_decay!r} is infinite in {dtype}")
    if group.ema >= limits.one:
        _refuse(_EMA, group.ema, dtype)
    for i, number in enumerate(numbers):
        if not (lows[i] < number < highs[i] or number == 0 or number == math.inf or lows[i] < -number < highs[i]):
            source = _NUMBERS[i]
            _refuse(source, -number if options.maximize and source.option == "grad_scale" else number, dtype)


def largest_number(dtypes: Iterable[np.dtype[Any]]) -> float:
    """The largest finite number of the narrowest of some arithmetic types.

    Parameters
    ----------
    dtypes : iterable of numpy.dtype
        float32 or float64.

    Returns
    -------
    float
    """
    return min((float(np.finfo(dtype).max) for dtype in dtypes), default=float(np.finfo(np.float64).max))


def check_initial(options: Options, dtype: np.dtype[Any]) -> None:
    """Refuse an `initial_square_avg` that the type of its array cannot hold.

    Parameters
    ----------
    options : Options
    dtype : numpy.dtype
        float32 or float64.

    Raises
    ------
    ValueError
        If it is finite and rounds to infinity, or positive and rounds to 0.
    """
    value = options.initial_square_avg
    limits = _limits(dtype)
    if value >= limits.infinite or 0 < value <= limits.zero:
        _refuse(Source("initial_square_avg", not_0=True), value, dtype)


def _refuse(source: Source, value: float, dtype: np.dtype[Any]) -> NoReturn:
    name = source.option
    limits = _limits(dtype)
    if abs(value) >= limits.infinite:
        raise ValueError(f"{name}={value!r} is infinite in {dtype}")
    if source.not_0:
        article = "an" if name[0] in "aeiou" else "a"
        raise ValueError(
            f"{name}={value!r} rounds to 0 in {dtype}; give {article} {name} of at least {limits.least_normal!r}"
        )
    raise ValueError(f"{name}={value!r} rounds to 1 in {dtype}; the largest below 1 is {limits.below_1!r}")

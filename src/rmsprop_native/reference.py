"""The specification in plain NumPy: the whole step, operation by operation, in the order that decides its bits.

`init` and `update_` mean what `rmsprop_native.init` and `rmsprop_native.update_` mean and give the same bits, without
compiled code. The tests compare the two. The other functions are the parts of a step. Nothing is checked here that
NumPy does not check; the product refuses bad input, with messages that name the leaf.
"""

from __future__ import annotations

import dataclasses
import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from rmsprop_native.arrays import RowGrad, arithmetic, bfloat16, title
from rmsprop_native.presets import make_options
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rmsprop_native.options import Options
    from rmsprop_native.tree import Tree

__all__ = [
    "Coefficients",
    "State",
    "clip_factor",
    "clip_factors",
    "coefficients",
    "init",
    "join_halves",
    "lerp",
    "merge_rows",
    "random_bits",
    "round_to_bfloat16",
    "split_halves",
    "step",
    "sumsq",
    "swap_bytes",
    "update_",
]

Params = TypeVar("Params")

# Scales huge numbers down. A power of two, so that this is exact. Squares of the largest doubles come to 2**848. A sum
# of squares that overflows without it, so is at least 2**1024, comes to at least 2**-176.
DOWN = 2.0**-600


# ---- the whole step ----


@dataclasses.dataclass(eq=False)
class State:
    """What RMSProp remembers between steps, in plain containers of plain arrays; made by `init`.

    Parameters
    ----------
    options : Options
        The hyper-parameters in force; may be replaced by others that need the same arrays.
    overrides : mapping of str to mapping
        Options of some leaves, by patterns over their paths.
    structure : Tree
        The structure of the parameters.
    square_avg : array or nested container of arrays
        The running mean of squared gradients, in the structure of the parameters.
    momentum_buffer : array or nested container of arrays, optional
        The momentum buffer; None without momentum.
    grad_avg : array or nested container of arrays, optional
        The running mean of gradients; None if not centered.
    ema : array or nested container of arrays, optional
        The averaged weights; None without them.
    grad_sum : array or nested container of arrays, optional
        The sum of the gradients since the last step; None if not accumulating.
    low_half : array or nested container of arrays, optional
        The lower halves of bfloat16 parameters, None for others; None without any.
    step : int
        Steps taken so far.
    skipped : int
        Calls that did nothing because a gradient was not finite.
    accumulated : int
        Calls since the last step, with ``accumulate`` > 1.
    summed : frozenset of int
        The leaves that had a gradient in one of these calls.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native import reference
    >>> state = reference.init({"w": np.zeros(2)}, lr=0.1, momentum=0.9)
    >>> state.options, state.step
    (Options(lr=0.1, rho=0.9, momentum=0.9), 0)
    >>> state.momentum_buffer, state.grad_avg
    ({'w': array([0., 0.])}, None)
    """

    options: Options
    overrides: Mapping[str, Mapping[str, Any]]
    structure: Tree
    square_avg: Any
    momentum_buffer: Any = None
    grad_avg: Any = None
    ema: Any = None
    grad_sum: Any = None
    low_half: Any = None
    step: int = 0
    skipped: int = 0
    accumulated: int = 0
    summed: frozenset[int] = frozenset()


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
        The parameters. They are not changed, and not kept.
    preset : str, optional
        A key of `PRESETS`; explicit options win over it.
    overrides : mapping of str to mapping, optional
        Other numbers for some leaves. A key that is literally the path of a leaf names that leaf, any other one is a
        pattern over paths, as of `fnmatch`. Where several match, the last one wins. `lr` may be an array that
        broadcasts to the leaf.
    **options
        The hyper-parameters; see `Options`.

    Returns
    -------
    State

    Raises
    ------
    TypeError, ValueError
        As `Options`; ValueError also if an override matches no leaf.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native import reference
    >>> w = np.zeros(2, np.float32)
    >>> reference.init(w, preset="tf1").square_avg
    array([1., 1.], dtype=float32)
    >>> reference.init([w, w], accumulate=4).grad_sum
    [array([0., 0.], dtype=float32), array([0., 0.], dtype=float32)]
    """
    o = make_options(preset, **options)
    leaves, structure = flatten(params)

    def filled(number: float) -> Any:
        """Arrays like the parameters; a complex number is a pair of reals that start alike."""
        start = complex(number, number)
        return structure.unflatten(
            np.full_like(leaf, start if leaf.dtype.kind == "c" else number, arithmetic(leaf.dtype), subok=False)
            for leaf in leaves
        )

    def square_avg() -> Any:
        if o.square_avg_dtype is None:
            return filled(o.initial_square_avg)
        return structure.unflatten(np.full(leaf.shape, o.initial_square_avg, bfloat16()) for leaf in leaves)

    is_split = "low_half" in o.buffers_for(leaf.dtype for leaf in leaves)
    state = State(
        options=o,
        overrides=overrides or {},
        structure=structure,
        square_avg=square_avg(),
        momentum_buffer=filled(0.0) if o.momentum != 0 else None,
        grad_avg=filled(0.0) if o.centered else None,
        ema=structure.unflatten(leaf.astype(arithmetic(leaf.dtype)) for leaf in leaves) if o.ema is not None else None,
        grad_sum=filled(0.0) if o.accumulate > 1 else None,
        low_half=structure.unflatten(
            np.zeros(leaf.shape, np.uint16) if leaf.dtype.name == "bfloat16" else None for leaf in leaves
        )
        if is_split
        else None,
    )
    _options_of_leaves(state)
    return state


def update_(params: Params, grads: Any, state: State, *, lr: float | None = None, grad_scale: float = 1.0) -> Params:
    """Take one RMSProp step in place.

    The rule is due to Tieleman and Hinton (2012), that of a centered step to Graves (2013). In this order:

    1. A gradient with a NaN or infinity ends the call, with ``on_nonfinite`` "skip" or "raise".
    2. Rows of a `RowGrad` are merged (`merge_rows`).
    3. With ``accumulate=k``, ``grad_scale * grad`` is added to `grad_sum` (`lerp`). Every k-th call goes on, with
       `grad_sum` as the gradient and 1/k as its scale; a leaf that had no gradient in any of the k calls has none.
    4. Gradients are clipped by norm (`clip_factors`).
    5. Each leaf with a gradient takes its step (`step`); of a `RowGrad`, its rows only.
    6. Its averaged weights follow (`lerp`), with ``ema`` 0 at the first step.
    7. The step is counted, and `grad_sum` is zero again.

    Parameters
    ----------
    params : numpy.ndarray or nested container of them
        What `init` was called with, or arrays of the same structure, shapes and dtypes. They are written.
    grads : numpy.ndarray or nested container of them
        The gradients, in the structure of `params`. None where a parameter has no gradient; nothing of it moves then.
        A `RowGrad` moves some rows only. Never written.
    state : State
        Written.
    lr : float, optional
        Learning rate of this step, in place of the state's; a leaf whose overrides give it one keeps its own.
    grad_scale : float, default 1.0
        Factor on the gradients, for instance 1 / loss scale.

    Returns
    -------
    numpy.ndarray or nested container of them
        `params` itself.

    Raises
    ------
    ValueError
        If the structures differ, or a `RowGrad` is to be accumulated. Nothing has been written then.
    FloatingPointError
        If a gradient is not finite and ``on_nonfinite`` is "raise". Nothing has been written then.

    Notes
    -----
    A schedule is called once in each step, with the number of steps taken, however many leaves follow it.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native import reference
    >>> w = np.array([1.0, -2.0])
    >>> state = reference.init(w, lr=0.5, rho=0.75, eps=0.0)
    >>> reference.update_(w, np.array([2.0, 2.0]), state)
    array([ 0., -3.])
    >>> state.square_avg, state.step
    (array([1., 1.]), 1)
    """
    with np.errstate(all="ignore"):
        _update(params, grads, state, lr, grad_scale)
    return params


def _update(params: Any, grads: Any, state: State, lr: float | None, grad_scale: float) -> None:
    o, structure = state.options, state.structure
    all_params = list(structure.leaves(params, "parameter"))
    all_grads = list(structure.leaves(grads))
    arrays: list[list[Any]] = [
        [None] * structure.size if tree is None else list(structure.leaves(tree, "state"))
        for tree in (state.square_avg, state.momentum_buffer, state.grad_avg, state.ema, state.grad_sum, state.low_half)
    ]
    halves, sums = arrays.pop(), arrays.pop()

    for path, grad in zip(structure.paths(), all_grads, strict=True):
        if o.accumulate > 1 and isinstance(grad, RowGrad):
            raise ValueError(f"{title('gradient', path)} is a RowGrad, which cannot be accumulated")
    rows: list[Any] = [...] * structure.size
    for i, grad in enumerate(all_grads):
        if isinstance(grad, RowGrad):
            values = grad.values.astype(arithmetic(grad.values.dtype))
            rows[i], all_grads[i] = merge_rows(np.asarray(grad.rows, np.intp), values)
        elif grad is not None:
            all_grads[i] = grad.astype(arithmetic(grad.dtype), copy=False)  # from bfloat16 exactly

    for path, grad in zip(structure.paths(), all_grads, strict=True):
        if grad is None or o.on_nonfinite == "propagate":
            continue
        finite = np.isfinite(grad)
        count = finite.size - np.count_nonzero(finite)
        if count and o.on_nonfinite == "raise":
            raise FloatingPointError(
                f"{title('gradient', path)} has {count} of {finite.size} elements that are not finite"
            )
        if count:
            state.skipped += 1
            return

    scale = -float(grad_scale) if o.maximize else float(grad_scale)
    if o.accumulate > 1:
        for grad_sum, grad in zip(sums, all_grads, strict=True):
            if grad is not None:
                grad_sum[...] = lerp(grad_sum, grad, 1.0, scale)
        state.summed |= {i for i, grad in enumerate(all_grads) if grad is not None}
        state.accumulated += 1
        if state.accumulated < o.accumulate:
            return
        all_grads = [grad_sum if i in state.summed else None for i, grad_sum in enumerate(sums)]
        scale = 1.0 / o.accumulate

    own, own_lrs = _options_of_leaves(state)
    rates = _rates(own, own_lrs, state.step, lr)
    factors = clip_factors(all_grads, [of_leaf.clip_norm for of_leaf in own], o.clip_global_norm, scale)
    for i, (param, grad, *buffers) in enumerate(zip(all_params, all_grads, *arrays, strict=True)):
        if grad is None:
            continue
        rate = rates[i]
        if isinstance(rate, np.ndarray):
            rate = np.broadcast_to(rate, param.shape)[rows[i]]
        numbers = coefficients(own[i], state.step + 1, rate, scale * factors[i])
        old: list[Any] = [buffer if buffer is None else buffer[rows[i]] for buffer in buffers]
        wide = arithmetic(param.dtype)
        old[0] = np.asarray(old[0]).astype(wide)  # from bfloat16 exactly
        half: Any = None if halves[i] is None else halves[i][rows[i]]
        before = np.asarray(param[rows[i]]).astype(wide) if half is None else join_halves(param[rows[i]], half)
        new: list[Any] = list(step(numbers, before, grad, *old[:3], nesterov=o.nesterov))
        after = stored = new.pop(0)
        is_rounded = half is None and wide != param.dtype
        if o.square_avg_dtype is not None or is_rounded:
            random = random_bits(o.seed, state.step, i, np.arange(param.size).reshape(param.shape)[rows[i]])
        if o.square_avg_dtype is not None:
            new[0] = round_to_bfloat16(new[0], random)
        if half is not None:
            stored, half = split_halves(after)
        elif is_rounded:
            stored = round_to_bfloat16(after, swap_bytes(random))
            after = stored.astype(wide)
        average = None
        if o.ema is not None:
            decay = 0.0 if state.step == 0 else o.ema
            average = lerp(old[3], after, decay, 1.0 - decay)
        for array, value in zip((param, *buffers, halves[i]), (stored, *new, average, half), strict=True):
            if array is not None:
                array[rows[i]] = value

    for grad_sum in sums:
        if grad_sum is not None:
            grad_sum[...] = 0
    state.accumulated = 0
    state.summed = frozenset()
    state.step += 1


def _options_of_leaves(state: State) -> tuple[list[Options], list[Any]]:
    """For each leaf its options, and its own learning rate: a number, schedule or array, or None."""
    paths = list(state.structure.paths())
    changes: list[dict[str, Any]] = [{} for _ in paths]
    for pattern, numbers in state.overrides.items():
        matched = [
            change
            for path, change in zip(paths, changes, strict=True)
            if (path == pattern if pattern in paths else fnmatchcase(path, pattern))
        ]
        if not matched:
            raise ValueError(f"overrides[{pattern!r}] matches none of {', '.join(map(repr, paths))}")
        for change in matched:
            change.update(numbers)
    own_lrs = [change.pop("lr", None) for change in changes]
    return [dataclasses.replace(state.options, **change) for change in changes], own_lrs


def _rates(own: list[Options], own_lrs: list[Any], taken: int, lr: float | None) -> list[Any]:
    """The learning rate of each leaf after `taken` steps, a float or an array; each schedule is called once."""
    schedules: dict[int, float] = {}
    rates: list[Any] = []
    for of_leaf, own_lr in zip(own, own_lrs, strict=True):
        rate = own_lr if own_lr is not None else of_leaf.lr if lr is None else lr
        if callable(rate):
            if id(rate) not in schedules:
                schedules[id(rate)] = float(rate(taken))
            rate = schedules[id(rate)]
        if isinstance(rate, np.ndarray) and rate.ndim > 0:
            rates.append(rate.astype(np.float64) + 0.0)  # -0.0 becomes 0.0
        else:
            rates.append(float(rate))
    return rates


# ---- its parts ----


class Coefficients(NamedTuple):
    """The numbers of one step, in double; `step` rounds each once to the type of the arrays."""

    grad_scale: float
    clip_value: float
    """Infinity where there is no limit."""
    weight_decay: float
    """That of coupled weight decay: 0 where it is decoupled."""
    rho: float
    one_minus_rho: float
    bias_correction: float
    eps_inside: float
    eps_outside: float
    lr_in: float | NDArray[np.float64]
    """An array, as `lr_out` and `shrink`, where each element has a learning rate."""
    momentum: float
    shrink: float | NDArray[np.float64]
    lr_out: float | NDArray[np.float64]


def coefficients(options: Options, t: int, lr: float | NDArray[np.float64], grad_scale: float) -> Coefficients:
    """The numbers of step `t`.

    Parameters
    ----------
    options : Options
        The hyper-parameters of the leaf.
    t : int
        The number of the step, 1 at the first.
    lr : float or numpy.ndarray
        The learning rate of this step, or one for each element.
    grad_scale : float
        The whole factor on the gradient: unscaling, the sign of ``maximize``, and the clip factor.

    Returns
    -------
    Coefficients

    Examples
    --------
    >>> from rmsprop_native import Options
    >>> from rmsprop_native.reference import coefficients
    >>> k = coefficients(Options(rho=0.75, bias_correction=True, momentum=0.9), 1, 0.5, 1.0)
    >>> k.one_minus_rho, k.bias_correction, k.lr_in, k.lr_out
    (0.25, 4.0, 1.0, 0.5)
    """
    o = options
    lr_in: float | NDArray[np.float64]
    lr_out: float | NDArray[np.float64]
    lr_in, lr_out = (1.0, lr) if o.momentum != 0 and not o.lr_in_momentum else (lr, 1.0)
    return Coefficients(
        grad_scale=grad_scale,
        clip_value=math.inf if o.clip_value is None else o.clip_value,
        weight_decay=0.0 if o.decoupled_weight_decay else o.weight_decay,
        rho=o.rho,
        one_minus_rho=1.0 - o.rho,
        bias_correction=1.0 / (1.0 - o.rho**t) if o.bias_correction else 1.0,
        eps_inside=o.eps if o.eps_inside_sqrt else 0.0,
        eps_outside=0.0 if o.eps_inside_sqrt else o.eps,
        lr_in=lr_in,
        momentum=o.momentum,
        shrink=1.0 - lr * o.weight_decay if o.decoupled_weight_decay else 1.0,
        lr_out=lr_out,
    )


def step(
    numbers: Coefficients,
    param: NDArray[Any],
    grad: NDArray[Any],
    square_avg: NDArray[Any],
    momentum_buffer: NDArray[Any] | None = None,
    grad_avg: NDArray[Any] | None = None,
    *,
    nesterov: bool = False,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """The formula. Nothing is written in place.

    Parameters
    ----------
    numbers : Coefficients
        Each is rounded once to the type of `param`; arrays have its shape.
    param, grad, square_avg : numpy.ndarray
        Of one shape and one dtype, float32, float64, complex64 or complex128; complex numbers are pairs of reals.
    momentum_buffer : numpy.ndarray, optional
        With momentum: of the same shape and dtype.
    grad_avg : numpy.ndarray, optional
        If centered: of the same shape and dtype.
    nesterov : bool, default False
        Whether momentum is Nesterov's.

    Returns
    -------
    tuple of (numpy.ndarray or None)
        The new param, square_avg, momentum_buffer and grad_avg; None where none was given.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native import Options
    >>> from rmsprop_native.reference import coefficients, step
    >>> numbers = coefficients(Options(rho=0.75, eps=0.0), t=1, lr=0.5, grad_scale=1.0)
    >>> step(numbers, np.array([1.0]), np.array([2.0]), np.array([0.0]))
    (array([0.]), array([1.]), None, None)
    """
    if np.iscomplexobj(param):
        real = param.real.dtype
        pairs = (a if a is None else _as_pairs(a, real) for a in (param, grad, square_avg, momentum_buffer, grad_avg))
        twice: Any = (np.repeat(k, 2) if isinstance(k, np.ndarray) else k for k in numbers)
        numbers = Coefficients(*twice)
        new = step(numbers, *pairs, nesterov=nesterov)  # type: ignore[arg-type]
        back: Any = (a if a is None else a.view(param.dtype).reshape(param.shape) for a in new)
        return tuple(back)

    p, g, v, b, a = param, grad, square_avg, momentum_buffer, grad_avg
    k = Coefficients(*(p.dtype.type(number) for number in numbers))
    g = k.grad_scale * g
    g = np.where(g > k.clip_value, k.clip_value, g)
    g = np.where(g < -k.clip_value, -k.clip_value, g)
    if numbers.weight_decay != 0:
        g = g + k.weight_decay * p
    v = k.rho * v + (k.one_minus_rho * g) * g
    d = k.bias_correction * v
    if a is not None:
        a = k.rho * a + k.one_minus_rho * g
        mean = k.bias_correction * a
        d = d - mean * mean
        d = np.where(d < 0, p.dtype.type(0), d)
    r = np.sqrt(d + k.eps_inside) + k.eps_outside
    u = (k.lr_in * g) / r
    if b is not None:
        b = k.momentum * b + u
        u = u + k.momentum * b if nesterov else b
    p = k.shrink * p - k.lr_out * u
    return p, v, b, a


def lerp(average: NDArray[Any], x: NDArray[Any], a: float, b: float) -> NDArray[Any]:
    """``a * average + b * x``, `a` and `b` rounded once: averaged weights, and with ``a = 1`` accumulated gradients.

    Parameters
    ----------
    average, x : numpy.ndarray
        Of one shape and dtype.
    a, b : float
        The weights.

    Returns
    -------
    numpy.ndarray

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import lerp
    >>> lerp(np.array([1.0]), np.array([3.0]), 0.5, 0.5)
    array([2.])
    """
    real = average.real.dtype
    new: NDArray[Any] = real.type(a) * _as_pairs(average, real) + real.type(b) * _as_pairs(x, real)
    return new.view(average.dtype).reshape(average.shape)


def random_bits(seed: int, step: int, leaf: int, elements: NDArray[Any]) -> NDArray[np.uint32]:
    """16 random bits for each element, from a hash of all four; nothing else decides them.

    Parameters
    ----------
    seed : int
        0 to 2**64-1.
    step : int
        The steps before this one.
    leaf : int
        The index of the leaf in the order of the structure.
    elements : numpy.ndarray of int
        Indices in C order of the whole leaf, of any shape.

    Returns
    -------
    numpy.ndarray of uint32
        0 to 65535. Two elements share a hash of 32 bits: an even one has its lower half.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import random_bits
    >>> random_bits(0, 0, 0, np.arange(4)).tolist()
    [35074, 23608, 48182, 1159]
    """
    stream = np.uint32(0)
    with np.errstate(over="ignore"):
        for part in (seed, step, leaf):
            for half in (part & 0xFFFFFFFF, part >> 32):
                stream = _mix(stream + np.uint32(half) + np.uint32(0x9E3779B1))
        words = np.asarray(elements >> 1).astype(np.uint32)
        pairs = _mix(stream + words * np.uint32(0x9E3779B1))
        bits: NDArray[np.uint32] = pairs >> np.asarray(elements % 2 * 16).astype(np.uint32) & np.uint32(0xFFFF)
    return bits


def _mix(x: Any) -> Any:
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x21F0AAAD)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0xD35A2D97)
    return x ^ x >> np.uint32(15)


def round_to_bfloat16(x: NDArray[np.float32], random: NDArray[np.uint32]) -> NDArray[Any]:
    """Stochastic rounding: to one of the two neighbours in bfloat16, to each as often as `x` is near to it.

    Parameters
    ----------
    x : numpy.ndarray of float32
        What bfloat16 can hold stays as it is; a NaN stays one.
    random : numpy.ndarray of uint32
        16 bits for each element.

    Returns
    -------
    numpy.ndarray of ml_dtypes.bfloat16

    Raises
    ------
    ImportError
        If ml_dtypes is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import round_to_bfloat16
    >>> round_to_bfloat16(np.full(2, 1 + 2**-9, np.float32), np.array([0xBFFF, 0xC000], np.uint32)).tolist()
    [1.0, 1.0078125]
    """
    x = np.asarray(x)
    bits = x.view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = np.where(np.isnan(x), bits | np.uint32(0x400000), bits + random) >> np.uint32(16)
    return rounded.astype(np.uint16).view(bfloat16())


def swap_bytes(random: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """16 random bits with the two bytes swapped: those of a parameter, where `random` are those of its square_avg.

    The upper byte decides nearly all roundings; so the two are rounded independently, by one hash.

    Parameters
    ----------
    random : numpy.ndarray of uint32
        0 to 65535.

    Returns
    -------
    numpy.ndarray of uint32

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import swap_bytes
    >>> hex(swap_bytes(np.array([0x1234], np.uint32))[0])
    '0x3412'
    """
    swapped: NDArray[np.uint32] = (random & np.uint32(0xFF)) << np.uint32(8) | random >> np.uint32(8)
    return swapped


def split_halves(x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.uint16]]:
    """The two halves of float32 numbers: rounded to bfloat16, and what `join_halves` adds to that.

    Parameters
    ----------
    x : numpy.ndarray of float32
        Finite numbers that round to an infinity, from 3.39e38 on, are one when they are joined, and those that round to
        0, below 4.6e-41, are 0; all others are exact.

    Returns
    -------
    upper : numpy.ndarray of ml_dtypes.bfloat16
        Rounded to the nearest, at ties away from zero.
    lower : numpy.ndarray of uint16

    Raises
    ------
    ImportError
        If ml_dtypes is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import join_halves, split_halves
    >>> upper, lower = split_halves(np.array([0.1, -0.1], np.float32))
    >>> upper.tolist(), lower.tolist()
    ([0.10009765625, -0.10009765625], [52429, 52429])
    >>> join_halves(upper, lower)
    array([ 0.1, -0.1], dtype=float32)
    """
    x = np.asarray(x, order="C")
    bits = x.view(np.uint32)
    return round_to_bfloat16(x, np.full(x.shape, 0x8000, np.uint32)), bits.astype(np.uint16)


def join_halves(upper: NDArray[Any], lower: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 numbers whose two halves these are.

    Parameters
    ----------
    upper : numpy.ndarray of bfloat16
        The numbers, rounded to the nearest.
    lower : numpy.ndarray of uint16, of the same shape
        What the rounding took away, as signed 16-bit numbers in units of the last bit. Where the upper half has been
        written since, it may not fit: one that meets a zero, an infinity or a NaN counts as 0.

    Returns
    -------
    numpy.ndarray of float32

    Examples
    --------
    >>> import ml_dtypes
    >>> import numpy as np
    >>> from rmsprop_native.reference import join_halves
    >>> join_halves(np.array([1, 1, 0], ml_dtypes.bfloat16), np.array([1, 0xFFFF, 0xFFFF], np.uint16))
    array([1.0000001 , 0.99999994, 0.        ], dtype=float32)
    """
    # As integers first: NumPy crashes where memory runs out while it copies a bfloat16 array of another layout.
    bits = upper.view(np.uint16).astype(np.uint32, order="C") << np.uint32(16)
    with np.errstate(over="ignore"):
        joined = bits + lower.view(np.int16).astype(np.int32).view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    is_stale = (size == 0) | (size >= np.uint32(0x7F800000))
    return np.where(is_stale, bits, joined).astype(np.uint32).view(np.float32)


def sumsq(grad: NDArray[Any], scale: float = 1.0) -> float:
    """The sum of the squares of ``scale * grad`` in double, in the order of the compiled kernels: same bits.

    Over the elements in C order: spans of 4096, in each blocks of 512, in each 16 sums side by side that are folded in
    halves; blocks, and then spans, are added one after another.

    Parameters
    ----------
    grad : numpy.ndarray
        Of any shape and layout; the squares of a complex number are those of its two parts.
    scale : float, default 1.0
        A power of two that keeps the squares of huge numbers from overflow.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import sumsq
    >>> sumsq(np.array([3.0, 4.0], np.float32))
    25.0
    >>> sumsq(np.array([3e200, 4e200]), scale=2.0**-600) < np.inf
    True
    """
    x = scale * _as_pairs(grad, grad.real.dtype).astype(np.float64)
    total = np.float64(0)
    for span in range(0, x.size, 4096):
        span_total = np.float64(0)
        for block in range(span, min(span + 4096, x.size), 512):
            squares = x[block : block + 512] ** 2
            lanes = np.zeros(16)
            for start in range(0, squares.size, 16):
                lanes[: squares.size - start] += squares[start : start + 16]
            while lanes.size > 1:
                lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
            span_total += lanes[0]
        total += span_total
    return float(total)


def clip_factors(
    grads: list[NDArray[Any] | None], clip_norms: list[float | None], clip_global_norm: float | None, scale: float
) -> list[float]:
    """The factor on each gradient that clips norms; see `clip_factor`.

    Parameters
    ----------
    grads : list of (numpy.ndarray or None)
        The gradients before unscaling.
    clip_norms : list of (float or None)
        The limit of each gradient's own norm.
    clip_global_norm : float or None
        The limit of their common norm, whose sum of squares is that of the gradients, added in their order. If it
        is not finite, it is formed again from the sums of all gradients scaled down.
    scale : float
        The factor that unscales them.

    Returns
    -------
    list of float

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import clip_factors
    >>> clip_factors([np.array([3.0, 4.0]), None], [2.5, 2.5], None, 1.0)
    [0.5, 1.0]
    >>> clip_factors([np.array([3.0]), np.array([4.0])], [None, None], 2.5, 1.0)
    [0.5, 0.5]
    """

    def factor(limit: float, those: list[NDArray[Any]]) -> float:
        total, total_down = _total(those, 1.0), 0.0
        if not math.isfinite(total):
            total_down = _total(those, DOWN)
        return clip_factor(total, total_down, limit, scale)

    if clip_global_norm is not None:
        return [factor(clip_global_norm, [grad for grad in grads if grad is not None])] * len(grads)
    return [
        1.0 if grad is None or limit is None else factor(limit, [grad])
        for grad, limit in zip(grads, clip_norms, strict=True)
    ]


def _total(grads: list[NDArray[Any]], scale: float) -> float:
    total = 0.0
    for grad in grads:
        total += sumsq(grad, scale)
    return total


def clip_factor(total: float, total_down: float, limit: float, scale: float) -> float:
    """The factor ``min(1, limit / norm)`` on a gradient of norm ``abs(scale) * sqrt(total)``, without overflow.

    Parameters
    ----------
    total : float
        The sum of squares of the gradient before unscaling.
    total_down : float
        The same of the gradient times 2**-600; read only if `total` is infinite.
    limit : float
        The largest norm, positive and finite.
    scale : float
        The factor that unscales the gradient.

    Returns
    -------
    float
        0 if the gradient has an infinity, 1 if its norm is NaN, as with ``scale`` 0 and an infinity.

    Examples
    --------
    >>> from rmsprop_native.reference import clip_factor
    >>> clip_factor(25.0, 0.0, limit=2.5, scale=1.0), clip_factor(25.0, 0.0, limit=2.5, scale=0.25)
    (0.5, 1.0)
    >>> clip_factor(float("inf"), 1.0, limit=1.0, scale=1.0) == 2.0**-600  # one element, 2**600
    True
    """
    size = abs(scale)
    if total == math.inf and total_down < math.inf and size > 0:  # finite numbers whose squares overflow
        # The power of two comes last: a quotient that it makes subnormal is rounded once.
        factor = limit / math.sqrt(total_down) / size * DOWN
        return factor if factor < 1 else 1.0
    root = math.sqrt(total)
    norm = size * root
    if norm == math.inf and root < math.inf:
        return limit / root / size
    return limit / norm if norm > limit else 1.0


def merge_rows(rows: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each row once, in increasing order; values of a row given more than once are added in the order given.

    Parameters
    ----------
    rows : numpy.ndarray of int, shape (k,)
        Row indices.
    values : numpy.ndarray, shape (k, ...)
        Their gradients.

    Returns
    -------
    rows, values : numpy.ndarray

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.reference import merge_rows
    >>> merge_rows(np.array([7, 3, 7]), np.array([1.0, 2.0, 4.0]))
    (array([3, 7]), array([2., 5.]))
    """
    sums: dict[int, Any] = {}
    for row, value in zip(rows.tolist(), values, strict=True):
        sums[row] = sums[row] + value if row in sums else value
    order = sorted(sums)
    shape = (len(sums), *values.shape[1:])
    return np.array(order, np.intp), np.array([sums[row] for row in order], values.dtype).reshape(shape)


def _as_pairs(array: NDArray[Any], real: np.dtype[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).reshape(-1).view(real)

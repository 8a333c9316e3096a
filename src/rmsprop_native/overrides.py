"""Overrides: other numbers for some leaves, named by patterns over their paths."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmsprop_native.options import OVERRIDABLE, Options, check_option, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["LeafOptions", "Rates", "broadcast_rates", "check_overrides", "check_paths", "group_leaves", "rates_of_leaf"]

_SHOWN = 8  # paths in a message


class LeafOptions(NamedTuple):
    """The options of a group of leaves."""

    options: Options
    own_lr: bool
    """Whether an override gave the learning rate; the `lr` of a call does not replace it then."""
    rates: NDArray[np.float64] | None = None
    """The learning rates of elements, where they are an array; the `lr` of `options` is the largest of them then."""


class Rates(NamedTuple):
    """The learning rates of the elements of a leaf, in the order of its buffers."""

    numbers: NDArray[np.float64]
    """Contiguous; one number for `run` reals that follow each other."""
    run: int


def check_paths(paths: Sequence[str]) -> None:
    """Refuse paths that do not name one leaf each.

    Parameters
    ----------
    paths : sequence of str

    Raises
    ------
    ValueError
        If two leaves share a path; the message names it.

    Examples
    --------
    >>> from rmsprop_native.overrides import check_paths
    >>> check_paths(["a.b", "a.c"])
    >>> check_paths(["a.b", "a.b"])
    Traceback (most recent call last):
    ...
    ValueError: two leaves have the path 'a.b'; give one of them another key
    """
    if len(set(paths)) == len(paths):
        return
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ValueError(f"two leaves have the path {path!r}; give one of them another key")
        seen.add(path)


def check_overrides(overrides: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """A copy of overrides, with each value checked by itself and converted.

    Parameters
    ----------
    overrides : mapping of str to mapping
        As for `group_leaves`.

    Returns
    -------
    dict of str to dict
        It shares no container and no array with `overrides`.

    Raises
    ------
    TypeError
        If `overrides` is no mapping of strings to mappings, or a value is of the wrong kind.
    ValueError
        If an option cannot differ between leaves, or a value is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.overrides import check_overrides
    >>> check_overrides({"*.bias": {"lr": 1}, "w": {"lr": np.array([[1], [2]])}})
    {'*.bias': {'lr': 1.0}, 'w': {'lr': array([[1.],
           [2.]])}}
    """
    if not isinstance(overrides, Mapping):
        raise TypeError(f"overrides must be a mapping of patterns to mappings of options, got {overrides!r}")
    checked: dict[str, dict[str, Any]] = {}
    for pattern, changes in overrides.items():
        if not isinstance(pattern, str):
            raise TypeError(f"the patterns of overrides must be strings, got {pattern!r}")
        if not isinstance(changes, Mapping):
            raise TypeError(f"overrides[{pattern!r}] must be a mapping of options to numbers, got {changes!r}")
        checked[pattern] = {}
        for name, value in changes.items():
            if not isinstance(name, str) or name not in OVERRIDABLE:
                hint = did_you_mean(str(name), OVERRIDABLE) or ";"
                raise ValueError(f"overrides[{pattern!r}] cannot change {name!r}{hint} only {', '.join(OVERRIDABLE)}")
            try:
                is_array = name == "lr" and issubclass(type(value), np.ndarray) and value.ndim > 0
                checked[pattern][name] = _check_rates(value) if is_array else check_option(name, value)
            except (TypeError, ValueError) as error:
                raise _prefixed(pattern, error) from None
    return checked


def _check_rates(lr: NDArray[Any]) -> NDArray[np.float64]:
    """A copy of an array of learning rates in float64, which cannot be written."""
    if type(lr) is not np.ndarray or lr.dtype.kind not in "iuf":
        kind = "n array" if type(lr) is np.ndarray else f" {type(lr).__name__}"
        raise TypeError(f"lr must be a number or an array of real numbers, got a{kind} of {lr.dtype}")
    with np.errstate(over="ignore"):  # a longdouble may be too large
        rates = np.array(lr, np.float64, order="C")
    rates += 0.0  # -0.0 becomes 0.0, and gives the same signs
    allowed = np.isfinite(rates) & (rates >= 0)
    if not allowed.all():
        raise ValueError(f"lr must be finite and >= 0, got an array with {float(rates[~allowed][0])!r}")
    rates.flags.writeable = False
    return rates


def rates_of_leaf(rates: NDArray[np.float64], path: str, buffer: NDArray[Any]) -> Rates:
    """The learning rates of a leaf, laid out like its buffers.

    Parameters
    ----------
    rates : numpy.ndarray
        Of a shape that broadcasts to the leaf's.
    path : str
        That of the leaf, for the message.
    buffer : numpy.ndarray
        One of its buffers: dense, in some order of the axes.

    Returns
    -------
    Rates

    Raises
    ------
    ValueError
        If the shapes do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.overrides import rates_of_leaf
    >>> rates_of_leaf(np.array([[0.5], [0.25]]), "w", np.zeros((2, 3)))
    Rates(numbers=array([0.5 , 0.25]), run=3)
    """
    whole = broadcast_rates(rates, path, buffer.shape)
    run = 2 if buffer.dtype.kind == "c" else 1
    # The axes from the outermost to the innermost in memory; along the last ones the rate may stay the same.
    whole = whole.transpose(sorted(range(buffer.ndim), key=lambda axis: -buffer.strides[axis]))
    while whole.ndim and whole.size and (whole.strides[-1] == 0 or whole.shape[-1] == 1):
        run *= whole.shape[-1]
        whole = whole[..., 0]
    return Rates(np.array(whole, order="C").reshape(-1), run)


def broadcast_rates(rates: NDArray[np.float64], path: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The learning rates of all elements of a leaf.

    Parameters
    ----------
    rates : numpy.ndarray
    path : str
        That of the leaf, for the message.
    shape : tuple of int
        Of the leaf.

    Returns
    -------
    numpy.ndarray
        A view, which cannot be written.

    Raises
    ------
    ValueError
        If the shapes do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.overrides import broadcast_rates
    >>> broadcast_rates(np.array([[0.5], [0.25]]), "w", (2, 3))
    array([[0.5 , 0.5 , 0.5 ],
           [0.25, 0.25, 0.25]])
    """
    try:
        return np.broadcast_to(rates, shape)
    except ValueError:
        raise ValueError(
            f"overrides for {path!r}: lr has shape {rates.shape}, which does not broadcast to {shape}"
        ) from None


def group_leaves(
    options: Options, overrides: Mapping[str, Mapping[str, Any]], paths: Sequence[str]
) -> tuple[list[LeafOptions], tuple[int, ...]]:
    """Divide the leaves into groups that share their options: leaves that the same patterns match.

    Parameters
    ----------
    options : Options
        Those of leaves that no pattern matches.
    overrides : mapping of str to mapping
        Patterns to the options they change; where several match a leaf, the last one wins. A pattern that is the path
        of a leaf names that leaf; any other one is matched as by `fnmatch.fnmatchcase`. `lr` may be an array.
    paths : sequence of str
        The paths of the leaves, each another one (`check_paths`).

    Returns
    -------
    groups : list of LeafOptions
        The first is `options` itself, for leaves that no pattern matches, even if there are none.
    leaf_groups : tuple of int
        For each leaf the index of its group.

    Raises
    ------
    TypeError
        If `overrides` is no mapping of strings to mappings, or a value is of the wrong kind.
    ValueError
        If a pattern matches no leaf, is the path of one leaf and matches others, changes an option that cannot differ
        between leaves, or if a check of `Options` fails.

    Examples
    --------
    >>> from rmsprop_native.options import Options
    >>> from rmsprop_native.overrides import group_leaves
    >>> groups, leaf_groups = group_leaves(Options(), {"*.b": {"lr": 0.5}}, ["l1.w", "l1.b", "l2.b"])
    >>> groups[1], leaf_groups
    (LeafOptions(options=Options(lr=0.5, rho=0.9), own_lr=True, rates=None), (0, 1, 1))
    """
    groups = [LeafOptions(options, False)]
    checked = check_overrides(overrides)
    if not checked:
        return groups, (0,) * len(paths)

    places = {path: i for i, path in enumerate(paths)}
    matched_by = [0] * len(paths)  # for each leaf a bit for each pattern
    for bit, pattern in enumerate(checked):
        for i in _matches(pattern, paths, places):
            matched_by[i] |= 1 << bit

    indices = {0: 0}
    for path, patterns in zip(paths, matched_by, strict=True):
        if patterns not in indices:
            indices[patterns] = len(groups)
            groups.append(_changed(options, checked, patterns, path))
    return groups, tuple([indices[patterns] for patterns in matched_by])


def _matches(pattern: str, paths: Sequence[str], places: Mapping[str, int]) -> list[int]:
    """The indices of the leaves that a pattern names."""
    matched: list[int] = []
    if re.search(r"[*?[]", pattern):
        match = re.compile(fnmatch.translate(pattern)).match
        matched = [i for i, path in enumerate(paths) if match(path)]
    if pattern in places:
        for i in matched:
            if paths[i] != pattern:
                escaped = re.sub(r"([*?[])", r"[\1]", pattern)
                raise ValueError(
                    f"overrides[{pattern!r}] is ambiguous: {pattern!r} is the path of a leaf, and as a pattern it "
                    f"matches {paths[i]!r}; write {escaped!r} for the leaf: in brackets, as in '[[]' for '[', "
                    "a character is literal"
                )
        return [places[pattern]]
    if not matched:
        raise ValueError(f"overrides[{pattern!r}] matches none of {_shown(paths)}")
    return matched


def _changed(options: Options, overrides: Mapping[str, dict[str, Any]], patterns: int, path: str) -> LeafOptions:
    """The options of the leaves that these patterns match; `path` is the first of them."""
    changes: dict[str, Any] = {}
    for bit, of_pattern in enumerate(overrides.values()):
        if patterns >> bit & 1:
            changes |= of_pattern
    rates = changes.get("lr")
    if isinstance(rates, np.ndarray):
        changes["lr"] = float(rates.max(initial=0.0))
    else:
        rates = None
    try:
        return LeafOptions(options.replace(**changes), "lr" in changes, rates)
    except (TypeError, ValueError) as error:
        raise _prefixed(path, error) from None


def _prefixed(where: str, error: TypeError | ValueError) -> TypeError | ValueError:
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"overrides for {where!r}: {error}")


def _shown(paths: Sequence[str]) -> str:
    if not paths:
        return "the leaves: there are none"
    if len(paths) <= _SHOWN:
        return ", ".join(map(repr, paths))
    return f"{', '.join(map(repr, paths[:_SHOWN]))}, ... ({len(paths)} leaves)"

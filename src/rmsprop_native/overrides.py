"""Overrides: other numbers for some leaves, named by patterns over their paths."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rmsprop_native.options import OVERRIDABLE, Options, check_option

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LeafOptions", "check_overrides", "check_paths", "group_leaves"]

_SHOWN = 8  # paths in a message


class LeafOptions(NamedTuple):
    """The options of a group of leaves."""

    options: Options
    own_lr: bool
    """Whether an override gave the learning rate; the `lr` of a call does not replace it then."""


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
    >>> from rmsprop_native.overrides import check_overrides
    >>> check_overrides({"*.bias": {"lr": 1}})
    {'*.bias': {'lr': 1.0}}
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
                raise ValueError(f"overrides[{pattern!r}] cannot change {name!r}; only {', '.join(OVERRIDABLE)}")
            try:
                checked[pattern][name] = check_option(name, value)
            except (TypeError, ValueError) as error:
                raise _prefixed(pattern, error) from None
    return checked


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
        of a leaf names that leaf; any other one is matched as by `fnmatch.fnmatchcase`.
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
    (LeafOptions(options=Options(lr=0.5, rho=0.9), own_lr=True), (0, 1, 1))
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
    try:
        return LeafOptions(options.replace(**changes), "lr" in changes)
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

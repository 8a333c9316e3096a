"""Leaves and their paths: nested dicts, lists, tuples, namedtuples and dataclasses of arrays."""

from __future__ import annotations

import dataclasses
import types
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_DEPTH", "ReadOnlyDict", "Record", "Tree", "flatten", "is_namedtuple", "join"]

LEAF, EMPTY, DICT, SEQUENCE, FIELDS = range(5)
MAX_DEPTH = 256  # of containers; a function that calls itself for each of them stays far from its limit


class ReadOnlyDict(dict[Any, Any]):
    """A dict of arrays that may be written with ``[...]``, and not be replaced by others."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the arrays of a state cannot be replaced: write to them, as in state.square_avg['w'][...] = 0")

    __setitem__: Any = _refuse
    __delitem__: Any = _refuse
    __ior__: Any = _refuse
    clear: Any = _refuse
    pop: Any = _refuse
    popitem: Any = _refuse
    setdefault: Any = _refuse
    update: Any = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __copy__(self) -> dict[Any, Any]:
        return dict(self)


class Record(types.SimpleNamespace):
    """The arrays of a dataclass's fields, which may be written with ``[...]``, and not be replaced by others."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(
            f"the arrays of a state cannot be replaced: write to them, as in state.square_avg.{name}[...] = 0"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise TypeError("the arrays of a state cannot be removed")


class Tree:
    """The structure of a tree, without its leaves.

    Attributes
    ----------
    kind : int
        LEAF, EMPTY (a None among the parameters), DICT, SEQUENCE (list, tuple, namedtuple) or FIELDS (dataclass).
    container : type or None
        The type that held the children.
    keys : tuple
        Keys, indices or field names, one a child.
    children : tuple of Tree
    flat : bool
        Whether every child is a leaf.
    size : int
        The number of leaves below.
    """

    __slots__ = ("children", "container", "flat", "keys", "kind", "size")

    def __init__(
        self,
        kind: int,
        container: type | None = None,
        keys: tuple[Any, ...] = (),
        children: tuple[Tree, ...] = (),
    ) -> None:
        self.kind: int = kind
        self.container: type | None = container
        self.keys: tuple[Any, ...] = keys
        self.children: tuple[Tree, ...] = children
        self.flat: bool = all(child.kind == LEAF for child in children)
        self.size: int = 1 if kind == LEAF else sum(child.size for child in children)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tree, (self.kind, self.container, self.keys, self.children)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.__reduce__()[1] == other.__reduce__()[1]

    def paths(self, prefix: str = "") -> Iterator[str]:
        """The path of each leaf, keys joined by dots: ``"layer1.w"``, ``"0"``; ``""`` for a lone array."""
        if self.kind == LEAF:
            yield prefix
        container: Any = self.container
        names = container._fields if is_namedtuple(container) else self.keys
        for name, child in zip(names, self.children, strict=True):
            if child.kind == LEAF:
                yield join(prefix, name)
            else:
                yield from child.paths(join(prefix, name))

    def leaves(self, tree: Any, what: str = "gradient", prefix: str = "") -> Iterator[Any]:
        """The leaves of `tree`, which must have this structure.

        Parameters
        ----------
        tree : array or nested container
            Dicts are matched by key, lists and tuples by position, dataclasses by their type, or where the structure
            was loaded by their fields.
        what : str
            What to call a leaf in messages.
        prefix : str
            The path of `tree`.

        Yields
        ------
        object
            The leaves, in the order of the parameters, of any type.

        Raises
        ------
        ValueError
            If the structure differs; the message names the place and both sides.
        """
        if self.kind == LEAF:
            yield tree
        elif self.kind == EMPTY:
            if tree is not None:
                other = "in the tree that init() got it is" if what == "parameter" else "its parameter is"
                raise ValueError(f"{what} {prefix!r} is a {type(tree).__name__}, {other} None")
        else:
            self._check_container(tree, what, prefix)
            for key, child in zip(self.keys, self.children, strict=True):
                try:
                    value = getattr(tree, key) if self.kind == FIELDS else tree[key]
                except (AttributeError, KeyError) as error:
                    if self.kind == FIELDS or type(tree) is dict:  # what another container raises is its own
                        raise ValueError(f"{what} {join(prefix, key)!r} is missing") from error
                    raise
                if child.kind == LEAF:
                    yield value
                else:
                    yield from child.leaves(value, what, join(prefix, key))

    def _check_container(self, tree: Any, what: str, prefix: str) -> None:
        assert self.container is not None
        where = f"{what}s" + (f" at {prefix!r}" if prefix else "")
        others, hint = "the parameters", " (a parameter without a gradient has None)"
        if what == "parameter":
            others, hint = "those that init() got", ""
        alike: Any = {DICT: dict, SEQUENCE: (list, tuple), FIELDS: (self.container, Record)}[self.kind]
        if not isinstance(tree, alike) and not self._has_fields(tree):
            raise ValueError(f"{where} are a {type(tree).__name__}, {others} a {self.container.__name__}")
        if self.kind == DICT and tree.keys() != set(self.keys):
            missing = [key for key in self.keys if key not in tree]
            extra = [key for key in tree if key not in self.keys]
            raise ValueError(f"{where} do not have the keys of {others}: missing {missing}, not known {extra}{hint}")
        if self.kind == SEQUENCE and len(tree) != len(self.keys):
            raise ValueError(f"{where} are {len(tree)}, {others} {len(self.keys)}{hint}")

    def _has_fields(self, tree: Any) -> bool:
        """Whether `tree` is a dataclass with the fields of a Record, which stands for a class that is not known."""
        known = self.kind != FIELDS or not issubclass(self.container, Record)  # type: ignore[arg-type]
        if known or isinstance(tree, type) or not hasattr(type(tree), "__dataclass_fields__"):
            return False
        return tuple(field.name for field in dataclasses.fields(tree)) == self.keys

    def unflatten(self, leaves: Iterator[Any], *, read_only: bool = False) -> Any:
        """The tree of this structure over `leaves`.

        Parameters
        ----------
        leaves : iterator
            In the order of the containers.
        read_only : bool, default False
            Make containers whose leaves cannot be replaced: a ReadOnlyDict of a dict, a tuple of a list, a Record of a
            dataclass.

        Returns
        -------
        object
        """
        if self.kind == LEAF:
            return next(leaves)
        if self.kind == EMPTY:
            return None
        assert self.container is not None
        values = [child.unflatten(leaves, read_only=read_only) for child in self.children]
        if self.kind == DICT:
            return (ReadOnlyDict if read_only else dict)(zip(self.keys, values, strict=True))
        if self.kind == FIELDS:
            fields = dict(zip(self.keys, values, strict=True))
            if read_only:
                return Record(**fields)
            new: Any = object.__new__(self.container)
            for key, value in fields.items():
                object.__setattr__(new, key, value)
            return new
        if is_namedtuple(self.container):
            return tuple.__new__(self.container, values)  # a subclass may have a __new__ of other arguments
        return values if issubclass(self.container, list) and not read_only else tuple(values)


def flatten(tree: Any) -> tuple[list[Any], Tree]:
    """The leaves of a tree and its structure.

    Parameters
    ----------
    tree : array or nested dict, list, tuple, namedtuple or dataclass
        Anything that is none of these containers is a leaf, except None, which holds no leaf.

    Returns
    -------
    leaves : list
        In the order of the containers.
    structure : Tree

    Raises
    ------
    ValueError
        If containers are nested deeper than MAX_DEPTH, as those are that contain themselves.

    Examples
    --------
    >>> leaves, structure = flatten({"layer1": {"w": 1.0, "b": 2.0}, "scale": [3.0]})
    >>> leaves
    [1.0, 2.0, 3.0]
    >>> list(structure.paths())
    ['layer1.w', 'layer1.b', 'scale.0']
    """
    leaves: list[Any] = []
    return leaves, _structure(tree, leaves, 0)


_LEAF = Tree(LEAF)


def _structure(tree: Any, leaves: list[Any], depth: int) -> Tree:
    if depth > MAX_DEPTH:
        raise ValueError(f"the tree has containers that are nested deeper than {MAX_DEPTH}, or that contain themselves")
    if tree is None:
        return Tree(EMPTY)
    if isinstance(tree, dict):
        kind, keys = DICT, tuple(tree)
        values = [tree[key] for key in keys]
    elif isinstance(tree, list | tuple):
        kind, values = SEQUENCE, list(tree)
        keys = tuple(range(len(values)))
    elif isinstance(tree, Record):
        kind, keys, values = FIELDS, tuple(vars(tree)), list(vars(tree).values())
    elif hasattr(type(tree), "__dataclass_fields__"):
        kind, keys = FIELDS, tuple(field.name for field in dataclasses.fields(tree))
        values = [getattr(tree, key) for key in keys]
    else:
        leaves.append(tree)
        return _LEAF
    return Tree(kind, type(tree), keys, tuple([_structure(value, leaves, depth + 1) for value in values]))


def is_namedtuple(container: Any) -> bool:
    """Whether a type of containers has names for its items."""
    return container is not None and issubclass(container, tuple) and hasattr(container, "_fields")


def join(prefix: str, name: object) -> str:
    """The path of child `name` of the place `prefix`."""
    return f"{prefix}.{name}" if prefix else str(name)

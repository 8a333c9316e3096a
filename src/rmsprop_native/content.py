"""What a state is saved as: plain numbers, strings, lists and arrays; how it is described, and the one check of it."""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmsprop_native.arrays import arithmetic, bfloat16
from rmsprop_native.options import Options
from rmsprop_native.overrides import check_paths
from rmsprop_native.tree import DICT, EMPTY, FIELDS, LEAF, MAX_DEPTH, SEQUENCE, Record, Tree, is_namedtuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "FORMAT", "VERSION", "ArraySpec", "Content", "Leaf", "SavedSchedule", "axes_of", "buffer_dtype", "check_content",
    "check_count", "describe", "in_order", "match_leaves", "models_of", "refuse_negative",
]  # fmt: skip

FORMAT = "rmsprop_native state"
VERSION = 3

_KEYS = (
    "format", "version", "options", "overrides", "structure", "leaves", "step", "skipped", "accumulated", "seen",
)  # fmt: skip
_DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "complex64", "complex128")}
_MAX_KEY_DEPTH = 16  # of tuples
_MAX_NDIM = 64  # NumPy's own
_OPTIONS = tuple(field.name for field in fields(Options))
# Options by the version that has them first, with what they were before.
_NEW_IN: dict[int, dict[str, Any]] = {2: {"square_avg_dtype": None, "seed": 0}, 3: {"master_weights": True}}


class Leaf(NamedTuple):
    """What all buffers of a leaf have in common."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    """From the outermost in memory to the innermost."""
    tensor: bool
    """Whether the state shows them as torch tensors."""


class ArraySpec(NamedTuple):
    """An array of a saved state: what it is called, and how it lies in memory."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class SavedSchedule(NamedTuple):
    """Stands for a learning rate that is a function, which no file can hold."""

    name: str


class Content(NamedTuple):
    """A saved state without its arrays, checked."""

    options: dict[str, Any]
    """All of them; the learning rate may be a `SavedSchedule`."""
    overrides: list[tuple[str, dict[str, Any]]]
    """Patterns, and what they change; a learning rate may be a `SavedSchedule`, or the `ArraySpec` of an array."""
    structure: Tree
    leaves: list[Leaf]
    step: int
    skipped: int
    accumulated: int
    seen: bytes
    buffers: tuple[str, ...]
    """Their names."""

    def arrays(self) -> Iterator[ArraySpec]:
        """All arrays, in the order in which they are written: learning rates, then each buffer, leaf by leaf."""
        for _, changes in self.overrides:
            if isinstance(changes.get("lr"), ArraySpec):
                yield changes["lr"]
        for name in self.buffers:
            for i, leaf in enumerate(self.leaves):
                dtype = buffer_dtype(name, leaf.dtype, self.options["square_avg_dtype"])
                if dtype is not None:
                    yield ArraySpec(f"{name}/{i}", dtype, leaf.shape, leaf.axes)

    def bytes_of_element(self, leaf: Leaf) -> int:
        """Bytes that all buffers together have for an element of a leaf."""
        dtypes = (buffer_dtype(name, leaf.dtype, self.options["square_avg_dtype"]) for name in self.buffers)
        return sum(dtype.itemsize for dtype in dtypes if dtype is not None)


def buffer_dtype(name: str, dtype: np.dtype[Any], square_avg_dtype: str | None) -> np.dtype[Any] | None:
    """The dtype of a buffer of a leaf of this dtype; None where the leaf has no such buffer."""
    if name == "square_avg" and square_avg_dtype is not None:
        return bfloat16()
    wide = arithmetic(dtype)
    if name != "low_half":
        return wide
    return None if wide == dtype else np.dtype(np.uint16)


def axes_of(array: NDArray[Any]) -> tuple[int, ...]:
    """The axes of an array from the outermost in memory to the innermost: those of a C array are 0, 1, 2, ..."""
    return tuple(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))


def in_order(array: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """The elements of a dense array in the order of memory, as a view of one axis; `axes` is what `axes_of` said."""
    return array.transpose(axes).reshape(-1)


# ---- from a state ----


def describe(
    options: Options,
    overrides: Mapping[str, Mapping[str, Any]],
    structure: Tree,
    leaves: Sequence[Leaf],
    counts: Mapping[str, int],
    seen: bytes,
    *,
    plain: bool,
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """What `check_content` takes.

    Parameters
    ----------
    options : Options
    overrides : mapping of str to mapping
        As `check_overrides` returns them.
    structure : Tree
    leaves : sequence of Leaf
    counts : mapping of str to int
        `step`, `skipped` and `accumulated`.
    seen : bytes
        For each leaf whether it had a gradient since the last step, while accumulating.
    plain : bool
        Numbers, strings, bools, None, lists and dicts of strings only, as JSON can hold: a schedule is described by
        its name, and a dict key of another kind is refused. Otherwise both stay as they are.

    Returns
    -------
    content : dict
    rates : list of numpy.ndarray
        The learning rates that are arrays.

    Raises
    ------
    ValueError
        If a dict key is not plain, or the containers are nested too deep.
    """
    rates: list[NDArray[Any]] = []

    def value_of(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            rates.append(value)
            return {"array": f"lr/{len(rates) - 1}", "shape": list(value.shape)}
        return {"schedule": _name_of(value)} if plain and callable(value) else value

    content = {
        "format": FORMAT,
        "version": VERSION,
        "options": {name: value_of(getattr(options, name)) for name in _OPTIONS},
        "overrides": [
            [pattern, {name: value_of(value) for name, value in changes.items()}]
            for pattern, changes in overrides.items()
        ],
        "structure": list(_nodes(structure, plain, "")),
        "leaves": [
            {"path": path, "dtype": dtype.name, "shape": list(shape), "axes": list(axes), "tensor": tensor}
            for path, dtype, shape, axes, tensor in leaves
        ],
        **counts,
        "seen": list(seen),
    }
    return content, rates


def _name_of(function: Any) -> str:
    return function.__qualname__ if isinstance(function, types.FunctionType) else type(function).__qualname__


def _nodes(tree: Tree, plain: bool, path: str) -> Iterator[list[Any]]:
    """The nodes of a structure, each before its children."""
    container: Any = tree.container
    if tree.kind == LEAF:
        yield ["leaf"]
    elif tree.kind == EMPTY:
        yield ["none"]
    elif tree.kind == DICT:
        yield ["dict", [_saved_key(key, plain, path) for key in tree.keys]]
    elif tree.kind == FIELDS:
        yield ["dataclass", *_saved_names(container, tree.keys, path)]
    elif is_namedtuple(container):
        yield ["namedtuple", *_saved_names(container, container._fields, path)]
    else:
        yield ["list" if issubclass(container, list) else "tuple", len(tree.keys)]
    for key, child in zip(tree.keys, tree.children, strict=True):
        yield from _nodes(child, plain, f"{path}.{key}" if path else str(key))


def _saved_names(container: Any, names: Sequence[Any], path: str) -> tuple[str, list[str]]:
    if not all(map(_is_identifier, names)):
        raise ValueError(
            f"the fields of {path!r} are {list(names)}: only identifiers can be saved, without leading '__'"
        )
    return container.__name__ if _is_identifier(container.__name__) else "Record", list(names)


def _saved_key(key: Any, plain: bool, path: str, depth: int = 0) -> Any:
    if key is None or type(key) in (str, bool, int) or (type(key) is float and math.isfinite(key)):
        return key
    if type(key) is tuple and depth < _MAX_KEY_DEPTH:
        return [_saved_key(part, plain, path, depth + 1) for part in key]
    if plain:
        raise ValueError(
            f"a key of the dict {path!r} is {key!r}: only str, int, bool, None, finite floats and tuples of them "
            "can be saved"
        )
    return {"key": key}


# ---- from what was saved ----


def check_content(saved: object, *, extra: tuple[str, ...] = ()) -> Content:
    """Check what `describe` gave, wherever it has been since: the one check, whatever it was saved in.

    Parameters
    ----------
    saved : object
        Should be a mapping.
    extra : tuple of str
        Names that it has besides.

    Returns
    -------
    Content

    Raises
    ------
    ValueError
        If anything is missing, unknown, of the wrong kind, out of its range, or does not fit the rest.
    """
    try:
        return _checked(saved, extra)
    except (TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"this is no saved state: {error}") from error


def _checked(saved: object, extra: tuple[str, ...]) -> Content:
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        raise ValueError(f"this is no saved state: it does not say 'format': {FORMAT!r}")
    version = check_count("version", saved.get("version"))
    if not 1 <= version <= VERSION:
        hint = "use a newer rmsprop_native" if version > VERSION else "there is no such version"
        raise ValueError(
            f"the state was saved in version {version} of the format, this rmsprop_native reads 1 to {VERSION}: {hint}"
        )
    _check_names("the saved state", saved, (*_KEYS, *extra))
    new = {name: value for since, options in _NEW_IN.items() if version < since for name, value in options.items()}
    _check_names("its options", saved["options"], tuple(name for name in _OPTIONS if name not in new))
    options = {name: _checked_value(f"option {name}", value) for name, value in (new | saved["options"]).items()}
    overrides = _checked_overrides(saved["overrides"])
    structure = _checked_structure(saved["structure"])
    leaves = _checked_leaves(saved["leaves"], structure)
    for count, (name, spec) in enumerate(_arrays_of(overrides)):
        if spec.name != f"lr/{count}":
            raise ValueError(f"overrides[{name!r}] has the array {spec.name!r}, not 'lr/{count}'")
    if isinstance(options["lr"], ArraySpec):
        raise ValueError("option lr is an array; only overrides may have one")
    checked = Options(**(options | ({"lr": 0.0} if isinstance(options["lr"], SavedSchedule) else {})))
    step, skipped, accumulated = (check_count(name, saved[name]) for name in ("step", "skipped", "accumulated"))
    if accumulated >= checked.accumulate:
        raise ValueError(f"accumulated is {accumulated}, with accumulate={checked.accumulate}")
    seen = _list("seen", saved["seen"])
    if len(seen) != len(leaves) or any(type(flag) is not int or flag not in (0, 1) for flag in seen):
        raise ValueError(f"seen must be 0 or 1 for each of {len(leaves)} leaves")
    buffers = checked.buffers_for(leaf.dtype for leaf in leaves)
    return Content(options, overrides, structure, leaves, step, skipped, accumulated, bytes(seen), buffers)


def models_of(leaves: Sequence[Leaf]) -> list[NDArray[Any]]:
    """For each leaf an array of its shape, dtype and memory order. All are in the same memory, which is as large as the
    largest of them, and not to be read.
    """
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]
    memory = np.empty(max(sizes, default=0) + 1, np.uint8)
    models = []
    for leaf in leaves:
        strides = [0] * len(leaf.shape)
        stride = leaf.dtype.itemsize
        for axis in reversed(leaf.axes):
            strides[axis] = stride
            stride *= max(leaf.shape[axis], 1)
        models.append(np.ndarray(leaf.shape, leaf.dtype, memory, strides=strides))
    return models


def match_leaves(leaves: Sequence[Leaf], structure: Tree, models: list[NDArray[Any]]) -> list[int]:
    """For each saved leaf its index in another structure."""
    paths = list(structure.paths())
    check_paths(paths)
    places = {path: i for i, path in enumerate(paths)}
    saved = {leaf.path for leaf in leaves}
    if places.keys() != saved:
        missing = [path for path in paths if path not in saved]
        unknown = [path for path in saved if path not in places]
        raise ValueError(
            f"the saved leaves are not those of the parameters: missing {missing[:8]}, not known {sorted(unknown)[:8]}"
        )
    for leaf in leaves:
        model = models[places[leaf.path]]
        if leaf.shape != model.shape or leaf.dtype != model.dtype:
            raise ValueError(
                f"leaf {leaf.path!r} was saved with shape {leaf.shape} and {leaf.dtype}, the parameter has "
                f"{model.shape} and {model.dtype}"
            )
    return [places[leaf.path] for leaf in leaves]


_BLOCK = 1 << 16  # elements that a cache holds


def refuse_negative(name: str, path: str, array: NDArray[Any]) -> None:
    """Refuse a mean square that has a negative element; `path` is that of its leaf."""
    reals = in_order(array, axes_of(array)).view(array.real.dtype)
    for start in range(0, len(reals), _BLOCK):
        block = reals[start : start + _BLOCK]
        with np.errstate(invalid="ignore"):  # what the comparison of a NaN raises in bfloat16
            negative = block < 0
        if negative.any():
            raise ValueError(f"{name} (leaf {path!r}) has a negative mean square, {block[negative][0]}")


def check_count(name: str, value: object) -> int:
    """`value` as an int that is not negative and fits in 64 bits, and in a float."""
    if isinstance(value, bool | np.bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        count = int.__index__(operator.index(value))  # type: ignore[arg-type] # an exact int, or what is wanted raised
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not 0 <= count < 2**53:
        raise ValueError(f"{name} must be in [0, 2**53), got {count if abs(count) < 2**300 else 'a larger int'}")
    return count


def _check_names(what: str, found: object, expected: tuple[str, ...]) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"{what} must be a dict, got a {type(found).__name__}")
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        raise ValueError(f"{what} must have other names: missing {missing}, not known {unknown}")


def _list(what: str, value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what} must be a list, got a {type(value).__name__}")
    return list(value)


def _checked_value(what: str, value: Any) -> Any:
    """The value of an option, which `Options` checks, or what stands for a schedule or an array."""
    if not isinstance(value, dict):
        return value
    if set(value) == {"schedule"} and type(value["schedule"]) is str:
        return SavedSchedule(value["schedule"])
    if set(value) == {"array", "shape"} and type(value["array"]) is str:
        shape = _checked_shape(what, value["shape"], np.dtype(np.float64))
        if not shape:
            raise ValueError(f"{what} is an array without axes")
        return ArraySpec(value["array"], np.dtype(np.float64), shape, tuple(range(len(shape))))
    raise ValueError(f"{what} must be a number, a schedule or an array, got {value!r:.100}")


def _checked_overrides(saved: object) -> list[tuple[str, dict[str, Any]]]:
    """Overrides, whose values other than those of lr `check_overrides` checks."""
    checked: dict[str, dict[str, Any]] = {}
    for entry in _list("overrides", saved):
        pattern, changes = _list("an entry of overrides", entry)
        if not isinstance(pattern, str) or not isinstance(changes, Mapping):
            raise ValueError(f"overrides must be pairs of a pattern and a dict, got {entry!r:.100}")
        if pattern in checked:
            raise ValueError(f"overrides has the pattern {pattern!r} twice")
        checked[pattern] = {
            name: _checked_value(f"overrides[{pattern!r}] {name}", value) if name == "lr" else value
            for name, value in changes.items()
        }
    return list(checked.items())


def _arrays_of(overrides: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, ArraySpec]]:
    for pattern, changes in overrides:
        if isinstance(changes.get("lr"), ArraySpec):
            yield pattern, changes["lr"]


def _checked_shape(what: str, saved: object, dtype: np.dtype[Any]) -> tuple[int, ...]:
    shape = tuple([check_count(f"a length of {what}", length) for length in _list(f"the shape of {what}", saved)])
    if len(shape) > _MAX_NDIM or math.prod(max(length, 1) for length in shape) * dtype.itemsize >= 2**63:
        raise ValueError(f"{what} has a shape that no array can have, of {len(shape)} axes: {str(shape)[:100]}")
    return shape


def _checked_leaves(saved: object, structure: Tree) -> list[Leaf]:
    entries = _list("leaves", saved)
    paths = list(structure.paths())
    if len(entries) != len(paths):
        raise ValueError(f"there are {len(entries)} leaves, and {len(paths)} in the structure")
    check_paths(paths)
    leaves = []
    for path, entry in zip(paths, entries, strict=True):
        _check_names(f"leaf {path!r}", entry, ("path", "dtype", "shape", "axes", "tensor"))
        if entry["path"] != path:
            raise ValueError(f"a leaf is called {entry['path']!r}, and {path!r} in the structure")
        if type(entry["dtype"]) is not str or entry["dtype"] not in (*_DTYPES, "bfloat16"):
            raise ValueError(f"leaf {path!r} must be of {', '.join(_DTYPES)} or bfloat16, got {entry['dtype']!r:.100}")
        dtype = _DTYPES.get(entry["dtype"]) or bfloat16()
        shape = _checked_shape(f"leaf {path!r}", entry["shape"], dtype)
        axes = tuple([check_count(f"an axis of leaf {path!r}", axis) for axis in _list("axes", entry["axes"])])
        if sorted(axes) != list(range(len(shape))):
            raise ValueError(f"leaf {path!r} of {len(shape)} axes has them in the order {str(axes)[:100]}")
        if type(entry["tensor"]) is not bool:
            raise ValueError(f"leaf {path!r} must say whether it is a tensor, got {entry['tensor']!r:.100}")
        leaves.append(Leaf(path, dtype, shape, axes, entry["tensor"]))
    return leaves


# ---- the structure ----


def _checked_structure(saved: object) -> Tree:
    nodes = iter(_list("the structure", saved))
    structure = _checked_tree(nodes, {}, 0)
    if next(nodes, None) is not None:
        raise ValueError("the structure has more nodes than its containers hold")
    return structure


_LEAF_TREE = Tree(LEAF)


def _checked_tree(nodes: Iterator[Any], classes: dict[tuple[Any, ...], type], depth: int) -> Tree:
    """The tree whose nodes come next."""
    if depth > MAX_DEPTH:
        raise ValueError(f"the structure is nested deeper than {MAX_DEPTH}")
    node = next(nodes, None)
    if node is None:
        raise ValueError("the structure ends within a container")
    kind, *rest = _list("a node of the structure", node)
    if kind == "leaf" and not rest:
        return _LEAF_TREE
    if kind == "none" and not rest:
        return Tree(EMPTY)
    tree_kind, container, keys = _checked_container(kind, rest, classes)
    # A forged length fails where the nodes end, before memory is taken for it.
    children = [_checked_tree(nodes, classes, depth + 1) for _ in keys]
    return Tree(tree_kind, container, tuple(keys), tuple(children))


def _checked_container(
    kind: object, rest: list[Any], classes: dict[tuple[Any, ...], type]
) -> tuple[int, type, Sequence[Any]]:
    if kind in ("list", "tuple") and len(rest) == 1:
        return SEQUENCE, list if kind == "list" else tuple, range(check_count(f"the length of a {kind}", rest[0]))
    if kind == "dict" and len(rest) == 1:
        keys = [_checked_key(key) for key in _list("the keys of a dict", rest[0])]
        if len(set(keys)) != len(keys):
            raise ValueError("a dict of the structure has a key twice")
        return DICT, dict, keys
    if kind in ("namedtuple", "dataclass") and len(rest) == 2:
        name, names = rest[0], tuple(_list(f"the fields of a {kind}", rest[1]))
        if not _is_identifier(name) or not all(map(_is_identifier, names)) or len(set(names)) != len(names):
            raise ValueError(f"a {kind} of the structure has no proper names: {name!r:.100}, {str(names)[:100]}")
        made = classes.get((kind, name, names))
        if made is None:
            made = classes[kind, name, names] = _class_like(kind, name, names)
        return (FIELDS, made, names) if kind == "dataclass" else (SEQUENCE, made, range(len(names)))
    raise ValueError(f"a node of the structure is {[kind, *rest]!r:.100}")


def _checked_key(saved: Any) -> Any:
    if isinstance(saved, list | tuple):
        return tuple([_checked_key(part) for part in saved])
    if isinstance(saved, dict):
        if set(saved) != {"key"}:
            raise ValueError(f"a key of a dict of the structure is {saved!r:.100}")
        return saved["key"]
    return saved


def _is_identifier(name: object) -> bool:
    return type(name) is str and name.isidentifier() and not name.startswith("__")


def _class_like(kind: object, name: str, names: tuple[str, ...]) -> type:
    """What stands for a class that nothing saved may import: of its name and fields, and without its code."""
    if kind == "dataclass":
        return type(name, (Record,), {})
    places = {field: property(operator.itemgetter(i)) for i, field in enumerate(names)}
    return type(name, (tuple,), places | {"__slots__": (), "_fields": names})

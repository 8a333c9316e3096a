"""The manifest of a state that is saved in parts: which part has which elements of which leaf."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmsprop_native.content import Content, check_content, check_count
from rmsprop_native.fileformats import dumps, loads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["MANIFEST", "Manifest", "Shard", "is_part", "name_of", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"
FORMAT = "rmsprop_native sharded state"
VERSION = 1
_FILE = re.compile(r"part-[0-9a-f]{16}-\d+\.npz")


class Shard(NamedTuple):
    """Elements of a leaf, flattened in C order, that are in one part."""

    leaf: int
    start: int
    stop: int


class Manifest(NamedTuple):
    """A sharded state without its parts, checked."""

    content: Content
    """Of the whole state."""
    rates: dict[str, NDArray[np.float64]]
    """The learning rates that are arrays, under the names of their `ArraySpec`."""
    parts: list[tuple[str, list[Shard]]]
    """Each a file in the folder of the manifest, and the leaves of the state in it, in its order."""


def is_part(name: str) -> bool:
    """Whether a file has the name of a part.

    Examples
    --------
    >>> from rmsprop_native.shards import is_part
    >>> is_part("part-0123456789abcdef-12.npz"), is_part("manifest.json")
    (True, False)
    """
    return _FILE.fullmatch(name) is not None


def name_of(path: str, shard: Shard) -> str:
    """What the leaf of a part is called.

    Examples
    --------
    >>> from rmsprop_native.shards import Shard, name_of
    >>> name_of("layer1.w", Shard(0, 16, 32))
    'layer1.w[16:32]'
    """
    return f"{path}[{shard.start}:{shard.stop}]"


def write_manifest(
    described: Mapping[str, Any], rates: Sequence[NDArray[np.float64]], parts: Sequence[tuple[str, Sequence[Shard]]]
) -> bytes:
    """A manifest as it is written.

    Parameters
    ----------
    described, rates
        As `content.describe` gives them for the whole state, plain.
    parts : sequence of (str, sequence of Shard)
        As in `Manifest`.

    Returns
    -------
    bytes
        JSON.
    """
    return dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "state": described,
            "rates": [array.reshape(-1).tolist() for array in rates],
            "parts": [[file, [list(shard) for shard in shards]] for file, shards in parts],
        }
    )


def read_manifest(text: bytes) -> Manifest:
    """Check a manifest as if anybody had written it.

    Parameters
    ----------
    text : bytes

    Returns
    -------
    Manifest

    Raises
    ------
    ValueError
        If anything is missing, unknown, of the wrong kind, or if the parts do not have every element once.
    """
    saved = loads(text)
    try:
        return _checked(saved)
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"this is no manifest of a sharded state: {error}") from error


def _checked(saved: Any) -> Manifest:
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ValueError(f"this is no manifest of a sharded state: it does not say 'format': {FORMAT!r}")
    if check_count("version", saved.get("version")) != VERSION:
        raise ValueError(f"the manifest is of version {saved['version']}, this rmsprop_native reads {VERSION}")
    if set(saved) != {"format", "version", "state", "rates", "parts"}:
        raise ValueError(f"the manifest has the names {sorted(saved)}")
    content = check_content(saved["state"])
    specs = [spec for spec in content.arrays() if spec.name.startswith("lr/")]
    if not isinstance(saved["rates"], list) or len(saved["rates"]) != len(specs):
        raise ValueError(f"the manifest must have {len(specs)} arrays of learning rates")
    rates = {}
    for spec, numbers in zip(specs, saved["rates"], strict=True):
        array = np.array(numbers, np.float64)
        if array.size != np.prod(spec.shape):
            raise ValueError(f"{spec.name} has {array.size} numbers, not those of {spec.shape}")
        rates[spec.name] = array.reshape(spec.shape)
    return Manifest(content, rates, _checked_parts(saved["parts"], content))


def _checked_parts(saved: Any, content: Content) -> list[tuple[str, list[Shard]]]:
    parts: list[tuple[str, list[Shard]]] = []
    every: list[list[Shard]] = [[] for _ in content.leaves]
    for file, entries in saved:
        if type(file) is not str or not is_part(file):
            raise ValueError(f"a part is called {file!r:.100}")
        shards = [Shard(*[check_count("a place in a part", number) for number in entry]) for entry in entries]
        parts.append((file, shards))
        for shard in shards:
            every[shard.leaf].append(shard)
    if len({file for file, _ in parts}) != len(parts):
        raise ValueError("two parts are the same file")
    for leaf, shards in zip(content.leaves, every, strict=True):
        end = 0
        for shard in sorted(shards, key=lambda shard: shard.start):
            if shard.start != end or shard.stop <= end:
                raise ValueError(f"the parts do not have each element of leaf {leaf.path!r} once: see {end}")
            end = shard.stop
        if end != int(np.prod(leaf.shape)):
            raise ValueError(f"the parts have {end} elements of leaf {leaf.path!r}, of shape {leaf.shape}")
    return parts

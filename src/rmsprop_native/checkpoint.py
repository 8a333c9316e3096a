"""Checkpoints: a state in a file, whole or not at all, and back to the bit."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from rmsprop_native.atomic_file import BUFFER, replacing
from rmsprop_native.content import check_content, in_order, refuse_negative
from rmsprop_native.fileformats import MAX_HEADER, Npz, Safetensors, crc_text, dumps, loads
from rmsprop_native.shards import MANIFEST, name_of, read_manifest
from rmsprop_native.state import Given, State, like_of, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from rmsprop_native.content import ArraySpec, Content
    from rmsprop_native.fileformats import Place
    from rmsprop_native.options import Schedule
    from rmsprop_native.shards import Manifest, Shard
    from rmsprop_native.state import Like

    Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Advance: TypeAlias = Callable[[int], Any]

__all__ = ["load", "manifest_of", "reading", "save", "values_of", "write_content"]

_CHUNK = 1 << 20  # bytes that are read or written at a time: they stay in a cache from one use to the next


def save(path: Path, state: State, *, progress: bool = False) -> None:
    """Write a state to a file, from which `load` makes it again.

    The file is written under another name in the same folder, to disk, and gets its name then: whatever happens, at
    `path` is the old file or the new one. The state is inside a step while its arrays are read.

    Parameters
    ----------
    path : str, bytes or path-like
        A name that ends in ``.safetensors`` gives a file of that format, any other one an .npz file, which `numpy.load`
        can read too. docs/checkpoints.md describes both.
    state : State
        A learning rate that is a function is not saved; it must be given again to `load`.
    progress : bool, default False
        Show a progress bar, by tqdm if it is installed.

    Raises
    ------
    TypeError
        If `state` is no State.
    ValueError
        If a key of a dict among the parameters is no str, int, bool, None, finite float or tuple of them, a mean square
        is negative, or there are so many leaves that the header is too large (64 MiB, some 400,000 leaves).
    RuntimeError
        If the state is inside a step.
    OSError
        If the file cannot be written: what was there before is still there.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> path = os.path.join(tempfile.mkdtemp(), "state.npz")
    >>> params = {"w": np.ones(2)}
    >>> state = rms.init(params, lr=0.1, momentum=0.9)
    >>> rms.save(path, state)
    >>> rms.load(path)
    State(step=0, leaves=1, options=Options(lr=0.1, rho=0.9, momentum=0.9))
    >>> with np.load(path) as arrays:
    ...     sorted(arrays)
    ['header', 'momentum_buffer/0', 'square_avg/0']
    """
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, got {type(state).__name__}; a RMSProp has one, as .state")
    with replacing(path) as file, state._claim:
        described, arrays = state._described(plain=True)
        write_content(file, path, described, dict(arrays), progress=progress)


def write_content(
    file: BinaryIO,
    path: Path,
    described: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    progress: bool = False,
) -> None:
    """Write a state that `content.describe` described.

    Parameters
    ----------
    file : file object
        Empty.
    path : str, bytes or path-like
        Its name, whose ending decides the format.
    described : mapping
    arrays : mapping of str to numpy.ndarray
        Under the names of `Content.arrays`, in that order.
    progress : bool, default False

    Raises
    ------
    ValueError, OSError
        As `save`.
    """
    specs = list(check_content(described).arrays())
    # The checksums are not known yet, but their length is.
    layout = _layout(path)(specs, _text(described, dict.fromkeys(arrays, 0)))
    with _bar("saving", sum(spec.nbytes for spec in specs), progress) as advance:
        _write(file, layout, described, arrays, advance)


def load(
    path: Path,
    *,
    lr: float | Schedule | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    like: Any = None,
    progress: bool = False,
) -> State:
    """The state that `save` wrote: the next step gives the bits that it would have given.

    Everything in the file is checked, and nothing in it is executed.

    Parameters
    ----------
    path : str, bytes or path-like
        Its ending decides how it is read, as for `save`. A folder is what `rmsprop_native.interop.mpi.save` wrote; it
        needs no MPI.
    lr, overrides, like
        As for `from_state_dict`: what is given in place of what was saved, as it must be where that was a schedule; and
        the parameters, for tensors and classes of containers.
    progress : bool, default False
        Show a progress bar, by tqdm if it is installed.

    Returns
    -------
    State

    Raises
    ------
    ValueError
        If the file is truncated, changed, of another version, or not of `save`; if the leaves are not those of `like`;
        or if a schedule must be given. The message names the file, and the place.
    TypeError
        If `lr`, `overrides` or `like` are of the wrong kind.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> path = os.path.join(tempfile.mkdtemp(), "state.npz")
    >>> rms.save(path, rms.init(np.ones(2), lr=lambda step: 1 / (1 + step)))
    >>> rms.load(path, lr=0.5)
    State(step=0, leaves=1, options=Options(lr=0.5, rho=0.9))
    """
    given, params = Given(lr, overrides), None if like is None else like_of(like)
    if os.path.exists(os.path.join(os.fsdecode(path), MANIFEST)):
        return _load_parts(path, given, params, progress)
    with reading(path, progress=progress) as (content, read):
        return state_of(State, content, read, given, params)


@contextlib.contextmanager
def reading(
    path: Path, *, progress: bool = False
) -> Iterator[tuple[Content, Callable[[ArraySpec, NDArray[Any]], None]]]:
    """A file that `save` wrote, open and checked but for its arrays.

    Parameters
    ----------
    path : str, bytes or path-like
    progress : bool, default False

    Yields
    ------
    content : Content
    read : callable
        As `state_of` takes it.

    Raises
    ------
    ValueError, OSError
        As `load`; a ValueError of the body has the name of the file put before it too.
    """
    with _opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            text = _layout(path).read_text(file, size)
            header = loads(text)
            content = check_content(header, extra=("arrays",))
            specs = list(content.arrays())
            crcs = _crcs(header["arrays"], specs)
            layout = _layout(path)(specs, text)
            if size != layout.size:
                raise ValueError(f"it has {size} bytes, and must have {layout.size}: it is not whole, or was changed")
            _compare(file, 0, layout.start(text), "the begin of the file")
            after = layout.after(text, crcs)
            _compare(file, size - len(after), after, "the directory")
            with _bar("loading", sum(spec.nbytes for spec in specs), progress) as advance:
                yield content, _reader(file, layout, crcs, advance)
        except ValueError as error:
            raise ValueError(f"{os.fsdecode(path)}: {error}") from error


# ---- states in parts ----


def manifest_of(folder: Path) -> Manifest:
    """The manifest in a folder of a sharded state.

    Parameters
    ----------
    folder : str, bytes or path-like

    Returns
    -------
    Manifest

    Raises
    ------
    ValueError, OSError
        As `load`.
    """
    path = os.path.join(os.fsdecode(folder), MANIFEST)
    with _opened(path) as file:
        try:
            if os.fstat(file.fileno()).st_size > MAX_HEADER:
                raise ValueError(f"it is larger than {MAX_HEADER} bytes")
            manifest = read_manifest(file.read())
            for name, shards in manifest.parts:  # memory is taken for no more than is there
                size = os.path.getsize(os.path.join(os.fsdecode(folder), name))
                content = manifest.content
                each = [content.bytes_of_element(content.leaves[shard.leaf]) for shard in shards]
                if size < sum((shard.stop - shard.start) * count for shard, count in zip(shards, each, strict=True)):
                    raise ValueError(f"{name} has {size} bytes, fewer than its elements")
            return manifest
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def values_of(
    folder: Path, manifest: Manifest, wanted: Callable[[Shard], bool], *, progress: bool = False
) -> Iterator[tuple[str, Shard, NDArray[Any]]]:
    """The values in the parts of a sharded state, part by part.

    Parameters
    ----------
    folder : str, bytes or path-like
    manifest : Manifest
    wanted : callable
        Whether a shard is wanted; a part that has none of them is not opened.
    progress : bool, default False

    Yields
    ------
    name : str
        Of the buffer.
    shard : Shard
    values : numpy.ndarray, shape (stop - start,)

    Raises
    ------
    ValueError, OSError
        As `load`.
    """
    whole = manifest.content
    for name_of_file, shards in manifest.parts:
        if not any(map(wanted, shards)):
            continue
        with reading(os.path.join(os.fsdecode(folder), name_of_file), progress=progress) as (content, read):
            expected = [
                (
                    name_of(whole.leaves[shard.leaf].path, shard),
                    whole.leaves[shard.leaf].dtype,
                    (shard.stop - shard.start,),
                )
                for shard in shards
            ]
            if [(leaf.path, leaf.dtype, leaf.shape) for leaf in content.leaves] != expected:
                raise ValueError("its leaves are not those that the manifest says")
            for name in ("square_avg_dtype", "master_weights"):
                if content.options[name] != whole.options[name]:
                    raise ValueError(f"its {name} is {content.options[name]!r}, the manifest's {whole.options[name]!r}")
            has_halves = any(leaf.dtype.name == "bfloat16" for leaf in content.leaves)
            buffers = tuple(name for name in whole.buffers if name != "low_half" or has_halves)
            if content.buffers != buffers:
                raise ValueError(f"it has {', '.join(content.buffers)}, the manifest {', '.join(buffers)}")
            for spec in content.arrays():
                buffer, _, place = spec.name.partition("/")
                shard = shards[int(place)]
                if not wanted(shard):
                    continue
                values = np.empty(spec.shape, spec.dtype)
                read(spec, values)
                if buffer == "square_avg":
                    refuse_negative(spec.name, content.leaves[int(place)].path, values)
                yield buffer, shard, values


def _load_parts(folder: Path, given: Given, params: Like | None, progress: bool) -> State:
    """`load` of a folder: the state of one machine."""
    manifest = manifest_of(folder)
    content = manifest.content

    def read(spec: ArraySpec, out: NDArray[Any]) -> None:
        if spec.name in manifest.rates:
            out[...] = manifest.rates[spec.name]

    try:
        state = state_of(State, content, read, given, params)
    except ValueError as error:
        raise ValueError(f"{os.path.join(os.fsdecode(folder), MANIFEST)}: {error}") from error
    places = {path: i for i, path in enumerate(state._paths())}
    buffers = {name: state._plan.arrays(name) for name in content.buffers}
    for name, shard, values in values_of(folder, manifest, lambda shard: True, progress=progress):
        array = buffers[name][places[content.leaves[shard.leaf].path]]
        flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
        flat[shard.start : shard.stop] = values
    return state


def _layout(path: Path) -> type[Npz | Safetensors]:
    return Safetensors if os.fsdecode(path).endswith(".safetensors") else Npz


def _text(described: Mapping[str, Any], crcs: Mapping[str, int]) -> bytes:
    text = dumps({**described, "arrays": [[name, crc_text(crc)] for name, crc in crcs.items()]})
    if len(text) > MAX_HEADER - 256:
        raise ValueError(f"the header of so many leaves needs {len(text)} bytes, and {MAX_HEADER} can be saved")
    return text


def _write(
    file: BinaryIO,
    layout: Npz | Safetensors,
    described: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    advance: Advance,
) -> None:
    crcs = dict.fromkeys(arrays, 0)
    file.write(layout.start(_text(described, crcs)))
    late = []
    for name, place in layout.places.items():
        chunks = _chunks(arrays[name], place)
        crcs[name] = place.first_crc
        if arrays[name].nbytes <= _CHUNK:
            data = b"".join(chunks)
            crcs[name] = zlib.crc32(data, crcs[name])
            file.write(layout.before(name, crcs[name]))
            file.write(data)
            advance(len(data))
            continue
        file.write(layout.before(name, 0))
        for chunk in chunks:
            crcs[name] = zlib.crc32(chunk, crcs[name])
            file.write(chunk)
            advance(len(chunk))
        late.append(name)
    text = _text(described, crcs)
    file.write(layout.after(text, crcs))
    for name in late:  # the checksums of large arrays, and that of the header, are known only now
        file.seek(layout.places[name].start)
        file.write(layout.before(name, crcs[name]))
    file.seek(0)
    file.write(layout.start(text))


def _chunks(array: NDArray[Any], place: Place) -> Iterator[memoryview]:
    """The bytes of an array as they are stored, copied: another thread may write to a buffer, and its checksum must be
    that of what is in the file.
    """
    elements = in_order(array if array.dtype.kind in "fc" else array.view(np.uint16), place.axes)
    step = _CHUNK // place.dtype.itemsize
    for start in range(0, len(elements), step):
        yield np.array(elements[start : start + step], place.dtype).view(np.uint8).data


# ---- reading ----


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    def without_waiting(path: Path, flags: int) -> int:  # for a pipe
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", buffering=BUFFER, opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{os.fsdecode(path)}: it is no regular file")
        yield file


def _crcs(saved: object, specs: list[ArraySpec]) -> dict[str, int]:
    """The checksums in the header, of all arrays in their order."""
    names = [spec.name for spec in specs]
    if not isinstance(saved, list) or [entry[0] if isinstance(entry, list) else None for entry in saved] != names:
        raise ValueError("the header has not the arrays of its state")
    crcs = {}
    for entry in saved:
        if len(entry) != 2 or type(entry[1]) is not str or not re.fullmatch("[0-9a-f]{8}", entry[1]):
            raise ValueError(f"the header has no checksum of {entry[0]}")
        crcs[entry[0]] = int(entry[1], 16)
    return crcs


def _compare(file: BinaryIO, start: int, expected: bytes, what: str) -> None:
    file.seek(start)
    if file.read(len(expected)) != expected:
        raise ValueError(f"{what} is not what save writes for this header")


def _reader(
    file: BinaryIO, layout: Npz | Safetensors, crcs: Mapping[str, int], advance: Advance
) -> Callable[[ArraySpec, NDArray[Any]], None]:
    """What reads an array of the file into an array of its shape."""

    def read(spec: ArraySpec, out: NDArray[Any]) -> None:
        place = layout.places[spec.name]
        out = out if out.dtype.kind in "fc" else out.view(np.uint16)
        _compare(file, place.start, layout.before(spec.name, crcs[spec.name]), f"what stands before {spec.name}")
        in_file_order = out.transpose(place.axes)
        whole = in_file_order if in_file_order.flags.c_contiguous else np.empty(in_file_order.shape, out.dtype)
        elements = whole.reshape(-1)
        crc = place.first_crc
        step = _CHUNK // place.dtype.itemsize
        for start in range(0, len(elements), step):
            part = elements[start : start + step]
            chunk = part.view(np.uint8).data
            filled = 0
            while filled < len(chunk):
                count = file.readinto(chunk[filled:])  # type: ignore[attr-defined] # BinaryIO does not know it
                if not count:
                    raise ValueError(f"the file ends within {spec.name}")
                filled += count
            crc = zlib.crc32(chunk, crc)
            if not place.dtype.isnative:
                part.byteswap(inplace=True)
            advance(len(chunk))
        if crc != crcs[spec.name]:
            raise ValueError(
                f"{spec.name} is not what it was: its checksum is {crc_text(crc)}, in the header "
                f"{crc_text(crcs[spec.name])}"
            )
        if whole is not in_file_order:
            in_file_order[...] = whole

    return read


# ---- progress ----


@contextlib.contextmanager
def _bar(title: str, total: int, wanted: bool) -> Iterator[Advance]:
    """A function to call with the bytes that are done."""
    if not wanted:
        yield lambda count: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield _plain_bar(title, total)
        print(file=sys.stderr)
        return
    with tqdm(desc=title, total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield bar.update


def _plain_bar(title: str, total: int) -> Advance:
    done, shown = 0, -1

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        if shown != (shown := 100 * done // max(total, 1)):
            print(f"\r{title}: {shown} %", end="", file=sys.stderr, flush=True)

    return advance

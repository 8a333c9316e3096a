"""How a checkpoint lies in a file, to the byte: .npz and .safetensors.

Both have one form only for a given header, so that whatever lies around the arrays is compared with what must be there:
no size, offset or name of a file is believed. docs/checkpoints.md describes them.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rmsprop_native.content import ArraySpec

__all__ = ["MAX_HEADER", "Npz", "Place", "Safetensors", "crc_text", "dumps", "loads"]

MAX_HEADER = 64 << 20  # bytes; what is parsed takes some tens of times as much memory


_ORDER: Literal["<", ">"] = "<"  # of bytes: little-endian, whatever the machine is
_MAX_NESTING = 64  # keys that are tuples may be nested within the header, at most 16 deep
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class Place(NamedTuple):
    """Where an array lies in a file."""

    start: int
    """Of what comes before its elements."""
    data: int
    """Of its elements."""
    axes: tuple[int, ...]
    """Their order in the file, from the outermost axis to the innermost."""
    dtype: np.dtype[Any]
    """As they are stored: little-endian."""
    first_crc: int
    """The CRC-32 of what its checksum covers besides, before the elements."""


def crc_text(crc: int) -> str:
    """A CRC-32 as the header has it."""
    return f"{crc:08x}"


def dumps(value: Any) -> bytes:
    """JSON in ASCII, without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def loads(text: bytes) -> Any:
    """What JSON in ASCII says.

    Raises
    ------
    ValueError
        If it is none.
    """
    if _depth(text) > _MAX_NESTING:
        raise ValueError("its header is nested too deep")
    try:
        return json.loads(text.decode("ascii"), parse_constant=_no_constant)
    except ValueError as error:
        raise ValueError(f"its header is no JSON: {error}") from None


def _depth(text: bytes) -> int:
    """How deep JSON is nested. The parser calls itself for each level, and where the interpreter's limit of such calls
    has been raised, enough of them overflow the stack.
    """
    marks = np.frombuffer(_STRING.sub(b"", text), np.uint8)
    steps = np.isin(marks, list(b"[{")).astype(np.int8) - np.isin(marks, list(b"]}"))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """How an array is stored: little-endian, and bfloat16, which NumPy itself does not have, as its 16 bits."""
    return (dtype if dtype.kind in "fc" else np.dtype(np.uint16)).newbyteorder(_ORDER)


def _c_or_f(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The order that an .npy file can have for an array: its own, or that of C."""
    c = tuple(range(len(axes)))
    return axes if axes == c[::-1] else c


def _npy_start(descr: str, fortran_order: bool, shape: tuple[int, ...]) -> bytes:
    """What an .npy file of version 1.0 has before its elements."""
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran_order}, 'shape': {shape}, }}"
    size = (10 + len(text) + 1 + 63) // 64 * 64
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", size - 10) + text.ljust(size - 11).encode() + b"\n"


_BOTH = 0xFFFFFFFF  # sizes and offsets are in the extra field
_VERSION = 45  # the first that knows them
_DATE = 0x21  # 1980-01-01, the first that there is
_ALL = 0xFFFF
_LOCAL = struct.Struct("<4s5H3I2H")
_LOCAL_EXTRA = struct.Struct("<2H2Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_CENTRAL_EXTRA = struct.Struct("<2H3Q")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_HEADER = "header.npy"


class Npz:
    """An .npz file: a zip archive, stored and not compressed, in the form of zip64 whatever the sizes are.

    Parameters
    ----------
    specs : sequence of ArraySpec
        All arrays.
    text : bytes
        The header.
    """

    def __init__(self, specs: Sequence[ArraySpec], text: bytes) -> None:
        self.places: dict[str, Place] = {}
        self._npy: dict[str, bytes] = {}
        self._sizes = {}
        end = len(self.start(text))
        for spec in specs:
            axes, dtype = _c_or_f(spec.axes), _stored(spec.dtype)
            npy = _npy_start(dtype.str, axes != tuple(range(len(axes))), spec.shape)
            data = end + _LOCAL.size + len(f"{spec.name}.npy") + _LOCAL_EXTRA.size + len(npy)
            self.places[spec.name] = Place(end, data, axes, dtype, zlib.crc32(npy))
            self._npy[spec.name] = npy
            self._sizes[spec.name] = len(npy) + spec.nbytes
            end = data + spec.nbytes
        self.end = end
        central = sum(_CENTRAL.size + len(name) + 4 + _CENTRAL_EXTRA.size for name in (*self.places, "header"))
        self.size: int = end + central + _END64.size + _LOCATOR.size + _END.size

    @staticmethod
    def read_text(file: BinaryIO, size: int) -> bytes:
        """The header of a file of so many bytes."""
        start = file.read(_LOCAL.size + len(_HEADER) + _LOCAL_EXTRA.size)
        if not start.startswith(b"PK\3\4") or start[_LOCAL.size :][: len(_HEADER)] != _HEADER.encode():
            raise ValueError("it does not begin as an .npz checkpoint does, with a member of the name header")
        if len(start) < _LOCAL.size + len(_HEADER) + _LOCAL_EXTRA.size:
            raise ValueError("it ends within the header")
        *_, member_size = _LOCAL_EXTRA.unpack_from(start, len(start) - _LOCAL_EXTRA.size)
        npy_size = len(_npy_start("|u1", False, (member_size,)))
        if not npy_size <= member_size <= min(size, MAX_HEADER):
            raise ValueError(f"its header would have {member_size} bytes, which is too little or too much")
        text = file.read(member_size)[npy_size:]
        if start + _npy_start("|u1", False, (len(text),)) + text != Npz.start(text):
            raise ValueError("its header is not what its checksum says, or not in its place")
        return text

    @staticmethod
    def start(text: bytes) -> bytes:
        """The header as the first member."""
        npy = _npy_start("|u1", False, (len(text),)) + text
        return _local(_HEADER, len(npy), zlib.crc32(npy)) + npy

    def before(self, name: str, crc: int) -> bytes:
        """What stands before the elements of an array; `crc` is that of the member."""
        return _local(f"{name}.npy", self._sizes[name], crc) + self._npy[name]

    def after(self, text: bytes, crcs: Mapping[str, int]) -> bytes:
        """The directory of the archive."""
        npy = _npy_start("|u1", False, (len(text),)) + text
        central = [_central(_HEADER, len(npy), zlib.crc32(npy), 0)]
        for name, place in self.places.items():
            central.append(_central(f"{name}.npy", self._sizes[name], crcs[name], place.start))
        directory = b"".join(central)
        count, end = len(central), self.end + len(directory)
        return b"".join([
            directory,
            _END64.pack(b"PK\6\6", 44, _VERSION, _VERSION, 0, 0, count, count, len(directory), self.end),
            _LOCATOR.pack(b"PK\6\7", 0, end, 1),
            _END.pack(b"PK\5\6", 0, 0, _ALL, _ALL, _BOTH, _BOTH, 0),
        ])  # fmt: skip


def _local(name: str, size: int, crc: int) -> bytes:
    """The header of a member of a zip archive."""
    return (
        _LOCAL.pack(b"PK\3\4", _VERSION, 0, 0, 0, _DATE, crc, _BOTH, _BOTH, len(name), _LOCAL_EXTRA.size)
        + name.encode("ascii")
        + _LOCAL_EXTRA.pack(1, _LOCAL_EXTRA.size - 4, size, size)
    )


def _central(name: str, size: int, crc: int, offset: int) -> bytes:
    """Its entry in the directory."""
    return (
        _CENTRAL.pack(
            b"PK\1\2", _VERSION, _VERSION, 0, 0, 0, _DATE, crc, _BOTH, _BOTH, len(name), _CENTRAL_EXTRA.size,
            0, 0, 0, 0, _BOTH,
        )
        + name.encode("ascii")
        + _CENTRAL_EXTRA.pack(1, _CENTRAL_EXTRA.size - 4, size, size, offset)
    )  # fmt: skip


_SAFE_DTYPES = {"bfloat16": "BF16", "float32": "F32", "float64": "F64", "uint16": "U16"}
_SAFE_MAX = 100_000_000  # that readers of the format accept


class Safetensors:
    """A .safetensors file: the header is metadata; arrays in the order of C, complex numbers as pairs of reals.

    Parameters
    ----------
    specs : sequence of ArraySpec
        All arrays.
    text : bytes
        The header.
    """

    def __init__(self, specs: Sequence[ArraySpec], text: bytes) -> None:
        self.places: dict[str, Place] = {}
        self._entries: dict[str, Any] = {}
        placed = []
        end = 0
        # The larger types first, so that each array lies at a multiple of its item's size.
        for spec in sorted(specs, key=lambda spec: -np.empty(0, spec.dtype).real.dtype.itemsize):
            pair = (2,) if spec.dtype.kind == "c" else ()
            self._entries[spec.name] = {
                "dtype": _SAFE_DTYPES[np.empty(0, spec.dtype).real.dtype.name],
                "shape": [*spec.shape, *pair],
                "data_offsets": [end, end + spec.nbytes],
            }
            placed.append((spec, end))
            end += spec.nbytes
        begin = len(self.start(text))
        for spec, offset in placed:
            at = begin + offset
            self.places[spec.name] = Place(at, at, tuple(range(len(spec.shape))), _stored(spec.dtype), 0)
        self.size: int = begin + end

    @staticmethod
    def read_text(file: BinaryIO, size: int) -> bytes:
        """The header of a file of so many bytes."""
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _SAFE_MAX):
            raise ValueError("it does not begin as a .safetensors checkpoint does")
        found = loads(file.read(length))
        metadata = found.get("__metadata__") if isinstance(found, dict) else None
        if not isinstance(metadata, dict):
            raise ValueError("it has no metadata")
        text = metadata.get("rmsprop_native")
        if type(text) is not str or not text.isascii():
            raise ValueError("its metadata has no header of rmsprop_native")
        if metadata.get("crc32") != crc_text(zlib.crc32(text.encode())):
            raise ValueError("its header is not what its checksum says")
        return text.encode()

    def start(self, text: bytes) -> bytes:
        """All that comes before the arrays."""
        metadata = {"rmsprop_native": text.decode("ascii"), "crc32": crc_text(zlib.crc32(text))}
        start = dumps({"__metadata__": metadata} | self._entries)
        start += b" " * (-len(start) % 8)
        if len(start) > _SAFE_MAX:
            raise ValueError(f"a .safetensors file can have {_SAFE_MAX} bytes of header, this one needs {len(start)}")
        return struct.pack("<Q", len(start)) + start

    def before(self, name: str, crc: int) -> bytes:
        """Nothing stands before the elements of an array."""
        return b""

    def after(self, text: bytes, crcs: Mapping[str, int]) -> bytes:
        """Nothing comes after the arrays."""
        return b""

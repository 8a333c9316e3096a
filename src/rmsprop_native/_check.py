"""The check of this installation: every variant and preset on every instruction set, by hashes of the reference."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmsprop_native import _core, reference
from rmsprop_native.arrays import bfloat16
from rmsprop_native.functional import update_
from rmsprop_native.presets import PRESETS
from rmsprop_native.state import init

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["CASES", "SETS", "check", "hash_of", "numbers", "sets_here"]

_MOMENTUM: dict[str, dict[str, Any]] = {
    "": {}, "momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True}
}  # fmt: skip
_CENTERED: dict[str, dict[str, Any]] = {"": {}, "centered": {"centered": True}}
_L2: dict[str, dict[str, Any]] = {"": {}, "l2": {"weight_decay": 0.03}}


def _cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for m, c, w in itertools.product(_MOMENTUM, _CENTERED, _L2):
        loop = "_".join(filter(None, (m, c))) or "plain"
        yield "_".join(filter(None, (loop, w))), {"lr": 0.03, **_MOMENTUM[m], **_CENTERED[c], **_L2[w]}
    for preset in PRESETS:
        yield f"preset {preset}", {"preset": preset}


CASES = dict(_cases())
"""Keyword arguments of `init`, under the name of the compiled loop that they choose, or of a preset."""

DTYPES = {"f32": "f4", "f64": "f8", "c64": "c8", "c128": "c16"}
STEPS = 3
BUFFERS = ("square_avg", "momentum_buffer", "grad_avg", "low_half")
SIZE = 4096 + 37  # two spans, which threads divide


class Set(NamedTuple):
    """How the arrays of a step are stored."""

    param: str
    """A key of DTYPES, or "bf16"."""
    grad: str
    options: dict[str, Any]


_AVG16 = {"square_avg_dtype": "bfloat16", "seed": 2**40 + 3}
_ROUNDED = {"master_weights": False, "seed": 2**40 + 3}
SETS = {dtype: Set(dtype, dtype, {}) for dtype in DTYPES} | {
    "f32 avg16": Set("f32", "f32", _AVG16),
    "f32 grad16": Set("f32", "bf16", {}),
    "f32 grad16 avg16": Set("f32", "bf16", _AVG16),
    "split": Set("bf16", "bf16", {}),
    "split avg16": Set("bf16", "bf16", _AVG16),
    "split grad32": Set("bf16", "f32", {}),
    "rounded": Set("bf16", "bf16", _ROUNDED),
    "rounded avg16": Set("bf16", "bf16", _ROUNDED | _AVG16),
    "rounded grad32": Set("bf16", "f32", _ROUNDED),
}
"""All storages, under the names of EXPECTED."""

# SHA-256 of all cases of a set, made by the reference: tests/test_check.py makes them anew.
EXPECTED = {
    "f32": "97fdae177af48facd3ce61988152c267b26d4f9256c1fa0fc2b7b297a1fee91f",
    "f64": "ac6b108ed723593f694342ce76244421ec73a93e0c186baa3fcce1b312f0ab1b",
    "c64": "ff3c2c0f8f2034e41f7bc787e3da7d75fc551439189fcdb537cf584626e6266f",
    "c128": "400b99474dd5aab1538007b6599a0785365909c083406c96a64ae5a10766f94e",
    "f32 avg16": "275d7cb22a72ff30734daba1822abd096464285181936fed9b7dad36836357f7",
    "f32 grad16": "ca4e6f837390bcbf5398982acc9b145402368a2bca797445870e521e721028c1",
    "f32 grad16 avg16": "fac595c48b21e3812cd354f262f57b1c7dec0e362e8607deacc687f9bf8be7f2",
    "split": "448397072e038a6fbcac50656fb1a52d12dfb66f95aae54b6a9618d4b22f45f6",
    "split avg16": "ef05eb77546ea43e7102e6a0fadb8b8df417e8b1c39366b8f59406a2145ab03c",
    "split grad32": "6a2244ec94b0f0999b010fc4bbeeb9135b761f94acb8485204987f73a146dd45",
    "rounded": "b07826d2ea74a774a01a0cc9c47b5c803efac2a6d422684faba537d409080dd2",
    "rounded avg16": "8a640ad1b4afbba57467de71b4990244b1a77368ebf2936428ca3594c19b7543",
    "rounded grad32": "c5f9627d99faf4b066eb73b386b493ed28b50287e1ea1be575bcf80d706eb052",
}


def numbers(seed: int, n: int, dtype: str) -> NDArray[Any]:
    """Numbers that any language makes again, to the bit, of all magnitudes from 2**-12 to 8.

    Parameters
    ----------
    seed : int
        Another one gives other numbers.
    n : int
        How many.
    dtype : str
        A key of DTYPES, or "bf16". float32 holds each number exactly, bfloat16 has its upper half; a complex number is
        made of two that follow each other.

    Returns
    -------
    numpy.ndarray, shape (n,)

    Notes
    -----
    Number i comes from z, the i-th output of splitmix64 (Steele, Lea and Flood, 2014) whose state starts from `seed`:
    ``(1 + (z >> 41) * 2**-23) * 2**(z % 15 - 12)``, negative where ``z & 2**32``.

    Examples
    --------
    >>> from rmsprop_native._check import numbers
    >>> numbers(1, 2, "f64")
    array([ 0.01223876, -0.00681946])
    """
    if dtype == "bf16":
        upper = numbers(seed, n, "f32").view(np.uint32) >> np.uint32(16)
        return upper.astype(np.uint16).view(bfloat16())
    kind = np.dtype(DTYPES[dtype])
    count = 2 * n if kind.kind == "c" else n
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    sizes = np.ldexp(1 + (z >> np.uint64(41)).astype("f8") * 2.0**-23, (z % np.uint64(15)).astype("i4") - 12)
    signed = np.where(z & np.uint64(2**32), -sizes, sizes)
    made: NDArray[Any] = signed.astype(np.empty(0, kind).real.dtype).view(kind)
    return made


def hash_of(name: str, library: Any = None) -> str:
    """The SHA-256 of the parameters and buffers after each step of each case.

    Parameters
    ----------
    name : str
        A key of SETS.
    library : object, optional
        Has `init` and `update_`; the compiled step if left out.

    Returns
    -------
    str

    Examples
    --------
    >>> from rmsprop_native import reference
    >>> from rmsprop_native._check import hash_of
    >>> hash_of("f32") == hash_of("f32", reference)
    True
    """
    start, step = (init, update_) if library is None else (library.init, library.update_)
    found = hashlib.sha256()
    storage = SETS[name]
    first, *grads = (numbers(seed, SIZE, storage.grad if seed else storage.param) for seed in range(STEPS + 1))
    for options in CASES.values():
        param = first.copy()
        state = start(param, **options | storage.options)
        for grad in grads:
            step(param, grad, state)
            for array in (param, *(getattr(state, name) for name in BUFFERS)):
                if array is not None:
                    found.update(_bytes(np.asarray(array)))
    return found.hexdigest()


def _bytes(array: NDArray[Any]) -> bytes:
    """Those of little-endian numbers."""
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def sets_here() -> list[str]:
    """The names of the sets that can be checked: those with bfloat16 need ml_dtypes."""
    try:
        bfloat16()
    except ImportError:
        return list(DTYPES)
    return list(SETS)


def check() -> list[str]:
    """Compare the bits of this installation with those that the reference had where the package was made.

    Every variant and preset is stepped in every dtype and storage, on every instruction set of this processor, with one
    thread and with several, and by the reference in NumPy. Takes seconds.

    Returns
    -------
    list of str
        What differs; empty where all is well.

    Examples
    --------
    >>> from rmsprop_native._check import check
    >>> check()
    []
    """
    sets = sets_here()
    wrong = [f"reference, {kind}" for kind in sets if hash_of(kind, reference) != EXPECTED[kind]]
    isa, grain, threads = _core.isa(), _core.grain(), _core.num_threads()
    try:
        _core.set_grain(0)  # every step is divided
        for name, n in itertools.product(_core.isas(), sorted({1, 2, threads} if _core.has_threads() else {1})):
            _core.use_isa(name)
            _core.set_num_threads(n)
            wrong += [f"{name}, threads {n}, {kind}" for kind in sets if hash_of(kind) != EXPECTED[kind]]
    finally:
        _core.use_isa(isa)
        _core.set_grain(grain)
        _core.set_num_threads(threads)
    return wrong

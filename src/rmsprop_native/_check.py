"""The check of this installation: every variant and preset on every instruction set, by hashes of the reference."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from rmsprop_native import _core, reference
from rmsprop_native.functional import update_
from rmsprop_native.presets import PRESETS
from rmsprop_native.state import init

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["CASES", "check", "hash_of", "numbers"]

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

DTYPES = {"f32": "f4", "f64": "f8", "c64": "c8", "c128": "c16", "bf16": "f4"}
STORAGE: dict[str, dict[str, Any]] = {"bf16": {"square_avg_dtype": "bfloat16", "seed": 1}}
STEPS = 3
BUFFERS = ("square_avg", "momentum_buffer", "grad_avg")
_SIZE = 4096 + 37  # two spans, which threads divide

# SHA-256 of all cases of a dtype, made by the reference: tests/test_check.py makes them anew.
EXPECTED = {
    "f32": "97fdae177af48facd3ce61988152c267b26d4f9256c1fa0fc2b7b297a1fee91f",
    "f64": "ac6b108ed723593f694342ce76244421ec73a93e0c186baa3fcce1b312f0ab1b",
    "c64": "ff3c2c0f8f2034e41f7bc787e3da7d75fc551439189fcdb537cf584626e6266f",
    "c128": "400b99474dd5aab1538007b6599a0785365909c083406c96a64ae5a10766f94e",
    "bf16": "95174531dc9879250963243a5d97dd299302efd41893eea754dba7057ed2e41e",
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
        A key of DTYPES. float32 holds each number exactly; a complex number is made of two that follow each other.

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


def hash_of(dtype: str, library: Any = None) -> str:
    """The SHA-256 of the parameters and buffers after each step of each case.

    Parameters
    ----------
    dtype : str
        A key of DTYPES.
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
    first, *grads = (numbers(seed, _SIZE, dtype) for seed in range(STEPS + 1))
    for options in CASES.values():
        param = first.copy()
        state = start(param, **options | STORAGE.get(dtype, {}))
        for grad in grads:
            step(param, grad, state)
            for array in (param, *(getattr(state, name) for name in BUFFERS)):
                if array is not None:
                    bits = np.asarray(array.view("u2") if array.dtype.kind == "V" else array)  # bfloat16 is no kind
                    found.update(bits.astype(bits.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def check() -> list[str]:
    """Compare the bits of this installation with those that the reference had where the package was made.

    Every variant and preset is stepped in every dtype, on every instruction set of this processor, with one thread and
    with several, and by the reference in NumPy. A bfloat16 square_avg is, where ml_dtypes is installed. Takes seconds.

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
    dtypes = [dtype for dtype in DTYPES if dtype not in STORAGE or importlib.util.find_spec("ml_dtypes")]
    wrong = [f"reference, {dtype}" for dtype in dtypes if hash_of(dtype, reference) != EXPECTED[dtype]]
    isa, grain, threads = _core.isa(), _core.grain(), _core.num_threads()
    try:
        _core.set_grain(0)  # every step is divided
        for name, n in itertools.product(_core.isas(), sorted({1, 2, threads} if _core.has_threads() else {1})):
            _core.use_isa(name)
            _core.set_num_threads(n)
            wrong += [f"{name}, threads {n}, {dtype}" for dtype in dtypes if hash_of(dtype) != EXPECTED[dtype]]
    finally:
        _core.use_isa(isa)
        _core.set_grain(grain)
        _core.set_num_threads(threads)
    return wrong

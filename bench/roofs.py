"""What the machine can do at best: roofs.c, compiled here for each vector width, and called through ctypes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared"]
X86_WIDTHS = {
    "avx2": ["-mavx2"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"],
}
UNROLLS = (1, 2, 4)
ELEMENTS_A_CALL = 2**21  # 100 us and more, of which the call takes less than 1 %
DIVIDER_REPEATS = 2000
CTYPES = {"f32": ctypes.c_float, "f64": ctypes.c_double}


def libraries(isas: tuple[str, ...]) -> dict[str, ctypes.CDLL]:
    """The roofs for each vector width that this machine has, compiled if need be."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    widths = {name: flags for name, flags in X86_WIDTHS.items() if x86 and name in isas} or {"baseline": []}
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    loaded = {}
    for name, flags in widths.items():
        target = BUILD / f"roofs-{name}.so"
        if not target.exists() or target.stat().st_mtime < (HERE / "roofs.c").stat().st_mtime:
            subprocess.run([compiler, *FLAGS, *flags, HERE / "roofs.c", "-o", target, "-lm"], check=True)
        loaded[name] = ctypes.CDLL(str(target))
    return loaded


def streams(
    library: ctypes.CDLL, kind: str, unroll: int, threads: int, dtype: str, arrays: list[np.ndarray[Any, Any]]
) -> tuple[Callable[[], Any], float]:
    """Move the streams of a step over `arrays` (param, grad, square_avg and at most one buffer more): k1 or k3.

    Returns the call, and how many steps' work it does.
    """
    number = CTYPES[dtype]
    size = arrays[0].size
    repeats = max(1, ELEMENTS_A_CALL // size)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays] + [None] * (4 - len(arrays))
    arguments = (
        ctypes.c_int({"k1": 0, "k3": 1}[kind]),
        ctypes.c_int(UNROLLS.index(unroll)),
        ctypes.c_int(threads),
        ctypes.c_ssize_t(repeats),
        ctypes.c_ssize_t(size),
        *pointers,
        number(0),
        number(1),
    )
    function = getattr(library, f"streams_{dtype}")
    return (lambda: function(*arguments)), repeats


def divider(library: ctypes.CDLL, dtype: str, threads: int, size: int) -> tuple[Callable[[], Any], float]:
    """One square root and one division an element, as if `threads` dividers shared a step over `size` elements.

    Returns the call, and how many steps' work it does.
    """
    function = getattr(library, f"divider_{dtype}")
    function.restype = CTYPES[dtype]
    arguments = ctypes.c_ssize_t(DIVIDER_REPEATS), CTYPES[dtype](0.5)
    elements = DIVIDER_REPEATS * 512 // {"f32": 4, "f64": 8}[dtype]
    return (lambda: function(*arguments)), elements * threads / size

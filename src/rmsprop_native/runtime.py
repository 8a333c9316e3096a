"""Run-time control: the instruction set, the threads, and a report of both."""

from __future__ import annotations

import os
import warnings
from operator import index
from typing import Any, Literal, overload

import numpy as np

from rmsprop_native import _core

__version__ = "0.1.0"

_ISA_VARIABLE = "RMSPROP_NATIVE_ISA"
_FASTEST = "the fastest one of this processor"

# What other libraries and OpenMP go by too; a report has those that are set.
_VARIABLES = (
    _ISA_VARIABLE, "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_PROC_BIND", "OMP_PLACES",
    "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME", "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip

_why_isa = _FASTEST

__all__ = ["__version__", "get_include", "isa", "num_threads", "set_num_threads", "show_config", "use_isa"]


def get_include() -> str:
    """The folder of the C headers, for Cython modules that take steps without Python.

    Returns
    -------
    str
        The path, for ``include_dirs`` of an extension module that does ``cimport rmsprop_native._core``.
        docs/embed.md has an example.

    Examples
    --------
    >>> import os
    >>> import rmsprop_native as rms
    >>> "rmsp.h" in os.listdir(rms.get_include())
    True
    """
    return os.path.join(os.path.dirname(__file__), "include")


def isa() -> str:
    """The instruction set in use.

    Returns
    -------
    str
        ``"baseline"``, ``"avx2"`` or ``"avx512"``. At import the fastest one of this machine is chosen, or the one that
        the environment variable RMSPROP_NATIVE_ISA names. Where it names none of this machine, a RuntimeWarning says so
        and the fastest one is taken: results are the same to the bit.

    Examples
    --------
    >>> import rmsprop_native as rms
    >>> rms.isa() in ("baseline", "avx2", "avx512")
    True
    """
    return _core.isa()


def use_isa(name: str) -> None:
    """Use another instruction set from now on, in the whole process. Results stay the same to the bit.

    Parameters
    ----------
    name : str
        ``"baseline"``, ``"avx2"`` or ``"avx512"``.

    Raises
    ------
    ValueError
        If this machine or this build has no such instruction set; the message lists those it has.

    Examples
    --------
    >>> import rmsprop_native as rms
    >>> before = rms.isa()
    >>> rms.use_isa("baseline")
    >>> rms.isa()
    'baseline'
    >>> rms.use_isa(before)
    """
    if not _core.use_isa(name):
        raise ValueError(_no_isa(name))
    global _why_isa
    _why_isa = "use_isa chose it"


def _no_isa(name: str) -> str:
    return f"no instruction set {name!r} here; choose from {', '.join(map(repr, _core.isas()))}"


def _use_isa_of_environment() -> None:
    """Use the instruction set that the environment names; a name that is wrong costs speed only, so that it warns."""
    global _why_isa
    name = os.environ.get(_ISA_VARIABLE, "")
    if not name:
        return
    if _core.use_isa(name):
        _why_isa = f"the environment variable {_ISA_VARIABLE} chose it"
    else:
        text = f"{_ISA_VARIABLE} is ignored: {_no_isa(name)}; in use is {_core.isa()!r}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


_use_isa_of_environment()


def num_threads() -> int:
    """The number of threads that a large step may use.

    Returns
    -------
    int
        The number set by `set_num_threads`; else that of OpenMP, which follows OMP_NUM_THREADS and threadpoolctl, or 1
        where the library was built without OpenMP.

    Examples
    --------
    >>> import rmsprop_native as rms
    >>> rms.num_threads() >= 1
    True
    """
    return _core.num_threads()


def set_num_threads(n: int | None) -> None:
    """Set the number of threads that a large step may use. Results stay the same to the bit.

    Parameters
    ----------
    n : int or None
        From 1 to 4096; None for what OpenMP gives. Small steps stay on one thread in any case, and no more threads run
        than the calling thread's affinity mask has cores (`os.sched_getaffinity`).

    Raises
    ------
    TypeError
        If `n` is no integer.
    ValueError
        If `n` is out of range, or more than 1 where the system has no POSIX threads.

    Examples
    --------
    >>> import rmsprop_native as rms
    >>> rms.set_num_threads(1)
    >>> rms.num_threads()
    1
    >>> rms.set_num_threads(None)
    """
    if n is not None:
        n = index(n)
        if not 1 <= n <= _core.MAX_THREADS:
            raise ValueError(f"the number of threads must be from 1 to {_core.MAX_THREADS}, got {n}")
        if n > 1 and not _core.has_threads():
            raise ValueError("this build has no POSIX threads, so it has 1 thread only")
    _core.set_num_threads(n or 0)


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Show what this installation is, on which machine, and how it runs: what a bug report needs.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print, or return a dict.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        If `mode` is neither of these.

    Examples
    --------
    >>> import rmsprop_native as rms
    >>> config = rms.show_config("dicts")
    >>> config["instruction set"] == rms.isa(), config["threads"] == rms.num_threads()
    (True, True)
    """
    import platform  # imported here, since it takes a millisecond

    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    build = _core.build()
    config = {
        "rmsprop_native": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "implementation": f"{platform.python_implementation()}, {platform.python_compiler()}",
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "affinity": _affinity(),
        "instruction set": _core.isa(),
        "why this one": _why(build["compiled"]),
        "instruction sets": list(_core.isas()),
        "instruction sets compiled": build["compiled"],
        "threads": _core.num_threads(),
        "POSIX threads": _core.has_threads(),
        "OpenMP": build["OpenMP"],
        "compiler": build["compiler"],
        "build type": build["build type"],
        "flags": build["flags"],
        "flags of instruction sets": build["flags of instruction sets"],
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name}:{_shown(value)}")
    return None


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(f"\n  {key}: {of_key}" for key, of_key in value.items()) or " none"
    if isinstance(value, list):
        return f" {', '.join(value)}"
    return f" {'none' if value is None else value}"


def _why(compiled: list[str]) -> str:
    """Why the instruction set in use was chosen."""
    present = _core.isas()
    absent = [name for name in compiled if name not in present]
    why = _why_isa
    if why == _FASTEST and "avx512" in present and present[0] != "avx512":
        why += ", on which avx512 gains nothing"  # rmsp_dispatch.c has the reason
    return why + (f"; it has no {', '.join(absent)}" if absent else "")


def _processor() -> str:
    """The model of the processor, as the system calls it."""
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:  # not on Linux
        pass
    return platform.processor() or platform.machine()


def _affinity() -> str:
    """The cores that this thread may run on, such as "0-3,8"."""
    if not hasattr(os, "sched_getaffinity"):
        return "not known here"
    ranges: list[list[int]] = []
    for core in sorted(os.sched_getaffinity(0)):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ranges)

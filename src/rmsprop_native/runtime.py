"""Run-time control: the instruction set, the threads, and a report of both."""

from __future__ import annotations

from operator import index
from typing import Any, Literal, overload

import numpy as np

from rmsprop_native import _core

__version__ = "0.1.0"

__all__ = ["__version__", "isa", "num_threads", "set_num_threads", "show_config", "use_isa"]


def isa() -> str:
    """The instruction set in use.

    Returns
    -------
    str
        ``"baseline"``, ``"avx2"`` or ``"avx512"``. At import the fastest one of this machine is chosen.

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
        raise ValueError(f"no instruction set {name!r} here; choose from {', '.join(map(repr, _core.isas()))}")


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
    """Show what this installation is and how it runs; for reports.

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
    >>> sorted(rms.show_config("dicts"))
    ['instruction set', 'instruction sets', 'machine', 'numpy', 'python', 'rmsprop_native', 'threads']
    """
    import platform  # imported here, since it takes a millisecond

    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    config = {
        "rmsprop_native": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "instruction set": _core.isa(),
        "instruction sets": list(_core.isas()),
        "threads": _core.num_threads(),
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    return None

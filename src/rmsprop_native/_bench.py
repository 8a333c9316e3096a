"""The benchmark of an installed package: the step here, beside NumPy and what else is installed, on this machine."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rmsprop_native import _core
from rmsprop_native.arrays import bfloat16
from rmsprop_native.functional import update_
from rmsprop_native.runtime import show_config
from rmsprop_native.state import init

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeAlias

    from numpy.typing import NDArray

    Arrays: TypeAlias = list[NDArray[Any]]
    Call: TypeAlias = Callable[[], Any]
    # From parameters, gradients, mean squares and a number of threads to a step, which works on these arrays if it can.
    Peer: TypeAlias = Callable[[Arrays, Arrays, Arrays, int], Call]

__all__ = ["bench"]

LR, RHO, EPS = 1e-3, 0.9, 1e-8
WARM_UP = 5e-4  # seconds of calls that are not timed, before each part that is
PART = 2e-3  # seconds of calls that are timed together
ROUNDS = 3  # at least
CHECKED_STEPS = 3
ULPS = 8  # Each of some ten operations of three steps rounds, and torch and Numba may contract two of them into one.


# The peers. What is not installed raises ImportError. They are called as fast as they can be called: with buffers made
# beforehand, compiled, over the memory of the arrays that they are given.


def numpy_written(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
    """As people write it."""
    squares = list(squares)

    def step() -> None:
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            squares[i] = RHO * squares[i] + (1 - RHO) * g**2
            p -= LR * g / (np.sqrt(squares[i]) + EPS)

    return step


def numpy_out(params: Arrays, grads: Arrays, squares: Arrays, threads: int, block: int = 8192) -> Call:
    """With out= everywhere, in blocks that stay in the cache."""
    params, grads, squares = ([a.reshape(-1) for a in arrays] for arrays in (params, grads, squares))
    room = np.empty(min(block, max(p.size for p in params)), params[0].dtype)
    pieces = [
        (p[i : i + block], g[i : i + block], v[i : i + block], room[: len(p[i : i + block])])
        for p, g, v in zip(params, grads, squares, strict=True)
        for i in range(0, p.size, block)
    ]

    def step() -> None:
        for p, g, v, t in pieces:
            np.multiply(g, 1 - RHO, out=t)
            np.multiply(t, g, out=t)
            np.multiply(v, RHO, out=v)
            np.add(v, t, out=v)
            np.sqrt(v, out=t)
            np.add(t, EPS, out=t)
            np.divide(g, t, out=t)
            np.multiply(t, LR, out=t)
            np.subtract(p, t, out=p)

    return step


@cache
def _numba_loop(parallel: bool) -> Any:
    import numba

    def loop(p, g, v, rho, rest, lr, eps):  # type: ignore[no-untyped-def]
        for i in numba.prange(p.size):
            v[i] = rho * v[i] + rest * g[i] * g[i]
            p[i] -= lr * g[i] / (np.sqrt(v[i]) + eps)

    return numba.njit(parallel=parallel, error_model="numpy")(loop)


def numba_step(parallel: bool) -> Peer:
    """One loop, compiled, without or with threads."""

    def make(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
        loop = _numba_loop(parallel)
        number = params[0].dtype.type
        numbers = number(RHO), number(1 - RHO), number(LR), number(EPS)
        flat = ([a.reshape(-1) for a in arrays] for arrays in (params, grads, squares))
        leaves = list(zip(*flat, strict=True))

        def step() -> None:
            for p, g, v in leaves:
                loop(p, g, v, *numbers)

        return step

    return make


def _tensor(array: NDArray[Any]) -> Any:
    """A tensor of torch over the memory of an array."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch(foreach: bool) -> Peer:
    """The optimizer of torch, over each array by itself or with one call for all arrays."""

    def make(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
        import torch

        torch.set_num_threads(threads)
        leaves = [torch.nn.Parameter(_tensor(p)) for p in params]
        optimizer = torch.optim.RMSprop(leaves, lr=LR, alpha=RHO, eps=EPS, foreach=foreach)
        for leaf, g, v in zip(leaves, grads, squares, strict=True):
            leaf.grad = _tensor(g)
            optimizer.state[leaf] = {"step": torch.tensor(0.0), "square_avg": _tensor(v)}
        step: Call = optimizer.step
        return step

    return make


def _torch_fused_adagrad(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
    """Not RMSProp, but the nearest fused kernel of torch: the same bytes, one root and one division an element."""
    import torch

    torch.set_num_threads(threads)
    p, g, v = ([torch.from_numpy(a) for a in arrays] for arrays in (params, grads, squares))
    steps = [torch.tensor(1.0) for _ in p]

    def step() -> None:
        torch._fused_adagrad_(p, g, v, steps, lr=LR, lr_decay=0.0, weight_decay=0.0, eps=EPS, maximize=False)

    return step


ADAGRAD = "torch fused adagrad"
PEERS: dict[str, Peer] = {
    "numpy": numpy_written,
    "numpy out=": numpy_out,
    "numba": numba_step(parallel=False),
    "torch": _torch(foreach=False),
    "torch foreach": _torch(foreach=True),
    ADAGRAD: _torch_fused_adagrad,
}


BFLOAT16_PEERS = ("torch", "torch foreach")
"""Those that are compiled for it. They round to the nearest, ours stochastically: results are not compared."""


class Case(NamedTuple):
    """What is stepped: some arrays of `n` elements each; in bfloat16 gradients and square_avg are, too."""

    arrays: int
    n: int
    dtype: str

    def __str__(self) -> str:
        size = next((f"{self.n >> k} {unit}" for k, unit in ((20, "Mi"), (10, "Ki")) if self.n >> k), str(self.n))
        return f"{f'{self.arrays} x ' if self.arrays > 1 else ''}{size} {self.dtype}"


# Small arrays first, which then lie close together in memory, as in a program that has just begun.
CASES = (
    Case(1, 64, "float32"),
    Case(100, 64, "float32"),
    Case(1000, 64, "float32"),
    Case(1, 1 << 10, "float32"),
    Case(1, 1 << 14, "float32"),
    Case(1, 1 << 18, "float32"),
    Case(1, 1 << 22, "float32"),
    Case(1, 1 << 14, "float64"),
    Case(1, 1 << 20, "float64"),
    Case(1, 1 << 14, "bfloat16"),
    Case(1, 1 << 22, "bfloat16"),
)


def _cases_here() -> list[Case]:
    """The cases whose dtype is installed."""
    try:
        bfloat16()
    except ImportError:
        return [case for case in CASES if case.dtype != "bfloat16"]
    return list(CASES)


class Timing(NamedTuple):
    """One cell of the table: medians in seconds a step, of the peer and of `update_`, from the same rounds."""

    case: str
    peer: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """Their time over ours: below 1 where the peer is faster."""
        return self.theirs / self.ours

    @property
    def lost(self) -> bool:
        """Whether a peer is faster, in the digits that the table shows."""
        return self.peer != AGAIN and float(_digits(self.ratio)) < 1


AGAIN = "ours again"


def bench(seconds: float = 6.0) -> list[Timing]:
    """Measure the step on this machine beside NumPy, and beside Numba and torch where they are installed.

    Prints a table of the times of the peers over that of `update_`, those below 1 too, and under it the configuration
    (`show_config`). While it measures, it shows its progress on stderr if that is a terminal.

    Parameters
    ----------
    seconds : float, default 6.0
        About how long to measure. To import and compile the peers takes some seconds more; each case takes three
        rounds at least.

    Returns
    -------
    list of NamedTuple
        For each case and each peer: `case` and `peer`, their names; `ours` and `theirs`, seconds a step; `ratio`, their
        time over ours; `lost`, whether the peer is faster.

    Raises
    ------
    ValueError
        If `seconds` is negative or not finite.

    Notes
    -----
    The peers are the step in NumPy as people write it and with ``out=`` into buffers made beforehand, a loop compiled
    by Numba, torch's RMSprop, and torch's fused Adagrad, which is another rule with a step of about the same work.
    Cases in bfloat16 need ml_dtypes, and have no peers but torch's RMSprop.
    Before they are timed, some steps of each are compared with `update_`. In each round all are called, in another
    order each time, on the same arrays and over the same memory: the pages that an array happens to have change the
    time of a step. Each begins its part with calls that are not timed, so that it finds the arrays in the caches where
    they fit.

    All run on one thread, whatever `set_num_threads` says, which is put back afterwards: the pools of several libraries
    in one process would measure how they compete for the cores.

    Examples
    --------
    >>> import rmsprop_native as rms
    >>> timings = rms.bench(seconds=0.1)  # doctest: +ELLIPSIS
    Time of each peer over that of rms.update_; hot arrays, one thread, medians of interleaved rounds.
    ...
    >>> [timing.peer for timing in timings][:3]
    ['ours again', 'numpy', 'numpy out=']
    """
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"seconds must be finite and not negative, got {seconds}")
    with ExitStack() as at_end:
        at_end.callback(_core.set_num_threads, _core.set_num_threads(1))
        at_end.callback(_progress, "")
        _progress("importing torch")
        with suppress(Exception):  # the peers that need it will show why
            torch = import_module("torch")
            at_end.callback(torch.set_num_threads, torch.get_num_threads())
        differences, missing = compare()
        timings: list[Timing] = []
        cases = _cases_here()
        for i, case in enumerate(cases):
            _progress(f"measuring {i + 1} of {len(cases)}: {case}")
            timings += _time(case, differences, seconds / len(cases))
        _progress("")
        print("Time of each peer over that of rms.update_; hot arrays, one thread, medians of interleaved rounds.\n")
        print("\n".join([*table(timings), "", *notes(timings, differences, missing), ""]))
        show_config()
    return timings


def _progress(text: str) -> None:
    """Show on a terminal what is being done, in one line that the next text replaces."""
    is_terminal = getattr(sys.stderr, "isatty", None)  # without a console stderr may be None
    if is_terminal is not None and is_terminal():
        sys.stderr.write(f"\r{text:<60}\r")
        sys.stderr.flush()


def compare() -> tuple[dict[str, float], dict[str, str]]:
    """Step each peer beside ours: the peers that run, with the difference in units in the last place, and the others.

    This compiles what is compiled, too. Parameters begin at 0, so that the difference is one of their updates.
    """
    differences, missing = {}, {}
    rng = np.random.default_rng(7)
    for name, make in PEERS.items():
        _progress(f"preparing {name}")
        ulps = []
        try:
            for dtype in ("float32", "float64"):
                grads = [rng.standard_normal(1000).astype(dtype)]
                ours, theirs, squares = ([np.zeros_like(g) for g in grads] for _ in range(3))
                state = init(ours, lr=LR, rho=RHO, eps=EPS)
                step = make(theirs, grads, squares, 1)
                for _ in range(CHECKED_STEPS):
                    update_(ours, grads, state)
                    step()
                ulps.append(np.max(np.abs(ours[0] - theirs[0]) / np.spacing(np.abs(ours[0]))))
        except ModuleNotFoundError:
            missing[name] = "not installed"
        except Exception as error:  # noqa: BLE001 - whatever the version that is installed here raises
            missing[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        else:
            differences[name] = float(np.max(ulps))
    return differences, missing


def _time(case: Case, names: Iterable[str], seconds: float) -> list[Timing]:
    """Measure ours and the peers over the same arrays.

    With the same gradients at every step the mean squares stay between those of the gradients, and what Adagrad adds to
    them; the parameters move by about lr at a step. So no number becomes subnormal or infinite.
    """
    rng = np.random.default_rng(7)
    is_bfloat16 = case.dtype == "bfloat16"
    dtype = bfloat16() if is_bfloat16 else np.dtype(case.dtype)
    params, grads = ([rng.standard_normal(case.n).astype(dtype) for _ in range(case.arrays)] for _ in range(2))
    options: dict[str, Any] = {"square_avg_dtype": "bfloat16", "master_weights": False} if is_bfloat16 else {}
    state = init(params, lr=LR, rho=RHO, eps=EPS, **options)
    squares = list(state.square_avg)
    for square_avg, grad in zip(squares, grads, strict=True):
        square_avg[...] = grad * grad

    def ours() -> None:
        update_(params, grads, state)

    names = [name for name in names if not is_bfloat16 or name in BFLOAT16_PEERS]
    calls = {name: PEERS[name](params, grads, squares, 1) for name in names}
    medians = medians_of([ours, ours, *calls.values()], seconds)
    pairs = zip([AGAIN, *calls], medians[1:], strict=True)
    return [Timing(str(case), name, medians[0], theirs) for name, theirs in pairs]


def medians_of(calls: Sequence[Call], seconds: float) -> list[float]:
    """The median seconds of each call, over rounds in which each comes once, after another one each time."""
    repeats = []
    for call in calls:
        call()
        repeats.append(max(1, int(PART / _warm_up(call))))
    order = np.random.default_rng(7)
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < ROUNDS or time.perf_counter() < end:
        for i in order.permutation(len(calls)):
            call = calls[i]
            _warm_up(call)
            start = time.perf_counter()
            for _ in range(repeats[i]):
                call()
            times[i].append((time.perf_counter() - start) / repeats[i])
    return [float(np.median(of_call)) for of_call in times]


def _warm_up(call: Call) -> float:
    """Call until the caches are filled; seconds a call."""
    count, start, now = 0, time.perf_counter(), 0.0
    while now < start + WARM_UP:
        call()
        count, now = count + 1, time.perf_counter()
    return (now - start) / count


def _digits(number: float) -> str:
    """A number with two decimals, fewer where it is large."""
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"


def _title(peer: str) -> tuple[str, str]:
    """The name of a peer in two lines, as wide as a cell with its mark."""
    above, _, below = peer.rpartition(" ")
    return f"{above} ", f"{below}{'*' if peer == ADAGRAD else ' '}"


def table(timings: Sequence[Timing]) -> list[str]:
    """The lines of the table, a row for each case and a column for each peer."""
    peers = list(dict.fromkeys(timing.peer for timing in timings))
    cases = list(dict.fromkeys(timing.case for timing in timings))
    cells = {(timing.case, timing.peer): timing for timing in timings}
    above, below = zip(*map(_title, peers), strict=True)
    rows = [["", "ours", *above], ["", "(us)", *below]]
    for case in cases:
        of_case = [cells.get((case, peer)) for peer in peers]
        ratios = ["" if timing is None else _digits(timing.ratio) + ("<" if timing.lost else " ") for timing in of_case]
        rows.append([case, _digits(cells[case, peers[0]].ours * 1e6), *ratios])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def notes(timings: Sequence[Timing], differences: dict[str, float], missing: dict[str, str]) -> list[str]:
    """The lines under the table: where we lose, what the columns are, what was not measured."""
    lost = [timing for timing in timings if timing.lost]
    compared = sum(timing.peer != AGAIN for timing in timings)
    lines = [f"< A peer is faster, in {len(lost)} of {compared}{':' if lost else '.'}"]
    lines += [f"    {timing.case}: {timing.peer}, {_digits(timing.ratio)} of our time" for timing in lost]
    if any(timing.case.endswith("bfloat16") for timing in timings):
        lines.append("bfloat16: torch rounds to the nearest, where parameters stop to move; ours stochastically.")
    if ADAGRAD in differences:
        lines.append("* Not RMSProp, but the nearest fused kernel of torch.")
    lines.append("ours again: the same call twice in each round; what differs from 1 there is noise.")
    units = "units in the last place of ours"
    compared_to = {name: ulps for name, ulps in differences.items() if name != ADAGRAD}
    agree = [ulps for ulps in compared_to.values() if ulps <= ULPS]
    if agree:
        lines.append(f"Checked before: {CHECKED_STEPS} steps of each peer end within {max(agree):.2g} {units}.")
    for name, ulps in compared_to.items():
        if not ulps <= ULPS:  # NaN too
            lines.append(f"Another result: {CHECKED_STEPS} steps of {name} end {ulps:.2g} {units} away.")
    versions = [f"{name} {sys.modules[name].__version__}" for name in ("numba", "torch") if name in differences]
    if versions:
        lines.append(f"Versions: {', '.join(versions)}.")
    for reason in dict.fromkeys(missing.values()):
        names = ", ".join(name for name in missing if missing[name] == reason)
        lines.append(f"Not measured: {names} ({reason})"[:100])
    return lines

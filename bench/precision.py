"""What storage in 16 bits costs and gives: bytes, time on each instruction set, and error, for docs/precision.md.

Run `python bench/precision.py --page docs/precision.md`; it takes 3 minutes. Times are the least of rounds in which
every storage comes once, on one thread, over that of float32.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from report import markdown

import rmsprop_native as rms
from rmsprop_native import _core
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
AVG: dict[str, Any] = {"square_avg_dtype": "bfloat16"}
ROUNDED: dict[str, Any] = {"master_weights": False}
MODEL = 7e9  # parameters
SIZES = {"16 Ki": 1 << 14, "16 Mi": 1 << 24}
ISAS = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "SSE2"}
STEPS, LR = 1000, 1e-4
TORCH = "torch's own, all bfloat16"
SAME_AS_TORCH = "rounded, square_avg bfloat16"
MARKS = "<!-- Written by bench/precision.py: -->", "<!-- until here. -->"


class Storage(NamedTuple):
    """The types of parameters and gradients, and options."""

    param: np.dtype[Any]
    grad: np.dtype[Any]
    options: dict[str, Any]

    def arrays(self, n: int) -> tuple[NDArray[Any], NDArray[Any], rms.State]:
        """A parameter, a gradient of the size of its usual ones, and their state."""
        rng = np.random.default_rng(7)
        param, grad = (rng.standard_normal(n, np.float32) for _ in range(2))
        state = rms.init(param.astype(self.param), **self.options)
        state.square_avg[...] = grad * grad
        return param.astype(self.param), grad.astype(self.grad), state


STORAGES = {
    "float32": Storage(F32, F32, {}),
    "float32, square_avg bfloat16": Storage(F32, F32, AVG),
    "float32, gradient bfloat16": Storage(F32, BF16, {}),
    "float32, gradient and square_avg bfloat16": Storage(F32, BF16, AVG),
    "split": Storage(BF16, BF16, {}),
    "split, square_avg bfloat16": Storage(BF16, BF16, AVG),
    "rounded": Storage(BF16, BF16, ROUNDED),
    "rounded, square_avg bfloat16": Storage(BF16, BF16, ROUNDED | AVG),
}


def bytes_of(storage: Storage) -> tuple[int, int, int]:
    """Bytes of an element: of parameter and gradient, of the state, and read and written by a step."""
    param, grad, state = storage.arrays(1)
    kept = sum(leaf.nbytes for name in ("square_avg", "low_half") for leaf in flatten(getattr(state, name))[0])
    return param.nbytes + grad.nbytes, kept, 2 * (param.nbytes + kept) + grad.nbytes


def as_tensor(array: NDArray[Any]) -> Any:
    """A tensor of torch with the memory of an array."""
    import torch

    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def torch_step(param: NDArray[Any], grad: NDArray[Any]) -> Any:
    """A step of torch.optim.RMSprop on bfloat16."""
    import torch

    torch.set_num_threads(rms.num_threads())
    leaf = torch.nn.Parameter(as_tensor(param))
    leaf.grad = as_tensor(grad)
    return torch.optim.RMSprop([leaf], lr=LR, alpha=0.9, eps=1e-8).step


def calls_of(n: int, *, with_torch: bool) -> dict[str, Callable[[], Any]]:
    """A step of each storage on arrays of its own, and that of torch."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, storage in STORAGES.items():
        calls[name] = partial(rms.update_, *storage.arrays(n))
    if with_torch:
        param, grad, _ = STORAGES[SAME_AS_TORCH].arrays(n)
        calls[TORCH] = torch_step(param, grad)
    return calls


def times(n: int, rounds: int, *, with_torch: bool) -> dict[str, float]:
    """Nanoseconds an element of a step of each, the least of all rounds."""
    calls = calls_of(n, with_torch=with_torch)
    least = dict.fromkeys(calls, np.inf)
    repeats = max(1, (1 << 18) // n)
    order = np.random.default_rng(7)
    for _ in range(rounds):
        for name in order.permutation(list(calls)):
            call = calls[name]
            call()
            before = time.perf_counter()
            for _ in range(repeats):
                call()
            least[name] = min(least[name], (time.perf_counter() - before) / repeats / n * 1e9)
    return least


# ---- error ----


def gradients(step: int, n: int) -> NDArray[Any]:
    """Of a parameter with a direction of its own, in noise; bfloat16, so that all storages have the same."""
    rng = np.random.default_rng([11, step])
    directions = np.random.default_rng(3).standard_normal(n) / 2
    return (directions + rng.standard_normal(n)).astype(BF16)


def trained(step: Any, n: int) -> None:
    """Call a step with all gradients."""
    for k in range(STEPS):
        step(gradients(k, n))


def errors(n: int = 1 << 12) -> dict[str, tuple[float, float, float]]:
    """After 1000 steps, against float64 from the same parameters: the r.m.s. error of the parameters over what they
    moved, the same of those of `state.master`, and the mean of square_avg over the exact one, less 1.
    """
    start = np.random.default_rng(5).standard_normal(n).astype(BF16)
    exact = start.astype(np.float64)
    state = rms.init(exact, lr=LR, rho=0.999)
    trained(lambda grad: rms.update_(exact, grad.astype(np.float64), state), n)
    moved = np.sqrt(np.mean(np.square(exact - start.astype(np.float64))))

    def off(param: NDArray[Any]) -> float:
        return float(np.sqrt(np.mean(np.square(param.astype(np.float64) - exact))) / moved)

    def bias(square_avg: NDArray[Any]) -> float:
        return float(square_avg.astype(np.float64).mean() / state.square_avg.mean() - 1)

    found = {}
    for name, storage in STORAGES.items():
        param = start.astype(storage.param)
        of = rms.init(param, lr=LR, rho=0.999, **storage.options)
        trained(lambda grad, param=param, of=of, storage=storage: rms.update_(param, grad.astype(storage.grad), of), n)
        found[name] = off(param), off(of.master(param)), bias(of.square_avg)
    try:
        import torch
    except ImportError:
        return found
    param = start.copy()
    leaf = torch.nn.Parameter(as_tensor(param))
    optimizer = torch.optim.RMSprop([leaf], lr=LR, alpha=0.999, eps=1e-8)

    def step(grad: NDArray[Any]) -> None:
        leaf.grad = as_tensor(grad)
        optimizer.step()

    trained(step, n)
    square_avg = optimizer.state[leaf]["square_avg"].view(torch.int16).numpy().view(BF16)
    found[TORCH] = off(param), off(param), bias(square_avg)
    return found


# ---- the tables ----


def measured(rounds: int) -> dict[str, dict[str, float]]:
    """Under the title of each column the nanoseconds of each storage; none for an instruction set that is not here."""
    rms.set_num_threads(1)
    columns: dict[str, dict[str, float]] = {}
    for isa, title in ISAS.items():
        if isa not in _core.isas():
            columns[title] = {}
            continue
        rms.use_isa(isa)
        for size, n in SIZES.items():
            some = rounds if n > 1 << 20 else 20 * rounds
            columns[f"{title}, {size}"] = times(n, some, with_torch=isa == _core.isas()[0])
    return columns


def time_cell(name: str, column: dict[str, float]) -> str:
    """The time of float32, and that of others over it."""
    if not column:
        return "not measured here"
    if name not in column:
        return ""
    return f"{column[name]:.2f} ns" if name == "float32" else f"{column[name] / column['float32']:.2f}"


def table(columns: dict[str, dict[str, float]], found: dict[str, tuple[float, float, float]]) -> str:
    """One row for each storage."""
    head = ["storage", "held", "moved", *columns, "error of param", "of master", "bias of square_avg"]
    rows = []
    for name, (param, master, bias) in found.items():
        given, kept, moved = bytes_of(STORAGES.get(name, STORAGES[SAME_AS_TORCH]))
        cells = [time_cell(name, column) for column in columns.values()]
        of_master = "" if name == TORCH else f"{100 * master:.2g} %"
        rows.append(
            [name, f"{given} + {kept}", str(moved), *cells, f"{100 * param:.2g} %", of_master, f"{100 * bias:+.2g} %"]
        )
    return markdown(head, rows)


def table_of_model() -> str:
    """Bytes of MODEL parameters."""
    rows = []
    for name, storage in STORAGES.items():
        given, kept, moved = bytes_of(storage)
        rows.append([name, *(f"{MODEL * number / 1e9:.0f} GB" for number in (kept, given + kept, moved))])
    return markdown(["7e9 parameters", "state", "parameters, gradients and state", "moved by a step"], rows)


def main() -> None:
    """Measure; print the tables, and write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    text = "\n\n".join([table(measured(arguments.rounds), errors()), table_of_model()])
    print(text)
    if arguments.page:
        page = arguments.page.read_text()
        start, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
        arguments.page.write_text(f"{page[:start]}\n\n{text}\n\n{page[end:]}")


if __name__ == "__main__":
    main()

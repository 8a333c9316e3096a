"""The peers: the same step by other means, each called in its fastest way.

A peer is made from lists of parameters, gradients and mean squares, those that ours works on too, and is a call without
arguments. It works on this memory where it can; NumPy as written makes new mean squares at each step, and optax holds
all arrays of its own. What is not installed raises ImportError, which the benchmarks show as skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[Any]]
Call = Callable[[], Any]

LR, RHO, EPS = 1e-3, 0.9, 1e-8


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


def numexpr(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
    """Two expressions an array."""
    import numexpr as ne

    ne.set_num_threads(threads)
    number = params[0].dtype.type
    numbers = {"rho": number(RHO), "rest": number(1 - RHO), "lr": number(LR), "eps": number(EPS)}
    operands = [numbers | {"p": p, "g": g, "v": v} for p, g, v in zip(params, grads, squares, strict=True)]

    def step() -> None:
        for names in operands:
            ne.evaluate("rho * v + rest * g * g", names, out=names["v"])
            ne.evaluate("p - lr * g / (sqrt(v) + eps)", names, out=names["p"])

    return step


@cache
def _numba(parallel: bool) -> Any:
    import numba

    @numba.njit(parallel=parallel, error_model="numpy")  # type: ignore[untyped-decorator]
    def loop(p, g, v, rho, rest, lr, eps):  # type: ignore[no-untyped-def]
        for i in numba.prange(p.size):
            v[i] = rho * v[i] + rest * g[i] * g[i]
            p[i] -= lr * g[i] / (np.sqrt(v[i]) + eps)

    return loop


def _numba_step(parallel: bool) -> Callable[[Arrays, Arrays, Arrays, int], Call]:
    def make(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
        loop = _numba(parallel)
        number = params[0].dtype.type
        numbers = number(RHO), number(1 - RHO), number(LR), number(EPS)
        flat = ([a.reshape(-1) for a in arrays] for arrays in (params, grads, squares))
        leaves = list(zip(*flat, strict=True))

        def step() -> None:
            for p, g, v in leaves:
                loop(p, g, v, *numbers)

        return step

    return make


def _torch(foreach: bool) -> Callable[[Arrays, Arrays, Arrays, int], Call]:
    def make(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
        import torch

        torch.set_num_threads(threads)
        leaves = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        optimizer = torch.optim.RMSprop(leaves, lr=LR, alpha=RHO, eps=EPS, foreach=foreach)
        for leaf, g, v in zip(leaves, grads, squares, strict=True):
            leaf.grad = torch.from_numpy(g)
            optimizer.state[leaf] = {"step": torch.tensor(0.0), "square_avg": torch.from_numpy(v)}
        return optimizer.step

    return make


def torch_fused_adagrad(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
    """Not RMSProp, but the nearest fused kernel of torch: the same bytes, one root and one division an element."""
    import torch

    torch.set_num_threads(threads)
    p, g, v = ([torch.from_numpy(a) for a in arrays] for arrays in (params, grads, squares))
    steps = [torch.tensor(1.0) for _ in p]

    def step() -> None:
        torch._fused_adagrad_(p, g, v, steps, lr=LR, lr_decay=0.0, weight_decay=0.0, eps=EPS, maximize=False)

    return step


@cache
def _torch_compiled() -> Any:
    import torch

    torch._dynamo.config.recompile_limit = 64  # one compilation a size

    @torch.compile(dynamic=False)  # type: ignore[untyped-decorator]
    def compiled(p, g, v):  # type: ignore[no-untyped-def]
        for a, b, c in zip(p, g, v, strict=True):
            c.mul_(RHO).addcmul_(b, b, value=1 - RHO)
            a.addcdiv_(b, c.sqrt().add_(EPS), value=-LR)

    return compiled


def torch_compile(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
    """The step as one compiled function."""
    import torch

    torch.set_num_threads(threads)
    p, g, v = ([torch.from_numpy(a) for a in arrays] for arrays in (params, grads, squares))
    compiled = _torch_compiled()

    def step() -> None:
        with torch.no_grad():
            compiled(p, g, v)

    step()
    return step


def optax(params: Arrays, grads: Arrays, squares: Arrays, threads: int) -> Call:
    """Compiled as a whole, with parameters and state donated."""
    import jax
    import optax as library

    jax.config.update("jax_enable_x64", True)
    rule = library.rmsprop(LR, decay=RHO, eps=EPS, eps_in_sqrt=False)

    def whole(p: Any, state: Any, g: Any) -> Any:
        updates, state = rule.update(g, state, p)
        return library.apply_updates(p, updates), state

    compiled = jax.jit(whole, donate_argnums=(0, 1))
    held = [jax.numpy.asarray(p) for p in params]
    held_grads = [jax.numpy.asarray(g) for g in grads]
    box = [held, rule.init(held)]

    def step() -> None:
        box[:] = compiled(box[0], box[1], held_grads)
        jax.block_until_ready(box[0])

    return step


PEERS: dict[str, Callable[[Arrays, Arrays, Arrays, int], Call]] = {
    "numpy": numpy_written,
    "numpy out=": numpy_out,
    "numexpr": numexpr,
    "numba": _numba_step(parallel=False),
    "numba prange": _numba_step(parallel=True),
    "torch": _torch(foreach=False),
    "torch foreach": _torch(foreach=True),
    "torch fused adagrad": torch_fused_adagrad,
    "torch.compile": torch_compile,
    "optax jit": optax,
}


def numpy_with_rates(param: NDArray[Any], grad: NDArray[Any], square: NDArray[Any], lr: NDArray[Any]) -> Call:
    """As people write it, with rates that are rounded first: in float64 it takes longer."""
    squares = [square]

    def step() -> None:
        squares[0] = RHO * squares[0] + (1 - RHO) * grad**2
        np.subtract(param, lr.astype(param.dtype) * grad / (np.sqrt(squares[0]) + EPS), out=param)

    return step


@cache
def _numba_with_rates() -> tuple[Any, Any]:
    import numba

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def rows(p, g, v, lr, rho, rest, eps):  # type: ignore[no-untyped-def]
        for i in range(p.shape[0]):
            rate = np.float32(lr[i, 0])
            for j in range(p.shape[1]):
                w = rho * v[i, j] + rest * g[i, j] * g[i, j]
                v[i, j] = w
                p[i, j] -= rate * g[i, j] / (np.sqrt(w) + eps)

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def elements(p, g, v, lr, rho, rest, eps):  # type: ignore[no-untyped-def]
        for i in range(p.size):
            w = rho * v[i] + rest * g[i] * g[i]
            v[i] = w
            p[i] -= np.float32(lr[i]) * g[i] / (np.sqrt(w) + eps)

    return rows, elements


def numba_with_rates(param: NDArray[Any], grad: NDArray[Any], square: NDArray[Any], lr: NDArray[Any]) -> Call:
    """One fused loop: over rows, with the rate read once a row, or over all elements in one."""
    rows, elements = _numba_with_rates()
    numbers = np.float32(RHO), np.float32(1 - RHO), np.float32(EPS)
    if lr.shape[1] == 1:
        return lambda: rows(param, grad, square, lr, *numbers)
    flat = [a.reshape(-1) for a in (param, grad, square, lr)]
    return lambda: elements(*flat, *numbers)


RATE_PEERS: dict[str, Callable[[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], Call]] = {
    "numpy": numpy_with_rates,
    "numba": numba_with_rates,
}

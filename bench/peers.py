"""The peers: the same step by other means, each called in its fastest way.

A peer is made from lists of parameters, gradients and mean squares, those that ours works on too, and is a call without
arguments. It works on this memory where it can; NumPy as written makes new mean squares at each step, and optax holds
all arrays of its own. What is not installed raises ImportError, which the benchmarks show as skipped. The peers that
`rms.bench` measures too are in rmsprop_native._bench.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rmsprop_native._bench import EPS, LR, RHO, numba_step
from rmsprop_native._bench import PEERS as SHARED

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rmsprop_native._bench import Arrays, Call, Peer


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


PEERS: dict[str, Peer] = SHARED | {
    "numexpr": numexpr,
    "numba prange": numba_step(parallel=True),
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

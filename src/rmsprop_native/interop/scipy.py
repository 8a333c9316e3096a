"""RMSProp for SciPy: `rmsprop`, a method for scipy.optimize.minimize."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import OptimizeResult, approx_fprime

from rmsprop_native.functional import update_
from rmsprop_native.options import check_number
from rmsprop_native.state import init

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["rmsprop"]

_MESSAGES = {
    0: "Optimization terminated successfully: no element of the gradient is larger than tol.",
    1: "Maximum number of iterations has been exceeded.",
    2: "All iterations were taken; without tol there is no test of convergence.",
    3: "The gradient is not finite; the iteration that met it took no step.",
    99: "`callback` raised `StopIteration`.",
}


def rmsprop(
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    *,
    jac: Callable[..., Any] | None = None,
    hess: object = None,
    hessp: object = None,
    bounds: object = None,
    constraints: Any = (),
    callback: Callable[..., object] | None = None,
    tol: float | None = None,
    maxiter: int = 1000,
    disp: bool = False,
    **options: Any,
) -> Any:
    """Minimise a function by steps of RMSProp; for ``scipy.optimize.minimize(fun, x0, method=rmsprop, ...)``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)``, the number to be minimised.
    x0 : array_like, shape (n,)
        Where to start; float32 stays float32, other real numbers become float64. It is not changed.
    args : tuple, default ()
        Further arguments of `fun` and `jac`.
    jac : callable, optional
        ``jac(x, *args)``, the gradient, of shape (n,); or, for `minimize`, True if `fun` returns the number and the
        gradient. Without it the gradient is that of forward differences (scipy.optimize.approx_fprime), n + 1 values of
        `fun` each.
    hess, hessp, bounds, constraints
        Refused: RMSProp uses no Hessian, and its steps know no limits.
    callback : callable, optional
        Called after each step as ``callback(x)`` or, if its one parameter has this name,
        ``callback(intermediate_result=OptimizeResult)`` with `x` and `fun`. It may raise StopIteration.
    tol : float, optional
        Stop where no element of the gradient is larger in size. Without it all iterations are taken.
    maxiter : int, default 1000
        How many steps at most.
    disp : bool, default False
        Print how it ended.
    **options
        `preset`, `overrides` and the hyper-parameters of `rmsprop_native.init`: lr, rho, eps, ... `lr` may be a
        schedule, a function of the number of steps taken.

    Returns
    -------
    scipy.optimize.OptimizeResult
        `x` is where the last step ended, `fun` and `jac` are the number and the gradient there; `nit`, `nfev`, `njev`,
        `status`, `success`, `message`. The status is 0 within `tol`, 1 after `maxiter` without, 2 if no `tol` was given
        (a success), 3 if a gradient was not finite, 99 if the callback stopped it.

    Raises
    ------
    TypeError, ValueError
        If an option is not known or out of its range, x0 is not one-dimensional or not real, the gradient is of
        another shape, or bounds, constraints or a Hessian are given.

    Examples
    --------
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> from rmsprop_native.interop.scipy import rmsprop
    >>> options = {"maxiter": 5000, "lr": lambda taken: 0.01 * 0.999**taken}
    >>> result = minimize(rosen, [-1.0, 2.0], jac=rosen_der, method=rmsprop, options=options)
    >>> result.x.round(2), result.nit
    (array([1., 1.]), 5000)
    """
    for name, value in (("bounds", bounds), ("constraints", constraints), ("hess", hess), ("hessp", hessp)):
        if value is not None and not (isinstance(value, list | tuple | dict) and len(value) == 0):
            reason = "RMSProp uses no Hessian" if name.startswith("hess") else "a step of RMSProp knows no limits"
            instead = "" if name.startswith("hess") else "; use another method, or substitute the variables"
            raise ValueError(f"rmsprop takes no {name}: {reason}{instead}")
    if jac is not None and not callable(jac):
        raise TypeError(f"jac must be callable or None, got {jac!r}; scipy.optimize.minimize takes True as well")
    limit = None if tol is None else check_number("tol", tol, 0.0)
    last = int(check_number("maxiter", maxiter, 0.0))
    problem = _Problem(fun, jac, args)
    x = _start(x0)
    state = init(x, **options)

    status, nit, grad = 2 if limit is None else 1, 0, problem.gradient(x)
    report = _reporter(callback, problem)
    while True:
        if not np.isfinite(grad).all():
            status = 3
            break
        if limit is not None and np.abs(grad).max(initial=0.0) <= limit:
            status = 0
            break
        if nit == last:
            break
        update_(x, grad, state)
        nit += 1
        if report is not None and report(x):
            status = 99
            break
        grad = problem.gradient(x)

    value = problem.value(x)
    if status == 99:
        grad = problem.gradient(x)
    result = OptimizeResult(
        x=x,
        fun=value,
        jac=grad,
        nit=nit,
        nfev=problem.nfev,
        njev=problem.njev,
        status=status,
        success=status in (0, 2),
        message=_MESSAGES[status],
    )
    if disp:
        print(f"{result.message}\n  fun: {value}\n  nit: {nit}\n  nfev: {problem.nfev}\n  njev: {problem.njev}")
    return result


def _start(x0: Any) -> Any:
    """A new array to step, of what SciPy takes as x0."""
    x = np.atleast_1d(np.array(x0))
    if x.ndim != 1:
        raise ValueError(f"x0 must only have one dimension, got shape {x.shape}")
    if x.dtype.kind not in "biuf":
        raise TypeError(f"x0 must be real numbers, got dtype {x.dtype}")
    return x if x.dtype == np.float32 else x.astype(np.float64)


class _Problem:
    """A function and its gradient, which are given copies of x, and how often each was called."""

    def __init__(self, fun: Callable[..., Any], jac: Callable[..., Any] | None, args: Any) -> None:
        self.fun, self.jac = fun, jac
        self.args = args if isinstance(args, tuple) else (args,)
        self.nfev = self.njev = 0

    def value(self, x: Any) -> float:
        """The number at `x`."""
        self.nfev += 1
        value = np.asarray(self.fun(x.copy(), *self.args))
        if value.size != 1:
            raise ValueError(f"fun must return a number, got an array of shape {value.shape}")
        return float(value.item())

    def gradient(self, x: Any) -> Any:
        """The gradient at `x`, in its dtype."""
        self.njev += 1
        if self.jac is None:
            grad = approx_fprime(x, self.value, np.sqrt(np.finfo(x.dtype).eps))
        else:
            grad = np.atleast_1d(np.asarray(self.jac(x.copy(), *self.args)))
        if grad.dtype.kind not in "biuf":
            raise TypeError(f"jac must return real numbers, got dtype {grad.dtype}")
        return grad.astype(x.dtype, copy=False)


def _reporter(callback: Callable[..., object] | None, problem: _Problem) -> Callable[[Any], bool] | None:
    """`callback` in the form that its signature asks for; it returns whether to stop."""
    if callback is None:
        return None
    try:
        wants_result = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # a function without a signature, as some of C
        wants_result = False

    def report(x: Any) -> bool:
        result = OptimizeResult(x=x.copy(), fun=problem.value(x)) if wants_result else None
        try:
            if result is None:
                callback(x.copy())
            else:
                callback(intermediate_result=result)
        except StopIteration:
            return True
        return False

    return report

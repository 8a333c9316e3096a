"""interop.scipy: through scipy.optimize.minimize and by itself; against the step itself; what is refused; Qiskit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, OptimizeResult, minimize, rosen, rosen_der

import rmsprop_native as rms
from rmsprop_native.interop.scipy import rmsprop

START = [1.3, 0.7, 0.8, 1.9, 1.2]
QUICK = {"lr": 0.01, "maxiter": 20}


def both(x):
    return rosen(x), rosen_der(x)


def stepped(x, steps, gradient=rosen_der, **options):
    """The bits that `steps` steps of the library give."""
    x = np.array(x, dtype=np.float64)
    state = rms.init(x, **options)
    for _ in range(steps):
        rms.update_(x, gradient(x), state)
    return x


def test_converges_like_a_method_of_scipy():
    result = minimize(
        rosen, START, jac=rosen_der, method=rmsprop, tol=1e-4,
        options={"lr": lambda taken: 0.01 * 0.9995**taken, "maxiter": 30_000, "rho": 0.99},
    )  # fmt: skip
    assert result.success
    assert result.status == 0
    assert result.nit < 30_000
    assert np.abs(result.jac).max() <= 1e-4
    np.testing.assert_allclose(result.x, minimize(rosen, START, jac=rosen_der, method="BFGS").x, atol=1e-3)


@pytest.mark.parametrize("preset", [None, "keras", "autograd"])
def test_bits_are_those_of_the_step(preset):
    result = minimize(rosen, START, jac=rosen_der, method=rmsprop, options=QUICK | {"preset": preset, "momentum": 0.5})
    assert np.array_equal(result.x, stepped(START, 20, preset=preset, lr=0.01, momentum=0.5))


def test_the_result_is_complete():
    result = minimize(rosen, START, jac=rosen_der, method=rmsprop, options=QUICK)
    assert isinstance(result, OptimizeResult)
    assert set(result) == {"x", "fun", "jac", "nit", "nfev", "njev", "status", "success", "message"}
    assert (result.nit, result.nfev, result.njev) == (20, 1, 21)
    assert result.fun == rosen(result.x)
    assert np.array_equal(result.jac, rosen_der(result.x))
    assert (result.status, result.success) == (2, True)
    late = minimize(rosen, START, jac=rosen_der, method=rmsprop, tol=1e-12, options=QUICK)
    assert (late.status, late.success, late.nit) == (1, False, 20)
    assert late.message == "Maximum number of iterations has been exceeded."


@pytest.mark.parametrize("maxiter", [0, 1, 2.0])
def test_few_iterations(maxiter):
    result = minimize(rosen, START, jac=rosen_der, method=rmsprop, options={"maxiter": maxiter, "lr": 0.01})
    assert result.nit == maxiter
    assert np.array_equal(result.x, stepped(START, int(maxiter), lr=0.01))
    at_the_end = minimize(rosen, np.ones(3), jac=rosen_der, method=rmsprop, tol=0.0, options={"maxiter": 5})
    assert (at_the_end.status, at_the_end.nit) == (0, 0)


def test_jac_true_calls_the_function_once_a_point():
    calls = []

    def counted(x):
        calls.append(x)
        return both(x)

    result = minimize(counted, START, jac=True, method=rmsprop, options=QUICK)
    assert np.array_equal(result.x, stepped(START, 20, lr=0.01))
    assert len(calls) == 21


def test_arguments():
    def fun(x, target, scale):
        return scale * ((x - target) ** 2).sum()

    def jac(x, target, scale):
        return 2 * scale * (x - target)

    for args in ((np.array([1.0, 2.0]), 3.0),):
        result = minimize(fun, [0.0, 0.0], args=args, jac=jac, method=rmsprop, options={"lr": 0.05, "maxiter": 300})
        np.testing.assert_allclose(result.x, [1.0, 2.0], atol=0.06)
    lone = minimize(
        lambda x, a: ((x - a) ** 2).sum(), 0.0, args=2.0, jac=lambda x, a: 2 * (x - a), method=rmsprop,
        options={"lr": 0.05, "maxiter": 300},
    )  # fmt: skip
    np.testing.assert_allclose(lone.x, [2.0], atol=0.06)


STARTS = {
    "list": ([1, 2, 3], np.float64),
    "ints": (np.array([1, 2, 3]), np.float64),
    "number": (2.0, np.float64),
    "float32": (np.array([1, 2, 3], np.float32), np.float32),
    "float16": (np.array([1, 2, 3], np.float16), np.float64),
    "read-only": (np.broadcast_to(1.5, 3), np.float64),
    "strided": (np.arange(6.0)[::2], np.float64),
    "empty": ([], np.float64),
}


@pytest.mark.parametrize("name", STARTS)
def test_x0_as_scipy_takes_it(name):
    x0, dtype = STARTS[name]
    before = np.array(x0)
    result = minimize(lambda x: (x**2).sum(), x0, jac=lambda x: 2 * x, method=rmsprop, options={"maxiter": 3})
    assert result.x.shape == np.atleast_1d(before).shape
    if before.size:  # SciPy's own methods take no empty ones
        theirs = minimize(lambda x: (x**2).sum(), x0, method="Nelder-Mead", options={"maxiter": 1})
        assert theirs.x.shape == result.x.shape
    assert result.x.dtype == dtype
    assert np.array_equal(x0, before)


def test_without_a_gradient_differences_are_taken():
    result = minimize(rosen, START, method=rmsprop, options=QUICK)
    np.testing.assert_allclose(result.x, stepped(START, 20, lr=0.01), rtol=1e-5)
    assert result.nfev == 21 * 6 + 1
    single = minimize(rosen, np.array(START, np.float32), method=rmsprop, options=QUICK)
    assert single.x.dtype == np.float32
    np.testing.assert_allclose(single.x, result.x, rtol=0.02)


def test_callbacks_in_both_forms():
    xs, results = [], []
    minimize(rosen, START, jac=rosen_der, method=rmsprop, callback=xs.append, options=QUICK)

    def keep(intermediate_result):
        results.append(intermediate_result)

    minimize(rosen, START, jac=rosen_der, method=rmsprop, callback=keep, options=QUICK)
    assert len(xs) == len(results) == 20
    for taken, (x, result) in enumerate(zip(xs, results, strict=True), 1):
        assert np.array_equal(x, result.x)
        assert result.fun == rosen(x)
        assert np.array_equal(x, stepped(START, taken, lr=0.01))


@pytest.mark.parametrize("form", ["x", "intermediate_result"])
def test_a_callback_may_stop(form):
    calls = []

    def by_x(x):
        calls.append(x)
        if len(calls) == 3:
            raise StopIteration

    def by_result(intermediate_result):
        by_x(intermediate_result.x)

    callback = by_x if form == "x" else by_result
    result = minimize(rosen, START, jac=rosen_der, method=rmsprop, callback=callback, options=QUICK)
    assert (result.nit, result.status, result.success) == (3, 99, False)
    assert np.array_equal(result.x, calls[-1])
    assert result.fun == rosen(result.x)
    assert np.array_equal(result.jac, rosen_der(result.x))
    calls[:] = calls[:2]
    theirs = minimize(rosen, START, jac=rosen_der, method="BFGS", callback=callback)
    assert (theirs.status, theirs.success, theirs.message) == (99, False, result.message)


def test_only_the_callback_stops():
    """A StopIteration of the function itself passes through."""

    def fun(x):
        raise StopIteration("of fun")

    def callback(intermediate_result):
        pass

    with pytest.raises(StopIteration, match="of fun"):
        minimize(fun, START, jac=rosen_der, method=rmsprop, callback=callback, options=QUICK)


def test_what_callables_get_is_theirs():
    """They may change it."""

    def spoiled(function):
        def call(x):
            value = function(x)
            x[...] = np.nan
            return value

        return call

    result = minimize(
        spoiled(rosen), START, jac=spoiled(rosen_der), method=rmsprop, callback=spoiled(rosen), options=QUICK
    )
    assert np.array_equal(result.x, stepped(START, 20, lr=0.01))


def test_a_gradient_that_is_not_finite_stops():
    def jac(x):
        return rosen_der(x) if x[0] > 1.28 else np.full(5, np.nan)

    result = minimize(rosen, START, jac=jac, method=rmsprop, options=QUICK)
    assert (result.status, result.success) == (3, False)
    assert np.isfinite(result.x).all()
    assert np.array_equal(result.x, stepped(START, result.nit, lr=0.01))


def test_disp(capsys):
    minimize(rosen, START, jac=rosen_der, method=rmsprop, options=QUICK | {"disp": True})
    printed = capsys.readouterr().out
    assert "nit: 20" in printed
    assert "All iterations were taken" in printed


def test_rates_of_elements():
    rates = np.array([0.5, 0.0])
    result = minimize(
        lambda x: (x**2).sum(), [1.0, 1.0], jac=lambda x: 2 * x, method=rmsprop,
        options={"maxiter": 1, "overrides": {"": {"lr": rates}}},
    )  # fmt: skip
    assert result.x[0] < 0
    assert result.x[1] == 1.0


REFUSED = {
    "bounds": ({"bounds": [(0, 1)] * 5}, ValueError, "takes no bounds: a step of RMSProp knows no limits; use another"),
    "Bounds": ({"bounds": Bounds(0, 1)}, ValueError, "rmsprop takes no bounds"),
    "constraints": ({"constraints": {"type": "eq", "fun": sum}}, ValueError, "rmsprop takes no constraints"),
    "hess": ({"hess": lambda x: x}, ValueError, "rmsprop takes no hess: RMSProp uses no Hessian"),
    "hessp": ({"hessp": lambda x, p: x}, ValueError, "rmsprop takes no hessp: RMSProp uses no Hessian"),
    "option": ({"options": {"learning_rate": 0.1}}, TypeError, "no option 'learning_rate'; did you mean 'lr'"),
    "lr": ({"options": {"lr": -1.0}}, ValueError, "lr must be finite and >= 0"),
    "maxiter": ({"options": {"maxiter": -1}}, ValueError, "maxiter must be finite and >= 0, got -1.0"),
    "tol": ({"tol": -1.0}, ValueError, "tol must be finite and >= 0"),
    "x0": ({"x0": np.ones((2, 2))}, ValueError, "must only have one dimension"),
    "complex x0": ({"x0": [1j]}, TypeError, "x0 must be real numbers, got dtype complex128"),
    "jac": ({"jac": lambda x: x[:2]}, ValueError, r"the gradient has shape \(2,\), its parameter has \(5,\)"),
    "complex jac": ({"jac": lambda x: x * 1j}, TypeError, "jac must return real numbers, got dtype complex128"),
    "fun": ({"fun": lambda x: x}, ValueError, r"fun must return a number, got an array of shape \(5,\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments, error, message = REFUSED[name]
    arguments = {"fun": rosen, "x0": START, "jac": rosen_der, "method": rmsprop} | arguments
    with pytest.raises(error, match=message):
        minimize(**arguments)


def test_by_itself():
    result = rmsprop(rosen, START, jac=rosen_der, lr=0.01, maxiter=20)
    assert np.array_equal(result.x, stepped(START, 20, lr=0.01))
    with pytest.raises(TypeError, match="jac must be callable or None, got True; scipy.optimize.minimize takes True"):
        rmsprop(both, START, jac=True)


def test_qiskit():
    """Qiskit's SciPyOptimizer passes on neither gradients nor bounds for a method that it does not know."""
    from qiskit_algorithms.optimizers import SciPyOptimizer
    from qiskit_algorithms.optimizers.optimizer import OptimizerSupportLevel

    optimizer = SciPyOptimizer(rmsprop, options=QUICK)
    result = optimizer.minimize(rosen, np.array(START), bounds=[(0, 2)] * 5)
    np.testing.assert_allclose(result.x, stepped(START, 20, lr=0.01), rtol=1e-5)
    assert result.nit == 20

    class WithGradient(SciPyOptimizer):
        def __init__(self, **options):
            super().__init__(rmsprop, options=options)
            self._gradient_support_level = OptimizerSupportLevel.supported

    result = WithGradient(**QUICK).minimize(rosen, np.array(START), jac=rosen_der)
    assert np.array_equal(result.x, stepped(START, 20, lr=0.01))
    assert (result.nfev, result.njev) == (1, 21)

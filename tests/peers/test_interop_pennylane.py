"""interop.pennylane: beside PennyLane's own class, on a circuit too; what may change between steps; what is refused."""

from __future__ import annotations

import copy
import pickle
import time

import numpy as np
import pennylane as qml
import pytest
from pennylane import numpy as pnp

import rmsprop_native as rms
from rmsprop_native.interop.pennylane import RMSPropOptimizer


def arguments(rng, dtype=np.float64):
    """Trained arguments of several shapes, and one that is not trained."""
    return [
        pnp.array(rng.standard_normal((2, 3)).astype(dtype), requires_grad=True),
        pnp.array(rng.standard_normal(4).astype(dtype), requires_grad=False),
        pnp.array(dtype(rng.standard_normal()), requires_grad=True),
    ]


def gradients(rng, args):
    return tuple(
        rng.standard_normal(arg.shape).astype(arg.dtype) for arg in args if getattr(arg, "requires_grad", False)
    )


def close(one, other, rtol=1e-13):
    """PennyLane divides the learning rate by the root before it multiplies, which rounds differently."""
    np.testing.assert_allclose(np.array(one), np.array(other), rtol=rtol, atol=rtol)


def test_steps_like_pennylane():
    """Numbers change between steps, as by a schedule; afterwards both are reset."""
    rng = np.random.default_rng(1)
    ours, theirs = RMSPropOptimizer(0.1, decay=0.8, eps=1e-6), qml.RMSPropOptimizer(0.1, decay=0.8, eps=1e-6)
    mine = its = arguments(rng)
    assert ours.accumulation is theirs.accumulation is None
    for step in range(60):
        if step == 20:
            ours.stepsize = theirs.stepsize = 0.02
        if step == 30:
            ours.decay, ours.eps = theirs.decay, theirs.eps = 0.95, 1e-3
        if step == 40:
            ours.reset()
            theirs.reset()
            assert ours.accumulation is None
        grads = gradients(rng, mine)
        mine, its = ours.apply_grad(grads, mine), theirs.apply_grad(grads, its)
        assert [type(arg) for arg in mine] == [type(arg) for arg in its] == [pnp.tensor] * 3
        assert [arg.requires_grad for arg in mine] == [True, False, True]
        for one, other in zip(mine, its, strict=True):
            assert one.shape == other.shape
            close(one, other)
        for one, other in zip(ours.accumulation, theirs.accumulation, strict=True):
            close(one, other)
    assert ours.accumulation[1] == 0.0


def test_bits_are_those_of_the_preset():
    rng = np.random.default_rng(2)
    optimizer, args = RMSPropOptimizer(0.1), arguments(rng)
    params = [np.array(args[0]), np.array(args[2])]
    state = rms.init(params, preset="pennylane", lr=0.1)
    for _ in range(5):
        grads = gradients(rng, args)
        args = optimizer.apply_grad(grads, args)
        rms.update_(params, [np.asarray(g) for g in grads], state)
    assert np.array_equal(args[0], params[0])
    assert np.array_equal(args[2], params[1])


@pytest.mark.parametrize("with_cost", [False, True])
def test_trains_a_circuit(with_cost):
    """As in PennyLane's tutorials: through QNodes, keyword arguments, one argument and several."""
    device = qml.device("default.qubit", wires=1)

    @qml.qnode(device)
    def circuit(x, y, *, shift=0.0):
        qml.RX(x[0] + shift, wires=0)
        qml.RY(y, wires=0)
        return qml.expval(qml.PauliZ(0))

    ends = []
    for optimizer in (RMSPropOptimizer(stepsize=0.1), qml.RMSPropOptimizer(stepsize=0.1)):
        x, y = pnp.array([0.3], requires_grad=True), pnp.array(0.2, requires_grad=True)
        for _ in range(30):
            if with_cost:
                (x, y), cost = optimizer.step_and_cost(circuit, x, y, shift=0.1)
                assert isinstance(float(cost), float)
            else:
                x, y = optimizer.step(circuit, x, y, shift=0.1)
        ends.append((x, y))
        one = optimizer.step(lambda z: (z - 1.0) ** 2, pnp.array(0.0, requires_grad=True)) if with_cost else None
        assert one is None or isinstance(one, pnp.tensor)
    for mine, its in zip(*ends, strict=True):
        close(mine, its, rtol=1e-9)
    assert circuit(*ends[0], shift=0.1) < -0.9


def test_a_gradient_function_of_the_user():
    optimizer = RMSPropOptimizer(0.1)
    x, y = pnp.array([1.0, 2.0], requires_grad=True), pnp.array(3.0, requires_grad=True)
    new = optimizer.step(lambda x, y: 0.0, x, y, grad_fn=lambda x, y: (2 * x, np.float64(1.0)))
    assert isinstance(new, list)
    assert new[1] < y
    assert isinstance(optimizer, qml.RMSPropOptimizer)


def test_arguments_are_not_changed():
    rng = np.random.default_rng(3)
    args = arguments(rng)
    before = [np.array(arg) for arg in args]
    new = RMSPropOptimizer(0.1).apply_grad(gradients(rng, args), tuple(args))
    assert new[1] is args[1]
    assert all(np.array_equal(arg, old) for arg, old in zip(args, before, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_dtypes_follow_pennylane(dtype):
    arg = pnp.array(np.array([1, 2], dtype), requires_grad=True)
    for grad in (np.ones(2), np.ones(2, np.float32)):
        (mine,) = RMSPropOptimizer(0.5).apply_grad((grad,), (arg,))
        (its,) = qml.RMSPropOptimizer(0.5).apply_grad((grad,), (arg,))
        assert mine.dtype == (its.dtype if dtype != np.int64 else np.float64)
        close(mine, its, rtol=1e-6)


def test_dtype_and_trained_arguments_may_change():
    """The means that there are go on."""
    rng = np.random.default_rng(4)
    ours, theirs = RMSPropOptimizer(0.1), qml.RMSPropOptimizer(0.1)
    args = arguments(rng)
    for trained in ((True, False, True), (False, True, True), (True, True, False)):
        for arg, requires in zip(args, trained, strict=True):
            arg.requires_grad = requires
        grads = gradients(rng, args)
        mine, its = ours.apply_grad(grads, args), theirs.apply_grad(grads, args)
        for one, other in zip((*mine, *ours.accumulation), (*its, *theirs.accumulation), strict=True):
            close(one, other)
    single = pnp.array(np.ones(2, np.float32), requires_grad=True)
    optimizer = RMSPropOptimizer(0.1)
    (single,) = optimizer.apply_grad((np.ones(2, np.float32),), (single,))
    (single,) = optimizer.apply_grad((np.ones(2),), (single,))
    assert single.dtype == optimizer.accumulation[0].dtype == np.float64
    close(optimizer.accumulation[0], [0.19, 0.19], rtol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies_go_on_alike(copied):
    rng = np.random.default_rng(5)
    optimizer, args = RMSPropOptimizer(0.1), arguments(rng)
    grads = gradients(rng, args)
    args = optimizer.apply_grad(grads, args)
    other = copied(optimizer)
    for one, its in zip(optimizer.apply_grad(grads, args), other.apply_grad(grads, args), strict=True):
        assert np.array_equal(one, its)


def test_numbers_may_be_arrays_of_pennylane():
    arg = pnp.array([1.0, 2.0], requires_grad=True)
    (one,) = RMSPropOptimizer(pnp.array(0.1), decay=np.float32(0.5)).apply_grad((np.ones(2),), (arg,))
    (other,) = RMSPropOptimizer(0.1, decay=0.5).apply_grad((np.ones(2),), (arg,))
    assert np.array_equal(one, other)


def test_accumulation_may_be_assigned():
    arg = pnp.array([1.0, 2.0], requires_grad=True)
    optimizer = RMSPropOptimizer(0.1, decay=0.5)
    optimizer.apply_grad((np.ones(2),), (arg,))
    saved = [np.array(a) for a in optimizer.accumulation]
    optimizer.apply_grad((np.ones(2),), (arg,))
    optimizer.accumulation = saved
    optimizer.apply_grad((np.zeros(2),), (arg,))
    assert np.array_equal(optimizer.accumulation[0], [0.25, 0.25])
    with pytest.raises(TypeError, match="does not support item assignment"):
        optimizer.accumulation[0] = np.zeros(2)


REFUSED = {
    "shape": ([np.ones(3)], {}, ValueError, r"gradient '0' has shape \(3,\), its parameter has \(2,\)"),
    "complex": ([np.ones(2) * 1j], {}, TypeError, "argument 0 has dtype float64, its gradient complex128; only real"),
    "stepsize": ([np.ones(2)], {"stepsize": -0.1}, ValueError, "stepsize must be finite and >= 0, got -0.1"),
    "decay": ([np.ones(2)], {"decay": 1.0}, ValueError, r"decay must be in \[0, 1\), got 1.0"),
    "eps": ([np.ones(2)], {"eps": "small"}, TypeError, "eps must be a number, got 'small'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    grads, numbers, error, message = REFUSED[name]
    optimizer = RMSPropOptimizer(0.1)
    arg = pnp.array([1.0, 2.0], requires_grad=True)
    optimizer.apply_grad((np.ones(2),), (arg,))
    before = np.array(optimizer.accumulation[0])
    for key, value in numbers.items():
        setattr(optimizer, key, value)
    with pytest.raises(error, match=message):
        optimizer.apply_grad(grads, (arg,))
    assert np.array_equal(arg, [1.0, 2.0])
    assert np.array_equal(optimizer.accumulation[0], before)


@pytest.mark.parametrize("count", [3, 1000])
def test_not_slower_than_pennylane(count):
    """The ratio measured is 0.2, so that a limit of 1 does not depend on the machine's speed or load."""
    arg, grads = pnp.array(np.ones(count), requires_grad=True), (np.ones(count),)
    took = {}
    for optimizer in (RMSPropOptimizer(), qml.RMSPropOptimizer()):
        times = []
        for _ in range(300):
            start = time.perf_counter_ns()
            optimizer.apply_grad(grads, (arg,))
            times.append(time.perf_counter_ns() - start)
        took[type(optimizer)] = min(times)
    assert took[RMSPropOptimizer] <= took[qml.RMSPropOptimizer]

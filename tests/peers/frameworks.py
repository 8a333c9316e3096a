"""The frameworks that are trained beside ours, each behind step(grads) and arrays(); rules without one, in NumPy."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types

import numpy as np
from measure import LR


class Torch:
    """torch.optim.RMSprop; or another torch optimizer, by `make`."""

    def __init__(self, params, make=None, **options):
        import torch

        self.torch = torch
        self.leaves = [torch.nn.Parameter(torch.tensor(p)) for p in params]
        self.optimizer = (make or torch.optim.RMSprop)(self.leaves, **options)

    def step(self, grads):
        for leaf, grad in zip(self.leaves, grads, strict=True):
            leaf.grad = self.torch.tensor(grad)
        self.optimizer.step()

    def arrays(self):
        found = {"param": [leaf.detach().numpy().copy() for leaf in self.leaves]}
        for name in ("square_avg", "momentum_buffer", "grad_avg"):
            states = [self.optimizer.state[leaf] for leaf in self.leaves]
            if states[0].get(name) is not None:
                found[name] = [state[name].detach().numpy().copy() for state in states]
        return found


def torch_with(change):
    """A torch optimizer whose gradients are changed before each step, as a training loop does."""

    class Changed(Torch):
        def step(self, grads):
            for leaf, grad in zip(self.leaves, grads, strict=True):
                leaf.grad = self.torch.tensor(grad)
            change(self.torch, self.leaves)
            self.optimizer.step()

    return Changed


def sb3(params, **options):
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    return Torch(params, RMSpropTFLike, **options)


@functools.cache
def timm_class():
    """RMSpropTF of timm. What timm imports besides needs the operators of torchvision, which has no build on the index
    that loads with torch's CPU build; so the packages around its module are not run.
    """
    path = importlib.util.find_spec("timm").submodule_search_locations[0]
    for name, folder in (("timm", path), ("timm.optim", f"{path}/optim")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [folder]
    return importlib.import_module("timm.optim.rmsprop_tf").RMSpropTF


def timm(params, **options):
    return Torch(params, timm_class(), lr=LR, foreach=False, **options)


def adam(params, **options):
    import torch

    return Torch(params, torch.optim.Adam, **options)


class Keras:
    def __init__(self, params, **options):
        import keras

        self.convert = keras.ops.convert_to_numpy
        self.variables = [keras.Variable(p, dtype=p.dtype.name) for p in params]
        self.optimizer = keras.optimizers.RMSprop(**options)
        self.optimizer.build(self.variables)
        self.tensor = keras.ops.convert_to_tensor

    def step(self, grads):
        self.optimizer.apply([self.tensor(g) for g in grads], self.variables)

    def arrays(self):
        found = {
            "param": self.variables,
            "square_avg": self.optimizer._velocities,
            "momentum_buffer": getattr(self.optimizer, "_momentums", []),
            "grad_avg": getattr(self.optimizer, "_average_gradients", []),
            "ema": getattr(self.optimizer, "_model_variables_moving_average", []) if self.optimizer.use_ema else [],
        }
        return {name: [self.convert(v).copy() for v in vs] for name, vs in found.items() if vs}


class Optax:
    def __init__(self, params, before=None, every=1, **options):
        import jax
        import optax

        jax.config.update("jax_enable_x64", True)
        self.jax, self.optax = jax, optax
        make = optax.rmsprop(**options)
        if before is not None:
            make = optax.chain(before(optax), make)
        if every > 1:
            # Its default is to accumulate in float32, whatever the parameters are.
            make = optax.MultiSteps(make, every, accumulator_dtype=params[0].dtype)
        self.params = [jax.numpy.asarray(p) for p in params]
        self.state = make.init(self.params)
        self.update = jax.jit(make.update)

    def step(self, grads):
        updates, self.state = self.update([self.jax.numpy.asarray(g) for g in grads], self.state, self.params)
        self.params = self.optax.apply_updates(self.params, updates)

    def arrays(self):
        found = {"param": [np.array(p) for p in self.params]}
        # optax keeps the trace of what it adds to the parameters: our buffer is subtracted.
        for field, name, sign in (("nu", "square_avg", 1), ("mu", "grad_avg", 1), ("trace", "momentum_buffer", -1)):
            values = self.optax.tree_utils.tree_get(self.state, field)
            if values is not None:
                found[name] = [sign * np.array(v) for v in values]
        return found


class PennyLane:
    """qml.RMSPropOptimizer over the arrays as arguments."""

    def __init__(self, params, **options):
        import pennylane as qml

        self.optimizer = qml.RMSPropOptimizer(**options)
        self.params = [qml.numpy.array(p, requires_grad=True) for p in params]

    def step(self, grads):
        self.params = self.optimizer.apply_grad(grads, self.params)

    def arrays(self):
        found = {"param": self.params}
        if self.optimizer.accumulation is not None:
            found["square_avg"] = self.optimizer.accumulation
        return {name: [np.array(v) for v in values] for name, values in found.items()}


class Autograd:
    """The loop of autograd, run anew from the start to each step: it shows no state between its iterations."""

    def __init__(self, params, **options):
        from autograd.misc.optimizers import rmsprop

        self.loop, self.options, self.start = rmsprop, options, params
        self.grads, self.params = [], params

    def step(self, grads):
        self.grads.append(grads)
        self.params = self.loop(lambda x, i: self.grads[i], self.start, num_iters=len(self.grads), **self.options)

    def arrays(self):
        return {"param": [p.copy() for p in self.params]}


class PyMC:
    """pymc.variational.updates.rmsprop, compiled by PyTensor."""

    def __init__(self, params, **options):
        import pytensor
        from pymc.variational.updates import rmsprop

        dtype = params[0].dtype.name
        with pytensor.config.change_flags(floatX=dtype):
            self.shared = [pytensor.shared(p.copy()) for p in params]
            grads = [s.type() for s in self.shared]
            updates = rmsprop(grads, self.shared, **options)
            self.accumulators = [s for s in updates if s not in self.shared]
            self.compiled = pytensor.function(grads, [], updates=updates)

    def step(self, grads):
        self.compiled(*grads)

    def arrays(self):
        return {
            name: [s.get_value() for s in variables]
            for name, variables in (("param", self.shared), ("square_avg", self.accumulators))
        }


class Tequila:
    """The step of tequila's OptimizerGD over all elements as its variables; it computes in float64."""

    def __init__(self, params, **options):
        from tequila.optimizers.optimizer_gd import OptimizerGD

        self.optimizer = OptimizerGD(method="rmsprop", maxiter=1, **options)
        self.shapes = [p.shape for p in params]
        flat = np.concatenate([p.ravel() for p in params])
        self.values = dict(enumerate(flat))
        self.moments = [np.zeros(len(flat)), np.zeros(len(flat))]

    def step(self, grads):
        flat = np.concatenate([g.ravel() for g in grads])
        new, self.moments, _ = self.optimizer._rms(
            lambda v, samples: flat, self.values, self.moments, active_keys=list(self.values)
        )
        self.values.update(new)

    def _split(self, flat):
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), self.shapes, strict=True)]

    def arrays(self):
        return {
            "param": self._split(np.array(list(self.values.values()))),
            "square_avg": self._split(self.moments[1]),
        }


class MLX:
    """mlx.optimizers.RMSprop on the CPU."""

    def __init__(self, params, **options):
        import mlx.core as mx
        import mlx.optimizers

        mx.set_default_device(mx.cpu)
        self.mx = mx
        self.params = {str(i): self.array(p) for i, p in enumerate(params)}
        self.optimizer = mlx.optimizers.RMSprop(**options)
        self.optimizer.init(self.params)

    def array(self, a):
        return self.mx.array(a, dtype=getattr(self.mx, a.dtype.name))

    def step(self, grads):
        self.params = self.optimizer.apply_gradients({str(i): self.array(g) for i, g in enumerate(grads)}, self.params)

    def arrays(self):
        keys = list(self.params)
        return {
            "param": [np.array(self.params[key]) for key in keys],
            "square_avg": [np.array(self.optimizer.state[key]["v"]) for key in keys],
        }


class NumpyML:
    """numpy_ml's RMSProp, which names each parameter."""

    def __init__(self, params, **options):
        self.params = [p.copy() for p in params]
        self.optimizer = self.framework()(**options)

    @staticmethod
    def framework():
        """The class itself."""
        import collections
        import collections.abc
        import warnings

        collections.Hashable = collections.abc.Hashable  # numpy-ml 0.1.2 is older than Python 3.10
        with warnings.catch_warnings(action="ignore"):  # it misses gym, for its agents
            from numpy_ml.neural_nets.optimizers import RMSProp
        return RMSProp

    def step(self, grads):
        self.params = [
            self.optimizer.update(p, g, str(i)) for i, (p, g) in enumerate(zip(self.params, grads, strict=True))
        ]

    def arrays(self):
        found = {"param": [p.copy() for p in self.params]}
        if self.optimizer.cache:
            found["square_avg"] = [self.optimizer.cache[str(i)].copy() for i in range(len(self.params))]
        return found


class Published:
    """An update rule as its framework publishes it, by hand: `rule(p, g, state)` on one array, in NumPy."""

    def __init__(self, params, rule, **start):
        self.params = [p.copy() for p in params]
        self.states = [{name: np.full_like(p, value) for name, value in start.items()} for p in params]
        self.rule = rule

    def step(self, grads):
        for p, g, state in zip(self.params, grads, self.states, strict=True):
            self.rule(p, g, state)

    def arrays(self):
        return {"param": [p.copy() for p in self.params]} | {
            name: [state[name].copy() for state in self.states] for name in self.states[0]
        }


def tf1_rule(rho=0.9, eps=1e-10, momentum=0.0, centered=False):
    """TensorFlow, kernels/training_ops.cc: ApplyRMSProp and ApplyCenteredRMSProp on the CPU."""

    def rule(p, g, state):
        ms, mom = state["square_avg"], state["momentum_buffer"]
        ms += (g * g - ms) * (1 - rho)
        denominator = ms + eps
        if centered:
            mg = state["grad_avg"]
            mg += (g - mg) * (1 - rho)
            denominator = (ms - mg * mg) + eps
        mom[...] = mom * momentum + (g * LR) / np.sqrt(denominator)
        p -= mom

    return rule


def tf1(params, **options):
    start = {"square_avg": 1.0, "momentum_buffer": 0.0} | ({"grad_avg": 0.0} if options.get("centered") else {})
    return Published(params, tf1_rule(**options), **start)


def paddle(params, rho=0.95, epsilon=1e-6, momentum=0.0, centered=False, weight_decay=0.0):
    """Paddle, phi/kernels/impl/rmsprop_kernel_impl.h, dense; an L2 regularizer adds to the gradient."""

    def rule(p, g, state):
        g = g + weight_decay * p
        v, b = state["square_avg"], state["momentum_buffer"]
        v[...] = rho * v + (1 - rho) * (g * g)
        d = v
        if centered:
            m = state["grad_avg"]
            m[...] = rho * m + (1 - rho) * g
            d = v - m * m
        b[...] = momentum * b + LR * g / np.sqrt(d + epsilon)
        p -= b

    start = {"square_avg": 0.0, "momentum_buffer": 0.0} | ({"grad_avg": 0.0} if centered else {})
    return Published(params, rule, **start)


def graves(params, lr=1e-4):
    """Graves 2013, equations 38 to 45, with the constants given there by default."""

    def rule(p, g, state):
        n, mean, delta = state["square_avg"], state["grad_avg"], state["momentum_buffer"]
        n[...] = 0.95 * n + (1 - 0.95) * g * g
        mean[...] = 0.95 * mean + (1 - 0.95) * g
        delta[...] = 0.9 * delta + lr * g / np.sqrt(n - mean * mean + 1e-4)
        p -= delta

    return Published(params, rule, square_avg=0.0, grad_avg=0.0, momentum_buffer=0.0)


def chainer(params, alpha=0.99, eps=1e-8, eps_inside_sqrt=False):
    """Chainer, optimizers/rmsprop.py: RMSpropRule.update_core_cpu."""

    def rule(p, g, state):
        ms = state["square_avg"]
        ms *= alpha
        ms += (1 - alpha) * g * g
        p -= LR * g / (np.sqrt(ms + eps) if eps_inside_sqrt else np.sqrt(ms) + eps)

    return Published(params, rule, square_avg=0.0)


def clip_each(optax):
    """Optax clips by the norm of all gradients; here it is asked for each alone."""
    clip = optax.clip_by_global_norm(0.25)
    return optax.stateless(lambda updates, _: [clip.update([u], clip.init(None))[0][0] for u in updates])


def clip_all(torch, leaves):
    torch.nn.utils.clip_grad_value_(leaves, 0.0625)

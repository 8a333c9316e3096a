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


def graves(params):
    """Graves 2013, equations 38 to 45, with the constants given there."""

    def rule(p, g, state):
        n, mean, delta = state["square_avg"], state["grad_avg"], state["momentum_buffer"]
        n[...] = 0.95 * n + (1 - 0.95) * g * g
        mean[...] = 0.95 * mean + (1 - 0.95) * g
        delta[...] = 0.9 * delta + 1e-4 * g / np.sqrt(n - mean * mean + 1e-4)
        p -= delta

    return Published(params, rule, square_avg=0.0, grad_avg=0.0, momentum_buffer=0.0)


def clip_each(optax):
    """Optax clips by the norm of all gradients; here it is asked for each alone."""
    clip = optax.clip_by_global_norm(0.25)
    return optax.stateless(lambda updates, _: [clip.update([u], clip.init(None))[0][0] for u in updates])


def clip_all(torch, leaves):
    torch.nn.utils.clip_grad_value_(leaves, 0.0625)

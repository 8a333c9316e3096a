"""Each preset beside the framework that it is named after: 200 steps on the same gradients, compared after every step.

float64: both run freely; after each of 200 steps every array is within 1e-12 of the framework's, relative to the
larger of the element and the array's largest element over 1000 (a parameter that crosses zero has no relative error
worth the name).

float32: before each step our arrays are set to the framework's, so that the difference is that of one step, in units
in the last place of the largest number that the step added or subtracted. The gradients here keep away from zero and
have no mean, so that neither weight decay nor centering subtracts nearly equal numbers, which would show nothing but
that. ULPS is the bound found.
What rounds differently: torch forms the mean as (v * rho) + ((1 - rho) * g) * g with a fused multiply-add where the
processor has one; Keras and optax square the gradient first and optax multiplies by a reciprocal root; TF1, timm and
SB3 move v by (g**2 - v) * (1 - rho). All of them step with lr * momentum in another order than ours.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
from tqdm import tqdm

import rmsprop_native as rms
from rmsprop_native import _bench

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with torch

STEPS = 200
ULPS = 8
# This and other constants are sums of few powers of two, since Keras holds its learning rate, its limits of clipping
# and its decays of weights in float32 whatever the parameters are.
LR = 2.0**-7
SHAPES = [(7, 5), (5,), (3, 4, 2)]


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


def timm(params, alpha=0.9, eps=1e-10, weight_decay=0.0, momentum=0.0, centered=False, decoupled_decay=False):
    """timm, optim/rmsprop_tf.py, with lr_in_momentum as it is by default."""

    def rule(p, g, state):
        if weight_decay and decoupled_decay:
            p *= 1.0 - LR * weight_decay
        elif weight_decay:
            g = g + weight_decay * p
        v = state["square_avg"]
        v += (1.0 - alpha) * (g * g - v)
        average = v + eps
        if centered:
            m = state["grad_avg"]
            m += (1.0 - alpha) * (g - m)
            average = (v - m * m) + eps
        average = np.sqrt(average)
        if momentum:
            b = state["momentum_buffer"]
            b *= momentum
            b += LR * (g / average)
            p -= b
        else:
            p -= LR * (g / average)

    start = (
        {"square_avg": 1.0} | ({"momentum_buffer": 0.0} if momentum else {}) | ({"grad_avg": 0.0} if centered else {})
    )
    return Published(params, rule, **start)


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


# id: (preset, our options, framework, its options)
MU, WD = {"momentum": 0.9}, {"weight_decay": 2.0**-5}
TORCH = {"lr": LR, "foreach": False}
CASES = {
    "torch": ("torch", {}, Torch, TORCH),
    "torch-foreach": ("torch", MU, Torch, TORCH | MU | {"foreach": True}),
    "torch-alpha-eps": ("torch", {"rho": 0.7, "eps": 1e-3}, Torch, TORCH | {"alpha": 0.7, "eps": 1e-3}),
    "torch-momentum": ("torch", MU, Torch, TORCH | MU),
    "torch-centered": ("torch", {"centered": True}, Torch, TORCH | {"centered": True}),
    "torch-momentum-centered": ("torch", MU | {"centered": True}, Torch, TORCH | MU | {"centered": True}),
    "torch-weight_decay": ("torch", WD, Torch, TORCH | WD),
    "torch-maximize-weight_decay": ("torch", WD | {"maximize": True}, Torch, TORCH | WD | {"maximize": True}),
    "torch-clip_value": ("torch", {"clip_value": 0.0625}, torch_with(clip_all), TORCH),
    "adam": (None, {"rho": 0.99, "bias_correction": True}, adam, {"lr": LR, "betas": (0.0, 0.99), "eps": 1e-8}),
    "keras": ("keras", {}, Keras, {"learning_rate": LR}),
    "keras-rho-eps": ("keras", {"rho": 0.7, "eps": 1e-3}, Keras, {"learning_rate": LR, "rho": 0.7, "epsilon": 1e-3}),
    "keras-momentum": ("keras", MU, Keras, {"learning_rate": LR} | MU),
    "keras-centered": ("keras", {"centered": True}, Keras, {"learning_rate": LR, "centered": True}),
    "keras-momentum-centered": ("keras", MU | {"centered": True}, Keras, {"learning_rate": LR, "centered": True} | MU),
    "keras-weight_decay": ("keras", WD, Keras, {"learning_rate": LR} | WD),
    "keras-clip_value": ("keras", {"clip_value": 0.0625}, Keras, {"learning_rate": LR, "clipvalue": 0.0625}),
    "keras-clip_norm": ("keras", {"clip_norm": 0.25}, Keras, {"learning_rate": LR, "clipnorm": 0.25}),
    "keras-clip_global_norm": (
        "keras", {"clip_global_norm": 0.25}, Keras, {"learning_rate": LR, "global_clipnorm": 0.25}
    ),
    "keras-ema": ("keras", {"ema": 0.875}, Keras, {"learning_rate": LR, "use_ema": True, "ema_momentum": 0.875}),
    "keras-accumulate": ("keras", {"accumulate": 4}, Keras, {"learning_rate": LR, "gradient_accumulation_steps": 4}),
    "optax": ("optax", {}, Optax, {"learning_rate": LR}),
    "optax-decay-eps": ("optax", {"rho": 0.7, "eps": 1e-3}, Optax, {"learning_rate": LR, "decay": 0.7, "eps": 1e-3}),
    "optax-eps-outside": ("optax", {"eps_inside_sqrt": False}, Optax, {"learning_rate": LR, "eps_in_sqrt": False}),
    "optax-initial_scale": ("optax", {"initial_square_avg": 1.0}, Optax, {"learning_rate": LR, "initial_scale": 1.0}),
    "optax-momentum": ("optax", MU, Optax, {"learning_rate": LR} | MU),
    "optax-nesterov": ("optax", MU | {"nesterov": True}, Optax, {"learning_rate": LR, "nesterov": True} | MU),
    "optax-centered": ("optax", {"centered": True}, Optax, {"learning_rate": LR, "centered": True}),
    "optax-bias_correction": (
        "optax", {"bias_correction": True}, Optax, {"learning_rate": LR, "bias_correction": True}
    ),
    # At the first step the corrected variance is g**2 - g**2: what is left of it is rounding, hence a large eps.
    "optax-centered-bias_correction": (
        "optax", {"centered": True, "bias_correction": True, "eps": 0.25}, Optax,
        {"learning_rate": LR, "centered": True, "bias_correction": True, "eps": 0.25},
    ),
    "optax-clip_value": (
        "optax", {"clip_value": 0.0625}, Optax, {"learning_rate": LR, "before": lambda optax: optax.clip(0.0625)},
    ),
    "optax-clip_norm": ("optax", {"clip_norm": 0.25}, Optax, {"learning_rate": LR, "before": clip_each}),
    "optax-clip_global_norm": (
        "optax", {"clip_global_norm": 0.25}, Optax,
        {"learning_rate": LR, "before": lambda optax: optax.clip_by_global_norm(0.25)},
    ),
    "optax-weight_decay": (
        "optax", WD, Optax, {"learning_rate": LR, "before": lambda optax: optax.add_decayed_weights(2.0**-5)},
    ),
    "optax-accumulate": ("optax", {"accumulate": 4}, Optax, {"learning_rate": LR, "every": 4}),
    "sb3": ("sb3", {}, sb3, {"lr": LR}),
    "sb3-momentum-weight_decay": ("sb3", MU | WD, sb3, {"lr": LR} | MU | WD),
    "sb3-centered": ("sb3", {"centered": True}, sb3, {"lr": LR, "centered": True}),
    "tf1": ("tf1", {}, tf1, {}),
    "tf1-momentum": ("tf1", MU, tf1, MU),
    "tf1-centered": ("tf1", MU | {"centered": True}, tf1, MU | {"centered": True}),
    "timm": ("timm", {}, timm, {}),
    "timm-momentum-weight_decay": ("timm", MU | WD, timm, MU | WD),
    "timm-decoupled": ("timm", WD | {"decoupled_weight_decay": True}, timm, WD | {"decoupled_decay": True}),
    "timm-centered": ("timm", MU | {"centered": True}, timm, MU | {"centered": True}),
    "paddle": ("paddle", {}, paddle, {}),
    "paddle-momentum-centered": ("paddle", MU | {"centered": True}, paddle, MU | {"centered": True}),
    "paddle-weight_decay": ("paddle", WD, paddle, WD),
    "graves": ("graves", {"lr": 1e-4}, graves, {}),
}  # fmt: skip


# Keras rounds the factor that clips norms to float32 in float64 too: so does ops.minimum of a tensor and a float. There
# optax is the peer for norms; in float32 both are.
FLOAT32_ONLY = ("keras-clip_norm", "keras-clip_global_norm")


class Problem:
    """Least squares with the noise of small batches: gradients that shrink, and never vanish."""

    def __init__(self, dtype):
        self.rng = np.random.default_rng(1)
        self.params = [self.rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
        self.targets = [self.rng.standard_normal(shape).astype(dtype) for shape in SHAPES]

    def grads(self, params):
        """The gradients at `params`, with the noise of a batch."""
        noise = [self.rng.standard_normal(shape).astype(p.dtype) for shape, p in zip(SHAPES, params, strict=True)]
        return [p - t + n for p, t, n in zip(params, self.targets, noise, strict=True)]

    def noise(self):
        """Gradients of random sign, at least 0.25 in size."""
        normals = [self.rng.standard_normal(shape) for shape in SHAPES]
        return [(n + 0.25 * np.sign(n)).astype(p.dtype) for n, p in zip(normals, self.params, strict=True)]


def ours_of(params, state):
    """Our arrays by the names that Peer.arrays() uses."""
    names = [name for name in state.options.buffers if name != "grad_sum"]
    return {"param": params} | {name: getattr(state, name) for name in names}


@pytest.mark.parametrize("name", [name for name in CASES if name not in FLOAT32_ONLY])
def test_float64_over_200_steps(name):
    preset, options, make, theirs = CASES[name]
    problem = Problem(np.float64)
    peer = make(problem.params, **theirs)
    params = [p.copy() for p in problem.params]
    state = rms.init(params, preset=preset, **{"lr": LR, **options})
    for step in tqdm(range(STEPS), desc=name, leave=False):
        grads = problem.grads(peer.arrays()["param"])
        peer.step(grads)
        rms.update_(params, grads, state)
        for array, values in ours_of(params, state).items():
            if array == "ema" and state.step == 0:
                continue  # before the first step ours are the weights, Keras' are zero
            for ours, expected in zip(values, peer.arrays().get(array, []), strict=array in peer.arrays()):
                scale = np.maximum(np.abs(expected), np.abs(expected).max() / 1000)
                assert (np.abs(ours - expected) <= 1e-12 * scale).all(), f"{array} at step {step}"
    assert state.step == STEPS // options.get("accumulate", 1)


@pytest.mark.parametrize("name", [name for name in CASES if "accumulate" not in name])
def test_float32_step_by_step(name):
    preset, options, make, theirs = CASES[name]
    problem = Problem(np.float32)
    peer = make(problem.params, **theirs)
    params = [p.copy() for p in problem.params]
    state = rms.init(params, preset=preset, **{"lr": LR, **options})
    worst = 0.0
    for step in tqdm(range(STEPS), desc=name, leave=False):
        before = peer.arrays()
        for array, values in ours_of(params, state).items():
            for ours, theirs_before in zip(values, before.get(array, []), strict=array in before):
                ours[...] = theirs_before
        grads = problem.noise()
        peer.step(grads)
        rms.update_(params, grads, state)
        after = peer.arrays()
        for array, values in ours_of(params, state).items():
            for i, (ours, expected) in enumerate(zip(values, after.get(array, []), strict=array in after)):
                start = before[array][i] if array in before else np.zeros_like(expected)
                terms = [expected, start, expected - start]
                if array == "ema":
                    terms += [before["param"][i], after["param"][i]]
                unit = np.spacing(np.abs(terms).max(axis=0))
                worst = max(worst, float((np.abs(ours - expected) / unit).max()))
        assert worst <= ULPS, f"{worst} ulp at step {step}"
    print(f"{name}: {worst:.1f} ulp")


def test_every_preset_is_tested():
    assert {preset for preset, *_ in CASES.values() if preset} == set(rms.PRESETS)


def test_defaults_are_those_of_the_frameworks():
    """What the signatures say, read from the installed frameworks."""
    import inspect

    import keras
    import optax
    import torch
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    words = {"lr": "lr", "learning_rate": "lr", "alpha": "rho", "rho": "rho", "decay": "rho", "eps": "eps",
             "epsilon": "eps", "momentum": "momentum", "weight_decay": "weight_decay", "centered": "centered",
             "initial_scale": "initial_square_avg", "eps_in_sqrt": "eps_inside_sqrt", "nesterov": "nesterov",
             "bias_correction": "bias_correction", "maximize": "maximize", "ema": "ema"}  # fmt: skip
    frameworks = {
        "torch": torch.optim.RMSprop,
        "keras": keras.optimizers.RMSprop,
        "optax": optax.rmsprop,
        "sb3": RMSpropTFLike,
    }
    for preset, function in frameworks.items():
        options = rms.Options(**rms.PRESETS[preset])
        for name, parameter in inspect.signature(function).parameters.items():
            if name in words and parameter.default is not inspect.Parameter.empty:
                assert (getattr(options, words[name]) or 0) == (parameter.default or 0), (preset, name)


def test_peers_of_the_benchmark_take_the_same_step():
    """Torch's optimizer as `rms.bench` calls it, over memory of NumPy; the fused Adagrad runs, and is another rule."""
    differences, missing = _bench.compare()
    assert max(differences["torch"], differences["torch foreach"]) <= _bench.ULPS < differences[_bench.ADAGRAD]
    assert set(missing) <= {"numba"}


def test_example_beside_keras(tmp_path):
    """The loss curves of examples/keras_mlp.py coincide; what differs is how Keras sums a float32 loss."""
    example = Path(__file__).parents[2] / "examples" / "keras_mlp.py"
    arguments = [sys.executable, example, "--epochs", "5", "--figure", tmp_path / "figure.png"]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert float(re.search(r"largest difference of the losses: (\S+)", printed)[1]) < 1e-6
    assert (tmp_path / "figure.png").stat().st_size > 10_000

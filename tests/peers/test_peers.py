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
from frameworks import (
    MLX,
    Autograd,
    Keras,
    NumpyML,
    Optax,
    PennyLane,
    PyMC,
    Tequila,
    Torch,
    adam,
    chainer,
    clip_all,
    clip_each,
    graves,
    paddle,
    sb3,
    tf1,
    timm,
    timm_class,
    torch_with,
)
from measure import LR, ULPS, Problem, assert_close, ulps
from tqdm import tqdm

import rmsprop_native as rms
from rmsprop_native import _bench

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with torch

STEPS = 200

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
    "pennylane": ("pennylane", {}, PennyLane, {"stepsize": LR}),
    "autograd": ("autograd", {}, Autograd, {"step_size": LR}),
    "pymc": ("pymc", {}, PyMC, {"learning_rate": LR}),
    "tequila": ("tequila", {}, Tequila, {"lr": LR}),
    "chainer": ("chainer", {}, chainer, {}),
    "chainer-eps-inside": ("chainer", {"eps_inside_sqrt": True}, chainer, {"eps_inside_sqrt": True}),
    "mlx": ("mlx", {}, MLX, {"learning_rate": LR}),
    "numpy_ml": ("numpy_ml", {}, NumpyML, {"lr": LR}),
    "numpy_ml-clip_norm": ("numpy_ml", {"clip_norm": 0.25}, NumpyML, {"lr": LR, "clip_norm": 0.25}),
    "adam0": ("adam0", {}, adam, {"lr": LR, "betas": (0.0, 0.999)}),
    "adam0-weight_decay": ("adam0", WD, adam, {"lr": LR, "betas": (0.0, 0.999)} | WD),
}  # fmt: skip


# Keras rounds the factor that clips norms to float32 in float64 too: so does ops.minimum of a tensor and a float. There
# optax is the peer for norms; in float32 both are.
FLOAT32_ONLY = ("keras-clip_norm", "keras-clip_global_norm")
# These compute in float64 whatever the parameters are.
FLOAT64_ONLY = ("autograd", "tequila")


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
                assert_close(ours, expected, f"{array} at step {step}")
    assert state.step == STEPS // options.get("accumulate", 1)


@pytest.mark.parametrize("name", [name for name in CASES if "accumulate" not in name and name not in FLOAT64_ONLY])
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
            for i, mine in enumerate(values if array in after else ()):
                worst = max(worst, ulps(mine, before, after, array, i))
        assert worst <= ULPS, f"{worst} ulp at step {step}"
    print(f"{name}: {worst:.1f} ulp")


def test_every_preset_is_tested():
    assert {preset for preset, *_ in CASES.values() if preset} == set(rms.PRESETS)


def test_defaults_are_those_of_the_frameworks():
    """What the signatures say, read from the installed frameworks."""
    import inspect

    import keras
    import mlx.optimizers
    import optax
    import pennylane
    import torch
    from autograd.misc.optimizers import rmsprop as autograd_loop
    from pymc.variational.updates import rmsprop as pymc_updates
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
    from tequila.optimizers.optimizer_gd import OptimizerGD

    words = {"lr": "lr", "learning_rate": "lr", "stepsize": "lr", "step_size": "lr", "gamma": "rho",
             "alpha": "rho", "rho": "rho", "decay": "rho", "eps": "eps",
             "epsilon": "eps", "momentum": "momentum", "weight_decay": "weight_decay", "centered": "centered",
             "initial_scale": "initial_square_avg", "eps_in_sqrt": "eps_inside_sqrt", "nesterov": "nesterov",
             "bias_correction": "bias_correction", "maximize": "maximize", "ema": "ema"}  # fmt: skip
    frameworks = {
        "torch": torch.optim.RMSprop,
        "keras": keras.optimizers.RMSprop,
        "optax": optax.rmsprop,
        "sb3": RMSpropTFLike,
        "timm": timm_class(),
        "pennylane": pennylane.RMSPropOptimizer,
        "autograd": inspect.getclosurevars(autograd_loop).nonlocals["optimize"],
        "pymc": pymc_updates,
        "mlx": mlx.optimizers.RMSprop,
        "numpy_ml": NumpyML.framework(),
    }
    for preset, function in frameworks.items():
        options = rms.Options(**rms.PRESETS[preset])
        for name, parameter in inspect.signature(function).parameters.items():
            if name in words and parameter.default is not inspect.Parameter.empty:
                assert (getattr(options, words[name]) or 0) == (parameter.default or 0), (preset, name)
    tequila = inspect.signature(OptimizerGD).parameters  # its alpha, beta and gamma are of its other methods
    for name in ("lr", "rho", "epsilon"):
        assert tequila[name].default == rms.PRESETS["tequila"][words[name]]
    assert inspect.signature(torch.optim.Adam).parameters["betas"].default[1] == rms.PRESETS["adam0"]["rho"]


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

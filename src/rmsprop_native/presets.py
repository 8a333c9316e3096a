"""Presets: what each framework means by RMSProp, as options."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rmsprop_native.options import Options, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PRESETS", "make_options"]


# What differs from the defaults of Options. docs/meanings.md says where each number comes from.
# TF1, optax, paddle and MLX have no default learning rate.
_PRESETS: dict[str, dict[str, Any]] = {
    "torch": {"lr": 1e-2, "rho": 0.99, "eps": 1e-8},
    "keras": {
        "lr": 1e-3, "rho": 0.9, "eps": 1e-7, "eps_inside_sqrt": True, "lr_in_momentum": True,
        "decoupled_weight_decay": True,
    },
    "tf1": {
        "rho": 0.9, "eps": 1e-10, "eps_inside_sqrt": True, "lr_in_momentum": True, "initial_square_avg": 1.0,
    },
    "optax": {"rho": 0.9, "eps": 1e-8, "eps_inside_sqrt": True, "lr_in_momentum": True},
    "timm": {
        "lr": 1e-2, "rho": 0.9, "eps": 1e-10, "eps_inside_sqrt": True, "lr_in_momentum": True,
        "initial_square_avg": 1.0,
    },
    "sb3": {"lr": 1e-2, "rho": 0.99, "eps": 1e-8, "eps_inside_sqrt": True, "initial_square_avg": 1.0},
    "paddle": {"rho": 0.95, "eps": 1e-6, "eps_inside_sqrt": True, "lr_in_momentum": True},
    "graves": {
        "lr": 1e-4, "rho": 0.95, "eps": 1e-4, "eps_inside_sqrt": True, "momentum": 0.9, "lr_in_momentum": True,
        "centered": True,
    },
    "pennylane": {"lr": 1e-2, "rho": 0.9, "eps": 1e-8, "eps_inside_sqrt": True},
    "autograd": {"lr": 0.1, "rho": 0.9, "eps": 1e-8, "initial_square_avg": 1.0},
    "pymc": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "eps_inside_sqrt": True},
    "tequila": {"lr": 0.1, "rho": 0.999, "eps": 1e-7, "eps_inside_sqrt": True},
    "chainer": {"lr": 1e-2, "rho": 0.99, "eps": 1e-8},
    "mlx": {"rho": 0.99, "eps": 1e-8},
    "numpy_ml": {"lr": 1e-3, "rho": 0.9, "eps": 1e-7},
    "adam0": {"lr": 1e-3, "rho": 0.999, "eps": 1e-8, "bias_correction": True},
}  # fmt: skip
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {name: MappingProxyType(options) for name, options in _PRESETS.items()}
)

# Other names of the frameworks, in lower case.
_ELSEWHERE = {
    "pytorch": "torch", "tensorflow": "tf1", "tf": "tf1", "tf.keras": "keras", "tf_keras": "keras", "jax": "optax",
    "flax": "optax", "pytorch-image-models": "timm", "stable_baselines3": "sb3", "stable-baselines3": "sb3",
    "paddlepaddle": "paddle", "qml": "pennylane", "hips": "autograd", "lasagne": "pymc", "numpy-ml": "numpy_ml",
    "numpyml": "numpy_ml", "adam": "adam0",
}  # fmt: skip


def make_options(preset: str | None, **explicit: Any) -> Options:
    """The options of a preset, where `explicit` ones win.

    Parameters
    ----------
    preset : str or None
        A key of `PRESETS`, or None for the defaults of `Options`.
    **explicit
        As for `Options`.

    Returns
    -------
    Options

    Raises
    ------
    ValueError
        If there is no such preset, or a check of `Options` fails.
    TypeError
        If `preset` is no string, there is no option of that name, or it is of the wrong kind.

    Examples
    --------
    >>> from rmsprop_native.presets import make_options
    >>> make_options("torch", lr=0.1)
    Options(lr=0.1, rho=0.99)
    """
    if preset is None:
        return Options(**explicit)
    if not isinstance(preset, str):
        raise TypeError(f"preset must be a string or None, got {preset!r}")
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS, _ELSEWHERE) or ";"
        raise ValueError(f"no preset {preset!r}{hint} choose from {', '.join(map(repr, PRESETS))}")
    return Options(**{**PRESETS[preset], **explicit})

"""Writes the test vectors of vectors/, all made by the reference in NumPy: make vectors. Reads them, too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from rmsprop_native import _check, reference
from rmsprop_native.arrays import bfloat16

FOLDER = Path(__file__).parent.parent / "vectors"
SIZES = 6, 3
CALLS = 4
BUFFERS = "square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum", "low_half"
LR = {"lr": 2.0**-7}  # which frameworks that hold it in float32 hold exactly

# Each file: what _check.numbers calls the type of parameters and gradients, and options of all its cases.
ROUNDED = {"square_avg_dtype": "bfloat16", "seed": 2**40 + 5}
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("f32", {}),
    "float64": ("f64", {}),
    "bfloat16": ("f32", ROUNDED),
    "bfloat16_split": ("bf16", {}),
    "bfloat16_rounded": ("bf16", {"master_weights": False, **ROUNDED}),
}

# What the variants and presets of _check.CASES leave out.
OPTIONS: dict[str, dict[str, Any]] = {
    "eps_inside_sqrt": {"eps_inside_sqrt": True, "eps": 1e-7},
    "eps 0": {"eps": 0.0},
    "rho 0": {"rho": 0.0},
    "lr_in_momentum": {"momentum": 0.9, "lr_in_momentum": True},
    "nesterov lr_in_momentum": {"momentum": 0.9, "nesterov": True, "lr_in_momentum": True},
    "bias_correction": {"bias_correction": True},
    "bias_correction centered": {"bias_correction": True, "centered": True},
    "initial_square_avg": {"initial_square_avg": 1.0},
    "decoupled_weight_decay": {"weight_decay": 0.02, "decoupled_weight_decay": True},
    "decoupled_weight_decay momentum": {"weight_decay": 0.02, "decoupled_weight_decay": True, "momentum": 0.9},
    "maximize weight_decay": {"maximize": True, "weight_decay": 0.02},
    "clip_value": {"clip_value": 0.05},
    "clip_norm": {"clip_norm": 0.05},
    "clip_global_norm": {"clip_global_norm": 0.05},
    "accumulate": {"accumulate": 2},
    "accumulate clip_global_norm": {"accumulate": 2, "clip_global_norm": 0.05},
    "ema": {"ema": 0.75},
}

# Gradients at the limits of float32, one for each element, and a call whose numbers are its own.
LIMITS = [[0.0, -0.0, 1e-45, -1e-30, 1e30, -3e38], [np.inf, -np.inf, np.nan]]
OF_LIMITS: dict[str, dict[str, Any]] = {
    "limits": {},
    "limits momentum centered": {"momentum": 0.9, "centered": True},
    "limits clip_norm": {"clip_norm": 1.0},
    "limits skip": {"on_nonfinite": "skip"},
}


def as_bits(array: Any) -> str:
    """The elements' bits in hexadecimal, separated by blanks; those of a NaN, which are not promised, as one NaN's."""
    array = np.asarray(array)
    bits = array.view(f"u{array.itemsize}")
    if array.dtype == bits.dtype:  # of lower halves
        return " ".join(f"{int(number):04x}" for number in bits)
    quiet = np.array(np.nan, array.dtype).view(bits.dtype)
    bits = np.where(np.isnan(array), quiet, bits)
    return " ".join(f"{int(number):0{2 * array.itemsize}x}" for number in bits)


def from_bits(bits: str) -> Any:
    """The array of such bits, whose type the number of digits tells."""
    words = bits.split()
    digits = len(words[0])
    integers = np.array([int(word, 16) for word in words], f"u{digits // 2}")
    return integers.view(bfloat16() if digits == 4 else f"f{digits // 2}")


def load(name: str) -> dict[str, dict[str, Any]]:
    """The cases of a file, by name."""
    read = json.loads((FOLDER / f"{name}.json").read_text())
    return {case["name"]: case for case in read["cases"]}


def case(name: str, dtype: str, options: dict[str, Any], grads: list[list[Any]], **of_calls: Any) -> dict[str, Any]:
    """One case: what each call is given, and the bits after it."""
    params = [_check.numbers(seed, n, dtype) for seed, n in enumerate(SIZES)]
    state = reference.init(params, **options)
    made: dict[str, Any] = {"name": name, "options": dataclasses.asdict(state.options)}
    made |= {"preset": options["preset"]} if "preset" in options else {}
    made |= {"params": [as_bits(param) for param in params], "calls": []}
    for given in grads:
        reference.update_(params, given, state, **of_calls)
        call: dict[str, Any] = {"grads": [None if grad is None else as_bits(grad) for grad in given], **of_calls}
        call |= {"step": state.step, "skipped": state.skipped, "accumulated": state.accumulated}
        call["params"] = [as_bits(param) for param in params]
        for buffer in BUFFERS:
            if getattr(state, buffer) is not None:
                call[buffer] = [as_bits(array) for array in getattr(state, buffer)]
        made["calls"].append(call)
    return made


def cases(dtype: str, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """All cases of a file."""
    usual: list[list[Any]] = [
        [_check.numbers(10 * (call + 1) + leaf, n, dtype) for leaf, n in enumerate(SIZES)] for call in range(CALLS)
    ]
    named = {name: options | LR for name, options in _check.CASES.items()}
    named |= {name: LR | options for name, options in OPTIONS.items()}
    made = [case(name, dtype, options | shared, usual) for name, options in named.items()]
    made.append(
        case("grad_scale and lr of a call", dtype, LR | {"momentum": 0.9} | shared, usual, grad_scale=0.125, lr=0.5)
    )
    without = [grads if call % 2 else [grads[0], None] for call, grads in enumerate(usual)]
    made.append(case("no gradient of a leaf", dtype, LR | {"bias_correction": True} | shared, without))
    limits: list[Any] = [np.array(grad, dtype=usual[0][0].dtype) for grad in LIMITS]
    for name, options in OF_LIMITS.items():
        made.append(case(name, dtype, LR | options | shared, [usual[0], limits, usual[1]]))
    return made


def main(folder: Path = FOLDER) -> None:
    """Write all files into a folder."""
    folder.mkdir(exist_ok=True)
    for name, (dtype, shared) in FILES.items():
        text = json.dumps({"format": 1, "cases": cases(dtype, shared)}, indent=1)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

from typing import Any

import numpy as np

UFUNCS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
rmsprop: np.ufunc
rmsprop_momentum: np.ufunc
rmsprop_centered: np.ufunc
rmsprop_centered_momentum: np.ufunc

def step_in_place(ufunc: np.ufunc, operands: tuple[Any, ...], out: tuple[Any, ...]) -> bool: ...
def overlapping(out: tuple[Any, ...]) -> tuple[int, int] | None: ...

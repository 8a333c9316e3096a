from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsprop_native._core import Claim
from rmsprop_native.coefficients import Group
from rmsprop_native.options import Options
from rmsprop_native.tree import Tree

BUFFERS: tuple[str, ...]

def as_arrays(structure: Tree, leaves: list[Any]) -> list[NDArray[Any]]: ...

class Plan:
    def __init__(
        self,
        structure: Tree,
        claim: Claim,
        models: Sequence[NDArray[Any]],
        buffers: dict[str, list[NDArray[Any]]],
        memory: list[NDArray[np.uint8]],
    ) -> None: ...
    def set_numbers(
        self,
        groups: list[Group],
        leaf_groups: tuple[int, ...],
        options: Options,
        lr: float | None,
        grad_scale: float,
        steady: bool,
    ) -> None: ...
    def forget_numbers(self) -> None: ...
    def check(self, params: list[Any]) -> None: ...
    def step(self, params: Any, grads: Any, lr: float | None, grad_scale: float) -> bool: ...
    def step_claimed(self, params: Any, grads: Any) -> None: ...

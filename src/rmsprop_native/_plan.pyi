from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar, final

from numpy.typing import NDArray
from typing_extensions import disjoint_base

from rmsprop_native._core import Claim
from rmsprop_native.coefficients import Group
from rmsprop_native.options import Options
from rmsprop_native.overrides import Rates
from rmsprop_native.state import State
from rmsprop_native.tree import Tree

_Params = TypeVar("_Params")

BUFFERS: tuple[str, ...]

def as_arrays(structure: Tree, leaves: list[Any]) -> list[NDArray[Any]]: ...
def as_ndarray(tensor: Any) -> NDArray[Any]: ...
def check_state(owner: object, params: object, grads: object) -> None: ...
def find_bfloat16() -> bool: ...
def is_torch_tensor(leaf: object) -> bool: ...
def use_exchange_table(wanted: bool) -> bool: ...
def update_(
    params: _Params, grads: Any, state: State, *, lr: float | None = None, grad_scale: float = 1.0
) -> _Params: ...

@disjoint_base
class Plan:
    names: tuple[str, ...]
    def __init__(
        self,
        structure: Tree,
        claim: Claim,
        models: list[NDArray[Any]],
        names: tuple[str, ...],
        params: list[Any] | None = None,
        avg16: bool = False,
    ) -> None: ...
    def arrays(self, name: str) -> list[Any]: ...
    def set_origins(self, origins: Sequence[tuple[int, int]]) -> None: ...
    def copy_params(self, params: Any) -> Any: ...
    def copy(self, claim: Claim) -> Self: ...
    def set_numbers(
        self,
        groups: list[Group],
        lrs: list[Any],
        own_lrs: list[bool],
        leaf_groups: tuple[int, ...],
        leaf_rates: list[Rates | None],
        options: Options,
        largest: float,
    ) -> None: ...
    def set_call_numbers(self, rates: list[float], grad_scale: float, lr: float | None) -> None: ...
    def forget_numbers(self) -> None: ...
    def step(self, params: Any, grads: Any, lr: float | None, grad_scale: float) -> bool: ...
    def step_claimed(self, params: Any, grads: Any) -> None: ...
    def use_claim(self, claim: Claim) -> None: ...

@disjoint_base
class PlanOwner:
    _claim: Claim
    _plan: Plan

STEPPED: int
NOTHING: int
NEEDS_NUMBERS: int
NEEDS_STATE: int
NEEDS_PLAN: int
REFUSED: int

@final
class TensorPlan(Plan):
    refused: tuple[int, int, Exception]
    def __init__(
        self,
        structure: Tree,
        params: list[Any],
        every: list[Any],
        places: list[int],
        avg16: list[bool],
        see: Callable[[Any, Any], Any],
        num_threads: Callable[[], int],
    ) -> None: ...
    def set_groups(self, watched: list[tuple[Any, ...]], masks: list[int], counts: Any, steps: list[Any]) -> None: ...
    def step_groups(
        self,
        param_groups: Sequence[dict[str, Any]],
        state: Any,
        left_out: set[int] | None = None,
        only_checks: bool = False,
    ) -> int: ...

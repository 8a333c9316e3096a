from typing import Any, TypeVar

from rmsprop_native.state import State

_Params = TypeVar("_Params")

def update_(
    params: _Params, grads: Any, state: State, *, lr: float | None = None, grad_scale: float = 1.0
) -> _Params: ...

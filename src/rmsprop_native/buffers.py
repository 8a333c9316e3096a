"""The memory of a state's buffers: one piece a name, small arrays packed, large ones at places that do not conflict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["allocate", "view"]

# Where in a page of memory each large buffer starts. NumPy's large arrays all start 16 bytes into a page. Loads and
# stores whose addresses agree in the last 12 bits delay each other (4K aliasing): with the buffers there too, a step
# with momentum over 64 Ki float32 took 1.3 times as long on an AMD Zen 4 (bench/NOTES.md). Any places avoid this whose
# distances are not near a multiple of 4096. All of these are 16 bytes into a cache line, as NumPy's arrays are, so that
# one peel aligns the vectors of all arrays.
_PAGE = 4096
_LINE = 64
_PLACES = {"square_avg": 1104, "momentum_buffer": 2192, "grad_avg": 3280, "ema": 272, "grad_sum": 1616}


def allocate(name: str, models: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], NDArray[np.uint8]]:
    """Zeros of the shapes, dtypes and memory orders of `models`, in one piece of memory.

    Parameters
    ----------
    name : str
        The name of the buffer.
    models : sequence of numpy.ndarray
        For each leaf an array like the one wanted.

    Returns
    -------
    arrays : list of numpy.ndarray
        Dense, in the order of the axes that the model has.
    memory : numpy.ndarray of numpy.uint8
        In which they lie.
    """
    starts, end = [], 0
    for model in models:
        end += (_PLACES[name] - end) % _PAGE if model.nbytes >= _PAGE else -end % _LINE
        starts.append(end)
        end += model.nbytes
    memory = np.empty(end + _PAGE, np.uint8)
    memory.fill(0)  # the system gives the pages now, not within the first step
    base = -memory.ctypes.data % _PAGE
    arrays = [
        np.ndarray(model.shape, model.dtype, memory, base + start, _dense_strides(model))
        for model, start in zip(models, starts, strict=True)
    ]
    return arrays, memory


def view(array: NDArray[Any]) -> NDArray[Any]:
    """A view, for users: setting its shape does not change the buffer, and it cannot be resized."""
    return array.view()


def _dense_strides(model: NDArray[Any]) -> tuple[int, ...] | None:
    if model.flags.c_contiguous:
        return None
    return np.empty_like(model, subok=False).strides

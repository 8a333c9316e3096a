"""Where a state's buffers lie in its memory: small arrays packed, large ones at places that do not conflict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["PAGE", "place"]

# Where in a page of memory each large buffer starts. NumPy's large arrays all start 16 bytes into a page. Loads and
# stores whose addresses agree in the last 12 bits delay each other (4K aliasing): with the buffers there too, a step
# with momentum over 64 Ki float32 took 1.3 times as long on an AMD Zen 4 (bench/NOTES.md). Any places avoid this whose
# distances are not near a multiple of 4096. All of these are 16 bytes into a cache line, as NumPy's arrays are, so that
# one peel aligns the vectors of all arrays.
PAGE = 4096
_LINE = 64
_PLACES = {"square_avg": 1104, "momentum_buffer": 2192, "grad_avg": 3280, "ema": 272, "grad_sum": 1616}


def place(
    names: Sequence[str], models: Sequence[NDArray[Any]], square_avg_itemsize: int | None = None
) -> tuple[list[list[int]], int]:
    """Places for buffers of the sizes of `models`, in one piece of memory that starts with a page.

    Parameters
    ----------
    names : sequence of str
        The names of the buffers; those of one name lie together.
    models : sequence of numpy.ndarray
        For each leaf an array of its size.
    square_avg_itemsize : int, optional
        Bytes of an element of `square_avg`, where they are not those of the models.

    Returns
    -------
    starts : list of list of int
        For each name, for each leaf, the bytes before its buffer.
    end : int
        The bytes of all of it.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsprop_native.buffers import place
    >>> place(["square_avg", "ema"], [np.zeros(3), np.zeros(1)])
    ([[0, 64], [128, 192]], 200)
    """
    starts: list[list[int]] = []
    end = 0
    for name in names:
        of_name = []
        for model in models:
            itemsize = square_avg_itemsize if name == "square_avg" and square_avg_itemsize else model.itemsize
            nbytes = model.size * itemsize
            end += (_PLACES[name] - end) % PAGE if nbytes >= PAGE else -end % _LINE
            of_name.append(end)
            end += nbytes
        starts.append(of_name)
    return starts, end

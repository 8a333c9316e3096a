"""Where a state's buffers lie in its memory: small arrays packed, large ones at places that do not conflict."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PAGE", "place", "place_of_tensor"]

# Where in a page of memory each large buffer starts. NumPy's large arrays all start 16 bytes into a page. Loads and
# stores whose addresses agree in the last 12 bits delay each other (4K aliasing): with the buffers there too, a step
# with momentum over 64 Ki float32 took 1.3 times as long on an AMD Zen 4 (bench/NOTES.md). Any places avoid this whose
# distances are not near a multiple of 4096. All of these are 16 bytes into a cache line, as NumPy's arrays are, so that
# one peel aligns the vectors of all arrays.
PAGE = 4096
_LINE = 64
_INTO_LINE = 16
_PLACES = {
    "square_avg": 1104, "momentum_buffer": 2192, "grad_avg": 3280, "ema": 272, "grad_sum": 1616, "low_half": 2704
}  # fmt: skip


def place(sizes: Mapping[str, Sequence[int]]) -> tuple[list[list[int]], int]:
    """Places for buffers, in one piece of memory that starts with a page.

    Parameters
    ----------
    sizes : mapping of str to sequence of int
        For the name of each buffer, for each leaf, its bytes; those of one name lie together.

    Returns
    -------
    starts : list of list of int
        For each name, for each leaf, the bytes before its buffer.
    end : int
        The bytes of all of it.

    Examples
    --------
    >>> from rmsprop_native.buffers import place
    >>> place({"square_avg": [24, 8], "ema": [24, 8]})
    ([[0, 64], [128, 192]], 200)
    """
    starts: list[list[int]] = []
    end = 0
    for name, of_name in sizes.items():
        places = []
        for nbytes in of_name:
            end += (_PLACES[name] - end) % PAGE if nbytes >= PAGE else -end % _LINE
            places.append(end)
            end += nbytes
        starts.append(places)
    return starts, end


def place_of_tensor(name: str) -> int:
    """Where in a page a large buffer beside tensors of torch starts, each of which starts with a cache line.

    Parameters
    ----------
    name : str
        The buffer's.

    Returns
    -------
    int
        The bytes before it.

    Examples
    --------
    >>> from rmsprop_native.buffers import place_of_tensor
    >>> place_of_tensor("square_avg")
    1088
    """
    return _PLACES[name] - _INTO_LINE

"""State sharded over MPI ranks (ZeRO stage 1): every rank has all parameters, and its part of each running mean.

The leaves of each dtype are laid one after another, flattened in C order, and each rank owns a run of them, whole cache
lines of state, which `rmsprop_native.update_` steps. A step sums the gradients of all ranks into their owners
(reduce-scatter), and sends the new parameters to all ranks (all-gather), in buckets. bfloat16 gradients are summed in
float32; bfloat16 parameters travel as integers of 16 bits. One rank alone steps the parameters where they are.
docs/distributed.md has the costs.
"""

from __future__ import annotations

import bisect
import builtins
import contextlib
import hashlib
import itertools
import math
import operator
import os
import secrets
import sys
import time
import traceback
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from mpi4py import MPI

from rmsprop_native._core import Claim
from rmsprop_native._plan import Plan, as_arrays, is_torch_tensor
from rmsprop_native.arrays import RowGrad, arithmetic, refusal, title
from rmsprop_native.atomic_file import alone_in, replacing
from rmsprop_native.checkpoint import manifest_of, values_of, write_content
from rmsprop_native.coefficients import check_dtype, check_lr, group_of, resolve_lr
from rmsprop_native.content import Leaf, axes_of, buffer_dtype, describe, match_leaves, refuse_negative
from rmsprop_native.functional import update_ as update_slice
from rmsprop_native.options import OVERRIDABLE, by_name, check_number
from rmsprop_native.overrides import broadcast_rates, check_overrides, check_paths, group_leaves
from rmsprop_native.presets import make_options
from rmsprop_native.reference import clip_factor
from rmsprop_native.shards import MANIFEST, Shard, is_part, name_of, write_manifest
from rmsprop_native.state import Given, check_square_avg, options_of
from rmsprop_native.state import init as init_slice
from rmsprop_native.tree import flatten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from rmsprop_native.options import Options, Schedule
    from rmsprop_native.overrides import LeafOptions
    from rmsprop_native.shards import Manifest
    from rmsprop_native.state import State
    from rmsprop_native.tree import Tree

__all__ = ["BUCKET_BYTES", "ShardedState", "init", "load", "save", "update_"]

BUCKET_BYTES = 32 << 20
"""Bytes of gradients in a bucket, of all ranks together."""
# Of what arrays are sent as (_as_sent).
_TYPES = {
    np.dtype(np.float32): MPI.FLOAT, np.dtype(np.float64): MPI.DOUBLE, np.dtype(np.uint16): MPI.UINT16_T
}  # fmt: skip
_PROCESS = os.getpid()
_LINE = 64  # bytes of a cache line
_SLOTS = 2  # buckets that are under way at a time
_REDUCTIONS = ("mean", "sum", "none", "sliced")
_MOST_BYTES = 2.0**31  # of a bucket: counts are 32 bits wide in MPI before version 4
_DOWN = 2.0**-600  # as in rmsp_step.c: brings every finite sum of squares into range, and is exact
_BLOCK = 1 << 14  # elements that a cache holds in double


class Piece(NamedTuple):
    """Elements of a leaf, flattened in C order."""

    leaf: int
    start: int
    stop: int
    offset: int
    """Where it begins in its bucket."""


class _Rate:
    """A learning rate that is the same for all states of a rank: its schedule is called once in a step."""

    value = 0.0

    def __call__(self, taken: int) -> float:
        return self.value


class _Unit(NamedTuple):
    """A state for pieces of a bucket that are stepped by one call."""

    state: State
    pieces: list[Piece]
    reduced: dict[int, NDArray[Any]]
    """Their gradients, where ranks reduce them: views of the bucket's."""
    sums: dict[int, NDArray[Any]]
    """Accumulated gradients; empty where there are none."""


@dataclass
class _Bucket:
    """A part of the slice of each rank, of one dtype; where there is one rank, everything, of any dtype."""

    parts: list[list[Piece]]
    """Of each rank, in the order of the bucket."""
    grad: NDArray[Any] | None = None
    """The reduced gradient of the own slice, where ranks reduce."""
    send: NDArray[Any] | None = None
    """The gradients of all ranks' slices, in the dtype that they are summed in; its memory is that of another bucket
    too."""
    reduce: tuple[Any, ...] = ()
    """What Ireduce_scatter is given."""
    gathered: NDArray[Any] | None = None
    """Like `send` the parameters, as they are stored; None where there is one rank."""
    gather: tuple[Any, ...] = ()
    """What Iallgatherv is given."""


class _Bounds:
    """Where parameters lie in memory, to find one that shares some with a gradient."""

    def __init__(self, arrays: list[NDArray[Any]]) -> None:
        self.arrays = arrays
        bounds = np.lib.array_utils.byte_bounds
        self.ranges = sorted((*bounds(array), i) for i, array in enumerate(arrays) if array.size)
        self.starts = [low for low, _, _ in self.ranges]
        self.furthest = list(itertools.accumulate((high for _, high, _ in self.ranges), max))

    def find(self, grad: NDArray[Any]) -> int | None:
        """The index of a parameter that overlaps a gradient."""
        low, high = np.lib.array_utils.byte_bounds(grad)
        place = bisect.bisect_left(self.starts, high) - 1
        while place >= 0 and self.furthest[place] > low:
            _, end, i = self.ranges[place]
            if end > low and np.shares_memory(grad, self.arrays[i]):
                return i
            place -= 1
        return None


def slices(sizes: Sequence[int], itemsize: int, ranks: int) -> list[tuple[int, int]]:
    """The elements that each rank owns of leaves of one dtype, one after another, in whole cache lines of state.

    Parameters
    ----------
    sizes : sequence of int
        The elements of each leaf.
    itemsize : int
        Bytes of all running means and other arrays that are kept for an element.
    ranks : int

    Returns
    -------
    list of (int, int)
        For each rank the first element, and the one after its last.

    Examples
    --------
    >>> from rmsprop_native.interop.mpi import slices
    >>> slices([30, 10], 4, 2)
    [(0, 32), (32, 40)]
    """
    per_line = max(_LINE // itemsize, 1)
    total = sum(sizes)
    lines, more = divmod(-(-total // per_line), ranks)
    ends = [min((rank * lines + min(rank, more)) * per_line, total) for rank in range(ranks + 1)]
    return list(itertools.pairwise(ends))


class ShardedState:
    """What RMSProp remembers between steps, divided over MPI ranks; made by `init`.

    Attributes
    ----------
    options : Options
        The hyper-parameters in force.
    overrides : dict
        As given to `init`.
    comm : mpi4py.MPI.Intracomm
        The communicator, which is the caller's.
    reduction : {"mean", "sum", "none", "sliced"}
        What `update_` is given.
    step, skipped, accumulated : int
        As those of a `State`; the same in every rank.
    slices : dict of str to (int, int)
        For each leaf that this rank owns a part of, the first element and the one after the last, in C order of the
        leaf.
    nbytes : int
        Bytes of the running means and other arrays that this rank keeps from step to step.

    Notes
    -----
    One thread at a time uses a state, in every rank the same calls in the same order. It cannot be pickled or copied.
    """

    def __init__(self) -> None:
        raise TypeError("a ShardedState is made by rmsprop_native.interop.mpi.init(params, comm=..., ...)")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ShardedState has a communicator, and cannot be copied or pickled")

    comm: Any
    reduction: str
    options: Options
    overrides: dict[str, dict[str, Any]]
    slices: dict[str, tuple[int, int]]
    _bucket_bytes: int
    _structure: Tree
    _paths: list[str]
    _models: list[tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...]]]
    """For each leaf its shape, dtype and the order of its axes in memory."""
    _sizes: list[int]
    _claim: Claim
    _checked: list[Any]
    """The parameters that were found not to overlap,"""
    _bounds: _Bounds
    """and where they lie."""
    _checked_numbers: Any
    """The learning rates and factor of a call that all dtypes were found to hold."""
    _token: str
    """Drawn for this state by rank 0, the same in all ranks."""
    _buckets: list[_Bucket]
    _units: list[list[_Unit]]
    """Of each bucket."""
    _groups: list[LeafOptions]
    _leaf_groups: tuple[int, ...]
    _rates: list[_Rate]
    """Of each group."""

    def __repr__(self) -> str:
        is_usable = self.comm != MPI.COMM_NULL and not MPI.Is_finalized()
        rank = f"{self.comm.rank} of {self.comm.size}" if is_usable else "none"
        return f"ShardedState(rank={rank}, step={self.step}, leaves={len(self._paths)}, options={self.options!r})"

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self._claim.steps

    @property
    def skipped(self) -> int:
        """Calls that did nothing because a gradient was not finite."""
        return self._claim.skipped

    @property
    def accumulated(self) -> int:
        """Calls since the last step."""
        return self._claim.accumulated

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that this rank keeps from step to step."""
        return sum(array.nbytes for name in self._buffers for _, array in self._buffer(name))

    def buffer(self, name: str) -> dict[str, NDArray[Any]]:
        """A copy of the part of a buffer that is in this rank.

        Parameters
        ----------
        name : str
            "square_avg", "momentum_buffer", "grad_avg", "ema", "grad_sum" or "low_half".

        Returns
        -------
        dict of str to numpy.ndarray
            For each leaf of `slices` that has one its elements, of shape (stop - start,).

        Raises
        ------
        ValueError
            If the state has no buffer of that name.
        RuntimeError
            If the state is inside a step.
        """
        if name not in self._buffers:
            raise ValueError(f"the state has {', '.join(self._buffers)}, not {name!r}")
        with self._claim:
            parts: dict[str, list[NDArray[Any]]] = {}
            for piece, array in self._buffer(name):
                parts.setdefault(self._paths[piece.leaf], []).append(array)
            return {path: np.concatenate(arrays) for path, arrays in parts.items()}

    def slice_of(self, tree: Any) -> dict[str, NDArray[Any]]:
        """The part of gradients that belongs to this rank, as ``reduction="sliced"`` takes it.

        Parameters
        ----------
        tree : array or nested container of arrays
            In the structure of the parameters, without None.

        Returns
        -------
        dict of str to numpy.ndarray
            For each leaf of `slices` its elements, of shape (stop - start,); views where the arrays are C-contiguous.

        Raises
        ------
        TypeError, ValueError
            As `update_`.
        """
        arrays = _gradients(self, tree)
        made = {}
        for path, array in zip(self._paths, arrays, strict=True):
            if path in self.slices:
                if array is None:
                    raise ValueError(f"{title('gradient', path)} is None, which a slice cannot be")
                start, stop = self.slices[path]
                made[path] = _flat(array)[start:stop]
        return made

    def master(self, params: Any) -> dict[str, NDArray[Any]]:
        """The part of the parameters that belongs to this rank, in the precision in which they are trained.

        Parameters
        ----------
        params : array or nested container of arrays
            Those of this state. They are not changed.

        Returns
        -------
        dict of str to numpy.ndarray
            For each leaf of `slices` its elements, of shape (stop - start,), new arrays: float32 for bfloat16
            parameters, with the lower halves that the state keeps where it does; others are copied.

        Raises
        ------
        TypeError, ValueError
            If the structure, a shape or a dtype is another one.
        RuntimeError
            If the state is inside a step.

        See Also
        --------
        rmsprop_native.State.master : The parameters of a state that is not divided.
        """
        with self._claim:
            arrays = _check_models(self, list(self._structure.leaves(params, "parameter")))
            parts: dict[str, list[NDArray[Any]]] = {}
            for unit in itertools.chain.from_iterable(self._units):
                own = {piece.leaf: _flat(arrays[piece.leaf])[piece.start : piece.stop] for piece in unit.pieces}
                for leaf, array in unit.state.master(own).items():
                    parts.setdefault(self._paths[leaf], []).append(array)
            return {path: np.concatenate(pieces) for path, pieces in parts.items()}

    @property
    def _buffers(self) -> tuple[str, ...]:
        """The names of the buffers of all ranks together."""
        return self.options.buffers_for(dtype for _, dtype, _ in self._models)

    def _buffer(self, name: str) -> Iterator[tuple[Piece, NDArray[Any]]]:
        """The pieces of a buffer; the arrays may be written."""
        for units in self._units:
            for unit in units:
                arrays = unit.sums if name == "grad_sum" else getattr(unit.state, name)
                for piece in unit.pieces if arrays is not None else ():
                    if arrays[piece.leaf] is not None:  # a leaf of float32 has no lower halves
                        yield piece, arrays[piece.leaf]

    def replace(self, *, overrides: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> None:
        """Change hyper-parameters from the next step on, in all ranks; see `State.replace`.

        Parameters
        ----------
        overrides : mapping of str to mapping, optional
            In place of all overrides that there are.
        **changes
            Any options that leave the arrays of the state as they are.

        Raises
        ------
        TypeError, ValueError
            As `State.replace`, or if the ranks do not agree. Nothing has been changed then, in any rank.
        RuntimeError
            If the state is inside a step.
        """
        _check_comm(self.comm)
        with self._claim, _together(self.comm):
            with _agreed(self.comm) as facts:
                options = self.options.replace(**changes)
                if options.accumulate != self.options.accumulate and self.accumulated:
                    raise ValueError(f"accumulate cannot change with {self.accumulated} gradients accumulated")
                checked = self.overrides if overrides is None else check_overrides(overrides)
                facts |= {"call": "replace", "the state": self._token} | _facts_of_options(options, checked)
                made = _shell(self.comm, self.reduction, self._bucket_bytes, self._structure, self._models)
                _set_options(made, options, checked)
                _make_units(made, None, self.step)
                for name in self._buffers:
                    for (_, new), (_, old) in zip(made._buffer(name), self._buffer(name), strict=True):
                        new[...] = old
            self._checked_numbers = None
            for name in ("options", "overrides", "_groups", "_leaf_groups", "_rates", "_units", "_buckets"):
                setattr(self, name, getattr(made, name))


# ---- agreement ----


class _RefusalError(Exception):
    """An error that every rank knows of, and raises when it leaves `_together`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextlib.contextmanager
def _together(comm: Any) -> Iterator[None]:
    """A call that all ranks make. Where one fails otherwise than by what `_agreed` has told all, an interrupt too, the
    others would wait for it: all are ended.
    """
    alone = comm.size == 1
    try:
        yield
        return
    except _RefusalError as refusal:
        error = refusal.error
    except BaseException:
        if not alone:
            said = f"rank {comm.rank} failed in a call of all ranks, which are ended"
            print(f"rmsprop_native: {said}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            time.sleep(0.5)  # launchers lose what they have not read yet
            comm.Abort(1)
        raise
    raise error from error.__cause__


@contextlib.contextmanager
def _agreed(comm: Any) -> Iterator[dict[str, Any]]:
    """What every rank must find to be so, before any of them writes. The body fills a dict with facts that must be the
    same in all ranks. Where the body of a rank raises, all ranks raise the error of the first such rank.
    """
    facts: dict[str, Any] = {}
    error: BaseException | None = None
    try:
        yield facts
    except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt too: the other ranks wait for this one
        error = raised
    if comm.size == 1 and error is None:
        return
    digest = hashlib.blake2b(repr(facts).encode("utf-8", "backslashreplace"), digest_size=7).digest()
    number = int.from_bytes(digest)
    mine = np.array([error is not None, number, -number], np.int64)
    most = np.empty_like(mine)
    comm.Allreduce(mine, most, MPI.MAX)
    if most[0]:
        raise _RefusalError(_first_error(comm, error))
    if most[1] != -most[2]:
        every = comm.allgather(facts)
        for rank, other in enumerate(every):
            for key in every[0] | other:
                a, b = every[0].get(key), other.get(key)
                if a != b:
                    text = f"the ranks do not agree: {key} is {_short(a)} in rank 0, {_short(b)} in rank {rank}"
                    raise _RefusalError(ValueError(text))


def _first_error(comm: Any, error: BaseException | None) -> BaseException:
    """For all ranks the error of the first rank that has one; what is no Exception its own rank raises as it is."""
    kind = next((base.__name__ for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base), "")
    try:
        told = str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - of the class of the error, whatever it is: the other ranks wait
        told = type(error).__name__
    every = comm.allgather(None if error is None else (kind, told))
    rank, (kind, text) = next((rank, found) for rank, found in enumerate(every) if found is not None)
    if error is not None and not isinstance(error, Exception):
        return error
    text = f"rank {rank}: {text}"
    try:
        made = getattr(builtins, kind)(text)
    except TypeError:  # it takes other arguments, as UnicodeDecodeError
        made = RuntimeError(text)
    made = made if isinstance(made, Exception) else RuntimeError(text)
    made.__cause__ = error
    return made


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check_comm(comm: object) -> None:
    if not isinstance(comm, MPI.Intracomm):
        raise TypeError(f"comm must be an mpi4py.MPI.Intracomm, got {type(comm).__name__}")
    if os.getpid() != _PROCESS:
        raise RuntimeError("this process was forked from one that uses MPI, and cannot use it")
    if comm == MPI.COMM_NULL:
        raise ValueError("the communicator is MPI.COMM_NULL: it was freed, or this process is not in its group")


# ---- how a state is made ----


@by_name(1, "init(params, comm=comm, lr=0.01)")
def init(
    params: Any,
    *,
    comm: Any = MPI.COMM_WORLD,
    reduction: str = "mean",
    bucket_bytes: int = BUCKET_BYTES,
    preset: str | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> ShardedState:
    """Make this rank's part of the state of an optimizer; all ranks of `comm` call it.

    Parameters
    ----------
    params : numpy.ndarray or nested dict, list, tuple, namedtuple or dataclass of them
        All parameters, as for `rmsprop_native.init`, the same in every rank to the bit. Those of bfloat16 are sent in
        half the bytes.
    comm : mpi4py.MPI.Intracomm, default MPI.COMM_WORLD
        The ranks that share the state.
    reduction : {"mean", "sum", "none", "sliced"}
        What `update_` is given: gradients of this rank's own data, of which the mean or the sum over all ranks is
        formed; gradients that were reduced already, the same in every rank; or of those only this rank's slice, as
        `ShardedState.slice_of` has it.
    bucket_bytes : int
        Bytes of gradients, as they are summed, that are sent at a time, of all ranks together; memory of four times as
        many is kept. The numbers do not depend on it, but for the rounding of the norms in `clip_norm` and
        `clip_global_norm`.
    preset, overrides, **options
        As for `rmsprop_native.init`.

    Returns
    -------
    ShardedState

    Raises
    ------
    TypeError, ValueError
        As `rmsprop_native.init`; or if the ranks do not agree about any of it. All ranks raise the same error.

    Examples
    --------
    Run by ``mpiexec -n 4 python train.py``, this prints the same in every rank; here there is one.

    >>> import numpy as np
    >>> from mpi4py import MPI
    >>> from rmsprop_native.interop import mpi
    >>> params = {"w": np.ones((2, 3)), "b": np.zeros(3)}
    >>> state = mpi.init(params, comm=MPI.COMM_SELF, lr=0.5, rho=0.75, eps=0.0)
    >>> grads = {"w": np.ones((2, 3)), "b": np.full(3, 2.0)}  # of this rank's part of the batch
    >>> mpi.update_(params, grads, state)["b"]
    array([-1., -1., -1.])
    """
    _check_comm(comm)
    with _together(comm):
        with _agreed(comm) as facts:
            facts["call"] = "init"
            state, arrays = _begin(params, comm, reduction, bucket_bytes, facts)
            checked = make_options(preset, **options)
            _set_options(state, checked, check_overrides({} if overrides is None else overrides))
            facts |= _facts_of_options(state.options, state.overrides)
            _make_units(state, arrays, 0)
        state._token = _drawn(comm)
    return state


def _drawn(comm: Any) -> str:
    """A number that rank 0 draws, in hexadecimal digits."""
    drawn: str = comm.bcast(secrets.token_hex(8) if comm.rank == 0 else None, 0)
    return drawn


def _begin(
    params: Any, comm: Any, reduction: str, bucket_bytes: int, facts: dict[str, Any]
) -> tuple[ShardedState, list[NDArray[Any]]]:
    """A state without options and arrays, and the parameters; `facts` are those of all of it."""
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
    bytes_of_bucket = int(check_number("bucket_bytes", bucket_bytes, 1.0, _MOST_BYTES))
    leaves, structure = flatten(params)
    arrays = _parameters(structure, leaves)
    Plan(structure, Claim(structure.size), arrays, (), leaves)  # refuses parameters that no step could write
    models = [(array.shape, array.dtype, axes_of(array)) for array in arrays]
    state = _shell(comm, reduction, bytes_of_bucket, structure, models)
    state._checked, state._bounds = leaves, _Bounds(arrays)
    facts |= {"reduction": reduction, "bucket_bytes": bytes_of_bucket, "paths": state._paths}
    for path, array, (shape, dtype, _) in zip(state._paths, arrays, models, strict=True):
        facts[title("parameter", path)] = f"{dtype.name} of {shape}"
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        facts[f"the CRC-32 of {title('parameter', path)}"] = zlib.crc32(data)
    return state, arrays


def _parameters(structure: Tree, leaves: list[Any]) -> list[NDArray[Any]]:
    """The leaves as exact ndarrays, views where they are not."""
    if all(type(leaf) is np.ndarray for leaf in leaves):
        return leaves
    for path, leaf in zip(structure.paths(), leaves, strict=True):
        if is_torch_tensor(leaf):
            raise TypeError(f"{title('parameter', path)} is a tensor: torch has FSDP2 and ZeroRedundancyOptimizer")
    return as_arrays(structure, leaves)


def _facts_of_options(options: Options, overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return f"an array of {value.shape} with the CRC-32 {zlib.crc32(value.data):08x}"
        return "a schedule" if callable(value) else value

    return {f"option {name}": plain(getattr(options, name)) for name in type(options).__dataclass_fields__} | {
        "overrides": [(pattern, {k: plain(v) for k, v in changes.items()}) for pattern, changes in overrides.items()]
    }


def _shell(comm: Any, reduction: str, bucket_bytes: int, structure: Tree, models: list[Any]) -> ShardedState:
    """A state without options and arrays."""
    state = ShardedState.__new__(ShardedState)
    state.comm, state.reduction, state._bucket_bytes = comm, reduction, bucket_bytes
    state._structure = structure
    state._paths = list(structure.paths())
    check_paths(state._paths)
    state._models = models
    state._sizes = [math.prod(shape) for shape, _, _ in models]
    state._claim = Claim(structure.size)
    state._checked, state._bounds = [], _Bounds([])
    state._checked_numbers = None
    return state


def _set_options(state: ShardedState, options: Options, overrides: dict[str, dict[str, Any]]) -> None:
    check_square_avg(options, state._paths, [dtype for _, dtype, _ in state._models])
    state.options, state.overrides = options, overrides
    state._groups, state._leaf_groups = group_leaves(options, overrides, state._paths)
    state._rates = [_Rate() for _ in state._groups]
    for path, group, (shape, _, _) in zip(state._paths, state._leaf_groups, state._models, strict=True):
        rates = state._groups[group].rates
        if rates is not None:
            broadcast_rates(rates, path, shape)


def _make_units(state: ShardedState, params: list[NDArray[Any]] | None, steps: int) -> None:
    """Make the buckets and their states, with `params` as averaged weights if there are any."""
    size, rank = state.comm.size, state.comm.rank
    plans = list(_plans(state, size))
    sends = _slots(plans, arithmetic) if size > 1 and state.reduction in ("mean", "sum") else None
    gathers = _slots(plans, np.dtype) if size > 1 else None
    clips = any(group.options.clip_norm is not None for group in state._groups)
    state._buckets, state._units, state.slices = [], [], {}
    for k, (dtype, parts) in enumerate(plans):
        bucket, own = _Bucket(parts), parts[rank]
        counts = [_elements(pieces) for pieces in parts]
        reals = [count * _reals(dtype) for count in counts]
        if sends is not None:
            wide = arithmetic(dtype)
            bucket.send = sends[k % _SLOTS][: sum(counts) * wide.itemsize].view(wide)
            bucket.grad = np.zeros(counts[rank], wide)
            sent, received = (_as_sent(array) for array in (bucket.send, bucket.grad))
            bucket.reduce = [sent, _TYPES[sent.dtype]], [received, _TYPES[sent.dtype]], reals, MPI.SUM
        if gathers is not None:
            bucket.gathered = gathers[k % _SLOTS][: sum(counts) * dtype.itemsize].view(dtype)
            sent = _as_sent(bucket.gathered)
            starts = list(itertools.accumulate(reals, initial=0))[:-1]
            bucket.gather = MPI.IN_PLACE, [sent, reals, starts, _TYPES[sent.dtype]]
        # With a limit for each leaf's norm, each has a factor of its own, and so a call of its own.
        together = [[piece] for piece in own] if clips else [own]
        state._buckets.append(bucket)
        state._units.append([_make_unit(state, bucket, unit, params, steps) for unit in together if unit])
        for piece in own:
            start, _ = state.slices.get(state._paths[piece.leaf], (piece.start, 0))
            state.slices[state._paths[piece.leaf]] = start, piece.stop


def _plans(state: ShardedState, size: int) -> Iterator[tuple[np.dtype[Any], list[list[Piece]]]]:
    """For each bucket its dtype, and the pieces of each rank."""
    if size == 1:  # all dtypes in one call
        everything = [Piece(i, 0, count, 0) for i, count in enumerate(state._sizes) if count]
        yield np.dtype(np.uint8), [everything]
        return
    o = state.options
    for dtype in dict.fromkeys(dtype for _, dtype, _ in state._models):
        members = [i for i, (_, other, _) in enumerate(state._models) if other == dtype]
        kept = (buffer_dtype(name, dtype, o.square_avg_dtype) for name in o.buffers_for([dtype]))
        itemsize = sum(of_buffer.itemsize for of_buffer in kept if of_buffer is not None)
        ranges = slices([state._sizes[i] for i in members], itemsize, size)
        ends = list(itertools.accumulate((state._sizes[i] for i in members), initial=0))
        chunk = max(state._bucket_bytes // size, _LINE) // arithmetic(dtype).itemsize
        for first in range(0, max(stop - start for start, stop in ranges), chunk):
            parts = [(min(start + first, stop), min(start + first + chunk, stop)) for start, stop in ranges]
            yield dtype, _pieces_of(members, ends, parts)


def _slots(plans: list[tuple[np.dtype[Any], list[list[Piece]]]], of_dtype: Any) -> list[NDArray[np.uint8]]:
    """The memory that buckets take turns in."""
    needed = [sum(map(_elements, parts)) * of_dtype(dtype).itemsize for dtype, parts in plans]
    return [np.empty(max(needed, default=0), np.uint8) for _ in range(_SLOTS)]


def _elements(pieces: list[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in pieces)


def _pieces_of(members: list[int], ends: list[int], parts: list[tuple[int, int]]) -> list[list[Piece]]:
    """The pieces of leaves, whose ends are `ends`, that each of some parts of all elements consists of."""
    made = []
    offset = 0
    for start, stop in parts:
        pieces = []
        place = int(np.searchsorted(ends, start, side="right")) - 1
        while start < stop:
            end = min(ends[place + 1], stop)
            if end > start:
                pieces.append(Piece(members[place], start - ends[place], end - ends[place], offset))
                offset += end - start
                start = end
            place += 1
        made.append(pieces)
    return made


def _make_unit(
    state: ShardedState, bucket: _Bucket, pieces: list[Piece], params: list[NDArray[Any]] | None, steps: int
) -> _Unit:
    views, reduced, sums, overrides = {}, {}, {}, {}
    options = state.options.replace(
        lr=0.0, maximize=False, clip_norm=None, clip_global_norm=None, on_nonfinite="propagate"
    )
    names = [field for field in OVERRIDABLE if field not in ("lr", "clip_norm")]
    first = min((piece.offset for piece in bucket.parts[state.comm.rank]), default=0)
    for piece in pieces:
        count, dtype = piece.stop - piece.start, state._models[piece.leaf][1]
        if params is None:
            views[piece.leaf] = np.zeros(count, dtype)
        else:
            views[piece.leaf] = _flat(params[piece.leaf])[piece.start : piece.stop]
        if bucket.grad is not None:
            reduced[piece.leaf] = bucket.grad[piece.offset - first : piece.offset - first + count]
        if options.accumulate > 1:
            sums[piece.leaf] = np.zeros(count, arithmetic(dtype))
        index = state._leaf_groups[piece.leaf]
        group = state._groups[index]
        changes = {name: getattr(group.options, name) for name in names}
        changes = {name: value for name, value in changes.items() if value != getattr(options, name)}
        if group.rates is not None:
            whole = broadcast_rates(group.rates, state._paths[piece.leaf], state._models[piece.leaf][0])
            changes["lr"] = np.array(whole.flat[piece.start : piece.stop])
        elif group.own_lr:
            changes["lr"] = state._rates[index]
        if changes:
            overrides[str(piece.leaf)] = changes
    kept = {name: getattr(options, name) for name in type(options).__dataclass_fields__} | {"accumulate": 1}
    made = init_slice(views, overrides=overrides, **kept)
    made.step = steps
    made._plan.set_origins([(piece.leaf, piece.start) for piece in pieces])
    return _Unit(made, pieces, reduced, sums)


def _flat(array: NDArray[Any]) -> Any:
    """The elements in C order, to be read and written by slices."""
    return array.reshape(-1) if array.flags.c_contiguous else array.flat


# ---- saved ----


def save(folder: str | os.PathLike[str], state: ShardedState) -> None:
    """Write a state into a folder that all ranks see; all ranks call it.

    Each rank writes its part, a checkpoint by itself. Then ``manifest.json`` is replaced, which names the parts: until
    then the folder has the old checkpoint, from then on the new one. Parts that it does not name are removed last.

    Parameters
    ----------
    folder : str or path-like
        It is made if it is not there. It holds one checkpoint.
    state : ShardedState
        A learning rate that is a function is not saved.

    Raises
    ------
    TypeError, ValueError, OSError
        As `rmsprop_native.save`, in every rank: the old checkpoint is still there. BlockingIOError while another job
        saves into the same folder.
    RuntimeError
        If the state is inside a step.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import rmsprop_native as rms
    >>> from mpi4py import MPI
    >>> from rmsprop_native.interop import mpi
    >>> w = np.ones(3)
    >>> state = mpi.init(w, comm=MPI.COMM_SELF, lr=0.5)
    >>> folder = tempfile.mkdtemp()
    >>> mpi.save(folder, state)
    >>> rms.load(folder)
    State(step=0, leaves=1, options=Options(lr=0.5, rho=0.9))
    >>> mpi.load(folder, w, comm=MPI.COMM_SELF)
    ShardedState(rank=0 of 1, step=0, leaves=1, options=Options(lr=0.5, rho=0.9))
    """
    if not isinstance(state, ShardedState):
        raise TypeError(f"state must be a ShardedState, got {type(state).__name__}")
    comm = state.comm
    _check_comm(comm)
    with state._claim, _together(comm), contextlib.ExitStack() as held:
        with _agreed(comm) as facts:
            place = os.fsdecode(folder)
            facts |= {"call": "save", "the state": state._token, "step": state.step, "accumulated": state.accumulated}
            described, rates = _described(state)
            if comm.rank == 0:
                os.makedirs(place, exist_ok=True)
                held.enter_context(alone_in(place))
        token = _drawn(comm)
        names = [f"part-{token}-{rank}.npz" for rank in range(comm.size)]
        part = os.path.join(place, names[comm.rank])
        try:
            with _agreed(comm), replacing(part) as file:
                write_content(file, part, *_part(state))
        except _RefusalError:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        with _agreed(comm):
            if comm.rank == 0:
                missing = [name for name in names if not os.path.exists(os.path.join(place, name))]
                if missing:
                    raise ValueError(f"{place} has not {missing[:8]}: it must be one folder, which all ranks see")
                parts = [(name, _shards(state, rank)) for rank, name in enumerate(names)]
                with replacing(os.path.join(place, MANIFEST)) as file:
                    file.write(write_manifest(described, rates, parts))
        # If that failed, the new parts stay: nobody knows whether the manifest on disk is that which names them.
        if comm.rank == 0:
            with contextlib.suppress(OSError):
                for name in os.listdir(place):
                    if is_part(name) and name not in names:
                        os.unlink(os.path.join(place, name))
        comm.Barrier()  # so that every rank finds the folder as it will stay


def load(
    folder: str | os.PathLike[str],
    params: Any,
    *,
    comm: Any = MPI.COMM_WORLD,
    reduction: str = "mean",
    bucket_bytes: int = BUCKET_BYTES,
    lr: float | Schedule | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> ShardedState:
    """The state that `save` wrote, in any number of ranks; all ranks of `comm` call it.

    Each rank reads the parts that hold elements of its slice. `rmsprop_native.load` of the folder gives the state of
    one machine, and needs no MPI.

    Parameters
    ----------
    folder : str or path-like
    params, comm, reduction, bucket_bytes
        As for `init`. Leaves are matched by their paths.
    lr, overrides
        As for `rmsprop_native.load`: in place of what was saved, as it must be where that was a schedule.

    Returns
    -------
    ShardedState

    Raises
    ------
    TypeError, ValueError, OSError
        As `rmsprop_native.load` and `init`, in every rank.

    Examples
    --------
    See `save`.
    """
    _check_comm(comm)
    with _together(comm):
        with _agreed(comm) as facts:
            facts["call"] = "load"
            manifest = manifest_of(folder)
            facts["the parts"] = [name for name, _ in manifest.parts]
            content = manifest.content
            state, arrays = _begin(params, comm, reduction, bucket_bytes, facts)
            places = match_leaves(content.leaves, state._structure, arrays)
            options, changes = options_of(content, manifest.rates, Given(lr, overrides))
            _set_options(state, options, check_overrides(changes))
            facts |= _facts_of_options(state.options, state.overrides)
            _make_units(state, None, content.step)
            seen = bytearray(len(places))
            for leaf, flag in zip(places, content.seen, strict=True):
                seen[leaf] = flag
            state._claim.set_counts(content.step, content.skipped, content.accumulated, bytes(seen))
            _fill(state, folder, manifest, places)
        state._token = _drawn(comm)
    return state


def _fill(state: ShardedState, folder: Any, manifest: Manifest, places: list[int]) -> None:
    """Read the own slice from the parts; `places` has the index of each saved leaf here."""
    mine: dict[tuple[str, int], list[tuple[Piece, NDArray[Any]]]] = {}
    for name in state._buffers:
        for piece, array in state._buffer(name):
            mine.setdefault((name, piece.leaf), []).append((piece, array))

    def wanted(shard: Shard) -> bool:
        start, stop = state.slices.get(state._paths[places[shard.leaf]], (0, 0))
        return shard.start < stop and start < shard.stop

    for name, shard, values in values_of(folder, manifest, wanted):
        for piece, array in mine[name, places[shard.leaf]]:
            start, stop = max(shard.start, piece.start), min(shard.stop, piece.stop)
            if start < stop:
                array[start - piece.start : stop - piece.start] = values[start - shard.start : stop - shard.start]


def _counts(state: ShardedState) -> dict[str, int]:
    return {"step": state.step, "skipped": state.skipped, "accumulated": state.accumulated}


def _described(state: ShardedState) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """The whole state, as `content.describe` has it."""
    leaves = [
        Leaf(path, dtype, shape, axes, False)
        for path, (shape, dtype, axes) in zip(state._paths, state._models, strict=True)
    ]
    return describe(
        state.options, state.overrides, state._structure, leaves, _counts(state), state._claim.seen, plain=True
    )


def _part(state: ShardedState) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The slice of this rank as a state of its own, whose leaves are the pieces."""
    shards = _shards(state, state.comm.rank)
    names = [name_of(state._paths[shard.leaf], shard) for shard in shards]
    leaves = [
        Leaf(name, state._models[shard.leaf][1], (shard.stop - shard.start,), (0,), False)
        for name, shard in zip(names, shards, strict=True)
    ]
    seen = bytes(state._claim.seen[shard.leaf] for shard in shards)
    structure = flatten(dict.fromkeys(names, 0))[1]
    described, _ = describe(state.options, {}, structure, leaves, _counts(state), seen, plain=True)
    places = {(shard.leaf, shard.start): i for i, shard in enumerate(shards)}
    arrays = {
        f"{name}/{places[piece.leaf, piece.start]}": array
        for name in state._buffers
        for piece, array in state._buffer(name)
    }
    for shard, (_, array) in zip(shards, state._buffer("square_avg"), strict=True):
        refuse_negative("square_avg", state._paths[shard.leaf], array)
    return described, arrays


def _shards(state: ShardedState, rank: int) -> list[Shard]:
    """What a rank owns, in the order of its buckets."""
    return [Shard(piece.leaf, piece.start, piece.stop) for bucket in state._buckets for piece in bucket.parts[rank]]


# ---- what a step is given ----


def _gradients(state: ShardedState, grads: Any) -> list[NDArray[Any] | None]:
    """The gradients as exact ndarrays, checked."""
    arrays: list[NDArray[Any] | None] = []
    leaves = list(state._structure.leaves(grads))
    for path, leaf, (shape, dtype, _) in zip(state._paths, leaves, state._models, strict=True):
        arrays.append(None if leaf is None else _gradient(path, leaf, shape, dtype))
    return arrays


def _gradient(path: str, leaf: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if type(leaf) is np.ndarray and leaf.dtype == dtype and leaf.shape == shape:
        return leaf
    name, owner = title("gradient", path), title("parameter", path)
    if issubclass(type(leaf), RowGrad):
        raise TypeError(f"{name} is a RowGrad, whose rows may be others in each rank: pass a dense array")
    if not issubclass(type(leaf), np.ndarray):
        raise refusal("not_an_array", name, leaf)
    if issubclass(type(leaf), np.ma.MaskedArray):
        raise refusal("masked", name, leaf)
    array: NDArray[Any] = np.ndarray.view(leaf, np.ndarray)
    if not array.dtype.isnative:
        raise refusal("byte_order", name, array)
    if arithmetic(array.dtype) != arithmetic(dtype):  # bfloat16 and float32 go together
        raise refusal("other_dtype", name, array, dtype=dtype, owner=owner)
    if array.shape != shape:
        raise refusal("other_shape", name, array, shape=shape, owner=owner)
    return array


def _sliced(state: ShardedState, grads: Any) -> dict[int, NDArray[Any]]:
    """For each leaf of which this rank owns a part the gradient of that part, checked."""
    if not isinstance(grads, dict) or grads.keys() != state.slices.keys():
        found = sorted(map(str, grads))[:8] if isinstance(grads, dict) else type(grads).__name__
        raise ValueError(
            f"the gradients must be a dict with the keys {sorted(state.slices)[:8]}, as slices has: {found}"
        )
    places = {path: i for i, path in enumerate(state._paths)}
    made = {}
    for path, (start, stop) in state.slices.items():
        made[places[path]] = _gradient(path, grads[path], (stop - start,), state._models[places[path]][1])
    return made


def _check_models(state: ShardedState, leaves: list[Any]) -> list[NDArray[Any]]:
    """The parameters, of the dtypes and shapes of init()."""
    arrays = _parameters(state._structure, leaves)
    for path, array, (shape, dtype, _) in zip(state._paths, arrays, state._models, strict=True):
        if array.dtype != dtype:
            raise refusal("other_dtype", title("parameter", path), array, dtype=dtype, owner="that of init()")
        if array.shape != shape:
            raise refusal("other_shape", title("parameter", path), array, shape=shape, owner="that of init()")
    return arrays


def _check_params(state: ShardedState, params: Any) -> list[NDArray[Any]]:
    leaves = list(state._structure.leaves(params, "parameter"))
    arrays = _check_models(state, leaves)
    for path, array in zip(state._paths, arrays, strict=True):
        if not array.flags.writeable:
            raise refusal("read_only", title("parameter", path), array)
    if len(leaves) != len(state._checked) or not all(map(operator.is_, leaves, state._checked)):
        Plan(state._structure, Claim(len(leaves)), arrays, (), leaves)  # refuses those that overlap
        state._checked, state._bounds = leaves, _Bounds(arrays)
    return arrays


def _check_overlap(state: ShardedState, grads: Iterable[tuple[int, NDArray[Any] | None]]) -> None:
    """Refuse a gradient that shares memory with a parameter."""
    for leaf, grad in grads:
        if grad is not None and grad.size and (other := state._bounds.find(grad)) is not None:
            owner = title("parameter", state._paths[other])
            raise refusal("overlap", title("gradient", state._paths[leaf]), grad, other=owner)


def _check_numbers(state: ShardedState, lr: object, grad_scale: object) -> tuple[float, float, list[float]]:
    """The learning rate and factor of a call, and the rate of each group; schedules are called."""
    rate = None if lr is None else check_lr(lr)
    scale = check_number("grad_scale", grad_scale)
    rates = [resolve_lr(group.options, None if group.own_lr else rate, state.step) for group in state._groups]
    if (rates, scale) != state._checked_numbers:
        dtypes = {np.empty(0, arithmetic(dtype)).real.dtype for _, dtype, _ in state._models}
        for group, its_rate in zip(state._groups, rates, strict=True):
            for dtype in dtypes:
                check_dtype(group_of(group.options, its_rate, scale), group.options, dtype)
        state._checked_numbers = rates, scale
    return rates[0], scale, rates


# ---- the step ----


def update_(params: Any, grads: Any, state: ShardedState, *, lr: float | None = None, grad_scale: float = 1.0) -> Any:
    """Take one RMSProp step in place; all ranks of the state's communicator call it.

    Parameters
    ----------
    params : numpy.ndarray or nested container of them
        All parameters, the same in every rank. They are written, and the same in every rank again.
    grads : numpy.ndarray or nested container of them
        What ``state.reduction`` says: in the structure of `params` with None, in every rank, where there is no
        gradient; or this rank's slice. No RowGrad. Where parameters are bfloat16 or float32, gradients may be either,
        in each rank.
    state : ShardedState
    lr, grad_scale : float, optional
        As for `rmsprop_native.update_`, the same in every rank.

    Returns
    -------
    numpy.ndarray or nested container of them
        `params` itself.

    Raises
    ------
    TypeError, ValueError
        As `rmsprop_native.update_`, with the rank where it is so; or if the ranks do not agree about the numbers or
        which gradients are None.
    FloatingPointError
        If a gradient, after the reduction, is not finite and ``on_nonfinite`` is "raise".
    RuntimeError
        If another thread is inside a step of the same state, or in a process that was forked.

    Notes
    -----
    Whatever is raised, but for the last, is raised in every rank, and nothing has been written in any. What one rank
    meets later, such as an error of the network or an interrupt, ends all ranks (``MPI_Abort``); where there is one
    rank it is raised, with the step half taken. The parameters are those of
    `rmsprop_native.update_` with the reduced gradients, to the bit; with a limit on norms the sums of squares are added
    in another order.

    Examples
    --------
    >>> import numpy as np
    >>> from mpi4py import MPI
    >>> from rmsprop_native.interop import mpi
    >>> w = np.array([1.0, -2.0])
    >>> state = mpi.init(w, comm=MPI.COMM_SELF, lr=0.5, rho=0.75, eps=0.0)
    >>> mpi.update_(w, np.array([2.0, 2.0]), state)
    array([ 0., -3.])
    """
    if not isinstance(state, ShardedState):
        raise TypeError(f"state must be a ShardedState, which mpi.init() makes, got {type(state).__name__}")
    _check_comm(state.comm)
    with state._claim, _together(state.comm):
        with _agreed(state.comm) as facts:
            arrays = _check_params(state, params)
            rate, scale, rates = _check_numbers(state, lr, grad_scale)
            if state.reduction == "sliced":
                whole: list[NDArray[Any] | None] = []
                part = _sliced(state, grads)
                present = [True] * len(state._paths)
                _check_overlap(state, part.items())
            else:
                whole, part = _gradients(state, grads), {}
                present = [grad is not None for grad in whole]
                _check_overlap(state, enumerate(whole))
            facts |= {"call": "update_", "the state": state._token, "step": state.step, "lr": rates}
            facts |= {"accumulated": state.accumulated, "grad_scale": scale}
            facts["which gradients are None"] = [i for i, has in enumerate(present) if not has]
            step = _Step(state, arrays, whole, part, present, rate, -scale if state.options.maximize else scale)
        for at, value in zip(state._rates, rates, strict=True):
            at.value = value
        with np.errstate(all="ignore"):
            found = step.run()
    if found is not None:
        raise found
    return params


class _Step:
    """One step, after all ranks agreed about it."""

    def __init__(
        self,
        state: ShardedState,
        params: list[NDArray[Any]],
        grads: list[NDArray[Any] | None],
        part: dict[int, NDArray[Any]],
        present: list[bool],
        lr: float,
        scale: float,
    ) -> None:
        self.state, self.comm, self.options = state, state.comm, state.options
        self.params = [_flat(array) for array in params]
        self.grads = [None if grad is None else _flat(grad) for grad in grads]
        self.part = part
        self.present = present
        self.lr, self.scale = lr, scale
        self.clips = self.options.clip_global_norm is not None or any(
            group.options.clip_norm is not None for group in state._groups
        )
        self.factor = 1.0
        self.factors: dict[int, float] = {}
        self.given: list[list[dict[int, NDArray[Any] | None]]] = []  # of each unit of each bucket
        self.gathers: list[tuple[_Bucket, Any] | None] = [None] * _SLOTS

    def run(self) -> FloatingPointError | None:
        """Take the step; an error that all ranks found is returned, with nothing written."""
        o, claim = self.options, self.state._claim
        buckets = self.state._buckets
        # Where all gradients decide whether or how far to step, no bucket can be stepped before the last is reduced.
        at_once = not self.clips and o.on_nonfinite == "propagate" and o.accumulate == 1
        request = self._reduce(0) if buckets else None
        for k in range(len(buckets)):
            following = self._reduce(k + 1) if k + 1 < len(buckets) else None
            self.given.append(self._reduced(k, request))
            request = following
            if at_once:
                self._step_bucket(k)
        if not at_once:
            if o.on_nonfinite != "propagate" and (bad := self._nonfinite()) is not None:
                if o.on_nonfinite == "raise":
                    return bad
                claim.set_counts(claim.steps, claim.skipped + 1, claim.accumulated, claim.seen)
                return None
            if o.accumulate > 1 and not self._accumulate():
                return None
            if self.clips:
                self._clip()
            for k in range(len(buckets)):
                self._step_bucket(k)
        for k in range(len(buckets), len(buckets) + _SLOTS):
            self._finish_gather(k % _SLOTS)
        if o.accumulate > 1:
            for _, array in self.state._buffer("grad_sum"):
                array[...] = 0
        claim.set_counts(claim.steps + 1, claim.skipped, 0, bytes(len(self.present)))
        return None

    def _reduce(self, k: int) -> Any:
        """Begin to form the own slice of the reduced gradients of a bucket."""
        bucket = self.state._buckets[k]
        if bucket.send is None:
            return None
        for piece in itertools.chain.from_iterable(bucket.parts):
            grad = self.grads[piece.leaf]
            place = slice(piece.offset, piece.offset + piece.stop - piece.start)
            bucket.send[place] = 0 if grad is None else grad[piece.start : piece.stop]
        return self.comm.Ireduce_scatter(*bucket.reduce)

    def _reduced(self, k: int, request: Any) -> list[dict[int, NDArray[Any] | None]]:
        """For each unit of a bucket the gradients of its pieces."""
        units, grad = self.state._units[k], self.state._buckets[k].grad
        if grad is None:
            return [{piece.leaf: self._given(piece) for piece in unit.pieces} for unit in units]
        request.Wait()
        if self.state.reduction == "mean":
            reals = _as_reals(grad)
            reals /= reals.dtype.type(self.comm.size)
        return [{leaf: g if self.present[leaf] else None for leaf, g in unit.reduced.items()} for unit in units]

    def _given(self, piece: Piece) -> NDArray[Any] | None:
        """The gradient of a piece that needs no reduction; a view where its leaf is C-contiguous."""
        if self.state.reduction == "sliced":
            skipped, _ = self.state.slices[self.state._paths[piece.leaf]]
            return self.part[piece.leaf][piece.start - skipped : piece.stop - skipped]
        grad = self.grads[piece.leaf]
        return None if grad is None else grad[piece.start : piece.stop]

    def _step_bucket(self, k: int) -> None:
        """Step the own slice of a bucket, and begin to send it."""
        bucket, slot = self.state._buckets[k], k % _SLOTS
        stepped = []
        for unit, given in zip(self.state._units[k], self.given[k], strict=True):
            params = {piece.leaf: self.params[piece.leaf][piece.start : piece.stop] for piece in unit.pieces}
            if unit.sums:
                given = {leaf: total if self.present[leaf] else None for leaf, total in unit.sums.items()}
            scale = self.scale * self.factors.get(unit.pieces[0].leaf, self.factor)
            update_slice(params, given, unit.state, lr=self.lr, grad_scale=scale)
            for piece in unit.pieces:
                if type(self.params[piece.leaf]) is not np.ndarray:  # of a leaf that is not C-contiguous it is a copy
                    self.params[piece.leaf][piece.start : piece.stop] = params[piece.leaf]
                stepped.append((piece, params[piece.leaf]))
        if bucket.gathered is None:
            return
        self._finish_gather(slot)
        for piece, param in stepped:
            bucket.gathered[piece.offset : piece.offset + len(param)] = param
        self.gathers[slot] = bucket, self.comm.Iallgatherv(*bucket.gather)

    def _finish_gather(self, slot: int) -> None:
        pending, self.gathers[slot] = self.gathers[slot], None
        if pending is None:
            return
        bucket, request = pending
        request.Wait()
        assert bucket.gathered is not None
        for rank, pieces in enumerate(bucket.parts):
            for piece in pieces if rank != self.comm.rank else ():
                place = slice(piece.offset, piece.offset + piece.stop - piece.start)
                self.params[piece.leaf][piece.start : piece.stop] = bucket.gathered[place]

    # ---- what all gradients decide ----

    def _own(self) -> Iterator[tuple[_Unit, int, NDArray[Any]]]:
        """The own gradients that this step is given, with their units and leaves."""
        for units, of_bucket in zip(self.state._units, self.given, strict=True):
            for unit, given in zip(units, of_bucket, strict=True):
                yield from ((unit, leaf, grad) for leaf, grad in given.items() if grad is not None)

    def _pieces(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """The own gradients that this step is given or has accumulated, and their leaves."""
        if self.options.accumulate == 1:
            yield from ((leaf, grad) for _, leaf, grad in self._own())
            return
        for unit in itertools.chain.from_iterable(self.state._units):
            yield from ((leaf, total) for leaf, total in unit.sums.items() if self.present[leaf])

    def _nonfinite(self) -> FloatingPointError | None:
        """The error for the first gradient with elements that are not finite; the same in every rank."""
        counts: dict[int, int] = {}
        for _, leaf, grad in self._own():
            if bad := grad.size - int(np.count_nonzero(np.isfinite(grad))):
                counts[leaf] = counts.get(leaf, 0) + bad
        none = len(self.present)
        first = min(counts, default=none)
        every = np.empty((self.comm.size, 2), np.int64)
        self.comm.Allgather(np.array([first, counts.get(first, 0)], np.int64), every)
        leaf = int(every[:, 0].min())
        if leaf == none:
            return None
        count = int(every[every[:, 0] == leaf, 1].sum())
        name, size = title("gradient", self.state._paths[leaf]), self.state._sizes[leaf]
        return FloatingPointError(f"{name} has {count} of {size} elements that are not finite")

    def _accumulate(self) -> bool:
        """Add the gradients to the sums; whether a step is due, whose gradients they are then."""
        claim = self.state._claim
        for unit, leaf, grad in self._own():
            total = _as_reals(unit.sums[leaf])
            total += _as_reals(grad.astype(unit.sums[leaf].dtype, copy=False)) * total.dtype.type(self.scale)
        seen = bytes(old | new for old, new in zip(claim.seen, self.present, strict=True))
        claim.set_counts(claim.steps, claim.skipped, claim.accumulated + 1, seen)
        self.present = [bool(flag) for flag in seen]
        self.scale = 1.0 / self.options.accumulate
        return claim.accumulated == self.options.accumulate

    def _clip(self) -> None:
        """Set the factor of each leaf; sums of squares of ranks are added in the order of ranks, so that all agree."""
        limit = self.options.clip_global_norm
        own = np.zeros((len(self.present) if limit is None else 1, 2))
        for leaf, grad in self._pieces():
            own[leaf if limit is None else 0] += _sumsq(grad, 1.0), _sumsq(grad, _DOWN)
        every = np.empty((self.comm.size, *own.shape))
        self.comm.Allgather(own, every)
        totals = np.zeros_like(own)
        for of_rank in every:
            totals += of_rank
        if limit is not None:
            self.factor = self._factor(totals[0], limit)
            return
        for leaf, _ in self._pieces():
            of_leaf = self.state._groups[self.state._leaf_groups[leaf]].options.clip_norm
            if of_leaf is not None:
                self.factors[leaf] = self._factor(totals[leaf], of_leaf)

    def _factor(self, sums: NDArray[np.float64], limit: float) -> float:
        return clip_factor(float(sums[0]), float(sums[1]), limit, self.scale)


def _reals(dtype: np.dtype[Any]) -> int:
    """The reals in an element."""
    return 2 if dtype.kind == "c" else 1


def _as_reals(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(array.real.dtype)


def _as_sent(array: NDArray[Any]) -> NDArray[Any]:
    """An array in a type that every MPI has: reals, or for bfloat16 integers of 16 bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else _as_reals(array)


def _sumsq(grad: NDArray[Any], scale: float) -> float:
    """The sum of squares of ``scale * grad`` in double."""
    reals = _as_reals(grad)
    total = 0.0
    for start in range(0, len(reals), _BLOCK):
        block = reals[start : start + _BLOCK].astype(np.float64)
        block *= scale
        total += float(np.square(block, out=block).sum())
    return total

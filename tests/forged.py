"""Checkpoints that are not as save writes them: bytes changed, and headers forged whose checksums are right."""

from __future__ import annotations

import copy
import io
import json
import zlib

import ml_dtypes
import numpy as np

import rmsprop_native as rms
from rmsprop_native.content import check_content
from rmsprop_native.fileformats import Npz, Safetensors, dumps

SUFFIXES = ["npz", "safetensors"]
LAYOUTS = {"npz": Npz, "safetensors": Safetensors}


B16 = np.dtype(ml_dtypes.bfloat16)
# The dtypes of three leaves, and what their storage needs of the options.
KINDS = {
    "usual": ((np.float32, np.float64, np.complex64), {}),
    "bfloat16": ((B16, np.float32, B16), {"square_avg_dtype": "bfloat16", "seed": 7}),
}


def small_state(fill=0.5, kind="usual"):
    dtypes, options = KINDS[kind]
    w, *b = [np.ones(shape, dtype) for shape, dtype in zip(((2, 3), 2, 1), dtypes, strict=True)]
    params = {"w": np.asfortranarray(w), "b": b}
    state = rms.init(params, momentum=0.9, accumulate=2, overrides={"b.0": {"lr": np.array([0.5, 0.25])}}, **options)
    rms.update_(params, {"w": w.copy(), "b": [None, b[1].copy()]}, state)
    for name in ("square_avg", "momentum_buffer", "grad_sum"):
        getattr(state, name)["w"][...] = fill
    return state


def saved_bytes(tmp_path, suffix, **how):
    path = tmp_path / f"state.{suffix}"
    rms.save(path, small_state(**how))
    return path.read_bytes()


def all_of(state):
    """What a state holds, as text."""
    saved = state.state_dict()
    arrays = saved.pop("arrays")
    return json.dumps(saved), {name: array.tobytes() for name, array in arrays.items()}


# ---- bytes that are changed; `choose` is a random.Random or like it ----


def flips(data, other, choose):
    changed = bytearray(data)
    for _ in range(choose.choice([1, 1, 2, 8, 64])):
        changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
    return changed


def overwritten(data, other, choose):
    start = choose.randrange(len(data))
    size = choose.choice([1, 4, 100])
    filling = choose.choice([b"\0" * size, b"\xff" * size, choose.randbytes(size)])
    return (data[:start] + filling + data[start + size :])[: len(data)]


def truncated(data, other, choose):
    return data[: choose.randrange(len(data))]


def spliced(data, other, choose):
    """The begin of one file and the end of another one of the same length, or a part of it."""
    start, end = sorted(choose.sample(range(len(data) + 1), 2))
    return data[:start] + other[start:end] + data[end:]


def moved(data, other, choose):
    """A part cut out, doubled, or put elsewhere."""
    start, end = sorted(choose.sample(range(len(data) + 1), 2))
    part, rest = data[start:end], data[:start] + data[end:]
    at = choose.randrange(len(rest) + 1)
    return choose.choice([rest, data[:end] + part + data[end:], rest[:at] + part + rest[at:]])


def swapped(data, other, choose):
    """Two parts of the same size in each other's place."""
    size = choose.choice([4, 8, 20, 128])
    one, two = choose.randrange(len(data) - size), choose.randrange(len(data) - size)
    changed = bytearray(data)
    changed[one : one + size], changed[two : two + size] = data[two : two + size], data[one : one + size]
    return changed


CORRUPTIONS = [flips, overwritten, truncated, spliced, moved, swapped]


# ---- forged headers, with checksums that are right ----


def parts_of(kind="usual"):
    """The header of a small state, and its arrays."""
    saved = small_state(kind=kind).state_dict()
    return saved, saved.pop("arrays")


def header_text(data, suffix):
    file = io.BytesIO(data)
    return LAYOUTS[suffix].read_text(file, len(data))


def write_forged(path, layout_type, header, arrays):
    """A file of this header as save would write it, with the bytes of these arrays under their names, as many as they
    must have there; its checksums are right.
    """
    specs = list(check_content({name: part for name, part in header.items() if name != "arrays"}).arrays())
    crcs = {}
    layout = layout_type(specs, dumps(header))
    data = {}
    for name, place in layout.places.items():
        array = arrays[name].transpose(place.axes)
        array = array if array.dtype.kind in "fc" else array.view(np.uint16)
        nbytes = next(spec.nbytes for spec in specs if spec.name == name)
        if nbytes > 1 << 16:
            raise ValueError(f"{name} is too large to be made")
        data[name] = array.astype(array.dtype.newbyteorder("<")).tobytes().ljust(nbytes, b"\0")[:nbytes]
        crcs[name] = zlib.crc32(data[name], place.first_crc)
    header["arrays"] = [[name, f"{crc:08x}"] for name, crc in crcs.items()]
    order = {spec.name: None for spec in specs}
    header["arrays"] = [[name, f"{crcs[name]:08x}"] for name in order]
    text = dumps(header)
    layout = layout_type(specs, text)
    with open(path, "wb") as file:
        file.write(layout.start(text))
        for name in layout.places:
            file.write(layout.before(name, crcs[name]))
            file.write(data[name])
        file.write(layout.after(text, crcs))


def forge_text(path, suffix, text):
    """A file that has this text for a header, with the right checksum, and nothing else."""
    layout = LAYOUTS[suffix]([], text)
    path.write_bytes(layout.start(text) + layout.after(text, {}))


def changed_at_random(value, choose):
    """Another value somewhere in what JSON gave."""
    others = [None, True, False, "float32", "float64", "bfloat16",
              -1, 0, 2, 2**31, 2**53, 2**63, 10**30, 1.5, -0.0, "", "x", "lr/0", [], {}, [[]], {"a": 1},
              ["leaf"], ["list", 2**40], {"array": "lr/0", "shape": [2**50]}, {"schedule": "f"}, [1] * 70]  # fmt: skip
    path, at = [], value
    while isinstance(at, dict | list) and len(at) and (not path or choose.random() < 0.7):
        path.append(choose.choice(list(at) if isinstance(at, dict) else range(len(at))))
        at = at[path[-1]]
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    what = choose.randrange(4)
    if what == 0:
        del inner[path[-1]]
    elif what == 1 and isinstance(inner, list):
        inner.insert(path[-1], copy.deepcopy(choose.choice([*inner, choose.choice(others)])))
    else:
        inner[path[-1]] = choose.choice(others)
    return value

"""Checkpoints under attack: kill -9, corruption, forged headers, archives of other makers, memory."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import zipfile

import numpy as np
import pytest
from conftest import memory_failures, run_python, same_bits
from forged import (
    B16,
    CORRUPTIONS,
    KINDS,
    LAYOUTS,
    SUFFIXES,
    all_of,
    changed_at_random,
    forge_text,
    header_text,
    parts_of,
    saved_bytes,
    small_state,
    write_forged,
)
from hostile import Pair

import rmsprop_native as rms
from rmsprop_native.fileformats import Npz, dumps

# ---- kill -9 ----


KILLS = """
import os, random, signal, sys, time
import numpy as np
import rmsprop_native as rms
path, moments, strays = sys.argv[1], random.Random(7), 0

def save_again_and_again(out):
    state = rms.init(np.zeros(50_000), momentum=0.9)
    while True:
        state.step += 1
        state.square_avg[...] = state.momentum_buffer[...] = state.step
        rms.save(path, state)
        os.write(out, b"%d\\n" % state.step)

for _ in range(50):
    into, out = os.pipe()
    child = os.fork()
    if child == 0:
        save_again_and_again(out)
    os.close(out)
    printed = os.read(into, 100)
    time.sleep(moments.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    printed += os.read(into, 100_000)
    os.close(into)
    strays += len(os.listdir(os.path.dirname(path))) > 1
    state = rms.load(path)
    assert state.step - int(printed.split()[-1]) in (0, 1)
    assert (state.square_avg == state.step).all() and (state.momentum_buffer == state.step).all()
print(strays)
"""


@pytest.mark.threads
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_100_kills_while_a_process_saves_over_one_file(tmp_path, suffix):
    """50 for each format, by kill -9, each of a process of its own at a random moment after its first save. The file is
    that of a save that has returned, or of the next.
    """
    path = tmp_path / f"state.{suffix}"
    assert int(run_python(KILLS, path)) > 0  # some were killed within a save
    rms.save(path, rms.load(path))
    assert os.listdir(tmp_path) == [path.name]


# ---- corruption ----


def refused_or_the_same(path, data, expected, name=""):
    """Load changed bytes; False if they were refused."""
    path.write_bytes(data)
    try:
        state = rms.load(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: "), name
        return False
    assert all_of(state) == expected, name
    return True


@pytest.mark.parametrize("dtype", [np.dtype(float), B16], ids=str)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_byte_changed_and_every_length(tmp_path, suffix, dtype):
    state = rms.init(np.ones(2, dtype), lr=0.5)
    rms.update_(np.ones(2, dtype), np.ones(2, dtype), state)
    path = tmp_path / f"a.{suffix}"
    rms.save(path, state)
    data, expected = path.read_bytes(), all_of(state)
    for i in range(len(data)):
        changed = bytearray(data)
        changed[i] ^= 1 << i % 8
        assert not refused_or_the_same(path, changed, expected, f"byte {i}")
        assert not refused_or_the_same(path, data[:i], expected, f"length {i}")
    assert not refused_or_the_same(path, data + b"\0", expected)
    assert refused_or_the_same(path, data, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_10_000_corruptions(tmp_path, corrupt, suffix):
    """850 for each kind and format: an error, or the bits of the file that it is the same as, if any."""
    data, other = saved_bytes(tmp_path, suffix), saved_bytes(tmp_path, suffix, fill=0.25)
    assert len(data) == len(other)
    choose = random.Random(f"{suffix} {corrupt.__name__}")
    states = {data: all_of(small_state()), other: all_of(small_state(0.25))}
    path = tmp_path / f"a.{suffix}"
    refused = 0
    for i in range(850):
        changed = bytes(corrupt(data, other, choose))
        refused += not refused_or_the_same(path, changed, states.get(changed), f"corruption {i}")
    assert refused > 400


# ---- forged headers, with checksums that are right ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_the_forger_writes_is_what_save_writes(tmp_path, suffix, kind):
    header, arrays = parts_of(kind)
    write_forged(tmp_path / f"a.{suffix}", LAYOUTS[suffix], header, arrays)
    assert (tmp_path / f"a.{suffix}").read_bytes() == saved_bytes(tmp_path, suffix, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_forged_headers(tmp_path, suffix, kind):
    """Values of all kinds at random places: an error, or a state of what the header says that can be stepped."""
    header, arrays = parts_of(kind)
    path = tmp_path / f"a.{suffix}"
    good = saved_bytes(tmp_path, suffix, kind=kind)
    choose = random.Random(suffix)
    taken = 0
    for i in range(1000):
        forged = header
        for _ in range(choose.choice([1, 1, 1, 2, 5])):
            forged = changed_at_random(forged, choose) if forged else forged
        try:
            write_forged(path, LAYOUTS[suffix], forged, arrays)
        except (ValueError, KeyError):
            text = dumps(forged | {"arrays": json.loads(header_text(good, suffix))["arrays"]})
            forge_text(path, suffix, text)
        try:
            state = rms.load(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), i
            continue
        taken += 1
        params = state._structure.unflatten(iter([np.ones(model.shape, model.dtype) for model in state._models()]))
        for _ in range(2):
            rms.update_(params, state._structure.unflatten(iter([None] * state._structure.size)), state)
    assert taken > 0


HUGE = [2**26, 2**26]  # 16 or 32 PiB
TEXTS = {
    "petabytes": lambda header: header["leaves"][0].update(shape=HUGE),
    "petabytes of rates": lambda header: header["overrides"][0][1]["lr"].update(shape=[2**50]),
    "more than 64 bits": lambda header: header["leaves"][0].update(shape=[2**52, 2**52]),
    "a long list": lambda header: header.update(structure=[["list", 2**52]]),
    "many leaves": lambda header: header.update(leaves=header["leaves"] * 10_000),
    "deep": lambda header: header.update(structure=[["list", 1]] * 100_000 + [["leaf"]]),
    "many arrays": lambda header: header.update(arrays=header["arrays"] * 10_000),
    "names of arrays": lambda header: header["arrays"][0].__setitem__(0, "../../x"),
    "no checksum": lambda header: header["arrays"][0].__setitem__(1, "0"),
    "checksum of another kind": lambda header: header["arrays"][0].__setitem__(1, 5),
    "no list of arrays": lambda header: header.update(arrays=5),
    "an array of three": lambda header: header["arrays"][0].append(1),
    "later": lambda header: header.update(version=3),
    "with an option of a later version": lambda header: header.update(version=1),
    "earlier": lambda header: header.update(version=0),
    "petabytes of bfloat16": lambda header: header["leaves"][0].update(dtype="bfloat16", shape=HUGE),
    "dtype of objects": lambda header: header["leaves"][0].update(dtype="object"),
    "dtype of names": lambda header: header["leaves"][0].update(dtype="f4,f4"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", TEXTS)
def test_forged_sizes_take_no_memory(tmp_path, name, suffix):
    header = json.loads(header_text(saved_bytes(tmp_path, suffix), suffix))
    TEXTS[name](header)
    path = tmp_path / f"a.{suffix}"
    forge_text(path, suffix, dumps(header))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.(npz|safetensors): "):
        rms.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b"{}", b"[" * 1_000_000, b"\xff\xfe", b'{"format":NaN}', b"9" * 10_000]
)
def test_headers_of_something_else(tmp_path, text, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "safetensors" and not text.isascii():
        text = b"\\u00ff"
    forge_text(path, suffix, text)
    with pytest.raises(ValueError, match=r"a\.(npz|safetensors): "):
        rms.load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_deep_header_where_the_limit_of_calls_was_raised(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    forge_text(path, suffix, b'[[[1,{"a":' * 100_000)
    code = """
import sys
import rmsprop_native as rms
sys.setrecursionlimit(10**6)
try:
    rms.load(sys.argv[1])
except ValueError as error:
    print(error)
"""
    assert run_python(code, path) == f"{path}: its header is nested too deep"


def test_a_header_that_says_it_is_larger_than_the_file(tmp_path):
    data = bytearray(saved_bytes(tmp_path, "safetensors"))
    for size in (2**63, 2**64 - 1, len(data), 10**8, 0, 7):
        data[:8] = size.to_bytes(8, "little")
        (tmp_path / "a.safetensors").write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.safetensors: "):
            rms.load(tmp_path / "a.safetensors")
    data = bytearray(saved_bytes(tmp_path, "npz"))
    for size in (2**63, 2**64 - 1, len(data) + 1, 64 << 20, 0, 7):
        data[44:60] = size.to_bytes(8, "little") * 2
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.npz: "):
            rms.load(tmp_path / "a.npz")


# ---- archives of other makers ----


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, part in parts:
            archive.writestr(name, part)
    return file.getvalue()


def test_archives_that_hold_the_same_in_another_form_are_refused(tmp_path):
    """Compressed (a bomb), with a member twice, in another order, with one more: only what save writes is read."""
    data = saved_bytes(tmp_path, "npz")
    parts = list(members(data).items())
    archives = {
        "stored": zipped(parts),
        "compressed": zipped(parts, zipfile.ZIP_DEFLATED),
        "bomb": zipped([("header.npy", b"\0" * 50_000_000), *parts[1:]], zipfile.ZIP_DEFLATED),
        "more": zipped([*parts, ("x.npy", b"")]),
        "order": zipped(parts[::-1]),
        "objects": zipped(
            [("header.npy", b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")]
        ),
        "appended": data + zipped(parts),
        "prepended": zipped(parts) + data,
    }
    with pytest.warns(UserWarning, match="Duplicate name"):
        archives["twice"] = zipped([*parts, parts[-1]])
    for name, archive in archives.items():
        (tmp_path / "a.npz").write_bytes(archive)
        with pytest.raises(ValueError, match=r"a\.npz: "):
            rms.load(tmp_path / "a.npz")
        assert len(archive) < 200_000, name


def test_nothing_in_a_file_is_executed(tmp_path):
    """Pickles in the place of arrays, and names of classes that exist: nothing is imported."""
    header, arrays = parts_of()
    header["structure"][0] = ["dataclass", "antigravity", ["w", "b"]]
    write_forged(tmp_path / "a.npz", Npz, header, arrays)
    code = """
import sys
import rmsprop_native as rms
before = set(sys.modules)
sys.addaudithook(lambda event, arguments: print(event) if event in ("exec", "pickle.find_class", "compile") else None)
state = rms.load(sys.argv[1])
print(sorted(set(sys.modules) - before), state.step)
"""
    assert run_python(code, tmp_path / "a.npz") == "[] 0"


# ---- memory that runs out, and files that change ----


def test_an_allocation_that_fails_is_a_memory_error_and_leaves_the_file(tmp_path):
    """The limit of a process's memory, while it loads and saves more than that."""
    path = tmp_path / "a.npz"
    rms.save(path, rms.init(np.zeros(30 << 20), momentum=0.9))
    before = path.read_bytes()
    code = """
import resource, sys
import numpy as np
import rmsprop_native as rms
small = rms.init(np.zeros(3))
resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))
held = np.zeros(30 << 20)
try:
    rms.load(sys.argv[1])
except MemoryError:
    print("refused")
del held
rms.save(sys.argv[1] + ".npz", small)
print(rms.load(sys.argv[1] + ".npz").step)
"""
    assert run_python(code, path, OPENBLAS_NUM_THREADS="1") == "refused\n0"
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that Python could not finish
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_that_runs_out_within_save_and_load(tmp_path, suffix, kind):
    """One allocation fails, at every seventh place: the file is the old one or the new, and no other one is left."""
    testcapi = memory_failures()
    path = str(tmp_path / f"a.{suffix}")  # without memory Python says of a Path that it is none
    state = small_state(kind=kind)
    rms.save(path, state)
    expected = all_of(state)
    failures = unnoticed = allocation = 0
    while unnoticed < 10:
        allocation += 7
        testcapi.set_nomemory(allocation, allocation + 1)
        try:
            rms.save(path, state)
            rms.load(path)
            unnoticed += 1
        except (MemoryError, SystemError, RuntimeError):  # "can't allocate read lock", of a file object
            failures, unnoticed = failures + 1, 0
        finally:
            testcapi.remove_mem_hooks()
        assert os.listdir(tmp_path) == [f"a.{suffix}"]
        assert all_of(rms.load(path)) == all_of(state) == expected
    assert failures > 100


def test_a_file_that_is_cut_while_it_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    rms.save(path, rms.init(np.zeros(1 << 19)))
    whole = path.read_bytes()
    expected = rms.load(path)
    from rmsprop_native import checkpoint

    opened = checkpoint.state_of

    def cut_first(*arguments):
        os.truncate(path, 3 << 20)
        return opened(*arguments)

    monkeypatch.setattr(checkpoint, "state_of", cut_first)
    with pytest.raises(ValueError, match="the file ends within square_avg/0"):
        rms.load(path)
    monkeypatch.undo()
    path.write_bytes(whole)
    assert same_bits(rms.load(path).square_avg, expected.square_avg)


def test_a_state_goes_on_after_a_save_that_failed(tmp_path):
    pair = Pair({"w": np.ones(3)}, momentum=0.9)
    pair.step({"w": np.ones(3)})
    with pytest.raises(FileNotFoundError):
        rms.save(tmp_path / "missing" / "a.npz", pair.state)
    pair.step({"w": np.ones(3)})
    rms.save(tmp_path / "a.npz", pair.state)
    pair.state = rms.load(tmp_path / "a.npz")
    pair.step({"w": np.ones(3)})

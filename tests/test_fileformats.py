"""How a checkpoint lies in a file: read by NumPy, zipfile and safetensors, with sizes beyond 4 GiB."""

from __future__ import annotations

import json
import sys
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
from conftest import run_python, same_bits

import rmsprop_native as rms
from rmsprop_native import fileformats
from rmsprop_native.content import ArraySpec
from rmsprop_native.fileformats import Npz, Safetensors, dumps, loads


@pytest.fixture
def state(rng):
    """Of all dtypes and orders, with an odd number of float32 before float64."""
    params = {
        "c": rng.standard_normal((3, 5)).astype(np.float32),
        "f": np.asfortranarray(rng.standard_normal((3, 4))),
        "turned": np.moveaxis(rng.standard_normal((2, 3, 4)), 0, 1),
        "z": rng.standard_normal((2, 3, 2)).view(complex)[..., 0].T,
        "z8": np.ones(3, np.complex64),
        "scalar": np.array(2.0),
        "empty": np.zeros((0, 3), np.float32),
    }
    state = rms.init(params, momentum=0.9, accumulate=2, overrides={"c": {"lr": np.array([0.5, 0.25, 0.1, 0.2, 0.3])}})
    rms.update_(params, {key: np.ones(p.shape, p.dtype) for key, p in params.items()}, state)
    for tree in (state.square_avg, state.momentum_buffer):
        for array in tree.values():
            array[...] = np.abs(rng.standard_normal(array.shape))
    return state


def expected(state):
    return state.state_dict()["arrays"]


def test_numpy_and_zipfile_read_an_npz_file(tmp_path, state):
    path = tmp_path / "a.npz"
    rms.save(path, state)
    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found}
    header = json.loads(bytes(arrays.pop("header")))
    assert arrays.keys() == expected(state).keys()
    assert all(same_bits(array, arrays[name]) for name, array in expected(state).items())
    assert arrays["square_avg/1"].flags.f_contiguous
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        crcs = {info.filename.removesuffix(".npy"): info.CRC for info in archive.infolist()}
    assert {name: int(crc, 16) for name, crc in header["arrays"]} == {k: c for k, c in crcs.items() if k != "header"}


def test_safetensors_reads_a_safetensors_file(tmp_path, state):
    path = tmp_path / "a.safetensors"
    rms.save(path, state)
    found = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    header = json.loads(metadata["rmsprop_native"])
    assert int(metadata["crc32"], 16) == zlib.crc32(metadata["rmsprop_native"].encode())
    assert found.keys() == expected(state).keys()
    for name, array in expected(state).items():
        values = found[name].view(array.dtype)[..., 0] if array.dtype.kind == "c" else found[name]
        assert same_bits(values, array)
        assert int(dict(header["arrays"])[name], 16) == zlib.crc32(np.ascontiguousarray(array).tobytes())
    start = path.read_bytes()
    entries = json.loads(start[8 : 8 + int.from_bytes(start[:8], "little")])
    for name, entry in entries.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % (4 if entry["dtype"] == "F32" else 8) == 0


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_machine_of_the_other_byte_order(tmp_path, state, suffix, monkeypatch):
    """Files are little-endian; here they are made of the order that this machine has not."""
    rms.save(tmp_path / f"little.{suffix}", state)
    monkeypatch.setattr(fileformats, "_ORDER", ">" if sys.byteorder == "little" else "<")
    path = tmp_path / f"a.{suffix}"
    rms.save(path, state)
    assert path.read_bytes() != (tmp_path / f"little.{suffix}").read_bytes()
    arrays = expected(rms.load(path))
    assert all(same_bits(array, arrays[name]) for name, array in expected(state).items())
    if suffix == "npz":
        with np.load(path) as found:
            assert all((found[name] == array).all() for name, array in expected(state).items())


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_the_same_state_gives_the_same_bytes(tmp_path, state, suffix):
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    rms.save(paths[0], state)
    rms.save(paths[1], rms.load(paths[0]))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_members_beyond_4_gib(tmp_path):
    """A file with a hole in it: the large member is not read, the one behind it is."""
    large = ArraySpec("square_avg/0", np.dtype(float), (5 << 27,), (0,))
    small = ArraySpec("square_avg/1", np.dtype(np.float32), (3,), (0,))
    values = np.arange(3, dtype=np.float32)
    layout = Npz([large, small], b"{}")
    place = layout.places[small.name]
    crcs = {large.name: 0, small.name: zlib.crc32(values.tobytes(), place.first_crc)}
    with open(tmp_path / "a.npz", "wb") as file:
        file.write(layout.start(b"{}"))
        file.write(layout.before(large.name, 0))
        file.seek(place.start)
        file.write(layout.before(small.name, crcs[small.name]) + values.tobytes() + layout.after(b"{}", crcs))
    assert (tmp_path / "a.npz").stat().st_size == layout.size > 5 << 30
    with np.load(tmp_path / "a.npz") as found:
        assert same_bits(found["square_avg/1"], values)
        assert found.zip.getinfo("square_avg/0.npy").file_size == (5 << 30) + 128
        assert found.zip.getinfo("square_avg/1.npy").header_offset > 5 << 30


def test_more_members_than_a_small_archive_counts(tmp_path):
    state = rms.init([np.zeros(1, np.float32) for _ in range(66_000)])
    path = tmp_path / "a.npz"
    rms.save(path, state)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 66_001
    assert rms.load(path).step == 0


def test_a_header_that_is_too_large_is_refused(tmp_path):
    text = dumps({"a": "x" * 100_000_000})
    with pytest.raises(ValueError, match="can have 100000000 bytes of header, this one needs"):
        Safetensors([], text)
    state = rms.init({"x" * 10_000_000: {str(i): np.zeros(1) for i in range(7)}})
    with pytest.raises(ValueError, match=r"the header of so many leaves needs \d+ bytes, and 67108864 can be saved"):
        rms.save(tmp_path / "a.npz", state)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[NaN]", b"[" * 100_000, b"1" * 10_000, b'{"a": 1}}'])
def test_what_is_no_json(text):
    with pytest.raises(ValueError, match=r"its header is (no JSON|nested too deep)"):
        loads(text)


def test_brackets_in_strings_are_no_nesting():
    keys = {"[" * 100: 1, "\\": 2, '\\"[' * 100: 3}
    assert loads(dumps(keys)) == keys


def test_numbers_keep_their_bits():
    numbers = [0.1, 1 / 3, -0.0, 5e-324, sys.float_info.max, 2**53]
    assert [repr(n) for n in loads(dumps(numbers))] == [repr(n) for n in numbers]


def test_no_package_is_needed_for_safetensors(tmp_path, state):
    path = tmp_path / "a.safetensors"
    rms.save(path, state)
    code = """
import sys
sys.modules["safetensors"] = None
import rmsprop_native as rms
from rmsprop_native import fileformats
rms.save(sys.argv[1], rms.load(sys.argv[1]))
"""
    before = path.read_bytes()
    run_python(code, path)
    assert path.read_bytes() == before

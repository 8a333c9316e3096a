"""The manifest of a state in parts, and how a folder of parts is loaded; tests/mpi writes them in several processes."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from conftest import check_alike, copied, small_tree

import rmsprop_native as rms
from rmsprop_native.checkpoint import manifest_of, values_of, write_content
from rmsprop_native.content import Leaf, describe
from rmsprop_native.shards import MANIFEST, Shard, name_of, write_manifest
from rmsprop_native.tree import flatten

COUNTS = ("step", "skipped", "accumulated")


def save_in_parts(folder, state, of_parts):
    """Save a state as parts of some shards."""
    described, arrays = state._described(plain=True)
    arrays = dict(arrays)
    counts = {name: getattr(state, name) for name in COUNTS}
    paths = [leaf["path"] for leaf in described["leaves"]]
    files = []
    for number, shards in enumerate(of_parts):
        names = [name_of(paths[shard.leaf], shard) for shard in shards]
        dtypes = [state._leaf_dtypes[shard.leaf] for shard in shards]
        leaves = [Leaf(n, d, (s.stop - s.start,), (0,), False) for n, d, s in zip(names, dtypes, shards, strict=True)]
        structure = flatten(dict.fromkeys(names, 0))[1]
        seen = bytes(described["seen"][shard.leaf] for shard in shards)
        of_part, _ = describe(state.options, {}, structure, leaves, counts, seen, plain=True)
        values = {
            f"{name}/{i}": arrays[f"{name}/{shard.leaf}"].reshape(-1)[shard.start : shard.stop]
            for name in state._plan.names
            for i, shard in enumerate(shards)
            if f"{name}/{shard.leaf}" in arrays
        }
        files.append((f"part-{0:016x}-{number}.npz", shards))
        with open(folder / files[-1][0], "wb+") as file:
            write_content(file, files[-1][0], of_part, values)
    rates = [array for name, array in arrays.items() if name.startswith("lr/")]
    described = {key: value for key, value in described.items() if key != "arrays"}
    (folder / MANIFEST).write_bytes(write_manifest(described, rates, files))


PARTS = [[Shard(0, 0, 5), Shard(1, 0, 2)], [Shard(1, 2, 3)], [], [Shard(0, 5, 12)]]


def trained(rng, *, narrow=False, **options):
    params, grads = small_tree(rng), small_tree(rng)
    if narrow:
        params["layer1"]["w"], grads["layer1"]["w"] = (
            tree["layer1"]["w"].astype(ml_dtypes.bfloat16) for tree in (params, grads)
        )
    state = rms.init(params, **options)
    for _ in range(3):
        rms.update_(params, grads, state)
    return params, grads, state


EVERY = {
    "plain": {},
    "all": {"momentum": 0.9, "centered": True, "ema": 0.9, "accumulate": 2},
    "rates": {"overrides": {"layer1.w": {"lr": np.array([0.1, 1 / 3, 1e-300])}}},
    "split": {"narrow": True, "accumulate": 2},
    "rounded": {"narrow": True, "master_weights": False, "seed": 5},
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("with_like", [False, True])
def test_parts_are_one_state(rng, tmp_path, name, with_like):
    params, grads, state = trained(rng, **EVERY[name])
    save_in_parts(tmp_path, state, PARTS)
    order = "wb" if name == "rounded" else "bw"  # another one, but for random bits, which follow the order
    other = {"layer1": {key: params["layer1"][key].copy() for key in order}}
    back = rms.load(tmp_path, like=other if with_like else None)
    if not with_like:
        check_alike(params, back, copied(params), state)
    assert (back.step, back.accumulated) == (state.step, state.accumulated)
    for _ in range(2):
        rms.update_(params, grads, state)
        rms.update_(other, grads, back)
    assert all(np.array_equal(params["layer1"][key], other["layer1"][key]) for key in "wb")


def test_a_schedule_is_given_again(rng, tmp_path):
    _, _, state = trained(rng, lr=lambda taken: 0.5)
    save_in_parts(tmp_path, state, PARTS)
    with pytest.raises(ValueError, match=r"manifest.json: the learning rate was a schedule"):
        rms.load(tmp_path)
    assert rms.load(tmp_path, lr=0.25).options.lr == 0.25


def changed(*keys):
    """A change of the manifest at a place, to what a function makes of it."""

    def at(function):
        def change(saved):
            holder = saved
            for key in keys[:-1]:
                holder = holder[key]
            holder[keys[-1]] = function(holder[keys[-1]])

        return change

    return at


WRONG = {
    "format": (changed("format")(lambda old: "another"), "it does not say 'format'"),
    "version": (changed("version")(lambda old: 2), "is of version 2"),
    "no version": (changed("version")(lambda old: "1"), "version must be an int"),
    "more names": (lambda saved: saved.update(more=1), "has the names"),
    "rates": (changed("rates")(lambda old: []), "must have 1 arrays of learning rates"),
    "few rates": (changed("rates", 0)(lambda old: old[:2]), "lr/0 has 2 numbers"),
    "no rates": (changed("rates", 0)(lambda old: ["a", "b", "c"]), "could not convert"),
    "a folder above": (changed("parts", 0, 0)(lambda old: "../" + old), "a part is called '../part"),
    "twice": (changed("parts", 1, 0)(lambda old: old.replace("-1.", "-0.")), "two parts are the same file"),
    "overlap": (changed("parts", 0, 1, 0, 2)(lambda old: 6), "each element of leaf 'layer1.w' once: see 6"),
    "gap": (changed("parts", 0, 1, 0, 2)(lambda old: 4), "each element of leaf 'layer1.w' once: see 4"),
    "end": (changed("parts", 3, 1, 0, 2)(lambda old: 13), "13 elements of leaf 'layer1.w', of shape (4, 3)"),
    "leaf": (changed("parts", 0, 1, 0, 0)(lambda old: 7), "no manifest"),
    "negative": (changed("parts", 0, 1, 0, 1)(lambda old: -1), "must be in [0, 2**53)"),
    "a number": (changed("parts")(lambda old: 3), "no manifest"),
    "moved": (changed("parts", 0, 1)(lambda old: old[::-1]), "its leaves are not those that the manifest says"),
    "storage": (changed("state", "options", "master_weights")(lambda old: False), "its master_weights is True, the"),
    "buffers": (changed("state", "options", "momentum")(lambda old: 0.5), "the manifest square_avg, momentum_buffer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_is_not_believed(rng, tmp_path, name):
    change, message = WRONG[name]
    _, _, state = trained(rng, **EVERY["rates"])
    save_in_parts(tmp_path, state, PARTS)
    saved = json.loads((tmp_path / MANIFEST).read_text())
    change(saved)
    (tmp_path / MANIFEST).write_text(json.dumps(saved))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        rms.load(tmp_path)
    assert message in str(caught.value)


def test_no_memory_is_taken_for_what_is_not_there(rng, tmp_path):
    _, _, state = trained(rng)
    save_in_parts(tmp_path, state, PARTS)
    saved = json.loads((tmp_path / MANIFEST).read_text())
    saved["state"]["leaves"][0]["shape"] = [1 << 40, 1]
    saved["parts"][3][1][0][2] = 1 << 40
    (tmp_path / MANIFEST).write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"part-0+-3.npz has \d+ bytes, fewer than its elements"):
        manifest_of(tmp_path)


@pytest.mark.parametrize("what", ["changed", "truncated", "missing"])
def test_a_part_is_checked(rng, tmp_path, what):
    _, _, state = trained(rng)
    save_in_parts(tmp_path, state, PARTS)
    part = tmp_path / f"part-{0:016x}-1.npz"
    data = bytearray(part.read_bytes())
    if what == "missing":
        part.unlink()
    elif what == "truncated":
        part.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    with pytest.raises(FileNotFoundError if what == "missing" else ValueError, match=r"part-0+-1\.npz"):
        rms.load(tmp_path)


def test_a_folder_without_a_manifest(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        rms.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        manifest_of(tmp_path)


def test_a_manifest_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / MANIFEST, "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ValueError, match=r"manifest.json: it is larger than 67108864 bytes$"):
        rms.load(tmp_path)


def test_values_of_the_wanted_shards_only(rng, tmp_path):
    _, _, state = trained(rng)
    save_in_parts(tmp_path, state, PARTS)
    manifest = manifest_of(tmp_path)
    shards = [shard for _, of_part in manifest.parts for shard in of_part]
    for wanted in shards:
        found = [shard for _, shard, _ in values_of(tmp_path, manifest, lambda shard, one=wanted: shard == one)]
        assert found == [wanted] * len(manifest.content.buffers)

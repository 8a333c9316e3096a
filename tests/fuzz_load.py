"""Fuzzes load by coverage, with atheris (libFuzzer for Python): an input chooses what is changed in a checkpoint.

Headers are changed in their structure, with checksums that are right; or bytes anywhere. The result is a ValueError
that begins with the path, or a state that can be stepped and that save writes as it was read. make fuzz runs it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rmsprop_native"]):
    import rmsprop_native as rms
    from rmsprop_native import fileformats

import numpy as np
from forged import (
    CORRUPTIONS,
    KINDS,
    LAYOUTS,
    SUFFIXES,
    all_of,
    changed_at_random,
    forge_text,
    parts_of,
    saved_bytes,
    write_forged,
)

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
PARTS = {kind: parts_of(kind) for kind in KINDS}
GOOD = {
    (suffix, kind): [saved_bytes(FOLDER, suffix, fill=fill, kind=kind) for fill in (0.5, 0.25)]
    for suffix in SUFFIXES
    for kind in KINDS
}


class Choices:
    """What of random.Random the changes use, taken from the bytes of an input."""

    def __init__(self, data):
        self.provider = atheris.FuzzedDataProvider(data)

    def randrange(self, n):
        return self.provider.ConsumeIntInRange(0, n - 1)

    def choice(self, options):
        return options[self.randrange(len(options))]

    def random(self):
        return self.randrange(256) / 256

    def randbytes(self, n):
        return self.provider.ConsumeBytes(n).ljust(n, b"\0")

    def sample(self, population, k):
        """Two different ones."""
        one, other = self.randrange(len(population)), self.randrange(len(population) - 1)
        return [population[one], population[other + (other >= one)]][:k]


def write_changed(path, suffix, choose):
    """Write a checkpoint that was changed as the input says."""
    kind = choose.choice(list(KINDS))
    if choose.randrange(4) == 0:
        path.write_bytes(choose.choice(CORRUPTIONS)(*GOOD[suffix, kind], choose))
        return
    forged, arrays = PARTS[kind]
    for _ in range(1 + choose.randrange(3)):
        forged = changed_at_random(forged, choose) if forged else forged
    try:
        write_forged(path, LAYOUTS[suffix], forged, arrays)
    except (ValueError, KeyError):  # no arrays belong to such a header
        crcs = [[name, "00000000"] for name in arrays]
        forge_text(path, suffix, fileformats.dumps(forged | {"arrays": crcs}))


def stepped(state):
    """Take a step of parameters and gradients that fit a state."""
    params, grads = ([np.ones(model.shape, model.dtype) for model in state._models()] for _ in range(2))
    rms.update_(state._structure.unflatten(iter(params)), state._structure.unflatten(iter(grads)), state)


def fuzz_once(data):
    """Load one changed checkpoint."""
    choose = Choices(data)
    suffix = choose.choice(SUFFIXES)
    path = FOLDER / f"a.{suffix}"
    write_changed(path, suffix, choose)
    try:
        state = rms.load(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: "), error
        return
    loaded = all_of(state)
    rms.save(path, state)
    assert all_of(rms.load(path)) == loaded
    try:
        stepped(state)
    except FloatingPointError:  # the options of the file say "raise"
        assert state.options.on_nonfinite == "raise"


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz_once)
    atheris.Fuzz()

"""The test vectors: they are what the reference makes, and the compiled step has their bits."""

from __future__ import annotations

import make_vectors
import numpy as np
import pytest
from cases import ISAS, NUMBERS, VARIANTS
from conftest import ROOT
from make_vectors import BUFFERS, FILES, FOLDER, as_bits, from_bits, load

import rmsprop_native as rms


def test_the_files_are_what_the_reference_makes(tmp_path):
    make_vectors.main(tmp_path)
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in FILES}
    for name in FILES:
        assert (FOLDER / f"{name}.json").read_text() == (tmp_path / f"{name}.json").read_text(), "run make vectors"


@pytest.mark.parametrize("name", FILES)
def test_every_variant_preset_and_option_has_a_case(name):
    cases = load(name)
    assert set(cases) >= {*VARIANTS, *(f"preset {preset}" for preset in rms.PRESETS)}
    defaults = rms.Options(**FILES[name][1])
    varied = {
        key for case in cases.values() for key, value in case["options"].items() if value != getattr(defaults, key)
    }
    assert varied == set(rms.Options.__slots__) - {"square_avg_dtype", "master_weights", "seed"}
    assert varied >= {key for options in NUMBERS.values() for key in options}
    assert {case["options"]["seed"] for case in cases.values()} == {defaults.seed}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FILES)
def test_the_compiled_step_has_the_bits(name, isa):
    rms.use_isa(isa)
    for case in load(name).values():
        params = [from_bits(bits) for bits in case["params"]]
        state = rms.init(params, **case["options"])
        for call in case["calls"]:
            grads = [None if bits is None else from_bits(bits) for bits in call["grads"]]
            rms.update_(params, grads, state, **{key: call[key] for key in ("lr", "grad_scale") if key in call})
            assert [as_bits(param) for param in params] == call["params"], case["name"]
            for buffer in BUFFERS:
                arrays = getattr(state, buffer)
                assert (None if arrays is None else [as_bits(a) for a in arrays]) == call.get(buffer), case["name"]
            for count in ("step", "skipped", "accumulated"):
                assert getattr(state, count) == call[count], case["name"]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_bits_are_read_as_they_are_written(dtype):
    numbers = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.finfo(dtype).smallest_subnormal, np.nan], dtype)
    assert as_bits(from_bits(as_bits(numbers))) == as_bits(numbers)
    assert from_bits("3f80 c020").tolist() == [1.0, -2.5]
    assert as_bits(from_bits("3f80 7fc0")) == "3f80 7fc0"


def test_the_page_names_the_files():
    page = (ROOT / "docs" / "vectors.md").read_text()
    assert all(f"`vectors/{name}.json`" in page for name in FILES)

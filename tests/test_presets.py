"""Presets: explicit options win, the choices are listed, and presets cannot be changed."""

from __future__ import annotations

import numpy as np
import pytest

import rmsprop_native as rms
from rmsprop_native.presets import make_options


@pytest.mark.parametrize("preset", rms.PRESETS)
def test_explicit_arguments_win_over_a_preset(preset):
    options = rms.init(np.zeros(2), preset=preset, lr=0.5, eps=0.25).options
    assert (options.lr, options.eps) == (0.5, 0.25)
    for name, value in rms.PRESETS[preset].items():
        if name not in ("lr", "eps"):
            assert getattr(options, name) == value
            assert f"{name}=" in repr(options) or value == getattr(rms.Options(), name)


def test_unknown_preset_lists_the_choices():
    with pytest.raises(ValueError, match="no preset 'caffe'; choose from 'torch', 'keras', 'tf1'"):
        rms.init(np.zeros(2), preset="caffe")
    with pytest.raises(TypeError):
        rms.PRESETS["torch"] = {}
    with pytest.raises(TypeError):
        rms.PRESETS["torch"]["lr"] = 1.0


@pytest.mark.parametrize(
    ("name", "meant"),
    [("pytorch", "torch"), ("tensorflow", "tf1"), ("PyTorch", "torch"), ("keras3", "keras"), ("lasagne", "pymc")],
)
def test_other_names_of_the_frameworks(name, meant):
    with pytest.raises(
        ValueError, match=f"^no preset '{name}'; did you mean '{meant}'\\? choose from 'torch', 'keras'"
    ):
        rms.init(np.zeros(2), preset=name)


@pytest.mark.parametrize("preset", [["torch"], 1, {}, False])
def test_a_preset_is_a_string(preset):
    with pytest.raises(TypeError, match="^preset must be a string or None, got "):
        make_options(preset)


def test_no_preset_gives_the_defaults():
    assert make_options(None, lr=0.5) == rms.Options(lr=0.5)
    with pytest.raises(ValueError, match="^no preset ''"):
        make_options("")


def test_a_preset_refuses_unknown_options():
    with pytest.raises(TypeError, match="alpha"):
        make_options("torch", alpha=0.9)

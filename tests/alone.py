"""What a wheel must do in an environment that has NumPy alone: make wheel runs it there."""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig

import numpy as np

import rmsprop_native as rms

installed = {distribution.name for distribution in importlib.metadata.distributions()} - {"pip", "setuptools"}
assert installed == {"numpy", "rmsprop_native"}, installed

params = {"w": np.ones(3), "b": np.array([-1.0])}
state = rms.init(params, lr=0.1)
for _ in range(20):
    rms.update_(params, {name: 2 * array for name, array in params.items()}, state)  # the gradient of a sum of squares
assert all(np.abs(array).max() < 0.2 for array in params.values()), params

rms.bench(0)

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    assert not sys._is_gil_enabled(), "a module of the wheel turned the GIL on"

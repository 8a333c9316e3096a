"""Work on arrays of any layout: blocks are gathered, worked on and scattered."""

from __future__ import annotations

import numpy as np
import pytest
from cases import DTYPES, VARIANTS, hard_numbers, options_of
from conftest import as_keywords, check_alike, on_reference, same_bits

import rmsprop_native as rms
from rmsprop_native import _core, reference


def test_layout_keeps_what_lies_between(rng):
    wide = rng.standard_normal((5, 8))
    before = wide.copy()
    view = wide[:, 1:5]
    rms.update_(view, np.ones((5, 4)), rms.init(view))
    assert (wide[:, 1:5] != before[:, 1:5]).all()
    assert same_bits(wide[:, 5:], before[:, 5:])
    assert same_bits(wide[:, :1], before[:, :1])


def test_broadcast_gradient_has_stride_0():
    param, other = np.zeros((3, 4)), np.zeros((3, 4))
    grad = np.broadcast_to(np.arange(4.0), (3, 4))
    rms.update_(param, grad, rms.init(param))
    rms.update_(other, grad.copy(), rms.init(other))
    assert same_bits(param, other)


@pytest.mark.threads
@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_spans_over_threads(dtype, rng):
    _core.set_grain(0)
    rms.set_num_threads(2)
    values = hard_numbers(rng, (300, 3 * 130), DTYPES[dtype])
    param, grad = values[:, ::3], np.asfortranarray(hard_numbers(rng, (300, 130), DTYPES[dtype]))
    options = options_of(VARIANTS["nesterov_centered"])
    ref_param, ref_state = on_reference(param, options)
    state = rms.init(param, **as_keywords(options))
    rms.update_(param, grad, state)
    reference.update_(ref_param, grad, ref_state)
    check_alike(param, state, ref_param, ref_state)


def test_norm_does_not_depend_on_layout(rng):
    grad = rng.standard_normal((60, 70)).astype(np.float32)
    clipped = []
    for g in (grad, np.asfortranarray(grad), np.ascontiguousarray(grad[::-1])[::-1]):
        for order in "CF":
            param = np.zeros((60, 70), np.float32, order=order)
            rms.update_(param, g, rms.init(param, clip_norm=0.1, rho=0.0, eps=1.0))
            clipped.append(param)
    assert all(same_bits(clipped[0], other) for other in clipped[1:])

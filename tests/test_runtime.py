"""Run-time control: instruction sets, threads, the report."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl
from conftest import run_python

import rmsprop_native as rms
from rmsprop_native import _core


@pytest.mark.parametrize("name", ["sse9", "", "AVX2"])
def test_unknown_isa_lists_the_choices(name):
    with pytest.raises(ValueError, match="choose from .*'baseline'"):
        rms.use_isa(name)


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (5000, ValueError), (1.5, TypeError)])
def test_bad_number_of_threads(n, error):
    with pytest.raises(error):
        rms.set_num_threads(n)


@pytest.mark.skipif(not _core.has_threads(), reason="no POSIX threads here")
def test_threads_follow_openmp_unless_set():
    code = "import rmsprop_native as rms; print(rms.num_threads())"
    assert run_python(code, OMP_NUM_THREADS="3") == "3"
    rms.set_num_threads(2)
    assert rms.num_threads() == 2
    rms.set_num_threads(None)
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert rms.num_threads() == 1


def test_show_config(capsys):
    rms.show_config()
    printed = capsys.readouterr().out
    config = rms.show_config("dicts")
    assert f"instruction set: {config['instruction set']}" in printed
    assert config["numpy"] == np.__version__
    with pytest.raises(ValueError, match="mode must be"):
        rms.show_config("json")

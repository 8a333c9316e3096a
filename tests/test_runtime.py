"""Run-time control: instruction sets, threads, the report."""

from __future__ import annotations

import io
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from conftest import run_python

import rmsprop_native as rms
from rmsprop_native import _core, runtime


@pytest.mark.parametrize("name", ["sse9", "", "AVX2"])
def test_unknown_isa_lists_the_choices(name):
    with pytest.raises(ValueError, match="choose from .*'baseline'"):
        rms.use_isa(name)


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (5000, ValueError), (1.5, TypeError)])
def test_bad_number_of_threads(n, error):
    with pytest.raises(error):
        rms.set_num_threads(n)


@pytest.mark.thread_unsafe
@pytest.mark.skipif(not _core.has_threads(), reason="no POSIX threads here")
def test_threads_follow_openmp_unless_set():
    code = "import rmsprop_native as rms; print(rms.num_threads())"
    assert run_python(code, OMP_NUM_THREADS="3") == "3"
    rms.set_num_threads(2)
    assert rms.num_threads() == 2
    rms.set_num_threads(None)
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert rms.num_threads() == 1


def test_show_config(capsys, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    rms.show_config()
    printed = capsys.readouterr().out
    config = rms.show_config("dicts")
    assert f"instruction set: {config['instruction set']}\n" in printed
    assert "environment:" in printed
    assert "\n  OMP_WAIT_POLICY: passive" in printed
    assert config["numpy"] == np.__version__
    assert all(re.search(rf"^{re.escape(name)}:.*\S", printed, re.MULTILINE | re.DOTALL) for name in config)
    with pytest.raises(ValueError, match="mode must be"):
        rms.show_config("json")


def test_the_report_is_of_this_machine_and_build():
    config = rms.show_config("dicts")
    assert config["processor"]
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert f": {config['processor']}\n" in Path("/proc/cpuinfo").read_text()
    assert config["cores"] == os.cpu_count()
    assert set(config["instruction sets"]) <= set(config["instruction sets compiled"])
    assert set(config["flags of instruction sets"]) == set(config["instruction sets compiled"]) - {"baseline"}
    assert re.fullmatch(r"\w+ \d+(\.\d+)+", config["compiler"])
    assert config["POSIX threads"] == _core.has_threads()
    if not config["compiler"].startswith("MSVC"):
        assert "-ffp-contract=off" in config["flags"]
        assert "-ffast-math" not in config["flags"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_report_has_the_affinity():
    code = "import os, rmsprop_native as rms; os.sched_setaffinity(0, [0]); print(rms.show_config('dicts')['affinity'])"
    assert run_python(code) == "0"


def test_affinity_is_shown_as_ranges(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {9, 0, 1, 2, 5}, raising=False)
    assert rms.show_config("dicts")["affinity"] == "0-2,5,9"


WHY = "import rmsprop_native as rms; c = rms.show_config('dicts'); print(c['instruction set'], '|', c['why this one'])"


@pytest.mark.parametrize("name", _core.isas())
def test_the_environment_chooses_the_instruction_set(name):
    assert run_python(WHY, RMSPROP_NATIVE_ISA=name).startswith(
        f"{name} | the environment variable RMSPROP_NATIVE_ISA chose"
    )


def test_without_a_choice_the_fastest_one():
    assert run_python(WHY, RMSPROP_NATIVE_ISA="").startswith(f"{_core.isas()[0]} | the fastest one of this processor")
    chosen = run_python(f"import rmsprop_native as rms; rms.use_isa('baseline'); {WHY}")
    assert chosen.startswith("baseline | use_isa chose it")


@pytest.mark.parametrize("name", ["sse9", "AVX2", " "])
def test_a_wrong_choice_of_the_environment_warns(name):
    """It costs speed only, so that a job on many machines goes on."""
    code = f"""
import warnings
with warnings.catch_warnings(record=True, action="always") as caught:
    import rmsprop_native as rms
print(caught[0].category.__name__, str(caught[0].message))
{WHY}
"""
    first, second = run_python(code, RMSPROP_NATIVE_ISA=name).splitlines()
    assert first.startswith(
        f"RuntimeWarning RMSPROP_NATIVE_ISA is ignored: no instruction set {name!r} here; choose from "
    )
    assert first.endswith(f"in use is {_core.isas()[0]!r}")
    assert second.startswith(f"{_core.isas()[0]} | the fastest one")


# ---- other machines and builds than this one ----


def test_the_headers_are_in_the_package():
    assert {"rmsp.h", "rmsp_dtype.h"} <= set(os.listdir(rms.get_include()))


def test_a_build_without_threads_has_one(monkeypatch):
    monkeypatch.setattr(_core, "has_threads", lambda: False)
    with pytest.raises(ValueError, match="^this build has no POSIX threads, so it has 1 thread only$"):
        rms.set_num_threads(2)
    rms.set_num_threads(1)
    assert rms.num_threads() == 1


@pytest.mark.parametrize(
    ("isas", "why"),
    [
        (
            ("avx2", "avx512", "baseline"),
            "the fastest one of this processor, on which avx512 gains nothing; it has no x",
        ),
        (("avx512", "avx2", "baseline"), "the fastest one of this processor; it has no x"),
        (("baseline",), "the fastest one of this processor; it has no avx2, avx512, x"),
    ],
)
def test_why_an_instruction_set_was_chosen(isas, why, monkeypatch):
    monkeypatch.setattr(_core, "isas", lambda: isas)
    monkeypatch.setattr(runtime, "_why_isa", runtime._FASTEST)
    assert runtime._why(["baseline", "avx2", "avx512", "x"]) == why


@pytest.mark.parametrize("text", [None, "processor\t: 0\n"], ids=["no file", "no name"])
def test_the_processor_where_linux_does_not_say_its_model(text, monkeypatch):
    def open_(path, **_):
        if text is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return io.StringIO(text)

    monkeypatch.setattr(runtime, "open", open_, raising=False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert rms.show_config("dicts")["processor"] == platform.machine()
    monkeypatch.setattr(platform, "processor", lambda: "a name")
    assert rms.show_config("dicts")["processor"] == "a name"


def test_the_affinity_where_the_system_has_none(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert rms.show_config("dicts")["affinity"] == "not known here"

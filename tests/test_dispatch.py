"""The choice of an instruction set: the best one of this machine at import, any other one by name."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest
from cases import (
    ALL_ISAS,
    ISAS,
)
from conftest import run_python

import rmsprop_native as rms
from rmsprop_native import _core

LIBRARY = Path(__file__).parent.parent / "src" / "c"


def test_the_best_instruction_set_is_active_after_import():
    assert run_python("import rmsprop_native as rms; print(rms.isa())") == _core.isas()[0]


def test_the_baseline_is_always_there_and_last():
    assert _core.isas()[-1] == "baseline"
    assert len(set(_core.isas())) == len(_core.isas())


def test_every_instruction_set_is_in_the_list_of_cases():
    """Each table that rmsp_dispatch.c declares is tested where the machine has it: cases.py must have it."""
    declared = re.findall(r"extern const rmsp_isa rmsp_isa_(\w+);", (LIBRARY / "rmsp_dispatch.c").read_text())
    assert set(ISAS) == set(_core.isas())
    assert set(ALL_ISAS) == set(declared)


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"), reason="reads the flags of an x86 from Linux"
)
def test_offered_is_what_the_processor_has():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    assert set(_core.isas()) == {name for name, isa in ALL_ISAS.items() if isa.cpu_flags <= flags}
    if "avx512" in _core.isas():  # before VBMI2, wide registers lower the clock and gain nothing
        assert (_core.isas()[0] == "avx512") == ("avx512_vbmi2" in flags)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("name", ISAS)
def test_any_instruction_set_by_name(name):
    rms.use_isa(name)
    assert rms.isa() == name
    assert rms.show_config("dicts")["instruction set"] == name

"""The benchmark that is installed: what it prints and returns, whatever the speed of this machine; the command line."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import rmsprop_native as rms
from rmsprop_native import _bench, _core
from rmsprop_native._bench import AGAIN, Case, Timing

NUMPY = {name: _bench.PEERS[name] for name in ("numpy", "numpy out=")}
SMALL = (Case(1, 5, "float32"), Case(3, 1 << 10, "float64"))


@pytest.fixture
def torch(monkeypatch):
    """Stands for the real one, which takes seconds to import, and counts its threads."""
    module = SimpleNamespace(threads=5, __version__="2")
    module.get_num_threads = lambda: module.threads
    module.set_num_threads = lambda n: setattr(module, "threads", n)
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.fixture
def short(monkeypatch, torch):
    """Make `bench` measure small arrays for microseconds, beside NumPy."""
    for name, value in {"CASES": SMALL, "PEERS": dict(NUMPY), "WARM_UP": 1e-5, "PART": 1e-5}.items():
        monkeypatch.setattr(_bench, name, value)


def with_peer(monkeypatch, step):
    """Add a peer whose step is `step(params, threads)`."""

    def make(params, grads, squares, threads):
        return lambda: step(params, threads)

    monkeypatch.setitem(_bench.PEERS, "other", make)


# ---- what is returned and printed ----


@pytest.mark.usefixtures("short")
def test_each_case_beside_each_peer(capsys):
    timings = rms.bench(seconds=0)
    assert [(t.case, t.peer) for t in timings] == [(str(c), peer) for c in SMALL for peer in (AGAIN, *NUMPY)]
    for timing in timings:
        assert timing.ours > 0
        assert timing.ratio == timing.theirs / timing.ours > 0
    assert len({timing.ours for timing in timings}) == len(SMALL)
    printed, progress = capsys.readouterr()
    rms.show_config()
    config = capsys.readouterr().out.replace(f"threads: {rms.num_threads()}", "threads: 1")
    assert printed.endswith(config)
    for line in (*_bench.table(timings), "Checked before: 3 steps of each peer"):
        assert line in printed
    assert progress == ""  # not a terminal


@pytest.mark.usefixtures("short")
def test_bfloat16(monkeypatch, capsys):
    """All arrays are, over the memory that the peers have too; of the peers those that are compiled for it."""
    seen = []

    def make(params, grads, squares, threads):
        seen.append([array.dtype.name for array in (*params, *grads, *squares)])
        return lambda: None

    monkeypatch.setitem(_bench.PEERS, "torch", make)
    monkeypatch.setattr(_bench, "CASES", (Case(1, 5, "float32"), Case(1, 100, "bfloat16")))
    timings = rms.bench(seconds=0)
    assert [timing.peer for timing in timings if timing.case == "100 bfloat16"] == [AGAIN, "torch"]
    assert seen[-1] == ["bfloat16"] * 3
    printed = capsys.readouterr().out
    assert "\nbfloat16: torch rounds to the nearest" in printed
    # The same where NumPy has no bfloat16: without these cases.
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert {timing.case for timing in rms.bench(seconds=0)} == {"5 float32"}


def test_names_of_cases():
    names = ["64 float32", "1 Ki float64", "4 Mi float32", "1000 x 64 float32"]
    cases = [(1, 64, "float32"), (1, 1024, "float64"), (1, 1 << 22, "float32"), (1000, 64, "float32")]
    assert [str(Case(*case)) for case in cases] == names


def test_rows_that_are_lost_are_shown():
    timings = [
        Timing("one", AGAIN, 2e-6, 1e-6),  # noise, not a peer
        Timing("one", "numpy", 2e-6, 250e-6),
        Timing("one", "torch fused adagrad", 2e-6, 1.8e-6),
        Timing("two", AGAIN, 1.5e-3, 1.5e-3),
        Timing("two", "numpy", 1.5e-3, 1.4999e-3),  # the same in all digits that are shown
        Timing("two", "torch fused adagrad", 1.5e-3, 18e-3),
    ]
    assert _bench.table(timings) == [
        "    ours  ours         torch fused",
        "    (us) again  numpy      adagrad*",
        "one 2.00  0.50    125         0.90<",
        "two 1500  1.00   1.00         12.0",
    ]
    lines = _bench.notes(timings, {"numpy": 0.0}, {})
    assert lines[:2] == ["< A peer is faster, in 1 of 4:", "    one: torch fused adagrad, 0.90 of our time"]


def test_lines_are_short():
    timings = [Timing(str(case), peer, 1e-6, 1.0) for case in _bench.CASES for peer in (AGAIN, *_bench.PEERS)]
    assert max(map(len, _bench.table(timings))) <= 100
    missing = dict.fromkeys(_bench.PEERS, "ImportError: " + 100 * "x")
    assert max(map(len, _bench.notes(timings, {}, missing))) <= 100


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("stream", [None, object()], ids=["none", "no terminal"])
def test_without_stderr(monkeypatch, stream):
    """A process without a console has None there; some programs put an object of their own."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert rms.bench(seconds=0.0)


@pytest.mark.usefixtures("short")
def test_progress_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    rms.bench(seconds=0)
    shown = [text.rstrip() for text in terminal.getvalue().split("\r") if text]
    assert "preparing numpy out=" in shown
    assert "measuring 2 of 2: 3 x 1 Ki float64" in shown
    assert shown[-1] == ""


# ---- the peers ----


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_takes_the_same_step(monkeypatch, name):
    monkeypatch.setattr(_bench, "PEERS", {name: NUMPY[name]})
    differences, missing = _bench.compare()
    assert differences[name] <= _bench.ULPS
    assert not missing


def test_numpy_out_works_in_blocks(rng):
    """A block that does not divide the size, over more than one array."""
    params, grads, squares = ([rng.random(n) for n in (10, 7)] for _ in range(3))
    ours = [p.copy() for p in params]
    state = rms.init(ours, lr=_bench.LR, rho=_bench.RHO, eps=_bench.EPS)
    for square_avg, start in zip(state.square_avg, squares, strict=True):
        square_avg[...] = start
    _bench.numpy_out(params, grads, squares, 1, block=4)()
    rms.update_(ours, grads, state)
    for p, q in zip(params, ours, strict=True):
        # lr is multiplied after the division, not before it: two roundings in another place.
        np.testing.assert_array_max_ulp(p, q, maxulp=2)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("step", [lambda p, _: None, lambda p, _: p[0].fill(np.nan)], ids=["nothing", "nan"])
def test_another_result_is_named(monkeypatch, capsys, step):
    with_peer(monkeypatch, step)
    rms.bench(seconds=0)
    assert "Another result: 3 steps of other end " in capsys.readouterr().out


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module"), "not installed"),
        (ImportError("needs NumPy 1\nor less"), "ImportError: needs NumPy 1"),
        (AttributeError("no such function"), "AttributeError: no such function"),
    ],
)
def test_what_cannot_be_measured_is_named(monkeypatch, capsys, error, reason):
    def fail(params, threads):
        raise error

    with_peer(monkeypatch, fail)
    timings = rms.bench(seconds=0)
    assert f"Not measured: other ({reason})\n" in capsys.readouterr().out
    assert {timing.peer for timing in timings} == {AGAIN, *NUMPY}


# ---- how it is measured ----


class Clock:
    """A clock that calls advance, and nothing else."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def call(self, seconds):
        """A call that takes `seconds`."""

        def advance():
            self.now += seconds

        return advance


def test_medians_are_of_a_call(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_bench, "time", clock)
    assert _bench.medians_of([clock.call(1e-5), clock.call(3e-2)], 0) == pytest.approx([1e-5, 3e-2])
    assert clock.now > 2 * _bench.ROUNDS * 3e-2  # warmed up before each part


def test_rounds_fill_the_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_bench, "time", clock)
    _bench.medians_of([clock.call(1e-4)], 1.0)
    assert 1.0 <= clock.now <= 1.1


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("limit", [0, 3])
def test_one_thread_and_then_those_of_before(monkeypatch, torch, limit):
    seen = set()

    def step(params, threads):
        torch.set_num_threads(threads)
        seen.add((threads, rms.num_threads()))

    with_peer(monkeypatch, step)
    _core.set_num_threads(limit)
    rms.bench(seconds=0)
    assert seen == {(1, 1)}
    assert torch.threads == 5
    assert _core.set_num_threads(0) == limit


@pytest.mark.usefixtures("short")
def test_threads_are_put_back_after_an_error(monkeypatch, torch):
    def step(params, threads):
        torch.set_num_threads(threads)
        if len(params) == 3:
            raise KeyboardInterrupt

    with_peer(monkeypatch, step)
    _core.set_num_threads(3)
    with pytest.raises(KeyboardInterrupt):
        rms.bench(seconds=0)
    assert torch.threads == 5
    assert _core.set_num_threads(0) == 3


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_bad_seconds(seconds):
    with pytest.raises(ValueError, match="seconds must be finite and not negative"):
        rms.bench(seconds=seconds)


# ---- the command line ----


def run(*arguments):
    """Run `python -m rmsprop_native`."""
    command = [sys.executable, "-W", "error", "-m", "rmsprop_native", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def test_bench_command():
    done = run("bench", "--seconds", "0")
    assert (done.returncode, done.stderr) == (0, "")
    for case in _bench.CASES:
        assert f"\n{case} " in done.stdout
    assert "\nnumpy: " in done.stdout


@pytest.mark.parametrize("arguments", [(), ("config",)])
def test_config_command(arguments, capsys):
    done = run(*arguments)
    rms.show_config()
    assert (done.returncode, done.stderr) == (0, "")
    # The tests use other instruction sets, so that another reason is given here.
    there, here = (
        [line for line in text.splitlines() if not line.startswith("why this one")]
        for text in (done.stdout, capsys.readouterr().out)
    )
    assert there == here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "--seconds", "-1"), "seconds must be finite"),
        (("bench", "--seconds", "x"), "invalid float"),
        (("other",), "invalid choice"),
    ],
)
def test_bad_command_lines(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_help():
    done = run("--help")
    assert done.returncode == 0
    assert "bench" in done.stdout
    assert "config" in done.stdout

"""The share of a training loop that the optimizer's step has: clock, table and bars of the examples with torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

COLORS = {"torch": "0.55", "torch, foreach": "0.4", "Stable-Baselines3": "0.55", "rmsprop_native": "C0"}


class StepClock:
    """Times the rounds of a training loop, and the calls of `optimizer.step` in them.

    Contenders take turns round by round, so that what else runs on the machine meets all of them; medians are reported.
    """

    def __init__(self, optimizer: Any) -> None:
        self.rounds: list[tuple[float, float, int]] = []  # seconds, seconds in the step, steps
        self._spent, self._count = 0.0, 0
        plain_step = optimizer.step

        def step(*args: Any, **kwargs: Any) -> Any:
            before = time.perf_counter()
            result = plain_step(*args, **kwargs)
            self._spent += time.perf_counter() - before
            self._count += 1
            return result

        optimizer.step = step

    @classmethod
    def joined(cls, clocks: Iterable[StepClock]) -> StepClock:
        """The rounds of several runs as those of one."""
        together = cls.__new__(cls)
        together.rounds = [each for clock in clocks for each in clock.rounds]
        return together

    @contextmanager
    def round(self) -> Iterator[None]:
        """A round: whatever is done here is the training loop."""
        self._spent, self._count = 0.0, 0
        before = time.perf_counter()
        yield
        self.rounds.append((time.perf_counter() - before, self._spent, self._count))

    @property
    def share(self) -> float:
        """The step's share of the loop's time."""
        return statistics.median(step / loop for loop, step, _ in self.rounds)

    @property
    def step_us(self) -> float:
        """Microseconds of one step."""
        return 1e6 * statistics.median(step / count for _, step, count in self.rounds)

    @property
    def rest_us(self) -> float:
        """Microseconds of the loop between two steps."""
        return 1e6 * statistics.median((loop - step) / count for loop, step, count in self.rounds)


def table(clocks: Mapping[str, StepClock]) -> str:
    """A line for each contender; its loop is compared with that of the first, round by round."""
    lines = [f"{'optimizer':20}{'one step':>12}{'share of the loop':>20}{'loop, relative':>17}"]
    first = next(iter(clocks.values()))
    for name, clock in clocks.items():
        pairs = zip(clock.rounds, first.rounds, strict=True)
        relative = statistics.median(loop / other for (loop, *_), (other, *_) in pairs)
        lines.append(f"{name:20}{clock.step_us:9.1f} µs{100 * clock.share:18.1f} %{relative:17.2f}")
    return "\n".join(lines)


def draw_bars(axes: Any, clocks: Mapping[str, StepClock], title: str) -> None:
    """For each contender the time of one pass through the loop, its step in colour, with its share."""
    longest = max(clock.step_us + clock.rest_us for clock in clocks.values())
    unit, scale = ("ms", 1e-3) if longest > 2000 else ("µs", 1.0)
    for place, (name, clock) in enumerate(clocks.items()):
        step, rest = clock.step_us * scale, clock.rest_us * scale
        axes.barh(place, step, color=COLORS[name], height=0.6)
        axes.barh(place, rest, left=step, color="0.88", height=0.6)
        axes.text(step + rest, place, f" step {100 * clock.share:.1f} %", va="center")
    axes.set_yticks(range(len(clocks)), clocks)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(title=title, xlabel=f"time of an update, {unit} (light: outside the step)")

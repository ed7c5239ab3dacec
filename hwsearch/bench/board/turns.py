"""How things are timed, here and on a board, for Python 3.8: they take turns, each round in another order, and a
reference model is timed at the beginning of every turn.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENOUGH = 30  # rounds after which a low tenth is known well enough
NEAR = 3  # samples of the reference on either side of a moment whose median says how fast the board was
WARM_MS = 100.0  # what is quicker runs once untimed before a turn: what lay in the cache before it was another's
QUICK_MS = 20.0  # what is quicker runs twice in a turn at least
TURN_MS = 4.0  # what a turn of a quick one takes at least


class Pass(NamedTuple):
    """One pass: milliseconds on the wall and of process CPU time, and the clock at its end in seconds."""

    wall: float
    cpu: float
    when: float


class Passes:
    """A model in this process, as something that takes turns.

    Args:
        run: one pass, done when it returns.
        clock, cpu_clock: in seconds.
        look: runs passes in a way that would disturb the timing: one to warm up, if it is told so, and as many more
            as it is told.
    """

    def __init__(
        self,
        run: Callable[[], object],
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
        look: Callable[[bool, int], object] | None = None,
    ) -> None:
        self.run, self._clock, self._cpu_clock, self._look = run, clock, cpu_clock, look
        self._quickest = float("inf")

    def warm(self) -> None:
        """The first pass."""
        self._quickest = self.one().wall

    def one(self) -> Pass:
        """A timed pass."""
        cpu, start = self._cpu_clock(), self._clock()
        self.run()
        wall = (self._clock() - start) * 1e3
        cpu = (self._cpu_clock() - cpu) * 1e3
        return Pass(wall, cpu, self._clock())

    def turn(self) -> list[Pass]:
        """The passes of one turn."""
        warm, times = self._plan()
        if warm:
            self.run()
        found = [self.one() for _ in range(times)]
        self._quickest = min(self._quickest, found[-1].wall)
        return found

    def reference(self) -> float:
        """Milliseconds of a reference model: one pass to warm it up, and the better of two."""
        self.run()
        return min(self.one().wall, self.one().wall)

    def beside(self) -> None:
        """What comes after every turn."""
        if self._look:
            self._look(*self._plan())

    def _plan(self) -> tuple[bool, int]:
        """Whether a turn begins with a pass to warm up, and how many passes count."""
        least = 2 if self._quickest < QUICK_MS else 1
        return self._quickest < WARM_MS, int(np.clip(TURN_MS / max(self._quickest, 1e-6), least, 8))


class Reference:
    """A model that is run again and again among the others.

    Args:
        measure: its milliseconds now.
        clock: in seconds.
    """

    def __init__(self, measure: Callable[[], float], clock: Callable[[], float] = time.perf_counter) -> None:
        self._measure, self._clock = measure, clock
        self._when: list[float] = []
        self._ms: list[float] = []

    def sample(self) -> None:
        """Time it once more."""
        ms = self._measure()
        self._when.append(self._clock())
        self._ms.append(ms)

    def spells(self) -> list[float]:
        """What it took at every fifth of its own samples."""
        return self.at(self._when[::5])

    def at(self, times: list[float]) -> list[float]:
        """What it took about each of `times`, in milliseconds."""
        place = np.searchsorted(np.array(self._when), np.array(times, float))
        return [float(np.median(self._ms[max(0, i - NEAR) : i + NEAR])) for i in place.tolist()]


def take_turns(
    things: Mapping[str, Any],
    seconds: float,
    reference: Reference | None = None,
    progress: Callable[[float], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
    enough: int = ENOUGH,
) -> dict[str, dict[str, list[float]]]:
    """Time all of `things` in turn for about `seconds` in all, each at least three times.

    Args:
        things: by name, each warmed up; they have `turn` and `beside` as `Passes` has them.
        seconds: to spend.
        reference: sampled at the beginning of every turn; without one nothing is known of the machine's speed.
        progress: told the share that is done.
        enough: rounds at most.

    Returns: by name, milliseconds "wall", "cpu" and "reference" of every pass.
    """
    rng = np.random.default_rng(0)
    names = list(things)
    found: dict[str, list[Pass]] = {name: [] for name in names}
    started, rounds = clock(), 0
    while rounds < 3 or (clock() - started < seconds and rounds < enough):
        for i in rng.permutation(len(names)):
            if reference:
                reference.sample()
            found[names[i]].extend(things[names[i]].turn())
            things[names[i]].beside()
        rounds += 1
        progress(min(1.0, max(rounds / enough, (clock() - started) / max(seconds, 1e-9))))
    return {
        name: {
            "wall": [one.wall for one in passes],
            "cpu": [one.cpu for one in passes],
            "reference": reference.at([one.when for one in passes]) if reference else [],
        }
        for name, passes in found.items()
    }

"""Timing that does not fool itself.

Things to be timed take turns, each round in another order, so that a slow spell of the machine hits all of them. A turn
begins with a reference model, the same in every session. A latency is the low tenth of what was timed, because on a
machine with neighbours the median says more about them than about the model; the low tenth of the reference meanwhile
tells the machine's pace, and what was timed is put right by it. Process CPU time is kept beside wall time; every sample
is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import msgspec
import numpy as np

from hwsearch.bench.board import turns

LOW = 0.1  # quantile that stands for the latency
QUIET = 1.06  # pace up to which a session need not be taken again


class Samples(msgspec.Struct, frozen=True):
    """Times of one thing in milliseconds, in the order they were taken, each of shape [samples].

    Attributes:
        wall: as the clock on the wall has it.
        cpu: process CPU time of the same runs, all threads together.
        reference: what the reference model took about then; empty without one.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    reference: tuple[float, ...] = ()

    def __add__(self, other: Samples) -> Samples:
        """These and then those."""
        return Samples(self.wall + other.wall, self.cpu + other.cpu, self.reference + other.reference)

    def part(self, half: int) -> Samples:
        """The first half of them (0) or the second (1)."""
        middle = len(self.wall) // 2
        here = slice(None, middle) if half == 0 else slice(middle, None)
        return Samples(self.wall[here], self.cpu[here], self.reference[here])

    def pace(self, usual: float) -> float:
        """How much slower than usual the machine was, by the low tenth of the reference; 1 without one.

        Not sample by sample: 12 sessions of five models scattered by 1.3 % so, and by 3.3 % where each sample was
        divided by its own reference once that was 6 % slow; 12 more by 2.1 and 4.3 %, and 12 beside a neighbour that
        came and went by 2.2 and 5.3 % (`benchmarks/sessions.py`, two cores of a Xeon).
        """
        return float(np.quantile(self.reference, LOW)) / usual if self.reference else 1.0

    def low_ms(self, usual: float = 1.0) -> float:
        """The latency: the low tenth of the wall times at the machine's usual pace.

        Args:
            usual: milliseconds that the reference model usually takes.
        """
        return float(np.quantile(self.wall, LOW)) / self.pace(usual)

    def disturbed(self, usual: float) -> bool:
        """Whether to measure it again: never near the machine's usual pace, or low tenth and minimum disagree."""
        return self.pace(usual) > QUIET or float(np.quantile(self.wall, LOW)) > 1.1 * min(self.wall)


class Reference:
    """A model that is run again and again among the others.

    Args:
        run: one pass, some milliseconds long.
        clock: in seconds.
        known: milliseconds that earlier sessions on the same machine saw, one for each of their spells.
    """

    def __init__(
        self, run: Callable[[], object], clock: Callable[[], float] = time.perf_counter, known: Iterable[float] = ()
    ) -> None:
        self._known = list(known)
        self.turns = turns.Reference(turns.Passes(run, clock).reference, clock)

    def sample(self) -> None:
        """Run it once to warm it up, and twice for its time."""
        self.turns.sample()

    def at(self, times: Iterable[float]) -> tuple[float, ...]:
        """What it took about each of `times`, in milliseconds."""
        return tuple(self.turns.at(list(times)))

    @property
    def usual(self) -> float:
        """What it takes at the machine's usual pace: the low quarter over all spells."""
        return float(np.quantile([*self._known, *self.turns.spells()], 0.25))


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    reference: Reference | None = None,
    enough: int = turns.ENOUGH,
    beside: Mapping[str, Callable[[bool, int], object]] | None = None,
) -> dict[str, Samples]:
    """Time all of `runs` in turn for about `seconds` in all, each at least three times: `board.turns` on this machine.

    Args:
        runs: by name; each is warmed up once.
        seconds: to spend.
        progress: told the share that is done.
        clock, cpu_clock: in seconds.
        reference: sampled at the beginning of every turn.
        enough: rounds at most.
        beside: called after a thing's turn to look at it in ways that would disturb the timing, with whether to warm
            up and a number of passes.
    """
    things = {}
    for name, run in runs.items():
        things[name] = turns.Passes(run, clock, cpu_clock, (beside or {}).get(name))
        things[name].warm()
    found = turns.take_turns(
        things, seconds, reference.turns if reference else None, progress or (lambda _: None), clock, enough
    )
    return {name: Samples(*(tuple(times[x]) for x in ("wall", "cpu", "reference"))) for name, times in found.items()}

"""Timing that does not fool itself.

Things to be timed take turns, each round in another order, so that a slow spell of the machine hits all of them and
none finds its weights in the cache from the run before. A latency is the low tenth of its wall times, because on a
machine with neighbours the median says more about them than about the model. Process CPU time is kept beside it; every
sample is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

LOW = 0.1  # quantile that stands for the latency
ENOUGH = 30  # rounds after which a low tenth is known well enough


class Samples(msgspec.Struct, frozen=True):
    """Times of one thing in milliseconds.

    Attributes:
        wall: in the order they were taken.
        cpu: process CPU time of the same runs, all threads together.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def latency_ms(self) -> float:
        """The low tenth of the wall times."""
        return float(np.quantile(self.wall, LOW))


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[str, Samples]:
    """Time all of `runs` in turn for about `seconds` in all, each at least three times.

    Args:
        runs: by name; each is warmed up once.
        seconds: to spend.
        progress: told the share that is done.
        clock, cpu_clock: in seconds.
    """
    rng = np.random.default_rng(0)
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    started, rounds = clock(), 0
    names = list(runs)
    while rounds < 3 or (clock() - started < seconds and rounds < ENOUGH):
        for i in rng.permutation(len(names)):
            name = names[i]
            # A quick one is run again and again for a fair share of the time: a single run of 100 us says little.
            repeat = (
                1
                if not wall[name]
                else int(np.clip(0.2 * seconds / len(names) / ENOUGH / (min(wall[name]) / 1e3), 1, 20))
            )
            for _ in range(repeat):
                c, t = cpu_clock(), clock()
                runs[name]()
                wall[name].append((clock() - t) * 1e3)
                cpu[name].append((cpu_clock() - c) * 1e3)
        rounds += 1
        if progress:
            progress(min(1.0, max(rounds / ENOUGH, (clock() - started) / seconds)))
    return {name: Samples(tuple(wall[name]), tuple(cpu[name])) for name in runs}

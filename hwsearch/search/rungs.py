"""Which students train on: asynchronous successive halving inside latency bands.

Every student is trained to the first rung. Of those of its band, the best third goes on to the next, from where it
stopped, as soon as that third has room for it (Li et al. 2020, arXiv:1810.05934). Students of other bands are no
rivals: the fastest loses most and may still be the answer. Optuna's own pruners refuse studies of two objectives.

The rule looks at a study and nothing else, so that any worker can apply it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Protocol

KEEP = 3  # one in this many goes on
BAND = 1.25  # a band ends at this factor of its beginning
CONTENDERS = 4  # of a band, beside those that went on, wait for room; what lies behind them has lost


class Climber(Protocol):
    """What a rung looks at.

    Attributes:
        number: of the trial.
        ms: its latency.
        losses: at each rung that was passed.
        waits: whether it is neither in training nor ended.
        ended: whether it will not be trained any further.
    """

    @property
    def number(self) -> int: ...
    @property
    def ms(self) -> float: ...
    @property
    def losses(self) -> Sequence[float]: ...
    @property
    def waits(self) -> bool: ...
    @property
    def ended(self) -> bool: ...


def band_of(ms: float, budget_ms: float) -> int:
    """Students of one band take about as long; the first lies right under the budget."""
    return math.floor(math.log(budget_ms / ms) / math.log(BAND))


def promoted(trials: Iterable[Climber], rungs: int, budget_ms: float, over: bool = False) -> list[int]:
    """Numbers of the trials that go on now, the furthest and best first.

    Args:
        trials: of the study.
        rungs: how many there are; who has passed the last goes nowhere.
        budget_ms: from which the bands go down.
        over: no more trials will come: then the best of every band goes on, however few it has.
    """
    found: list[tuple[int, float, int]] = []
    for rung in range(1, rungs):
        for group in _bands(trials, rung, budget_ms):
            room = max(int(over), len(group) // KEEP)
            able = [t for t in group if len(t.losses) > rung or not t.ended]  # a run that is extended has ended some
            found += [(-rung, t.losses[rung - 1], t.number) for t in able[:room] if t.waits and len(t.losses) == rung]
    return [number for _, _, number in sorted(found)]


def beaten(trials: Iterable[Climber], rungs: int, budget_ms: float) -> list[int]:
    """Numbers of the trials that have lost: so many of their band are better that they will hardly go on."""
    found = []
    for rung in range(1, rungs):
        for group in _bands(trials, rung, budget_ms):
            behind = group[len(group) // KEEP + CONTENDERS :]
            found += [t.number for t in behind if t.waits and len(t.losses) == rung]
    return found


def leveled(losses: Sequence[Sequence[float]], rungs: int) -> list[float]:
    """What each trial is expected to lose, as if all had passed the last rung: those that stopped earlier by the median
    of what the further ones gained from there on.

    Args:
        losses: of each trial, a rung each, one at least.
        rungs: how many there are.
    """
    gains = [1.0]
    for rung in range(rungs - 1, 0, -1):
        ratios = [found[rung] / found[rung - 1] for found in losses if len(found) > rung and found[rung - 1] > 0]
        gains.append(gains[-1] * (median(ratios) if ratios else 1.0))
    return [found[-1] * gains[rungs - len(found)] for found in losses]


def _bands(trials: Iterable[Climber], rung: int, budget_ms: float) -> list[list[Climber]]:
    """The trials that have passed a rung, band by band, the best first."""
    bands: dict[int, list[Climber]] = defaultdict(list)
    for trial in trials:
        if len(trial.losses) >= rung:
            bands[band_of(trial.ms, budget_ms)].append(trial)
    return [sorted(group, key=lambda t: (t.losses[rung - 1], t.number)) for group in bands.values()]

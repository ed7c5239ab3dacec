"""A trial of a study: one student, how far it was trained, and who trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace
from optuna.distributions import BaseDistribution

from hwsearch.architecture import Architecture
from hwsearch.search.owner import LEFT
from hwsearch.search.result import Result
from hwsearch.search.rungs import leveled


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the storage keeps of a trial beside Optuna's own.

    Attributes:
        architecture: of the student.
        ms: latency, as it was when the trial began.
        losses: at each rung that was passed.
        result: the whole score of the last of them.
        owner: who trains it; empty while nobody does.
        turn: when its owner took it, microseconds since 1970 by that machine's clock.
        died: owners that were killed while they trained it, since its last rung.
        due: by when it is through, in the work of its owner's trials.
        resized: an earlier trial's settings in another size, tried beyond the trials that are asked for.
        ended: it will not be trained any further.
        reason: why it failed; empty unless it did.
    """

    architecture: Architecture
    ms: float
    losses: tuple[float, ...] = ()
    result: Result | None = None
    owner: str = ""
    turn: int = 0
    died: int = 0
    due: float = 0.0
    resized: bool = False
    ended: bool = False
    reason: str = ""


class Trial(Record, frozen=True, kw_only=True):
    """One student of a study.

    Attributes:
        number: in the study.
        settings: what was suggested, by name.
        distributions: from which, by name.
        place: its id in the storage.
    """

    number: int = 0
    settings: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    place: int = 0

    @property
    def deaths(self) -> int:
        """How often what trained it has died, or stopped over it, since it last passed a rung; of one that somebody
        trains as if that had died too."""
        return self.died + (self.owner not in ("", LEFT))

    @property
    def waits(self) -> bool:
        """It may go on, and nobody trains it."""
        return not self.owner and not self.ended


def asked_for(trials: Sequence[Trial]) -> int:
    """How many of them count among the trials that a person asks for."""
    return sum(not trial.resized for trial in trials)


def results_of(trials: Sequence[Trial], rungs: int) -> list[Result]:
    """The results of what was trained, with expected losses that compare whatever rung each has reached."""
    known = [trial for trial in trials if trial.result is not None and not trial.reason]
    losses = leveled([trial.losses for trial in known], rungs)
    return [
        replace(trial.result, expected_loss=loss) for trial, loss in zip(known, losses, strict=True) if trial.result
    ]

"""What a search found."""

from __future__ import annotations

from typing import Any

import msgspec

from hwsearch.search.result import Result


class Outcome(msgspec.Struct):
    """What a search found.

    Attributes:
        chosen: the answer, judged on *report*; None where nothing meets the wishes.
        teacher_quality: on *report*; on *select* where nothing was chosen.
        teacher_metrics: of the task's own field, by name, on *report*.
        front: the trials that are beaten by none, judged on *select* after a short run; the fastest first.
        finalists: judged on *select* after the long run.
        overshot: were to be finalists, and did not hold the budget when they were measured.
        baselines: hand-made students by name, judged on *report*.
        missing_baselines: why a hand-made student is missing, by name.
        trials: every finished trial, in order.
        stopped: trials of these that have not come to the last rung: others of their band were better, or time was up.
        infeasible: distinct architectures that were priced and missed the budget or another limit.
        failed: trials whose training failed.
        rates: held-out loss by learning rate over the recipe's, where some were tried.
        stages: how well shorter runs had ordered the students that were trained on, `rank.stages`.
        asked: trials that were begun; all that were wanted, where the space has no more.
    """

    chosen: Result | None
    teacher_quality: float
    front: list[Result]
    finalists: list[Result]
    baselines: dict[str, Result]
    missing_baselines: dict[str, str]
    trials: list[Result]
    stopped: int = 0
    infeasible: int = 0
    failed: int = 0
    asked: int = 0
    overshot: list[Result] = []
    teacher_metrics: dict[str, float] = {}
    stages: list[dict[str, Any]] = []
    rates: dict[float, float] = {}

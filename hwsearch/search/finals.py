"""The long runs of a search: finalists, the choice among them on *select*, and the one look at *report*, after it, for
the chosen student and those made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Job, ProxyScore
from hwsearch.errors import RunError, TrainingError
from hwsearch.search.baselines import HandMade
from hwsearch.search.measured import Measurements
from hwsearch.search.plan import Plan
from hwsearch.search.result import Result, retains_more, scored
from hwsearch.search.run import Run
from hwsearch.search.trainer import Progress, Trainer, train_all


class Finals:
    """Long runs.

    Args:
        plan: what the price decides.
        trainer: who trains.
        run: where it is kept.
        progress: who is told.
        measured: of the target; None where its runtime is not at hand.
    """

    def __init__(
        self, plan: Plan, trainer: Trainer, run: Run, progress: Progress, measured: Measurements | None
    ) -> None:
        self.plan, self.trainer, self.run, self.progress, self.measured = plan, trainer, run, progress, measured

    def train(self, picked: Sequence[Result]) -> list[Result]:
        """Trained long and judged on *select*."""
        jobs = [
            self._job(r.architecture, self._long(r), start=str(self.run.student(r.trial or 0, r.architecture)))
            for r in picked
        ]
        scores = train_all(self.trainer, self.progress, "finalists", jobs, [r.steps for r in picked])
        finalists = [
            scored(result, score)
            for result, score in zip(picked, scores, strict=True)
            if not isinstance(score, TrainingError)
        ]
        if picked and not finalists:
            raise RunError(f"every finalist failed in training: {scores[0]}")
        return finalists

    def choose(self, finalists: Sequence[Result]) -> Result | None:
        """On *select*: the best inside the budget, or the fastest finalist that keeps what was asked for.

        Some hundreds of answers do not tell near equals apart. Of finalists that do not surely retain less than the
        best, the one that is nearest to the teacher is taken: its loss is known far better.
        """
        inside = [r for r in finalists if self.plan.holds(r.latency)]
        least = self.plan.wishes.min_quality
        if least is None:
            best = max(inside, key=lambda r: r.retention or 0.0, default=None)
            equals = [r for r in inside if best and not retains_more(best, r)]
            return min(equals, key=lambda r: r.loss or math.inf, default=None)
        return min(
            (r for r in inside if (r.retention or 0.0) >= least), key=lambda r: r.latency.median_ms, default=None
        )

    def judge(self, chosen: Result) -> tuple[Result, ProxyScore]:
        """The chosen student on *report*, and its score, which knows the teacher's there."""
        job = self._job(chosen.architecture, self._long(chosen), split="report")
        (score,) = train_all(self.trainer, self.progress, "the chosen student", [job], [job.steps])
        if isinstance(score, TrainingError):
            raise score
        return scored(chosen, score), score

    def judge_by_hand(self, students: Sequence[HandMade], missing: dict[str, str]) -> dict[str, Result]:
        """The hand-made students on *report*, trained as the chosen one was; `missing` is told of those that cannot
        be."""
        jobs = [
            self._job(
                made.architecture,
                str(self.run.student(made.name.replace(" ", "-"), made.architecture)),
                split="report",
                layers=made.layers,
            )
            for made in students
        ]
        priced = [self.plan.priced(made.architecture) for made in students]
        if self.measured and priced:
            priced = self.measured(priced)
        judged = {}
        scores = train_all(self.trainer, self.progress, "hand-made students", jobs)
        for made, result, score in zip(students, priced, scores, strict=True):
            if isinstance(score, TrainingError):
                missing[made.name] = str(score)
            else:
                judged[made.name] = scored(result, score)
        return judged

    def _long(self, result: Result) -> str:
        """The state of a trial's long run."""
        assert result.trial is not None
        return str(self.run.student(result.trial, result.architecture, "long"))

    def _job(self, architecture: Architecture, path: str, **more: Any) -> Job:
        """A long run whose state is at `path`."""
        wishes = self.plan.wishes
        return Job(
            path=path,
            architecture=architecture,
            steps=wishes.long_steps,
            cool_from=wishes.cool_from,
            marks=wishes.rungs,
            rate=self.plan.rate,
            **more,
        )

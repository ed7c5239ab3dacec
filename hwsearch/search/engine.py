"""A search from the first price to the written answer.

Latency first: what cannot fit is never trained. Trials are trained shortly, finalists longer, the choice is made on
*select*, and *report* is looked at once, after it, for the chosen student, the teacher and the hand-made students
beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Facts, Job, ProxyScore, work_of
from hwsearch.errors import RunError, TrainingError
from hwsearch.search.baselines import HandMade, hand_made
from hwsearch.search.measured import Measurements, Measurer
from hwsearch.search.pareto import front, spread
from hwsearch.search.plan import Plan
from hwsearch.search.result import Result
from hwsearch.search.run import Run
from hwsearch.search.sampler import Proposer
from hwsearch.search.trainer import Progress, Trainer, result_of

if TYPE_CHECKING:
    from hwsearch.search.study import Record

FINALISTS = 3
COOL_DOWN = 0.7  # share of a long run's steps at its end over which the rate falls to zero


class Outcome(msgspec.Struct):
    """What a search found.

    Attributes:
        chosen: the answer, judged on *report*; None where nothing meets the wishes.
        teacher_quality: on *report*; on *select* where nothing was chosen.
        front: the trials that are beaten by none, judged on *select* after a short run; the fastest first.
        finalists: judged on *select* after the long run.
        overshot: were to be finalists, and did not hold the budget when they were measured.
        baselines: hand-made students by name, judged on *report*.
        missing_baselines: why a hand-made student is missing, by name.
        trials: every finished trial, in order.
        infeasible: distinct architectures that were priced and met neither the budget nor the other limits.
        failed: trials whose training failed.
        asked: trials that were begun; all that were wanted, where the space has no more.
    """

    chosen: Result | None
    teacher_quality: float
    front: list[Result]
    finalists: list[Result]
    baselines: dict[str, Result]
    missing_baselines: dict[str, str]
    trials: list[Result]
    infeasible: int = 0
    failed: int = 0
    asked: int = 0
    overshot: list[Result] = []


class Engine:
    """One search.

    Args:
        plan: what the price decides.
        facts: of the task, complete.
        trainer: who trains.
        run: where it is kept.
        progress: who is told.
        measurer: of the target; None where its runtime is not at hand.
    """

    def __init__(
        self,
        plan: Plan,
        facts: Facts,
        trainer: Trainer,
        run: Run,
        progress: Progress,
        measurer: Measurer | None = None,
    ) -> None:
        self.plan, self.facts, self.trainer, self.run, self.progress = plan, facts, trainer, run, progress
        self.measured = Measurements(plan, run, measurer, progress) if measurer else None
        self.proposer = Proposer(plan.space, plan.strain, facts.sensitivities, facts.layers, plan.admits)
        self.started = time.monotonic()
        self._begun, self._steps, self._works = 0.0, 0, list[float]()  # of training, for the progress

    def search(self) -> Outcome:
        """Trials, finalists, choice, and the one look at *report*.

        Raises:
            RunError: no trial could be trained.
            NothingFits: what was measured has shown it.
        """
        if self.measured:
            self.measured.correct_prices(self.proposer, FINALISTS)
        records, asked = self._trials()
        complete = [record.result for record in records if record.result is not None]
        if not complete:
            reasons = "; ".join(sorted({record.reason for record in records}))
            raise RunError(f"every trial failed in training: {reasons}")
        ranked, overshot = self._ranked(complete), list[Result]()
        picked = ranked[:FINALISTS]
        if self.measured:
            picked, overshot = self.measured.holding(ranked, FINALISTS)
            # What was measured has changed the prices of all that was not.
            complete = [self.measured.repriced(result, picked + overshot) for result in complete]
        finalists = self._finalists(picked)
        chosen = self._choose(finalists)
        baselines, missing, quality = dict[str, Result](), dict[str, str](), self.facts.quality
        if chosen is not None:
            by_hand, missing = hand_made(self.plan.space, self.plan.price, chosen.latency.median_ms)
            chosen, quality = self._judge(chosen)
            baselines = self._judge_by_hand(by_hand, missing)
        return Outcome(
            chosen=chosen,
            teacher_quality=quality,
            front=front(complete),
            finalists=finalists,
            baselines=baselines,
            missing_baselines=missing,
            trials=complete,
            infeasible=len(self.proposer.infeasible),
            failed=len(records) - len(complete),
            overshot=overshot,
            asked=asked,
        )

    def _trials(self) -> tuple[list[Record], int]:
        """Every trial's record, and how many were begun."""
        from hwsearch.search.study import Record, Sampler, Study

        wishes, study = self.plan.wishes, Study(self.run.path("study.db"), self.run.name)
        records = study.records()
        lag = study.lag(self.trainer.count)
        sampler = Sampler(wishes.seed, self.proposer.corners(), lag)
        seen: set[Architecture] = set()
        for number, record in enumerate(records):
            proposal = self.proposer(sampler.ask(records[:number], record.settings), seen)
            seen |= {proposal} if proposal is not None else set()
        if records:
            self.progress.say(f"taken up again: {len(records)} trials are finished already")

        pending: list[tuple[Any, Architecture, Future[ProxyScore]]] = []
        asked, exhausted = len(records), False
        long = FINALISTS * (wishes.long_steps - wishes.steps) + 2 * wishes.long_steps
        self._begun, self._steps = self.trainer.work_done, max(0, wishes.trials - asked) * wishes.steps + long
        self._works = [work_of(architecture, 1) for architecture in seen]
        self.progress.stage("training", 1.0)
        while True:
            while len(pending) < min(self.trainer.count, lag) and asked < wishes.trials and not exhausted:
                if asked and not self._time_left():
                    break
                trial = sampler.ask(records)
                proposal = self.proposer(trial, seen)
                if proposal is None:
                    exhausted = True
                    self.progress.say(f"the space inside the budget is used up after {asked} students")
                    break
                seen.add(proposal)
                self._works.append(work_of(proposal, 1))
                job = Job(path=str(self.run.student(asked, proposal)), architecture=proposal, steps=wishes.steps)
                pending.append((trial, proposal, self.trainer.train(job)))
                asked += 1
            if not pending:
                break
            trial, proposal, future = pending.pop(0)
            while not wait([future], timeout=0.5).done:
                self._tell(f"trial {len(records) + 1} of {wishes.trials}")
            result, reason = None, ""
            try:
                result = scored(self.plan.priced(proposal, len(records)), result_of(future))
            except TrainingError as error:
                reason = str(error)
            records.append(Record(trial.params, trial.distributions, result, reason))
            study.add(records[-1])
        study.close()
        return records, max(asked, wishes.trials) if exhausted else asked

    def _tell(self, note: str) -> None:
        """How far the training is, all that is still to come taken as of middling students."""
        middling = sum(self._works) / len(self._works)
        self.progress.at(self.trainer.work_done - self._begun, middling * self._steps, note)

    def _time_left(self) -> bool:
        minutes = self.plan.wishes.minutes
        return minutes is None or time.monotonic() - self.started < 60 * minutes

    def _ranked(self, results: Sequence[Result]) -> list[Result]:
        """In the order that they are to be finalists: the best of the front across the band under the budget first."""
        edge = best = front(results)
        others = sorted((r for r in results if r not in edge), key=lambda r: r.loss or 0.0)
        # The upper half of the front holds the best inside the budget, all of it the fastest that is good enough; what
        # is left of the places goes to the next best.
        if self.plan.wishes.min_quality is None and len(best) > FINALISTS:
            best = best[min(len(best) // 2, len(best) - FINALISTS) :]
        first = spread(best, FINALISTS)
        return first + [r for r in reversed(edge) if r not in first] + others

    def _finalists(self, picked: Sequence[Result]) -> list[Result]:
        """Trained long and judged on *select*."""
        jobs = [
            Job(
                path=self._long(r),
                start=str(self.run.student(r.trial or 0, r.architecture)),
                architecture=r.architecture,
                steps=self.plan.wishes.long_steps,
                cool_from=self._cool_from(),
            )
            for r in picked
        ]
        scores = self._train("finalists", jobs)
        finalists = [
            scored(result, score)
            for result, score in zip(picked, scores, strict=True)
            if not isinstance(score, TrainingError)
        ]
        if picked and not finalists:
            raise RunError(f"every finalist failed in training: {scores[0]}")
        return finalists

    def _choose(self, finalists: Sequence[Result]) -> Result | None:
        """On *select*: the best inside the budget, or the fastest finalist that keeps what was asked for."""
        inside = [r for r in finalists if self.plan.holds(r.latency)]
        least = self.plan.wishes.min_quality
        if least is None:
            return max(inside, key=lambda r: r.quality or 0.0, default=None)
        return min(
            (r for r in inside if (r.retention or 0.0) >= least), key=lambda r: r.latency.median_ms, default=None
        )

    def _judge(self, chosen: Result) -> tuple[Result, float]:
        """The chosen student on *report*, and the teacher's quality there."""
        job = Job(
            path=self._long(chosen),
            architecture=chosen.architecture,
            steps=self.plan.wishes.long_steps,
            cool_from=self._cool_from(),
            split="report",
        )
        (score,) = self._train("the chosen student", [job])
        if isinstance(score, TrainingError):
            raise score
        return scored(chosen, score), score.teacher_quality

    def _judge_by_hand(self, students: Sequence[HandMade], missing: dict[str, str]) -> dict[str, Result]:
        """The hand-made students on *report*, trained as the chosen one was; `missing` is told of those that cannot
        be."""
        jobs = [
            Job(
                path=str(self.run.student(made.name.replace(" ", "-"), made.architecture)),
                architecture=made.architecture,
                steps=self.plan.wishes.long_steps,
                cool_from=self._cool_from(),
                split="report",
                layers=made.layers,
            )
            for made in students
        ]
        priced = [self.plan.priced(made.architecture) for made in students]
        if self.measured and priced:
            priced = self.measured(priced)
        judged = {}
        for made, result, score in zip(students, priced, self._train("hand-made students", jobs), strict=True):
            if isinstance(score, TrainingError):
                missing[made.name] = str(score)
            else:
                judged[made.name] = scored(result, score)
        return judged

    def _long(self, result: Result) -> str:
        """The state of a trial's long run."""
        assert result.trial is not None
        return str(self.run.student(result.trial, result.architecture, "long"))

    def _cool_from(self) -> int:
        return round(self.plan.wishes.long_steps * (1 - COOL_DOWN))

    def _train(self, note: str, jobs: Sequence[Job]) -> list[ProxyScore | TrainingError]:
        """Train all of them side by side."""
        futures = [self.trainer.train(job) for job in jobs]
        waiting: set[Future[ProxyScore]] = set(futures)
        while waiting:
            waiting = set(wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).not_done)
            self._tell(note)
        found: list[ProxyScore | TrainingError] = []
        for future in futures:
            try:
                found.append(result_of(future))
            except TrainingError as error:
                found.append(error)
        return found


def scored(result: Result, score: ProxyScore) -> Result:
    """A priced architecture with its score."""
    return replace(
        result,
        loss=score.loss,
        quality=score.quality,
        quality_low=score.quality_low,
        quality_high=score.quality_high,
        retention=score.retention,
        retention_low=score.retention_low,
        retention_high=score.retention_high,
        steps=score.steps,
        seconds=score.seconds,
        curve=score.curve,
    )

"""A search from the first price to the written answer.

Latency first: what cannot fit is never trained. Trials are trained shortly, finalists longer, the choice is made on
*select*, and *report* is looked at once, after it, for the chosen student, the teacher and the hand-made students
beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Facts, Job, ProxyScore, work_of
from hwsearch.errors import RunError
from hwsearch.search.baselines import HandMade, hand_made
from hwsearch.search.pareto import front, spread
from hwsearch.search.plan import Plan
from hwsearch.search.result import Result
from hwsearch.search.run import Run
from hwsearch.search.sampler import Proposer

T = TypeVar("T")
FINALISTS = 4
COOL_DOWN = 0.3  # share of a long run's steps at its end over which the rate falls to zero


class Trainer(Protocol):
    """Who trains students: `distill.workers.Workers`, or a stand-in that invents scores."""

    count: int

    def open(self) -> Future[Facts]: ...
    def prepare(self, blocks: int) -> list[Future[None]]: ...
    def finish(self) -> Future[Facts]: ...
    def train(self, job: Job) -> Future[ProxyScore]: ...
    def run(self, function: Callable[..., T], *arguments: Any) -> Future[T]: ...
    @property
    def work_done(self) -> float: ...


class Progress(Protocol):
    """Who is told how far it is."""

    def say(self, text: str) -> None: ...
    def stage(self, name: str, total: float) -> None: ...
    def at(self, done: float, total: float | None = None, note: str = "") -> None: ...


class Outcome(msgspec.Struct):
    """What a search found.

    Attributes:
        chosen: the answer, judged on *report*; None where nothing meets the wishes.
        teacher_quality: on *report*.
        front: the trials that are beaten by none, judged on *select* after a short run; the fastest first.
        finalists: judged on *select* after the long run.
        baselines: hand-made students by name, judged on *report*.
        missing_baselines: why a hand-made student is missing, by name.
        trials: every finished trial, in order.
        infeasible: architectures that were priced and did not fit.
        failed: trials whose training failed.
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


class Engine:
    """One search.

    Args:
        plan: what the price decides.
        facts: of the task, complete.
        trainer: who trains.
        run: where it is kept.
        progress: who is told.
    """

    def __init__(self, plan: Plan, facts: Facts, trainer: Trainer, run: Run, progress: Progress) -> None:
        self.plan, self.facts, self.trainer, self.run, self.progress = plan, facts, trainer, run, progress
        self.proposer = Proposer(plan.space, plan.price, plan.budget_ms, facts.sensitivities, facts.layers, plan.admits)
        self.started = time.monotonic()
        self._begun, self._steps, self._works = 0.0, 0, list[float]()  # of training, for the progress

    def search(self) -> Outcome:
        """Trials, finalists, choice, and the one look at *report*.

        Raises:
            RunError: no trial could be trained.
        """
        trials = self._trials()
        complete = [result for result in trials if result is not None]
        if not complete:
            raise RunError("every trial failed in training; the reasons stand in the study")
        finalists = self._finalists(complete)
        chosen, by_hand, missing = self._choose(finalists), list[HandMade](), dict[str, str]()
        if chosen is not None:
            by_hand, missing = hand_made(self.plan.space, self.plan.price, chosen.latency.median_ms)
        judged = self._judge(chosen, by_hand) if chosen else []
        return Outcome(
            chosen=judged[0] if judged else None,
            teacher_quality=_teacher_quality(judged[0]) if judged else self.facts.quality,
            front=front(complete),
            finalists=finalists,
            baselines={made.name: result for made, result in zip(by_hand, judged[1:], strict=False)},
            missing_baselines=missing,
            trials=complete,
            infeasible=self.proposer.infeasible,
            failed=len(trials) - len(complete),
        )

    def _trials(self) -> list[Result | None]:
        from hwsearch.search.study import Record, Sampler, Study

        wishes, study = self.plan.wishes, Study(self.run.path("study.db"), self.run.name)
        records = study.records()
        sampler = Sampler(wishes.seed, self.proposer.corners(), self.trainer.count)
        seen: set[Architecture] = set()
        for number, record in enumerate(records):
            architecture = self.proposer(sampler.ask(records[:number], record.settings), seen)
            seen.add(architecture or self.plan.space.smallest)
        if records:
            self.progress.say(f"taken up again: {len(records)} trials are finished already")

        pending: list[tuple[Any, Architecture, Future[ProxyScore]]] = []
        asked, exhausted = len(records), False
        long = FINALISTS * (wishes.long_steps - wishes.steps) + 2 * wishes.long_steps
        self._begun, self._steps = self.trainer.work_done, max(0, wishes.trials - asked) * wishes.steps + long
        self._works = [work_of(architecture, 1) for architecture in seen]
        self.progress.stage("training", 1.0)
        while True:
            while len(pending) < self.trainer.count and asked < wishes.trials and not exhausted and self._time_left():
                trial = sampler.ask(records)
                proposal = self.proposer(trial, seen)
                if proposal is None:
                    exhausted = True
                    self.progress.say(f"the space inside the budget is used up after {asked} students")
                    break
                seen.add(proposal)
                self._works.append(work_of(proposal, 1))
                job = Job(path=str(self.run.student(f"{asked}")), architecture=proposal, steps=wishes.steps)
                pending.append((trial, proposal, self.trainer.train(job)))
                asked += 1
            if not pending:
                break
            trial, proposal, future = pending.pop(0)
            score, reason = self._await(future, f"trial {len(records) + 1} of {wishes.trials}")
            result = None if score is None else scored(self.plan.priced(proposal, len(records)), score)
            records.append(Record(trial.params, trial.distributions, result, reason))
            study.add(records[-1])
        study.close()
        return [record.result for record in records]

    def _await(self, future: Future[ProxyScore], note: str) -> tuple[ProxyScore | None, str]:
        """The score of a trial, or why it failed; the progress is told meanwhile.

        Raises:
            RunError: a worker is gone.
        """
        while not wait([future], timeout=0.5).done:
            self._tell(note)
        error = future.exception()
        if isinstance(error, BrokenExecutor):
            raise RunError(
                "a training process was killed, by lack of memory perhaps; the same command goes on from there"
            )
        if isinstance(error, (ArithmeticError, RuntimeError)):
            return None, f"{type(error).__name__}: {error}"
        if error is not None:
            raise error
        score = future.result()
        return (score, "") if math.isfinite(score.loss) else (None, "the training diverged")

    def _tell(self, note: str) -> None:
        """How far the training is, all that is still to come taken as of middling students."""
        middling = sum(self._works) / len(self._works)
        self.progress.at(self.trainer.work_done - self._begun, middling * self._steps, note)

    def _time_left(self) -> bool:
        minutes = self.plan.wishes.minutes
        return minutes is None or time.monotonic() - self.started < 60 * minutes

    def _finalists(self, results: Sequence[Result]) -> list[Result]:
        """The best of the front across the band under the budget, trained long and judged on *select*."""
        best = front(results)
        others = sorted((r for r in results if r not in best), key=lambda r: r.loss or 0.0)
        # The upper half of the front holds the answer; what is left of the places goes to the next best.
        upper = spread(best[len(best) // 2 :] if len(best) >= 2 * FINALISTS else best[-FINALISTS:], FINALISTS)
        picked = (upper + others)[:FINALISTS]
        jobs = [
            Job(
                path=str(self.run.student(f"{r.trial}-long")),
                start=str(self.run.student(f"{r.trial}")),
                architecture=r.architecture,
                steps=self.plan.wishes.long_steps,
                cool_from=self._cool_from(),
            )
            for r in picked
        ]
        scores = self._train("finalists", jobs)
        return [scored(result, score) for result, score in zip(picked, scores, strict=True)]

    def _choose(self, finalists: Sequence[Result]) -> Result | None:
        """On *select*: the best inside the budget, or the fastest that keeps the quality that was asked for."""
        inside = [r for r in finalists if r.latency.high_ms <= self.plan.budget_ms]
        least = self.plan.wishes.min_quality
        if least is None:
            return max(inside, key=lambda r: r.quality or 0.0, default=None)
        return min(
            (r for r in inside if (r.retention or 0.0) >= least), key=lambda r: r.latency.median_ms, default=None
        )

    def _judge(self, chosen: Result, by_hand: Sequence[HandMade]) -> list[Result]:
        """The chosen student and the hand-made ones on *report*, all trained for the same steps."""
        long, cool = self.plan.wishes.long_steps, self._cool_from()
        jobs = [
            Job(
                path=str(self.run.student(f"{chosen.trial}-long")),
                architecture=chosen.architecture,
                steps=long,
                cool_from=cool,
                split="report",
            )
        ]
        for made in by_hand:
            path = str(self.run.student(f"{made.name.replace(' ', '-')}-{made.architecture.digest}"))
            jobs.append(Job(path, made.architecture, long, cool_from=cool, split="report", layers=made.layers))
        scores = self._train("hand-made students", jobs)
        results = [chosen, *(self.plan.priced(made.architecture) for made in by_hand)]
        return [scored(result, score) for result, score in zip(results, scores, strict=True)]

    def _cool_from(self) -> int:
        return round(self.plan.wishes.long_steps * (1 - COOL_DOWN))

    def _train(self, note: str, jobs: Sequence[Job]) -> list[ProxyScore]:
        """Train all of them side by side."""
        futures = [self.trainer.train(job) for job in jobs]
        waiting: set[Future[ProxyScore]] = set(futures)
        while waiting:
            waiting = set(wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).not_done)
            self._tell(note)
        return [future.result() for future in futures]


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


def _teacher_quality(result: Result) -> float:
    assert result.quality is not None
    assert result.retention
    return result.quality / result.retention

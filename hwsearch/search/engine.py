"""A search from the first price to the written answer.

Latency first: what cannot fit is never trained. Trials are trained shortly, finalists longer, the choice is made on
*select*, and *report* is looked at once, after it, for the chosen student, the teacher and the hand-made students
beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from functools import partial
from typing import Any

import msgspec

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Facts, Job, ProxyScore, work_of
from hwsearch.errors import RunError, TrainingError
from hwsearch.search.baselines import HandMade, hand_made
from hwsearch.search.measured import Measurements, Measurer
from hwsearch.search.pareto import front, spread
from hwsearch.search.plan import Plan
from hwsearch.search.proposer import Given
from hwsearch.search.rank import stages
from hwsearch.search.rates import FALL, best, rates_of, told, tried
from hwsearch.search.result import Result, scored
from hwsearch.search.run import Run
from hwsearch.search.rungs import KEEP
from hwsearch.search.study import Study, Trial, results_of
from hwsearch.search.trainer import Progress, Trainer, result_of
from hwsearch.search.trials import DEATHS, Trials

FINALISTS = 3
ROOMY = 0.93  # share of the budget below which a measured student is tried larger
SUITING = 40  # steps of a first rung that tell which learning rate suits


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
        infeasible: distinct architectures that were priced and met neither the budget nor the other limits.
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


class Engine:
    """One search.

    Args:
        plan: what the price decides.
        facts: of the task, complete.
        trainer: who trains.
        run: where it is kept.
        study: its trials.
        progress: who is told.
        measurer: of the target; None where its runtime is not at hand.
    """

    def __init__(
        self,
        plan: Plan,
        facts: Facts,
        trainer: Trainer,
        run: Run,
        study: Study,
        progress: Progress,
        measurer: Measurer | None = None,
    ) -> None:
        self.plan, self.facts, self.trainer, self.run, self.progress = plan, facts, trainer, run, progress
        self.study, self.asked = study, 0
        self.measured = Measurements(plan, run, measurer, progress) if measurer else None
        self.proposer = plan.proposer(facts)
        self._begun, self._steps = 0.0, 0.0  # of training, for the progress
        self._until: float | None = None
        self._rates: dict[float, float] = {}

    def search(self) -> Outcome:
        """Trials, finalists, choice, and the one look at *report*.

        Raises:
            RunError: no trial could be trained.
            NothingFits: what was measured has shown it.
        """
        if self.measured:
            self.measured.correct_prices(self.proposer, FINALISTS)
        self._suit()
        trials = self._trials()
        complete = results_of(trials, len(self.plan.wishes.rungs))
        if not complete:
            if not trials:
                raise RunError("no student inside the budget was found; widen the options of the space, or --budget")
            reasons = "; ".join(sorted({trial.reason for trial in trials}))
            raise RunError(f"every trial failed in training: {reasons}")
        ranked, overshot = self._ranked(complete), list[Result]()
        picked = ranked[:FINALISTS]
        if self.measured:
            picked, overshot = self.measured.holding(ranked, FINALISTS)
            first = {result.trial for result in ranked[:FINALISTS]}
            if again := self._to_be_resized(trials, [r for r in (*picked, *overshot) if r.trial in first]):
                trials = self._trials(again)
                complete = results_of(trials, len(self.plan.wishes.rungs))
                picked, overshot = self.measured.holding(self._ranked(complete), FINALISTS)
            # What was measured has changed the prices of all that was not.
            complete = self.measured.repriced(complete, picked + overshot)
        finalists = self._finalists(picked)
        chosen = self._choose(finalists)
        baselines, missing, quality = dict[str, Result](), dict[str, str](), self.facts.quality
        metrics: dict[str, float] = {}
        if chosen is not None:
            latency_ms = chosen.latency.median_ms
            by_hand, missing = (
                self.measured.by_hand(latency_ms)
                if self.measured
                else hand_made(self.plan.space, self.plan.price, latency_ms)
            )
            chosen, score = self._judge(chosen)
            quality, metrics = score.teacher_quality, score.teacher_metrics
            baselines = self._judge_by_hand(by_hand, missing)
        return Outcome(
            chosen=chosen,
            teacher_quality=quality,
            teacher_metrics=metrics,
            front=front(complete),
            finalists=finalists,
            baselines=baselines,
            missing_baselines=missing,
            trials=complete,
            infeasible=len(self.proposer.infeasible),
            stopped=sum(r.steps < self.plan.wishes.rungs[-1] for r in complete),
            failed=len(trials) - len(complete),
            overshot=overshot,
            stages=self._stages(trials, finalists),
            asked=self.asked,
            rates=self._rates,
        )

    def _suit(self) -> None:
        """Find the learning rate, for all students alike, with one as full as it may be: near such lies the answer."""
        fullest = [student for corner in self.proposer.corners()[:1] if (student := self.proposer(Given(corner), ()))]
        known, steps = self.study.described(), self.plan.wishes.steps
        self._rates, died = rates_of(known), known.get("died_at_rates", 0)
        if not self._rates and fullest and steps >= SUITING and died < DEATHS:
            try:
                self._rates = tried(partial(self._losses_at, fullest[0]))
            except RunError as error:
                if isinstance(error.__cause__, BrokenExecutor):  # the student may be what kills its process
                    self.study.describe(died_at_rates=died + 1)
                raise
            self.progress.say(told(self._rates, steps))
            self.study.describe(rates=[*self._rates.items()])
        self.plan.rate = best(self._rates)

    def _losses_at(self, student: Architecture, rates: Sequence[float]) -> list[float]:
        """What a first rung at some learning rates loses, the rate falling at its end; infinite where one diverges."""
        steps = self.plan.wishes.steps
        jobs = [
            Job(
                path=str(self.run.student(f"rate-{rate:.3g}", student)),
                architecture=student,
                steps=steps,
                cool_from=round(steps / (1 + FALL)),
                rate=rate,
            )
            for rate in rates
        ]
        scores = self._train("learning rates", jobs)
        return [math.inf if isinstance(score, TrainingError) else score.loss for score in scores]

    def _stages(self, trials: Sequence[Trial], finalists: Sequence[Result]) -> list[dict[str, Any]]:
        """What the students that were trained on say of shorter runs."""
        wishes = self.plan.wishes
        steps = [*wishes.rungs, wishes.long_steps]
        last = {result.trial: result for result in finalists}
        students = []
        for trial in trials:
            if trial.result is not None:
                scores = dict(zip(steps, trial.losses, strict=False))
                if (final := last.get(trial.number)) is not None:  # which may have passed a rung on its way
                    scores |= {step: loss for step, loss in final.curve if step in steps}
                    scores[wishes.long_steps] = final.loss or 0.0
                students.append((trial.result, scores))
        return stages(students, steps)

    def _to_be_resized(self, trials: Sequence[Trial], measured: Sequence[Result]) -> list[tuple[Trial, float]]:
        """Trials that miss the budget either way as `measured`, and were not tried in another size yet, each with the
        share that it takes. Where the fastest is looked for, none is tried larger.

        Which they are is kept before the first is tried: one that a killed run has tried may be a finalist itself."""
        wishes, (wanted, missing) = self.plan.wishes, self.study.described().get("again") or (0, [])
        if wanted != wishes.trials:
            fullest = ROOMY if wishes.min_quality is None else 0.0
            filled = {r.trial: self.plan.filled(r.latency) for r in measured}
            missing = [[number, share] for number, share in filled.items() if not fullest <= share <= 1.0]
            self.study.describe(again=[wishes.trials, missing])
        settings = [trial.settings for trial in trials]
        known = {trial.number: trial for trial in trials if settings.count(trial.settings) == 1}
        return [(known[number], share) for number, share in missing if number in known]

    def _trials(self, again: Sequence[tuple[Trial, float]] = ()) -> list[Trial]:
        """Every trial, none of them in anybody's hands; those of `again` are tried once more, as full as what was
        measured of them says they may be."""
        wishes, study = self.plan.wishes, self.study
        before = study.trials()
        seen: set[Architecture] = set()
        for trial in before:
            self.proposer(Given(trial.settings), seen)  # counts again what it refused
            seen.add(trial.architecture)
        if before and not again:
            ended = sum(trial.ended or bool(trial.losses) for trial in before)
            self.progress.say(f"taken up again: {ended} trials are finished already")
        # Proposals depend on how many are under way at once: that stays as it was.
        at_once = study.described().get("at_once") or self.trainer.count
        until = time.time() + 60 * wishes.minutes if wishes.minutes is not None and not again else self._until
        self._until = until
        study.describe(at_once=at_once, correction=self.plan.price.correction, until=until)
        climbed = wishes.rungs[-1] - wishes.steps
        self._begun = self.trainer.work_done
        self._steps = (max(0, wishes.trials - len(before)) + len(again)) * (wishes.steps + climbed / KEEP)
        self.progress.stage("training", 1.0)
        trials = Trials(
            self.plan, self.proposer, study, self.trainer, self.run.student, at_once, self.progress, until, again
        )
        found = trials.run(self._tell)
        self.asked = max(len(found), wishes.trials) if trials.exhausted else len(found)
        return found

    def _tell(self, note: str) -> None:
        """How far the trials are, all that are still to come taken as of middling students."""
        works = [work_of(trial.architecture, 1) for trial in self.study.trials()]
        if works:
            self.progress.at(self.trainer.work_done - self._begun, sum(works) / len(works) * self._steps, note)

    def _ranked(self, results: Sequence[Result]) -> list[Result]:
        """In the order that they are to be finalists: the best first. Where the fastest that is good enough is looked
        for, some of the front come before, from all over it: those that have passed the last rung."""
        first: list[Result] = []
        if self.plan.wishes.min_quality is not None:
            first = spread(front([r for r in results if r.steps >= self.plan.wishes.rungs[-1]]), FINALISTS)
        return first + sorted((r for r in results if r not in first), key=lambda r: r.rank or 0.0)

    def _finalists(self, picked: Sequence[Result]) -> list[Result]:
        """Trained long and judged on *select*."""
        jobs = [
            Job(
                path=self._long(r),
                start=str(self.run.student(r.trial or 0, r.architecture)),
                architecture=r.architecture,
                steps=self.plan.wishes.long_steps,
                cool_from=self.plan.wishes.rungs[-1],
                marks=self.plan.wishes.rungs,
                rate=self.plan.rate,
            )
            for r in picked
        ]
        scores = self._train("finalists", jobs, [r.steps for r in picked])
        finalists = [
            scored(result, score)
            for result, score in zip(picked, scores, strict=True)
            if not isinstance(score, TrainingError)
        ]
        if picked and not finalists:
            raise RunError(f"every finalist failed in training: {scores[0]}")
        return finalists

    def _choose(self, finalists: Sequence[Result]) -> Result | None:
        """On *select*: the best inside the budget, or the fastest finalist that keeps what was asked for.

        Some hundreds of answers do not tell near equals apart. Of finalists whose retention lies inside the best one's
        interval, the one that is nearest to the teacher is taken: its loss is known far better.
        """
        inside = [r for r in finalists if self.plan.holds(r.latency)]
        least = self.plan.wishes.min_quality
        if least is None:
            best = max(inside, key=lambda r: r.quality or 0.0, default=None)
            equals = [r for r in inside if best and (r.retention or 0.0) >= (best.retention_low or 0.0)]
            return min(equals, key=lambda r: r.loss or math.inf, default=None)
        return min(
            (r for r in inside if (r.retention or 0.0) >= least), key=lambda r: r.latency.median_ms, default=None
        )

    def _judge(self, chosen: Result) -> tuple[Result, ProxyScore]:
        """The chosen student on *report*, and its score, which knows the teacher's there."""
        job = Job(
            path=self._long(chosen),
            architecture=chosen.architecture,
            steps=self.plan.wishes.long_steps,
            cool_from=self.plan.wishes.rungs[-1],
            rate=self.plan.rate,
            split="report",
        )
        (score,) = self._train("the chosen student", [job], [job.steps])
        if isinstance(score, TrainingError):
            raise score
        return scored(chosen, score), score

    def _judge_by_hand(self, students: Sequence[HandMade], missing: dict[str, str]) -> dict[str, Result]:
        """The hand-made students on *report*, trained as the chosen one was; `missing` is told of those that cannot
        be."""
        jobs = [
            Job(
                path=str(self.run.student(made.name.replace(" ", "-"), made.architecture)),
                architecture=made.architecture,
                steps=self.plan.wishes.long_steps,
                cool_from=self.plan.wishes.rungs[-1],
                marks=self.plan.wishes.rungs,
                rate=self.plan.rate,
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

    def _train(self, stage: str, jobs: Sequence[Job], begun: Sequence[int] = ()) -> list[ProxyScore | TrainingError]:
        """Train all of them side by side, each from the step on that it has `begun` from."""
        self.progress.stage(stage, 1.0)
        todo = zip(jobs, begun or [0] * len(jobs), strict=True)
        before = self.trainer.work_done
        work = sum(work_of(job.architecture, job.steps - start) for job, start in todo)
        futures = [self.trainer.train(job) for job in jobs]
        waiting: set[Future[ProxyScore]] = set(futures)
        while waiting:
            waiting = set(wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).not_done)
            self.progress.at(self.trainer.work_done - before, work)
        found: list[ProxyScore | TrainingError] = []
        for future in futures:
            try:
                found.append(result_of(future))
            except TrainingError as error:
                found.append(error)
        return found

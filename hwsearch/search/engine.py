"""A search from the first price to the written answer.

Latency first: what cannot fit is never trained. Trials are trained shortly, finalists longer, the choice is made on
*select*, and *report* is looked at once, after it, for the chosen student, the teacher and the hand-made students
beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from concurrent.futures import BrokenExecutor
from functools import partial
from typing import Any

from hwsearch.architecture import Architecture
from hwsearch.distill.job import COOL, Facts, Job, work_of
from hwsearch.distill.workers import loss_as_cut
from hwsearch.errors import RunError, TrainingError
from hwsearch.search.baselines import HandMade, hand_made
from hwsearch.search.finals import Finals
from hwsearch.search.measured import Measurements, Measurer
from hwsearch.search.outcome import Outcome
from hwsearch.search.pareto import about, front
from hwsearch.search.plan import Plan
from hwsearch.search.proposer import Given
from hwsearch.search.rank import stages
from hwsearch.search.rates import best, rates_of, told, tried
from hwsearch.search.result import Result
from hwsearch.search.run import Run
from hwsearch.search.rungs import KEEP
from hwsearch.search.study import Study
from hwsearch.search.trainer import Progress, Trainer, result_of, train_all
from hwsearch.search.trial import Trial, asked_for, results_of
from hwsearch.search.trials import DEATHS, Trials

FINALISTS = 3
ROOMY = 0.93  # share of the budget below which a measured student is tried larger
RESIZINGS = 3  # times at most: what is tried larger may leave room again, or overshoot
SUITING = 40  # steps of a first rung that tell which learning rate suits


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
            self.measured.correct_prices(self.proposer)
        self._suit()
        trials = self._trials()
        infeasible = len(self.proposer.infeasible)  # at the prices that all of them were proposed at
        complete = results_of(trials, len(self.plan.wishes.rungs))
        if not complete:
            if not trials:
                raise RunError("no student inside the budget was found; widen the options of the space, or --budget")
            reasons = "; ".join(sorted({trial.reason for trial in trials}))
            raise RunError(f"every trial failed in training: {reasons}")
        picked, overshot = self._ranked(complete)[:FINALISTS], list[Result]()
        if self.measured:
            whole = self.asked >= self.plan.wishes.trials  # there was time for all trials
            for nth in range(RESIZINGS if whole else 0):
                if again := self._to_be_resized(self.measured, nth, trials, complete):
                    trials = self._trials(again)
                    complete = results_of(trials, len(self.plan.wishes.rungs))
                if self.asked < self.plan.wishes.trials:  # time is up: the rest is for the session that has some
                    break
            picked, overshot = self.measured.holding(self._ranked(complete), FINALISTS)
            complete = self.measured.repriced(complete)
        finals = Finals(self.plan, self.trainer, self.run, self.progress, self.measured)
        finalists = finals.train(picked)
        chosen = finals.choose(finalists)
        baselines, missing, quality = dict[str, Result](), dict[str, str](), self.facts.quality
        metrics: dict[str, float] = {}
        if chosen is not None:
            latency_ms = chosen.latency.median_ms
            by_hand, missing = (
                self.measured.by_hand(latency_ms)
                if self.measured
                else hand_made(self.plan.space, self.plan.price, latency_ms, self.plan.keeps_limits)
            )
            chosen, score = finals.judge(chosen)
            quality, metrics = score.teacher_quality, score.teacher_metrics
            baselines = self._judged_by_hand(finals, by_hand, missing)
        return Outcome(
            chosen=chosen,
            teacher_quality=quality,
            teacher_metrics=metrics,
            front=front(complete),
            finalists=finalists,
            baselines=baselines,
            missing_baselines=missing,
            trials=complete,
            infeasible=infeasible,
            stopped=sum(r.steps < self.plan.wishes.rungs[-1] for r in complete),
            failed=len(trials) - len(complete),
            overshot=overshot,
            stages=self._stages(trials, finalists),
            asked=self.asked,
            rates=self._rates,
        )

    def _judged_by_hand(
        self, finals: Finals, students: Sequence[HandMade], missing: dict[str, str]
    ) -> dict[str, Result]:
        """The students made by hand on *report*: they may be larger than all that was trained before, and the answer
        does not wait for what cannot be trained here."""
        died = self.study.described().get("died_by_hand", 0)
        if died >= DEATHS:
            missing |= {one.name: f"{DEATHS} times training stopped at these students" for one in students}
            return {}
        try:
            return finals.judge_by_hand(students, missing)
        except RunError:
            self.study.describe(died_by_hand=died + 1)
            raise

    def _suit(self) -> None:
        """Find the learning rate, for all students alike, with the corner that loses least as it is cut out: what has
        lost much wants a higher rate than those among which the answer lies."""
        proposer = self.plan.proposer(self.facts)  # what this one refuses is no trial's
        corners = [student for corner in proposer.corners() if (student := proposer(Given(corner), ()))]
        known, steps = self.study.described(), self.plan.wishes.steps
        self._rates, died = rates_of(known), known.get("died_at_rates", 0)
        if not self._rates and corners and steps >= SUITING and died < DEATHS:
            try:
                cut = [self.trainer.run(loss_as_cut, student) for student in corners]
                lost = [result_of(loss) or 0.0 for loss in cut]  # a trainer that invents scores says nothing
                self._rates = tried(partial(self._losses_at, corners[lost.index(min(lost))]))
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
                cool_from=round(COOL * steps),
                rate=rate,
            )
            for rate in rates
        ]
        scores = train_all(self.trainer, self.progress, "learning rates", jobs)
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

    def _to_be_resized(
        self, measured: Measurements, nth: int, trials: Sequence[Trial], complete: Sequence[Result]
    ) -> list[tuple[Trial, float]]:
        """Trials that would be finalists and miss the budget either way when they are measured, after which none of
        another size was tried yet, each with the share that it takes. Where the fastest is looked for, none is tried
        larger.

        Which they are the `nth` time, and what was measured to know it, is kept before the first is tried: one that a
        killed run has tried may be a finalist itself."""
        wishes, kept = self.plan.wishes, self.study.described().get("resized") or {}
        times = kept["times"] if kept.get("trials") == wishes.trials else []
        if nth == len(times):
            ranked = self._ranked(complete)
            picked, overshot = measured.holding(ranked, FINALISTS)
            fullest, first = ROOMY if wishes.min_quality is None else 0.0, {r.trial for r in ranked[:FINALISTS]}
            filled = {r.trial: self.plan.filled(r.latency) for r in (*picked, *overshot) if r.trial in first}
            missing = [[number, share] for number, share in filled.items() if not fullest <= share <= 1.0]
            ran = [r.trial for r in (*picked, *overshot)]
            times = [*times, {"missing": missing, "measured": ran}]
            self.study.describe(resized={"trials": wishes.trials, "times": times})
        else:
            results = {result.trial: result for result in complete}
            ran = times[nth]["measured"]
            measured([results[number] for number in ran if number in results])  # prices know of them
        missing = times[nth]["missing"]
        settings = [trial.settings for trial in trials]
        known = {t.number: t for i, t in enumerate(trials, 1) if t.settings not in settings[i:]}
        return [(known[number], share) for number, share in missing if number in known]

    def _trials(self, again: Sequence[tuple[Trial, float]] = ()) -> list[Trial]:
        """Every trial, none of them in anybody's hands; those of `again` are tried once more, as full as what was
        measured of them says they may be."""
        wishes, study = self.plan.wishes, self.study
        before = study.trials()
        seen: set[Architecture] = set()
        if not again:  # they were counted when all but these were proposed
            self._count_refused(before, seen)
        if before and not again:
            ended = sum(trial.ended or bool(trial.losses) for trial in before)
            self.progress.say(f"taken up again: {ended} trials are finished already")
        # Proposals depend on how many are under way at once: that stays as it was.
        at_once = study.described().get("at_once") or self.trainer.count
        until = time.time() + 60 * wishes.minutes if wishes.minutes is not None and not again else self._until
        self._until = until
        learned = [(architecture.to_json(), ratio) for architecture, ratio in self.plan.price.learned.items()]
        study.describe(at_once=at_once, learned=learned, until=until, began=True)
        each = wishes.steps + (wishes.rungs[-1] - wishes.steps) / KEEP
        done = sum(wishes.rungs[len(trial.losses) - 1] for trial in before if trial.losses)
        self._begun = self.trainer.work_done
        self._steps = len(again) * each if again else max(wishes.trials * each - done, float(wishes.steps))
        self.progress.stage("training", 1.0)
        trials = Trials(self.plan, self.proposer, study, self.trainer, self.run.student, at_once, self.progress, again)
        found = trials.run(self._tell)
        asked = asked_for(found)
        self.asked = max(asked, wishes.trials) if trials.exhausted else asked
        if trials.cut or any(trial.waits for trial in found):  # time is up
            self.asked = min(self.asked, wishes.trials - 1)
        if not again:
            self._count_refused(found[len(before) :], seen, trials.proposed)
        return found

    def _count_refused(self, trials: Sequence[Trial], seen: set[Architecture], counted: Collection[int] = ()) -> None:
        """Have the proposer count what was refused when trials were proposed elsewhere: not those that are `counted`,
        by number, nor those in another size, which nobody counts. Those of `seen` were there before them."""
        if trials:
            self.progress.stage("counting what was refused", float(len(trials)))
        for place, trial in enumerate(trials):
            if trial.number not in counted and not trial.resized:
                self.proposer(Given(trial.settings), seen)
                self.progress.at(float(place + 1))
            seen.add(trial.architecture)

    def _tell(self, note: str) -> None:
        """How far the trials are, all that are still to come taken as of middling students."""
        works = [work_of(trial.architecture, 1) for trial in self.study.trials()]
        if works:
            self.progress.at(self.trainer.work_done - self._begun, sum(works) / len(works) * self._steps, note)

    def _ranked(self, results: Sequence[Result]) -> list[Result]:
        """In the order that they are to be finalists: the best first. Where the fastest that is good enough is looked
        for, some of the front come before, of those that have passed the last rung: what keeps enough by then, and what
        is next to it and faster."""
        first: list[Result] = []
        if (least := self.plan.wishes.min_quality) is not None:
            first = about(front([r for r in results if r.steps >= self.plan.wishes.rungs[-1]]), least, FINALISTS)
        return first + sorted((r for r in results if r not in first), key=lambda r: r.rank or 0.0)

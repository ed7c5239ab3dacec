"""One worker's part in a study: take what is to be trained next, train it, write down what it scored.

What is next, in this order: a trial whose worker has died, from its last checkpoint; a trial that goes on to its next
rung; a new one. A worker sees its own results in the order in which it took them up, however fast they were: proposals
of a single worker are then a function of the seed, and a run that is taken up again equals an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import NamedTuple

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Job, ProxyScore
from hwsearch.errors import TrainingError
from hwsearch.search.owner import membership
from hwsearch.search.plan import Plan
from hwsearch.search.proposer import Proposer
from hwsearch.search.result import scored
from hwsearch.search.rungs import beaten, promoted
from hwsearch.search.sampler import Sampler
from hwsearch.search.study import Study, Trial
from hwsearch.search.trainer import Progress, Trainer, result_of

BEAT_S = 15.0  # between signs of life


class Climb(NamedTuple):
    """A trial on its way to a rung."""

    trial: Trial
    rung: int
    score: Future[ProxyScore]


class Trials:
    """The trials of a study, as far as this process trains them.

    Args:
        plan: what is asked.
        proposer: what fits.
        study: shared with whoever else is at work on it.
        trainer: who trains.
        state_of: where a student's state is kept, by its trial's number and its architecture.
        at_once: how many are under way at the same time.
        progress: who is told.

    Attributes:
        exhausted: the space inside the budget is used up.
        trained: rungs that were trained here.
    """

    def __init__(
        self,
        plan: Plan,
        proposer: Proposer,
        study: Study,
        trainer: Trainer,
        state_of: Callable[[int, Architecture], Path],
        at_once: int,
        progress: Progress,
    ) -> None:
        self.plan, self.proposer, self.study, self.trainer = plan, proposer, study, trainer
        self.state_of, self.at_once, self.progress = state_of, at_once, progress
        self.sampler = Sampler(plan.wishes.seed, proposer.corners())
        self.exhausted, self.trained = False, 0
        self._ended_at: float | None = None if plan.wishes.minutes is None else 60 * plan.wishes.minutes
        self._started = time.monotonic()

    def run(self, tell: Callable[[str], None] = lambda _: None) -> list[Trial]:
        """Train until nothing is left to train, and return all trials of the study. `tell` is told where it is.

        Raises:
            RunError: a training process was killed, or the disk is full: the study is as it was before its rung.
        """
        with membership() as owner:
            try:
                return self._run(owner, tell)
            except BaseException:
                self.study.leave(owner)  # this process may live on
                raise

    def _run(self, owner: str, tell: Callable[[str], None]) -> list[Trial]:
        climbing: list[Climb] = []
        last_beat = time.monotonic()
        while True:
            while len(climbing) < self.at_once and (climb := self._next(owner)) is not None:
                climbing.append(climb)
            if not climbing:
                if self._others():
                    tell("waiting for other workers")
                    time.sleep(1)
                    continue
                return self.study.trials()
            first = climbing[0]
            while not wait([first.score], timeout=0.5).done:
                tell(f"trial {first.trial.number + 1} of {self.plan.wishes.trials}")
                if time.monotonic() - last_beat > BEAT_S:
                    last_beat = time.monotonic()
                    for climb in climbing:
                        self.study.beat(climb.trial)
            self._note(climbing.pop(0))

    def _next(self, owner: str) -> Climb | None:
        """What to train now, in this owner's hands; None where there is nothing."""
        with self.study.alone():
            trials = self.study.trials()
            trial = self._old(trials, owner)
            if trial is None and not self._over(trials):
                trial = self._new(trials, owner) or self._old(trials, owner)
            if trial is None and self._time_left() and not any(other.owner for other in trials):
                for other in trials:
                    if other.waits:
                        self.study.end(other)
        return None if trial is None else self._begin(trial)

    def _old(self, trials: list[Trial], owner: str) -> Trial | None:
        """A trial that was begun, to be trained on: a dead worker's, or one that goes on to its next rung."""
        for trial in sorted(trials, key=lambda trial: trial.turn):
            if self.study.abandoned(trial):
                return self.study.take(trial, owner)
        if self._time_left():
            for number in promoted(trials, len(self.plan.wishes.rungs), self._over(trials)):
                return self.study.take(trials[number], owner)
        return None

    def _new(self, trials: list[Trial], owner: str) -> Trial | None:
        """A student that was not tried yet; None where the space inside the budget has no more."""
        asked = self.sampler.ask(trials)
        architecture = self.proposer(asked, {trial.architecture for trial in trials})
        if architecture is None:
            self.exhausted = True
            self.sampler.dropped(asked)
            self.progress.say(f"the space inside the budget is used up after {len(trials)} students")
            return None
        ms = self.plan.price.one(architecture).median_ms
        trial = self.study.begin(architecture, ms, asked.params, asked.distributions, owner)
        self.sampler.kept(asked, trial)
        return trial

    def _begin(self, trial: Trial) -> Climb:
        wishes, rung = self.plan.wishes, len(trial.losses)
        job = Job(
            path=str(self.state_of(trial.number, trial.architecture)),
            architecture=trial.architecture,
            steps=wishes.rungs[rung],
        )
        return Climb(trial, rung, self.trainer.train(job))

    def _note(self, climb: Climb) -> None:
        """Write down what came of a climb, and which trials have lost by it."""
        trial, self.trained = climb.trial, self.trained + 1
        try:
            score = result_of(climb.score)
        except TrainingError as error:
            with self.study.alone():
                self.study.end(trial, str(error))
            return
        with self.study.alone():
            rungs = len(self.plan.wishes.rungs)
            trial = self.study.passed(trial, scored(self.plan.priced(trial.architecture, trial.number), score))
            if len(trial.losses) == rungs:
                self.study.end(trial)
            trials = self.study.trials()
            for number in beaten(trials, rungs):
                self.study.end(trials[number])

    def _over(self, trials: list[Trial]) -> bool:
        """Whether no more trials will come."""
        return self.exhausted or len(trials) >= self.plan.wishes.trials or bool(trials and not self._time_left())

    def _others(self) -> bool:
        """Whether trials are in the hands of workers that are alive or may yet be: theirs to finish, or to be taken
        over."""
        return any(trial.owner for trial in self.study.trials())

    def _time_left(self) -> bool:
        return self._ended_at is None or time.monotonic() - self._started < self._ended_at

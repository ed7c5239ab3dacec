"""One worker's part in a study: take what is to be trained next, train it, write down what it scored.

What is next, in this order: a trial whose worker has died, from its last checkpoint; a trial that goes on to its next
rung; a new one. A worker sees its own results in the order in which they would come if all work went at one speed,
however fast it went: proposals of a single worker are then a function of the seed, and a run that is taken up again
equals an undisturbed one. Hardly any process waits for that order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Job, ProxyScore, work_of
from hwsearch.errors import RunError, TrainingError
from hwsearch.search.description import asked_of
from hwsearch.search.owner import membership
from hwsearch.search.plan import Plan
from hwsearch.search.proposer import FULLEST, Given, Proposer
from hwsearch.search.result import scored
from hwsearch.search.rungs import beaten, promoted
from hwsearch.search.sampler import Sampler
from hwsearch.search.storage import reachable
from hwsearch.search.study import Study
from hwsearch.search.trainer import Progress, Trainer, result_of
from hwsearch.search.trial import Record, Trial, asked_for

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

BEAT_S = 15.0  # between signs of life
DEATHS = 3  # of those who trained a trial, after which it is given up: it may be what ends them


class Climb(NamedTuple):
    """A trial on its way to a rung."""

    trial: Trial
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
        again: trials that were measured, and the share of the budget that each took: their settings are tried once
            more, as full as that says they may be.

    Attributes:
        exhausted: the space inside the budget is used up.
        trained: rungs that were passed here.
        proposed: numbers of the trials that were proposed here.
        cut: there was no time left for one of `again`.
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
        again: Sequence[tuple[Trial, float]] = (),
    ) -> None:
        self.plan, self.proposer, self.study, self.trainer = plan, proposer, study, trainer
        self.state_of, self.at_once, self.progress = state_of, at_once, progress
        least = None if plan.wishes.min_quality is not None else FULLEST
        self.sampler = Sampler(plan.wishes.seed, proposer.corners(), least)
        self.exhausted, self.trained, self.proposed, self.cut = False, 0, set[int](), False
        self._wanted, self._until = asked_of(study)
        self._clock = 0.0  # counts work
        self._shared = False  # trials are in somebody's hands
        self._again = list(again)

    def run(self, tell: Callable[[str], None] = lambda _: None) -> list[Trial]:
        """Train until nothing is left to train, and return all trials of the study. `tell` is told where it is.

        Raises:
            RunError: a training process was killed, or the disk is full: the study is as it was before its rung, and
                knows how often that was.
        """
        with reachable(self.study.address), membership() as owner:
            try:
                return self._run(owner, tell)
            except BaseException as error:
                if not isinstance(error.__cause__, BrokenExecutor):  # that counts as a death
                    self.study.leave(owner)  # this process may live on
                raise

    def _run(self, owner: str, tell: Callable[[str], None]) -> list[Trial]:
        climbing: list[Climb] = []
        last_beat = time.monotonic()
        with self.study.alone():
            self.study.tidy()
            self._clock = max((self._begun(trial) for trial in self.study.trials()), default=0.0)
        while True:
            while len(climbing) < self.at_once and (climb := self._next(owner)) is not None:
                climbing.append(climb)
            if not climbing:
                if self._shared:
                    tell("waiting for other workers")
                    time.sleep(1)
                    continue
                return self.study.trials()
            first = min(climbing, key=lambda climb: (climb.trial.due, climb.trial.number))
            while not wait([first.score], timeout=0.5).done:
                number = first.trial.number + 1
                of = f" of {self._wanted}" if number <= self._wanted else ""
                of = ", in another size" if first.trial.resized else of
                tell(f"trial {number}{of}")
                if time.monotonic() - last_beat > BEAT_S:
                    last_beat = time.monotonic()
                    with self.study.alone():
                        for climb in climbing:
                            self.study.beat(climb.trial)
            climbing.remove(first)
            self._clock = first.trial.due
            self._note(first)

    def _next(self, owner: str) -> Climb | None:
        """What to train now, in this owner's hands; None where there is nothing."""
        with self.study.alone():
            self._wanted, self._until = asked_of(self.study)
            trials = self.study.trials()
            trial = self._old(trials, owner)
            while trial is None and self._again:
                trial = self._resized(*self._again.pop(0), trials, owner)
            if trial is None and not self._over(trials):
                trial = self._new(trials, owner) or self._old(trials, owner)
            # Theirs to finish who are alive or may yet be, or to be taken over. Asked of what was decided by: a rung
            # that another passes in the meantime leads to one that nobody has taken yet.
            self._shared = any(other.owner for other in trials)
            if trial is None and self._time_left() and not self._shared:
                for other in trials:
                    if other.waits:
                        self.study.end(other)
        return None if trial is None else self._begin(trial)

    def _old(self, trials: list[Trial], owner: str) -> Trial | None:
        """A trial that was begun, to be trained on: a dead worker's, or one that goes on to its next rung."""
        for trial in sorted(trials, key=lambda trial: trial.turn):
            if not self.study.abandoned(trial):
                continue
            if trial.deaths < DEATHS:
                return self.study.take(trial, owner)
            self.study.end(
                trial, f"{DEATHS} times what trained it was killed or ended with an error, for lack of memory perhaps"
            )
        if self._time_left():
            alive = [trial for trial in trials if not trial.reason]  # one that failed takes nobody's place
            for number in promoted(alive, len(self.plan.wishes.rungs), self.plan.budget_ms, self._over(trials)):
                trial = trials[number]
                return self.study.take(trial, owner, self._clock + self._work(trial))
        return None

    def _work(self, trial: Record) -> float:
        """To its next rung."""
        rungs, rung = self.plan.wishes.rungs, len(trial.losses)
        return work_of(trial.architecture, rungs[rung] - (rungs[rung - 1] if rung else 0))

    def _begun(self, trial: Trial) -> float:
        """When what a trial was last seen at began, or was through, by its owner's clock."""
        return trial.due - self._work(trial) if trial.owner else trial.due

    def _new(self, trials: list[Trial], owner: str) -> Trial | None:
        """A student that was not tried yet; None where the space inside the budget has no more."""
        asked = self.sampler.ask(trials)
        architecture = self.proposer(asked, {trial.architecture for trial in trials})
        if architecture is None:
            self.exhausted = True
            self.sampler.dropped(asked)
            self.progress.say(f"the space inside the budget is used up after {len(trials)} students")
            return None
        trial = self._write(architecture, asked.params, asked.distributions, owner)
        self.sampler.kept(asked, trial)
        return trial

    def _resized(self, before: Trial, filled: float, trials: list[Trial], owner: str) -> Trial | None:
        """The fullest student of an earlier trial's settings, as that one was measured, which `filled` so much of the
        budget; None where there is none that is new, or no time."""
        (strain,) = self.plan.strain([before.architecture])
        full = Given(before.settings | {"fill": min(1.0, float(strain) / filled)})
        architecture = self.proposer(full, {trial.architecture for trial in trials})
        if architecture is None or (self.plan.strain([architecture])[0] > strain) != (filled < 1.0):
            return None
        if not self._time_left():
            self.cut = True
            return None
        return self._write(architecture, before.settings, before.distributions, owner, resized=True)

    def _write(
        self,
        architecture: Architecture,
        settings: dict[str, Any],
        distributions: dict[str, BaseDistribution],
        owner: str,
        resized: bool = False,
    ) -> Trial:
        """A new trial in the study."""
        ms = self.plan.price.one(architecture).median_ms
        due = self._clock + self._work(Record(architecture=architecture, ms=ms))
        trial = self.study.begin(architecture, ms, settings, distributions, owner, due, resized)
        self.proposed.add(trial.number)
        return trial

    def _begin(self, trial: Trial) -> Climb:
        job = Job(
            path=str(self.state_of(trial.number, trial.architecture)),
            architecture=trial.architecture,
            steps=self.plan.wishes.rungs[len(trial.losses)],
            rate=self.plan.rate,
        )
        return Climb(trial, self.trainer.train(job))

    def _note(self, climb: Climb) -> None:
        """Write down what came of a climb, and which trials have lost by it."""
        trial = climb.trial
        score: ProxyScore | TrainingError
        try:
            score = result_of(climb.score)
        except TrainingError as error:
            score = error
        except RunError as error:
            if not isinstance(error.__cause__, BrokenExecutor):  # of all that were under way, any may be the reason
                with self.study.alone():
                    if self.study.held(trial):
                        self.study.stopped(trial)
            raise
        with self.study.alone():
            if not self.study.held(trial):
                self.progress.say(
                    f"trial {trial.number + 1} was taken over by another worker while this one stood still"
                )
                return
            if isinstance(score, TrainingError):
                self.study.end(trial, str(score))
                return
            rungs = len(self.plan.wishes.rungs)
            trial = self.study.passed(trial, scored(self.plan.priced(trial.architecture, trial.number), score))
            self.trained += 1
            if len(trial.losses) == rungs:
                self.study.end(trial)
            trials = self.study.trials()
            for number in beaten([t for t in trials if not t.reason], rungs, self.plan.budget_ms):
                self.study.end(trials[number])

    def _over(self, trials: list[Trial]) -> bool:
        """Whether no more trials will come."""
        enough = asked_for(trials) >= self._wanted
        return self.exhausted or enough or bool(trials and not self._time_left())

    def _time_left(self) -> bool:
        return self._until is None or time.time() < self._until

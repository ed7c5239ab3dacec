"""The full distillation of a student that a search has found, until longer training no longer pays.

Which learning rate suits a student depends on its size and on how near it begins: around the search's, a few are tried
for `TRIED` steps first. The rate then stays constant while doubling the steps still lowers the held-out KL on *select*,
and falls to zero after that, over most of the training. Every `MARK` steps the state is kept: a run that was killed
goes on from there, to the same result.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.distill.job import COOL, Job, ProxyScore, TaskSpec, work_of
from hwsearch.errors import RunError, TrainingError
from hwsearch.files import sweep
from hwsearch.search.rates import best, told, tried
from hwsearch.search.trainer import Progress, Trainer, result_of

TRIED = 384  # steps of a trial of a rate
MARK = 128  # steps between two points of the curve
# Of the steps: from there on the rate falls to zero, sooner than a search's. Of 4 x 160, 1,536 steps at half the
# recipe's rate, KL on *report* is 0.519 from here on and 0.533 from `COOL` on (`python benchmarks/cooling.py`).
HELD = 0.3
FIRST = 512  # steps at a constant rate after which is first asked whether doubling them pays
GAIN = 0.03  # by which doubling the steps must lower the KL, to go on; as `benchmarks/students.py` has full training
MOST = 100_000  # steps
# Of text to train on, at most. A student that goes through 16,384 of them twelve times learns them by heart: after
# 24,576 steps its KL was 0.46 nats on them and 0.66 on other text of the same split (embedded teacher, 3 x 96).
CHUNKS = 65536


def with_text(spec: TaskSpec, steps: int | None = None) -> TaskSpec:
    """A task with the text that so many steps go through, or as many as pay: `CHUNKS` at most, and no less than it
    has."""
    most = CHUNKS if steps is None else min(CHUNKS, steps * spec.recipe.batch)
    return replace(spec, chunks=max(spec.chunks, most))


def check_stages(stages: int, steps: int, timed: bool = False) -> None:
    """Raise unless a recipe's last stage begins before the rate has to fall.

    Args:
        stages: steps of all stages but the last.
        steps: in all.
        timed: whether they are those that there is time for.

    Raises:
        RunError: it does not.
    """
    constant = round(COOL * steps)
    if constant <= stages:
        way = f"{round((stages + 1) / COOL)} --steps or more{', or more --minutes' if timed else ''}"
        raise RunError(
            f"the recipe's last stage begins after {stages} steps, and the rate falls from {constant} on at the "
            f"latest; give {way}"
        )


class Distillation:
    """One student's.

    Args:
        architecture: of the student.
        trainer: of its task, prepared.
        folder: where states are kept; of this task alone.
        progress: who is told.
        layers: the teacher's layers behind the student's; the best by default.
        stages: steps of all stages of the recipe but the last.
        rate: over the recipe's; others are tried around it where there are steps enough.
    """

    def __init__(
        self,
        architecture: Architecture,
        trainer: Trainer,
        folder: Path,
        progress: Progress,
        layers: tuple[int, ...] | None = None,
        stages: int = 0,
        rate: float = 1.0,
    ) -> None:
        self.architecture, self.trainer, self.progress, self.layers = architecture, trainer, progress, layers
        self._states, self._begun, self._stages = folder / architecture.digest, 0.0, stages
        self._rate = rate
        sweep(folder)

    def run(self, steps: int | None = None, minutes: float | None = None) -> tuple[ProxyScore, Path]:
        """Train; the score on *report* with the curve on *select*, and the student's state.

        Args:
            steps: in all; by default as many as pay.
            minutes: that training may take, the trial of rates apart, as its first steps tell.

        Raises:
            RunError: the recipe's last stage would not begin before the rate falls.
            TrainingError: the training diverged.
        """
        if not self._stages and (steps is None or steps >= 8 * TRIED):
            self._suit()
        self._begun = self.trainer.work_done
        self.progress.stage("distillation", 1.0)
        # No state is gone on from that has passed its step: less time, or fewer steps, than before have their own.
        if steps is None:
            most = MOST if minutes is None else self._within(minutes)
            check_stages(self._stages, most, minutes is not None)
            name, begun = f"within-{self._held(most)}", "pace"
            constant = self._pays(name, self._held(most))
            steps = min(most, round(constant / HELD))
        else:
            check_stages(self._stages, steps)
            constant = self._held(steps)
            name, begun = f"constant-{constant}", None
        self._train(name, constant, steps, begun)
        self._train(f"{constant}-{steps}", steps, steps, name, constant)
        score = self._train(f"{constant}-{steps}", steps, steps, name, constant, "report")
        return score, self._state(f"{constant}-{steps}")

    def _suit(self) -> None:
        """Find the learning rate."""
        self._begun = self.trainer.work_done
        self.progress.stage("learning rates", 1.0)

        count = 0

        def loss(rate: float) -> float:
            nonlocal count
            self._rate, count = rate, count + 1
            try:
                held = self._held(TRIED)
                return self._train(f"{held}-{TRIED}", TRIED, max(3, count) * TRIED, falls_from=held).loss
            except TrainingError:  # it diverged
                return math.inf

        losses = tried(lambda rates: [loss(rate) for rate in rates], self._rate)
        self._rate = best(losses)
        self.progress.say(told(losses, TRIED))

    def _held(self, steps: int) -> int:
        """Of so many, those at a constant rate: until the pace is known and the recipe's last stage has begun, where
        that is later, but to `COOL` of them at most."""
        return max(round(HELD * steps), min(max(MARK, self._stages + 1), round(COOL * steps)))

    def _within(self, minutes: float) -> int:
        """Steps that there is time for, at the pace of the first."""
        begun = self._train("begun", MARK // 2, MARK)  # which may have taken the trial of its layers besides
        paced = self._train("pace", MARK, MARK, "begun")
        steps = round(60 * minutes / (paced.seconds - begun.seconds) * (paced.steps - begun.steps))
        self.progress.say(f"{minutes:g} minutes are about {steps} steps")
        return min(MOST, max(round(MARK / COOL), steps))

    def _pays(self, name: str, most: int) -> int:
        """Steps at a constant rate, `most` of them, after which doubling them has come to pay little."""
        half, gain = FIRST, 1.0
        while half < 2 * self._stages:
            half *= 2
        while gain >= GAIN and half < most:
            until = min(2 * half, most)
            curve = dict(self._train(name, until, round(until / HELD), "pace").curve)
            gain = 1 - curve[until] / curve[half]
            self.progress.say(
                f"{until} steps: KL {curve[until]:.4f} on select, {gain:.1%} lower than after {half} of them"
            )
            half = until
        return min(half, most)

    def _train(
        self,
        name: str,
        until: int,
        expected: int,
        start: str | None = None,
        falls_from: int | None = None,
        split: Literal["select", "report"] = "select",
    ) -> ProxyScore:
        """A state up to a step, from another where there is none; `expected` steps are to come in all."""
        job = Job(
            path=str(self._state(name)),
            start=str(self._state(start)) if start else "",
            architecture=self.architecture,
            steps=until,
            cool_from=falls_from,
            marks=tuple(range(0, until, MARK)),
            split=split,
            layers=self.layers,
            rate=self._rate,
            further=True,
        )
        future, work = self.trainer.train(job), work_of(self.architecture, 1)
        while not future.done():
            self.progress.at(self.trainer.work_done - self._begun, work * expected)
            time.sleep(0.2)
        return result_of(future)

    def _state(self, name: str) -> Path:
        """All lengths at a constant rate share a state; every end that the rate falls to has its own."""
        return self._states.with_name(f"{self._states.name}-{self._rate:.2g}-{name}.pt")

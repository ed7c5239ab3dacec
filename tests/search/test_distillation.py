"""Full training ends where longer training no longer pays, and every state is of what its name says."""

import math
from concurrent.futures import Future
from pathlib import Path

import pytest
from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill.job import Job, ProxyScore
from hwsearch.errors import RunError, TrainingError
from hwsearch.precision import Precision
from hwsearch.search.distillation import GAIN, MARK, TRIED, Distillation
from hwsearch.search.null import TEACHER, NullProgress, NullTrainer


class Noted(NullTrainer):
    """Losses fall as `power` of the steps."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def train(self, job: Job) -> Future[ProxyScore]:
        score = super().train(job).result()
        done: Future[ProxyScore] = Future()
        curve = tuple((step, (step + 1) ** -self.power) for step in sorted({*job.marks, job.steps}))
        done.set_result(replace(score, curve=curve))
        return done


def student() -> Architecture:
    plan = [(Precision.INT8, Precision.INT8)] * 2
    return Architecture(**{
        **{name: getattr(TEACHER, name) for name in TEACHER.__struct_fields__},
        "layers": uniform_layers(2, 3, 3, 128, plan),
    })  # fmt: skip


@pytest.mark.parametrize(("power", "constant", "end"), [(0.02, 1024, 3413), (0.5, 30000, 100_000)])
def test_it_goes_on_while_doubling_pays(tmp_path: Path, power: float, constant: int, end: int) -> None:
    assert 1 - 2**-0.02 < GAIN < 1 - 2**-0.5
    trainer = Noted(power)
    score, state = Distillation(student(), trainer, tmp_path, NullProgress()).run()
    assert score.steps == end
    last, judged = trainer.jobs[-2:]
    assert (last.cool_from, last.steps, last.split) == (constant, end, "select")
    assert (judged.path, judged.split) == (str(state), "report")
    held = [job for job in trainer.jobs if job.cool_from is None]
    assert {job.path for job in held} == {last.start}
    assert max(job.steps for job in held) == constant


@pytest.mark.parametrize(("seconds", "steps"), [(0.1, 1800), (0.01, 3413), (100.0, 183)])
def test_it_takes_the_minutes_that_it_is_given(tmp_path: Path, seconds: float, steps: int) -> None:
    class Paced(Noted):
        def train(self, job: Job) -> Future[ProxyScore]:
            done: Future[ProxyScore] = Future()
            took = 50 + seconds * job.steps  # its layers were tried first
            done.set_result(replace(super().train(job).result(), seconds=took, steps=job.steps))
            return done

    trainer = Paced(0.02)
    score, _ = Distillation(student(), trainer, tmp_path, NullProgress()).run(minutes=3)
    assert score.steps == steps  # fewer where longer no longer pays, never fewer than what tells the pace
    (pace,) = {job.path for job in trainer.jobs if job.steps == MARK and job.start.endswith("-begun.pt")}
    (held,) = {job.start for job in trainer.jobs if "-within-" in Path(job.path).name and job.cool_from is None}
    assert held == pace
    # Less time than was taken before: nothing goes on from a state that has passed its end.
    before = {job.path: job.steps for job in trainer.jobs if job.cool_from is None}
    trainer.jobs.clear()
    Distillation(student(), trainer, tmp_path, NullProgress()).run(minutes=1)
    assert all(before.get(job.path, 0) <= job.steps for job in trainer.jobs)


def test_the_rate_falls_at_the_end_of_steps_that_are_named(tmp_path: Path) -> None:
    trainer = Noted(0.1)
    _, state = Distillation(student(), trainer, tmp_path, NullProgress()).run(900)
    first, last, _ = trainer.jobs
    assert (first.steps, first.cool_from, last.cool_from, last.steps) == (270, None, 270, 900)
    other = Noted(0.1)
    _, longer = Distillation(student(), other, tmp_path, NullProgress()).run(1200)
    # A longer run shares nothing with a shorter one: no state is gone on from that has passed its step.
    assert {job.path for job in other.jobs}.isdisjoint({job.path for job in trainer.jobs})
    assert longer != state


@pytest.mark.parametrize(
    ("steps", "stages", "constant"),
    [
        (10000, 0, 3000),
        (10000, 2000, 3000),
        (10000, 5000, 5001),  # the last stage has begun
        (200, 0, 128),  # the curve has a point
        (100, 0, 70),
    ],
)
def test_the_rate_falls_early_but_not_before_the_last_stage(
    tmp_path: Path, steps: int, stages: int, constant: int
) -> None:
    trainer = Noted(0.1)
    Distillation(student(), trainer, tmp_path, NullProgress(), stages=stages).run(steps)
    last = trainer.jobs[-1]
    assert (last.cool_from, last.steps) == (constant, steps)


def test_the_last_stage_has_to_begin(tmp_path: Path) -> None:
    trainer = Noted(0.1)
    distillation = Distillation(student(), trainer, tmp_path, NullProgress(), stages=700)
    distillation.run(1001)
    with pytest.raises(RunError, match=r"begins after 700 steps.*from 700 on at the latest; give 1001 --steps or more"):
        distillation.run(1000)


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1.0, (1.0, 0.5, 2.0)),
        (0.5, (1.0, 0.5, 0.25)),
        (0.2, (1.0, 0.5, 0.25, 0.125)),
        (3.0, (1.0, 0.5, 2.0, 4.0, 8.0)),
    ],
)
def test_the_learning_rate_that_suits_is_found_first(tmp_path: Path, best: float, tried: tuple[float, ...]) -> None:
    class Fond(Noted):
        """Of one rate; much higher ones diverge."""

        def train(self, job: Job) -> Future[ProxyScore]:
            done: Future[ProxyScore] = Future()
            if job.rate > 2 * best:
                done.set_exception(TrainingError("the training diverged"))
                return done
            done.set_result(replace(super().train(job).result(), loss=abs(math.log(job.rate / best))))
            return done

    trainer = Fond(0.02)
    Distillation(student(), trainer, tmp_path, NullProgress()).run(8 * TRIED)
    # One that diverges leaves no job behind.
    assert [job.rate for job in trainer.jobs if job.steps == TRIED] == pytest.approx(
        [r for r in tried if r <= 2 * best]
    )
    (used,) = {job.rate for job in trainer.jobs if job.steps > TRIED}
    assert len({job.path for job in trainer.jobs if job.steps == TRIED}) == len([r for r in tried if r <= 2 * best])
    assert used == min(tried, key=lambda rate: abs(math.log(rate / best)) if rate <= 2 * best else math.inf)


def test_a_short_training_takes_the_recipes_rate(tmp_path: Path) -> None:
    trainer = Noted(0.1)
    Distillation(student(), trainer, tmp_path, NullProgress()).run(8 * TRIED - 1)
    assert {job.rate for job in trainer.jobs} == {1.0}

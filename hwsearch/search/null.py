"""A trainer that trains nothing: scores follow from the architecture and the steps alone, at once. The search's null
member, for tests and rehearsals of everything around the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill.job import Facts, Job, ProxyScore, work_of
from hwsearch.latency.estimator import Estimator
from hwsearch.latency.latency import Latency
from hwsearch.precision import Precision
from hwsearch.search.trial import Trial

if TYPE_CHECKING:
    from hwsearch.search.proposer import Proposer
    from hwsearch.search.sampler import Sampler

T = TypeVar("T")
TEACHER = Architecture(
    block="decoder",
    width=192,
    head_dim=32,
    layers=uniform_layers(6, 6, 3, 512, [(Precision.FP32, Precision.FP32)] * 6),
    gated_ffn=True,
    norm="rmsnorm",
    vocab=2048,
    head="lm",
)


def rehearsed(
    sampler: Sampler, proposer: Proposer, count: int, told: Callable[[Architecture], tuple[float, float]]
) -> list[Trial]:
    """So many trials, one after the other, of students whose latency in milliseconds and loss are `told`."""
    trials = list[Trial]()
    while len(trials) < count:
        asked = sampler.ask(trials)
        student = proposer(asked, {trial.architecture for trial in trials})
        assert student is not None
        ms, loss = told(student)
        trial = Trial(
            number=len(trials),
            architecture=student,
            settings=asked.params,
            distributions=asked.distributions,
            ms=ms,
            losses=(loss,),
        )
        sampler.kept(asked, trial)
        trials.append(trial)
    return trials


class NullTrainer:
    """Scores students by a formula: capacity lost against the teacher, in every dimension with diminishing returns, and
    a little for int8.

    Args:
        teacher: whose students.
        count: how many it pretends to train at once.
    """

    def __init__(self, teacher: Architecture = TEACHER, count: int = 2) -> None:
        self.teacher, self.count = teacher, count
        self.work_done = 0.0
        self.jobs: list[Job] = []

    def open(self) -> Future[Facts]:
        """The teacher's facts."""
        return _done(self._facts())

    def prepare(self, blocks: int) -> list[Future[None]]:
        """Nothing to compute."""
        return [_done(None) for _ in range(blocks)]

    def finish(self) -> Future[Facts]:
        """The facts again."""
        return _done(self._facts())

    def train(self, job: Job) -> Future[ProxyScore]:
        """The formula's score."""
        self.jobs.append(job)
        self.work_done += work_of(job.architecture, job.steps)
        a, t = job.architecture, self.teacher
        lost = 0.9 * (1 - math.sqrt(a.width / t.width)) + 0.6 * (1 - math.sqrt(a.depth / t.depth))
        lost += 0.3 * (1 - math.sqrt(a.layers[0].ffn / t.layers[0].ffn)) + 0.15 * (
            1 - math.sqrt(a.layers[0].heads / t.layers[0].heads)
        )
        quantised = sum((x.attention is Precision.INT8) + (x.feed_forward is Precision.INT8) for x in a.layers)
        lost += 0.02 * quantised / a.depth

        def after(steps: int) -> float:
            return 0.02 + lost * (1 + 2 / math.sqrt(max(1, steps))) + (0.2 if job.layers else 0.0)

        loss = after(job.steps)
        quality = 0.6 * math.exp(-0.3 * loss)
        return _done(
            ProxyScore(
                loss=loss,
                quality=quality,
                quality_low=quality - 0.005,
                quality_high=quality + 0.005,
                teacher_quality=0.6,
                retention=quality / 0.6,
                retention_low=quality / 0.6 - 0.008,
                retention_high=quality / 0.6 + 0.008,
                steps=job.steps,
                seconds=0.0,
                curve=tuple((s, after(s)) for s in sorted({*job.marks, job.steps})),
            )
        )

    def run(self, function: Callable[..., T], *arguments: Any) -> Future[T | None]:
        """Nothing to call it with."""
        del function, arguments
        return _done(None)

    def _facts(self) -> Facts:
        depth = self.teacher.depth
        layers = {d: tuple(range(d)) for d in range(1, depth + 1)}
        lost = [loss for i in range(depth) for loss in (0.001 * (i + 1), 0.002 * (depth - i))]
        sensitivities = {Precision.INT8: (*lost, 0.002)}
        shape = self.teacher.layers[0]
        importance = {
            name: tuple(tuple((1 + i) / (1 + j) for j in range(count)) for i in range(depth))
            for name, count in (("groups", shape.kv_heads), ("ffn", shape.ffn))
        }
        return Facts(
            teacher="null-teacher",
            digest="0" * 16,
            architecture=self.teacher,
            corpus="no text",
            blocks=2,
            quality=0.6,
            layers=layers,
            sensitivities=sensitivities,
            subject="1" * 16,
            importance=importance,
        )


class NullProgress:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """A line of text."""

    def stage(self, name: str, total: float) -> None:
        """What begins."""

    def at(self, done: float, total: float | None = None, note: str = "") -> None:
        """How far it is."""


class NullMeasurer:
    """A target on which everything takes `ratio` times what is estimated, give or take 2 %.

    Args:
        price: the estimator, as it was before anything was measured.
        ratio: of what is measured to what is estimated.

    Attributes:
        subject: empty: nothing is kept.
        measured: every architecture, in order.
    """

    def __init__(self, price: Estimator, ratio: float = 1.0) -> None:
        self.price, self.ratio, self.subject = price, ratio, ""
        self.measured: list[Architecture] = []

    def measure(
        self, architectures: Sequence[Architecture], progress: Callable[[float], None] = lambda _: None
    ) -> list[Latency]:
        """The formula's latencies."""
        self.measured += architectures
        progress(1.0)
        found = []
        for architecture in architectures:
            estimate = self.price.one(architecture)
            ms = estimate.median_ms * self.ratio
            phases = {phase: one * self.ratio for phase, one in estimate.phases.items()}
            found.append(Latency(ms, 0.98 * ms, 1.02 * ms, "measured", extrapolated=False, covered=1.0, phases=phases))
        return found


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future

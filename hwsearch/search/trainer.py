"""Who trains students for a search, and how its answers are awaited."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any, Protocol, TypeVar

from hwsearch.distill.job import Facts, Job, ProxyScore, work_of
from hwsearch.errors import RunError, TrainingError

T = TypeVar("T")


class Progress(Protocol):
    """Who is told how far it is."""

    def say(self, text: str) -> None: ...
    def stage(self, name: str, total: float) -> None: ...
    def at(self, done: float, total: float | None = None, note: str = "") -> None: ...


class Trainer(Protocol):
    """`distill.workers.Workers`, or a stand-in that invents scores."""

    count: int

    def open(self) -> Future[Facts]: ...
    def prepare(self, blocks: int) -> list[Future[None]]: ...
    def finish(self) -> Future[Facts]: ...
    def train(self, job: Job) -> Future[ProxyScore]: ...
    def run(self, function: Callable[..., T], *arguments: Any) -> Future[T]: ...
    @property
    def work_done(self) -> float: ...


def complete(trainer: Trainer, facts: Facts, progress: Progress) -> Facts:
    """Have the task's pieces computed, those that are not there yet; the facts with what they say."""
    pieces = trainer.prepare(facts.blocks)
    progress.stage("teacher's outputs", len(pieces))
    while not all(piece.done() for piece in pieces):
        progress.at(sum(piece.done() for piece in pieces))
        time.sleep(0.2)
    for piece in pieces:
        result_of(piece)
    return result_of(trainer.finish())


def train_all(
    trainer: Trainer, progress: Progress, stage: str, jobs: Sequence[Job], begun: Sequence[int] = ()
) -> list[ProxyScore | TrainingError]:
    """Train all of them side by side, each from the step on that it has `begun` from."""
    progress.stage(stage, 1.0)
    todo = zip(jobs, begun or [0] * len(jobs), strict=True)
    before = trainer.work_done
    work = sum(work_of(job.architecture, job.steps - start) for job, start in todo)
    futures = [trainer.train(job) for job in jobs]
    waiting: set[Future[ProxyScore]] = set(futures)
    while waiting:
        waiting = set(wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).not_done)
        progress.at(trainer.work_done - before, work)
    found: list[ProxyScore | TrainingError] = []
    for future in futures:
        try:
            found.append(result_of(future))
        except TrainingError as error:
            found.append(error)
    return found


def result_of(future: Future[T]) -> T:
    """What a trainer's process returns.

    Raises:
        RunError: the process was killed.
        HwsearchError: what it raised itself.
    """
    try:
        return future.result()
    except BrokenExecutor as error:
        raise RunError(
            "a training process was killed, for lack of memory perhaps; the same command goes on from there"
        ) from error

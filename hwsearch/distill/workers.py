"""Processes that prepare a task and train students.

Students are small: one thread each on as many processes as there are cores trains more of them than all cores on one,
1.2 times as many on two cores (`benchmarks/steps.py`). A worker loads the teacher once and then trains whatever it is
handed; a job leaves its whole state on disk, so that a longer run, or the next process after a crash, goes on from
there.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import psutil

from hwsearch.architecture import Architecture
from hwsearch.distill.checkpoint import Checkpoint
from hwsearch.distill.gpus import PER_WEIGHT, at_once, free_bytes, gpus
from hwsearch.distill.job import STATISTICS, Facts, Job, ProxyScore, TaskSpec, work_of
from hwsearch.errors import HwsearchError, RunError, TrainingError

if TYPE_CHECKING:
    from hwsearch.distill.task import Task

T = TypeVar("T")
PATIENCE = 2.0  # seconds for processes to end by themselves
MOST = 8  # processes, unless more are asked for; each holds a teacher and its outputs
KEPT = 256  # steps after which a state is written, whatever else is asked for: what a kill costs at most
ROOM = 0.5  # of the memory that is there, for copies of the teacher and students in training


class Workers:
    """A pool of processes at work on one task.

    Args:
        spec: of the task.
        count: processes; by default one a core, or as many as GPUs have room for a student each, `MOST` at most. In
            any case no more than memory holds a teacher and a student for.

    Attributes:
        few: processes are fewer than that for lack of memory.
    """

    def __init__(self, spec: TaskSpec, count: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        wanted = count or min(_wanted(spec, cores), MOST)
        self.count = min(wanted, _held(spec))
        self.few = self.count < wanted
        context = multiprocessing.get_context("spawn")
        self._done, numbers = context.Value("d", 0.0), context.Value("i", 0)
        arguments = (spec, max(1, cores // self.count), self._done, numbers)
        self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start, initargs=arguments)

    def open(self) -> Future[Facts]:
        """Load the teacher and the text: what is known before anything was computed."""
        return self._submit(_ask, "facts")

    def prepare(self, blocks: int) -> list[Future[None]]:
        """Compute what the task needs, in pieces; those that are on disk already take no time."""
        statistics = [self._submit(_ask, "compute_statistics", name) for name in STATISTICS]
        return statistics + [self._submit(_ask, "compute_block", i) for i in range(blocks)]

    def finish(self) -> Future[Facts]:
        """What is known once every piece is there."""
        return self._submit(_ask, "finish")

    def train(self, job: Job) -> Future[ProxyScore]:
        """Train a student and judge it; a `TrainingError` is the student's own."""
        return self._submit(_train, job)

    def run(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have a worker call `function` with its workshop and `arguments`; all of them travel between processes."""
        return self._submit(_run, function, *arguments)

    def _submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """A pool that has lost a process refuses work: an answer of that, as to whoever waits for one already."""
        try:
            return self._pool.submit(function, *arguments)
        except BrokenExecutor as error:
            refused: Future[T] = Future()
            refused.set_exception(error)
            return refused

    @property
    def work_done(self) -> float:
        """Training work done so far, in the unit of `work_of`."""
        return float(self._done.value)

    def close(self) -> None:
        """End all processes: those that have nothing to do by themselves, others at once."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        patience = time.monotonic() + PATIENCE
        for process in processes:
            process.join(timeout=max(0.0, patience - time.monotonic()))
            process.terminate()
        for process in processes:
            process.join(timeout=5)


_workshop: Any = None
_counter: Any = None
_device = "cpu"


def _wanted(spec: TaskSpec, cores: int) -> int:
    """How many processes keep what is here busy."""
    if not (found := gpus()):
        return cores
    return min(found * at_once(Checkpoint.of(spec.teacher), free_bytes()), max(found, cores))


def _held(spec: TaskSpec) -> int:
    """How many processes memory holds the teacher's weights for, and a student of half as many in training."""
    teacher = Checkpoint.of(spec.teacher, dtype=spec.teacher_dtype)
    each = teacher.own_bytes() + PER_WEIGHT / 2 * sum(count for _, count in teacher.weights())
    return max(1, int(ROOM * psutil.virtual_memory().available / each)) if each else sys.maxsize


def _start(spec: TaskSpec, threads: int, counter: Any, numbers: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the parent was killed: nobody wants the result

    threading.Thread(target=watch, daemon=True).start()
    global _workshop, _counter, _device
    import torch

    with numbers.get_lock():
        number = numbers.value
        numbers.value += 1
    _device = f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    from hwsearch.distill.workshop import Workshop

    _counter = counter
    _workshop = _Lazy(lambda: Workshop(spec, _device))


class _Lazy:
    """Made on first use: what goes wrong then reaches the caller as an error of its job, not as a broken pool."""

    def __init__(self, make: Any) -> None:
        self._make, self._made = make, None

    def __call__(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


@contextmanager
def mendable(what: str) -> Iterator[None]:
    """Raise what is no fault of the work itself as an error of the run."""
    try:
        yield
    except HwsearchError:
        raise
    except Exception as error:  # some cannot travel between processes: they would end the pool
        raise RunError(
            f"{what} was stopped: {type(error).__name__}: {error}; once its cause is mended, the same command goes on "
            "from there"
        ) from None


def _ask(method: str, *arguments: Any) -> Any:
    with mendable("preparing the task"):
        return getattr(_workshop(), method)(*arguments)


def _run(function: Callable[..., T], *arguments: Any) -> T:
    with mendable("the work"):
        return function(_workshop(), *arguments)


def ffn_dimensions_of(workshop: Any, architecture: Architecture) -> int:
    """Of a student as it is cut out; for `Workers.run`."""
    import torch

    from hwsearch.distill.importance import ffn_dimensions
    from hwsearch.distill.proxy import Student

    task = workshop.task
    return ffn_dimensions(Student(task, architecture).model, task.teacher.objective, torch.from_numpy(task.few.chunks))


def loss_as_cut(workshop: Any, architecture: Architecture) -> float:
    """KL to its teacher of a student as it is cut out, nats an answer, on some of *select*; for `Workers.run`."""
    from hwsearch.distill.judging import divergence
    from hwsearch.distill.proxy import Student

    return divergence(Student(workshop.task, architecture).model, workshop.task.few)


def layers_of(_: Any, state: Path) -> tuple[int, ...] | None:
    """The teacher's layers behind a student that was trained, None where its state is gone; for `Workers.run`."""
    from hwsearch.distill.proxy import load_state

    try:
        return tuple(load_state(state).get("layers") or ()) or None
    except RunError:
        return None


def _train(job: Job) -> ProxyScore:
    """Runs in a worker.

    Raises:
        TrainingError: it is the student's own fault.
        RunError: it is not: memory or disk has run out, say.
    """
    import torch

    with mendable(f"training {job.architecture.id}"):
        try:
            score = _trained(job)
        except torch.OutOfMemoryError as error:
            raise TrainingError(f"it does not fit into the memory of the GPU: {error}") from error
        except (ArithmeticError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            raise TrainingError(f"{type(error).__name__}: {error}") from error
    if not math.isfinite(score.loss):
        raise TrainingError("the training diverged")
    return score


def _trained(job: Job) -> ProxyScore:
    from hwsearch.distill.layers import TRIED, best_after
    from hwsearch.distill.metrics import metrics_of
    from hwsearch.distill.proxy import Student

    task, path = _workshop().task, Path(job.path)
    kept = gone_on_from(job, task)
    work = work_of(job.architecture, 1)
    held_out, marks = getattr(task, job.split), {*job.marks, job.steps}

    def advance(steps: float) -> None:
        with _counter.get_lock():
            _counter.value += work * steps

    def cut_out(layers: tuple[int, ...] | None) -> Student:
        return Student(task, job.architecture, None, layers, job.order, _device, job.rate, kept)

    student = cut_out(job.layers)
    if (rivals := len(student.near)) > 1:
        first = min(TRIED, min(filter(None, marks), default=1) - 1)

        def begin(rival: Student) -> None:
            if 0 in job.marks and job.split == "select":
                rival.mark(held_out)
            rival.train(first, lambda steps: advance(steps / rivals), job.cool_from, job.steps)

        student = best_after(begin, student, cut_out)
    for stop in sorted({*marks, *range(KEPT, job.steps, KEPT)}):
        if student.step < stop or (stop == 0 and not student.curve):
            student.train(stop, advance, job.cool_from, job.steps)
            if not student.finite:
                raise ArithmeticError("the training diverged")  # what was kept before stays
            if job.split == "select" and stop in marks:
                student.mark(held_out)
            student.keep(path)
    score = student.score(held_out)
    if job.split == "select":
        return score
    _, best = student.evaluate(held_out)
    metrics = metrics_of(task.teacher, student.model, held_out, best)
    return msgspec.structs.replace(score, metrics=metrics, teacher_metrics=_workshop().teacher_metrics)


def gone_on_from(job: Job, task: Task) -> dict[str, Any] | None:
    """What a job goes on from: its own state, else that of its start; None where it begins. What another training has
    left under the same name, what cannot be read, and what has gone too far, is as if it was not there."""
    from hwsearch.distill.proxy import load_state, training_of

    for path in filter(None, (job.path, job.start)):
        try:
            state = load_state(Path(path))
        except RunError:
            continue
        own = state.get("training") == training_of(task, job.order, job.rate)
        if own and (job.further or state["step"] <= job.steps):
            return state
    return None

"""Score an architecture by a short distillation from teacher slices.

What makes a short run rank as a long one does: it starts from importance-sorted slices, it keeps the long run's
constant learning rate and data order, and it is judged by the average of its last weights (`averaging`) on one fixed
held-out set. Its loss is taken as measured: drawn on along its slope it orders students no better after 160 steps, if
better from 480 on, where the finalists are picked already (`python benchmarks/replay.py`). A longer run of the same
student goes on where the short one stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hwsearch.distill.averaging import Average
from hwsearch.distill.features import hidden_maps
from hwsearch.distill.job import ProxyScore
from hwsearch.distill.judging import an_answer, bootstrap, divergence, evaluate
from hwsearch.distill.layers import near_sets
from hwsearch.distill.lesson import Lesson
from hwsearch.distill.quantise import quantise_parts, recomputing
from hwsearch.distill.rows import NO_ANSWER
from hwsearch.distill.student import StudentPlan, build_student, empty_student, random_student
from hwsearch.distill.task import HeldOut, Task
from hwsearch.errors import RunError
from hwsearch.files import whole

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hwsearch.architecture import Architecture

POOL = 32  # batches among whose texts the lengths are sorted


class Student:
    """A student in training: its model, optimiser and place in the data. Between trainings the model holds the average
    of its last weights, which it is judged by.

    Args:
        task: what it is trained on.
        architecture: of the student.
        fresh: random weights from this seed in place of the teacher's slices.
        layers: the teacher's layers behind the student's; by default those of the task's sets with which it loses
            least as it is cut out (the first where layers differ in size: these were chosen for it).
        order: of the text, one for each number.
        device: to train on; products are in bfloat16 on a GPU (of a processor's `products` says), the loss in float32
            everywhere.
        rate: learning rate over the recipe's.
        kept: what `keep` wrote, to go on from; of this training (`training_of`), or it has no meaning.

    Attributes:
        near: sets of layers with which it loses about as little as it is cut out, its own first; none where they
            are given.
    """

    def __init__(
        self,
        task: Task,
        architecture: Architecture,
        fresh: int | None = None,
        layers: tuple[int, ...] | None = None,
        order: int = 0,
        device: str = "cpu",
        rate: float = 1.0,
        kept: dict[str, Any] | None = None,
    ) -> None:
        self.order, self.device, self.fresh = order, torch.device(device), fresh is not None
        teacher = task.teacher.model
        self.task, self.architecture = task, architecture
        self.training = training_of(task, order, rate)
        self.layers = layers or task.layers[architecture.depth][0]
        self.near: tuple[tuple[int, ...], ...] = ()
        self.model: PreTrainedModel
        if kept:
            self.layers = tuple(kept.get("layers") or self.layers)
            self.model = self._made(empty_student(teacher, architecture, None if self.fresh else self.layers))
        elif fresh is not None:
            self.model = self._made(random_student(teacher, architecture, fresh))
        else:
            if not layers and architecture.uniform:
                sets = task.layers[architecture.depth]
                self.near = near_sets(sets, lambda layers: divergence(self._cut(layers), task.few))
                self.layers = self.near[0]
            self.model = self._cut(self.layers)
        if task.recipe.recompute:
            self.model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": recomputing})
        # Of hidden states, where a stage of the recipe looks at these.
        looks = any(stage.hidden for stage in task.recipe.stages)
        self.maps = (hidden_maps(self.model, teacher) if looks else torch.nn.ModuleList()).to(self.device)
        trained = [*self.model.parameters(), *self.maps.parameters()]
        self.rate = rate * task.recipe.rate * task.teacher.objective.rate
        self.optimizer = torch.optim.Adam(trained, lr=self.rate, betas=(0.9, 0.98), fused=True)
        self.average = Average(self.model)
        self.step = 0
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._judged: tuple[int, HeldOut, tuple[NDArray[np.float64], NDArray[np.int64]]] | None = None
        if kept:
            self._go_on(kept)

    def _made(self, model: PreTrainedModel) -> PreTrainedModel:
        """Ready to be trained as it will be run."""
        model.to(self.device)  # type: ignore[arg-type]
        _no_dropout(model)
        quantise_parts(model, self.architecture, self.task.scheme)
        return model

    def _cut(self, layers: tuple[int, ...]) -> PreTrainedModel:
        """Out of the teacher."""
        plan = StudentPlan(self.architecture, layers)
        return self._made(build_student(self.task.teacher.model, plan, self.task.importance))

    def train(
        self,
        until: int,
        advance: Callable[[int], None] | None = None,
        cool_from: int | None = None,
        end: int | None = None,
    ) -> None:
        """Train up to step `until`; `advance` is told of every step. From step `cool_from` on the rate falls linearly,
        to zero at `end`."""
        recipe, started = self.task.recipe, time.perf_counter()
        while self.step < until:
            number, _ = recipe.at(self.step)
            self.model.train()
            stage = Lesson(recipe.stages[number], self.task, self.model, self.layers, self.maps)
            with stage as lesson, self.average.trained():
                while self.step < until and recipe.at(self.step)[0] == number:
                    rate, falls = self.rate * min(1.0, (self.step + 1) / recipe.warm_up), False
                    if cool_from is not None and self.step > cool_from:
                        end, falls = end or until, True
                        rate *= max(0, end - self.step) / (end - cool_from)
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate
                    self.optimizer.zero_grad(set_to_none=True)
                    pieces = np.array_split(self._rows(), recipe.accumulate)
                    asked = [self._asked(rows) for rows in pieces]
                    for piece, (rows, share) in enumerate(zip(pieces, asked, strict=True)):
                        (self._loss(lesson, rows, piece) * (share / sum(asked))).backward()
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
                    self.optimizer.step()
                    self.step += 1
                    self.average.follow(self.step, rests=falls)
                    if advance:
                        advance(1)
        self.seconds += time.perf_counter() - started

    def _asked(self, rows: NDArray[np.int64]) -> int:
        """Answers that are asked for on some chunks, at least one."""
        return max(1, int((self.task.teacher.objective.labels(self.task.chunks[rows]) != NO_ANSWER).sum()))

    def _loss(self, lesson: Lesson, rows: NDArray[np.int64], piece: int = 0) -> torch.Tensor:
        """What a stage asks on some chunks, a piece of a step's; of several teachers one a step."""
        chunks = torch.from_numpy(self.task.chunks[rows]).to(self.device)
        said = (self.task.outputs, *self.task.further)[self.step % (1 + len(self.task.further))]
        indices, probabilities = (part.to(self.device) for part in said.batch(rows))
        _, over = self.task.recipe.at(self.step)
        seed = hash((self.task.recipe.seed, self.order, self.step, piece))
        return lesson.loss(chunks, indices, probabilities, over, seed)

    def _rows(self) -> NDArray[np.int64]:
        """The chunks of this step: every pass over the data in an order of its own, the same for all students."""
        batch = self.task.recipe.batch * self.task.teacher.objective.inputs_a_chunk
        places = np.arange(self.step * batch, (self.step + 1) * batch)
        count = len(self.task.chunks)
        return np.array([self._order(int(place // count))[place % count] for place in places])

    def _order(self, number: int) -> NDArray[np.int64]:
        """Of one pass. Texts of their own are put together with others of about their length, `POOL` batches' worth at
        a time, so that less is read of what fills them up."""
        if number not in self._orders:
            recipe, objective = self.task.recipe, self.task.teacher.objective
            rng = np.random.default_rng((recipe.seed, self.order, number) if self.order else (recipe.seed, number))
            order = rng.permutation(len(self.task.chunks))
            lengths = objective.lengths(self.task.chunks)
            if lengths is not None:
                order = _by_length(order, lengths, recipe.batch * objective.inputs_a_chunk, rng)
            self._orders = {n: kept for n, kept in self._orders.items() if n >= number - 1} | {number: order}
        return self._orders[number]

    @property
    def finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(weight.isfinite().all()) for weight in self.model.parameters())

    def evaluate(self, held_out: HeldOut) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """As `evaluate`, once for each step and set."""
        if self._judged is None or self._judged[0] != self.step or self._judged[1] is not held_out:
            self._judged = (self.step, held_out, evaluate(self.model, held_out))
        return self._judged[2]

    def mark(self, held_out: HeldOut) -> None:
        """Add a point to the curve."""
        started = time.perf_counter()
        losses, _ = self.evaluate(held_out)
        self.curve.append((self.step, an_answer(losses, held_out)))
        self.seconds += time.perf_counter() - started

    def score(self, held_out: HeldOut) -> ProxyScore:
        """Judge the student as it stands."""
        losses, best = self.evaluate(held_out)
        hits, judged = held_out.hits(best)
        quality, retention = bootstrap(hits, held_out.teacher_hits, judged)
        return ProxyScore(
            loss=an_answer(losses, held_out),
            quality=quality[0],
            quality_low=quality[1],
            quality_high=quality[2],
            teacher_quality=held_out.teacher_quality,
            retention=retention[0],
            retention_low=retention[1],
            retention_high=retention[2],
            steps=self.step,
            seconds=self.seconds,
            curve=tuple(self.curve),
        )

    def keep(self, path: Path) -> None:
        """Write everything that going on needs."""
        state = {
            "model": self.model.state_dict(),
            "last": self.average.last,
            "layers": None if self.fresh else list(self.layers),
            "optimizer": self.optimizer.state_dict(),
            "maps": self.maps.state_dict(),
            "training": self.training,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        with whole(path) as temporary:
            torch.save(state, temporary)

    def _go_on(self, state: dict[str, Any]) -> None:
        # It is on the CPU; loading puts it where the model is.
        self.model.load_state_dict(state["model"])
        self.average.go_on_from(state["last"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.maps.load_state_dict(state.get("maps", {}))
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve = [(int(step), float(loss)) for step, loss in state["curve"]]


def _by_length(
    order: NDArray[np.int64], lengths: NDArray[np.int64], batch: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """An order in which the texts of a batch are of about one length, and batches come as they may."""
    found = []
    for start in range(0, len(order), POOL * batch):
        pool = order[start : start + POOL * batch]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        whole = len(pool) // batch * batch
        batches = pool[:whole].reshape(-1, batch)
        found += [batches[rng.permutation(len(batches))].ravel(), pool[whole:]]
    return np.concatenate(found)


def _no_dropout(model: PreTrainedModel) -> None:
    """The teacher's outputs say more than labels, and a student is too small to learn by heart."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def training_of(task: Task, order: int, rate: float) -> str:
    """What students of one shape are trained by: of two that differ in it neither goes on from the other's state."""
    return f"{task.digest}, order {order}, rate {rate:.9g}"


def load_state(path: Path) -> dict[str, Any]:
    """What `Student.keep` wrote.

    Raises:
        RunError: it is not there, or damaged.
    """
    if not path.is_file():
        raise RunError(f"the student's state {path} is gone; name another --trial, or train it: hwsearch distill")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if missing := {"model", "optimizer", "step", "seconds", "curve"} - set(state):
            raise KeyError(", ".join(sorted(missing)))
        return state
    except Exception as error:  # a damaged pickle raises whatever its first wrong byte leads to
        reason = next(iter(str(error).splitlines()), "") or "empty"
        raise RunError(
            f"cannot read the student's state {path}: {type(error).__name__}: {reason}; delete it to train it anew"
        ) from error

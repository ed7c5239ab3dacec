"""What students are trained on and judged by, as `workshop` prepares it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hwsearch.distill.importance import Importance
from hwsearch.distill.objectives.objective import Objective
from hwsearch.distill.objectives.outputs import Outputs
from hwsearch.distill.recipe import Recipe
from hwsearch.distill.rows import NO_ANSWER, UNLABELLED
from hwsearch.distill.teacher import Teacher
from hwsearch.precision import Precision, Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEW = 32  # chunks that a student is looked at on as it is cut out, and after its first steps


@dataclass(frozen=True)
class HeldOut:
    """A held-out set and what the teacher makes of it.

    Attributes:
        objective: what is to be said of it.
        chunks: token ids and what is to be said of them, as the objective has them.
        outputs: the teacher's.
        together: chunks that are judged at once, at most; 0 for as many as there is room for.
    """

    objective: Objective
    chunks: NDArray[np.int64]
    outputs: Outputs
    together: int = 0

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The right answers, [chunks, answers]; the teacher's own where nobody has given any, `NO_ANSWER` where nothing
        is asked."""
        given: NDArray[np.int64] = self.objective.labels(self.chunks)
        return np.where(given == UNLABELLED, self.outputs.best(), given)

    @cached_property
    def answers(self) -> NDArray[np.int64]:
        """How much is asked of each chunk, [chunks]."""
        asked: NDArray[np.int64] = (self.labels != NO_ANSWER).sum(1)
        return asked

    def hits(self, best: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many of the answers `best`, [chunks, answers], are right, and of how many that are judged, [chunks]
        each."""
        right, judged = self.objective.hits(self.chunks, self.labels, best)
        return (right & judged).sum(1), judged.sum(1)

    @cached_property
    def _of_teacher(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.hits(self.outputs.best())

    def sample(self, count: int) -> HeldOut:
        """So many of the chunks at most, from all over the set."""
        rows = np.linspace(0, len(self.chunks) - 1, min(count, len(self.chunks))).astype(int)
        return replace(self, chunks=self.chunks[rows], outputs=self.outputs.some(rows))

    @property
    def teacher_hits(self) -> NDArray[np.int64]:
        """Answers that the teacher gets right, [chunks]."""
        return self._of_teacher[0]

    @property
    def teacher_quality(self) -> float:
        """The share of them."""
        hits, judged = self._of_teacher
        return float(hits.sum() / judged.sum())


@dataclass(frozen=True)
class Task:
    """What students are trained on and judged by.

    Attributes:
        teacher: whose students.
        importance: of its parts.
        layers: sets of layers among which a student of a depth chooses those that it keeps, likeliest first.
        sensitivities: KL to itself of the teacher with one part in a precision, [parts] as of `quantise.parts_of`.
        chunks: token ids to train on and what is to be said of them.
        outputs: the teacher's on them.
        select, report: held-out sets.
        recipe: how to train.
        scheme: how the runtime quantises.
        further: outputs of the recipe's other teachers on the chunks.
        digest: hash of all that a score depends on.
    """

    teacher: Teacher
    importance: Importance
    layers: dict[int, tuple[tuple[int, ...], ...]]
    sensitivities: dict[Precision, NDArray[np.float64]]
    chunks: NDArray[np.int64]
    outputs: Outputs
    select: HeldOut
    report: HeldOut
    recipe: Recipe
    scheme: Scheme
    further: tuple[Outputs, ...] = ()
    digest: str = ""

    @cached_property
    def few(self) -> HeldOut:
        """What students are looked at on as they begin: some of *select*."""
        return self.select.sample(FEW * self.teacher.objective.inputs_a_chunk)

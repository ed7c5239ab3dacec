"""How near a model comes to what its teacher says on a held-out set, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from hwsearch.distill.families import rows_at_once
from hwsearch.distill.objectives.outputs import JUDGED, TopK, judged_together
from hwsearch.distill.quantise import apart
from hwsearch.distill.task import HeldOut

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hwsearch.distill.objectives.objective import Objective

RESAMPLES = 2000


def evaluate(model: PreTrainedModel, held_out: HeldOut) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """KL to the teacher summed over each chunk, [chunks], and the likeliest answers, [chunks, answers]."""
    model.eval()
    losses, answers = [], []
    with torch.inference_mode():
        for rows, groups in passes_over(model, held_out):
            chunks = torch.from_numpy(held_out.chunks[rows]).to(model.device)
            indices, probabilities = (found.to(model.device) for found in held_out.outputs.batch(rows))
            with apart(groups):
                loss, best = held_out.objective.judge(model, chunks, indices, probabilities)
            losses.append(loss.view(len(rows), -1).sum(1).double().cpu().numpy())
            answers.append(best.view(len(rows), -1).cpu().numpy())
    return np.concatenate(losses), np.concatenate(answers)


def passes_over(model: PreTrainedModel, held_out: HeldOut) -> Iterator[tuple[NDArray[np.int64], int]]:
    """As of `passes`, over a held-out set."""
    columns = held_out.chunks.shape[1]
    for rows in judged_together(len(held_out.chunks)):
        yield from passes(model, held_out.objective, rows, columns, JUDGED, held_out.together)


def passes(
    model: PreTrainedModel, objective: Objective, rows: NDArray[np.int64], columns: int, most: int, together: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Rows that are looked at at once, and in how many groups (`quantise.apart`) the runtime sees them: no more rows
    than a pass has room for, unless they are answers to each other.

    Args:
        model: that is to look at them.
        objective: of its task.
        rows: all of them.
        columns: of each.
        most: rows of a pass, at most.
        together: that the runtime sees at once, at most; 0 for as many as there is room for.
    """
    answering = objective.outputs is not TopK
    room = most if answering else rows_at_once(model.config, columns, most)
    group = room if answering else min(room, together or room)
    size = room // group * group
    for part in np.split(rows, range(size, len(rows), size)):
        groups, left = divmod(len(part), group)
        if groups:
            yield part[: groups * group], groups
        if left:
            yield part[-left:], 1


def divergence(model: PreTrainedModel, held_out: HeldOut) -> float:
    """Mean KL to the teacher, nats an answer."""
    losses, _ = evaluate(model, held_out)
    return an_answer(losses, held_out)


def an_answer(losses: NDArray[np.float64], held_out: HeldOut) -> float:
    """The mean over answers of what `evaluate` has summed over each chunk."""
    return float(losses.sum() / held_out.answers.sum())


def bootstrap(
    hits: NDArray[np.int64], teacher_hits: NDArray[np.int64], judged: NDArray[np.int64]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(value, low, high) of accuracy and of retention, resampling chunks, student and teacher together; 90 %
    intervals."""
    rows = np.random.default_rng(0).integers(0, len(hits), (RESAMPLES, len(hits)))
    resampled, teacher = hits[rows].sum(1), teacher_hits[rows].sum(1)
    accuracy = resampled / np.maximum(judged[rows].sum(1), 1)
    retention = resampled / np.maximum(teacher, 1)

    def interval(value: float, samples: NDArray[np.float64]) -> tuple[float, float, float]:
        low, high = np.quantile(samples, [0.05, 0.95])
        return value, float(low), float(high)

    return (
        interval(float(hits.sum() / judged.sum()), accuracy),
        interval(float(hits.sum() / max(1, teacher_hits.sum())), retention),
    )

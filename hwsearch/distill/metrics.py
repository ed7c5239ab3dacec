"""What a task's own field measures, beside the accuracy that students are chosen by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hwsearch.distill.families import task_of
from hwsearch.distill.families.tasks import TASKS
from hwsearch.distill.judging import passes_over
from hwsearch.distill.objectives.neighbours import Neighbours
from hwsearch.distill.objectives.tags import Tags
from hwsearch.distill.quantise import apart
from hwsearch.distill.rows import NO_ANSWER

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hwsearch.distill.task import HeldOut
    from hwsearch.distill.teacher import Teacher


def metrics_of(
    teacher: Teacher, model: PreTrainedModel, held_out: HeldOut, best: NDArray[np.int64]
) -> dict[str, float]:
    """Of a student, or of the teacher itself, by name.

    "agreement" is the share of answers that are the teacher's. Classes have "macro F1", the mean F1 over classes, so
    that rare ones count as common ones do; tags that say where entities begin and go on "entity F1"; pairs of texts
    "Spearman", the rank correlation of their cosines with what is said of them; a language model "perplexity", of the
    text's own tokens.

    Args:
        teacher: of the task.
        model: that is judged.
        held_out: by what.
        best: its answers, [chunks, answers].
    """
    labels, said = held_out.labels, held_out.outputs.best()
    asked = labels != NO_ANSWER
    found = {"agreement": float((best == said)[asked].mean())}
    head = TASKS[task_of(teacher.model.config)].head
    if head in ("classify", "span"):
        from sklearn.metrics import f1_score

        found["macro F1"] = float(f1_score(labels[asked], best[asked], average="macro", zero_division=0))
    objective = held_out.objective
    if isinstance(objective, Tags) and objective.has_entities:
        found["entity F1"] = objective.entity_f1(labels, best)
    if isinstance(objective, Neighbours) and (scores := objective.scores(held_out.chunks)) is not None:
        from scipy.stats import spearmanr

        model.eval()
        nearness = objective.nearness_of_pairs(model, held_out.chunks)
        found["Spearman"] = float(spearmanr(nearness, scores, nan_policy="omit").statistic)
    if head == "lm":
        found["perplexity"] = math.exp(min(_surprise(model, held_out), 700.0))
    return {name: value for name, value in found.items() if math.isfinite(value)}  # ranks of equals have no correlation


def _surprise(model: PreTrainedModel, held_out: HeldOut) -> float:
    """Mean negative logarithm of the probability that a model gives the right answers, nats."""
    total = 0.0
    model.eval()
    with torch.inference_mode():
        for rows, groups in passes_over(model, held_out):
            chunks = torch.from_numpy(held_out.chunks[rows]).to(model.device)
            with apart(groups):
                logits = held_out.objective.logits(model, chunks).flatten(0, 1).float()
            right = torch.from_numpy(held_out.labels[rows]).flatten().to(model.device)
            total += float(torch.nn.functional.cross_entropy(logits, right, ignore_index=NO_ANSWER, reduction="sum"))
    return total / float(held_out.answers.sum())

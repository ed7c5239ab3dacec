"""Metrics of a task's own field, against what they are by definition."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hwsearch.distill.job import Job, TaskSpec
from hwsearch.distill.metrics import metrics_of
from hwsearch.distill.recipe import Recipe
from hwsearch.distill.rows import NO_ANSWER
from hwsearch.distill.task import Workshop
from hwsearch.distill.workers import Workers
from hwsearch.search.trainer import result_of
from tests.checkpoints import save_checkpoint


def spec_of(teacher: Path, data: Path, **entries: str) -> TaskSpec:
    torch.set_num_threads(1)
    few = {"sequence": 24, "chunks": 60, "held_out_chunks": 10}
    return TaskSpec(teacher=str(teacher), data=str(data), recipe=Recipe(batch=2), **few, **entries)  # type: ignore[arg-type]


def test_classes_count_alike_however_rare(tiny_classifier: Path, labelled_file: Path) -> None:
    workshop = Workshop(spec_of(tiny_classifier, labelled_file))
    report = workshop.task.report
    best = report.labels.copy()
    best[:5] = (best[:5] + 1) % 3
    found = metrics_of(workshop.teacher, workshop.teacher.model, report, best)
    scores = []
    for number in range(3):
        right = int(((best == number) & (report.labels == number)).sum())
        scores.append(2 * right / int((best == number).sum() + (report.labels == number).sum()))
    assert found["macro F1"] == pytest.approx(np.mean(scores))
    assert found["agreement"] == pytest.approx((best == report.outputs.best()).mean())
    assert set(found) == {"macro F1", "agreement"}
    assert workshop.teacher_metrics["agreement"] == 1.0
    assert Workshop(workshop.spec).teacher_metrics == workshop.teacher_metrics


def test_words_that_are_not_asked_for_do_not_count(tmp_path: Path, tagged_file: Path, text_file: Path) -> None:
    teacher = save_checkpoint(tmp_path / "tags", "bert tags", text_file)
    workshop = Workshop(spec_of(teacher, tagged_file, text_column="tokens", label_column="tags"))
    report = workshop.task.report
    assert (report.labels == NO_ANSWER).any()
    right = metrics_of(workshop.teacher, workshop.teacher.model, report, np.where(report.labels < 0, 1, report.labels))
    assert right["macro F1"] == 1.0
    assert right["agreement"] == pytest.approx(workshop.task.report.teacher_quality)


@pytest.mark.parametrize("kind", ["llama", "bert masks"])
def test_perplexity_is_of_the_texts_own_tokens(tmp_path: Path, text_file: Path, kind: str) -> None:
    workshop = Workshop(spec_of(save_checkpoint(tmp_path / "teacher", kind, text_file), text_file))
    report, objective = workshop.task.report, workshop.teacher.objective
    with torch.no_grad():
        logits = objective.logits(workshop.teacher.model, torch.from_numpy(report.chunks)).double()
        right = torch.from_numpy(report.labels).unsqueeze(-1)
        nats = -logits.log_softmax(-1).gather(-1, right).mean()
    assert workshop.teacher_metrics["perplexity"] == pytest.approx(math.exp(float(nats)), rel=1e-4)


def test_metrics_come_with_what_is_judged_on_report(tmp_path: Path, tiny_teacher: Path, text_file: Path) -> None:
    workers = Workers(spec_of(tiny_teacher, text_file), count=1)
    try:
        teacher = result_of(workers.open()).architecture
        job = Job(str(tmp_path / "state.pt"), teacher, steps=0, split="report")
        score = result_of(workers.train(job))
    finally:
        workers.close()
    assert score.metrics == score.teacher_metrics
    assert score.metrics["agreement"] == 1.0
    assert score.metrics["perplexity"] > 1

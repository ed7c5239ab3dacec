"""Metrics of a task's own field, against what they are by definition."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ConstantInputWarning, spearmanr

from hwsearch.distill.job import Job, TaskSpec
from hwsearch.distill.metrics import metrics_of
from hwsearch.distill.objectives.tags import entities
from hwsearch.distill.proxy import Student
from hwsearch.distill.recipe import Recipe
from hwsearch.distill.rows import NO_ANSWER, sentences
from hwsearch.distill.workers import Workers
from hwsearch.distill.workshop import Workshop
from hwsearch.errors import DataError
from hwsearch.precision import Precision, Scheme
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


def test_perplexity_is_of_answers_as_the_runtime_gives_them(tiny_teacher: Path, text_file: Path) -> None:
    """A text alone in its range, where the runtime sees it alone."""
    few = {"sequence": 24, "chunks": 60, "held_out_chunks": 10}
    spec = TaskSpec(
        teacher=str(tiny_teacher), data=str(text_file), scheme=Scheme("dynamic", "uint8", "channel"), together=1, **few
    )  # type: ignore[arg-type]
    workshop = Workshop(spec)
    own = workshop.facts().architecture
    student = Student(workshop.task, own.with_precision(Precision.INT8))
    report, objective = workshop.task.report, workshop.teacher.objective
    with torch.no_grad():
        alone = [objective.logits(student.model, chunk.unsqueeze(0)) for chunk in torch.from_numpy(report.chunks)]
        at_once = objective.logits(student.model, torch.from_numpy(report.chunks))
    right = torch.from_numpy(report.labels).flatten()
    nats = [float(torch.nn.functional.cross_entropy(x.flatten(0, 1), right)) for x in (torch.cat(alone), at_once)]
    found = metrics_of(workshop.teacher, student.model, report, report.outputs.best())["perplexity"]
    assert found == pytest.approx(math.exp(nats[0]), rel=1e-6)
    assert found != pytest.approx(math.exp(nats[1]), rel=1e-6)


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


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-A I-A O", {(1, 3, "A")}),
        ("B-A B-A I-A", {(0, 1, "A"), (1, 3, "A")}),
        ("I-A I-B I-B", {(0, 1, "A"), (1, 3, "B")}),  # as older files have it
        ("B-A I-B", {(0, 1, "A"), (1, 2, "B")}),
        ("S-A B-A E-A U-B L-B", {(0, 1, "A"), (1, 3, "A"), (3, 4, "B"), (4, 5, "B")}),
        ("B-A-B I-A-B", {(0, 2, "A-B")}),
        ("O A ", set()),
    ],
)
def test_entities_are_read_from_tags(tags: str, found: set[tuple[int, int, str]]) -> None:
    assert entities(tags.split(" ")) == found


def test_entities_count_whole(tmp_path: Path, text_file: Path) -> None:
    names = ("O", "B-thing", "I-thing")
    teacher = save_checkpoint(tmp_path / "tags", "bert tags", text_file)
    config = json.loads((teacher / "config.json").read_text())
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (teacher / "config.json").write_text(json.dumps({**config, **labels}))
    path = tmp_path / "tagged.jsonl"
    rows = [{"tokens": ["the", f"x{i}", "y", "is"], "tags": ["O", "B-thing", "I-thing", "O"]} for i in range(400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workshop = Workshop(spec_of(teacher, path, text_column="tokens", label_column="tags"))
    report = workshop.task.report

    def f1(best: np.ndarray) -> float:
        return metrics_of(workshop.teacher, workshop.teacher.model, report, best)["entity F1"]

    assert f1(report.labels) == 1.0
    half = report.labels.copy()
    half[: len(half) // 2] = np.where(half[: len(half) // 2] == 2, 0, half[: len(half) // 2])  # cut short
    assert f1(half) == pytest.approx(0.5)
    assert f1(np.where(report.labels == 1, 2, report.labels)) == 1.0  # one begins where none was
    assert f1(np.zeros_like(report.labels)) == 0.0


def test_a_text_of_the_same_label_is_right(tmp_path: Path, text_file: Path) -> None:
    teacher = save_checkpoint(tmp_path / "teacher", "bert embeds", text_file)
    path = tmp_path / "texts.csv"
    words = ("def", "class", "return")
    rows = [f"{words[i % 3]} number {i},{words[i % 3]}" for i in range(600)]
    path.write_text("\n".join(["text,label", *rows, "alone,other"]))
    report = Workshop(spec_of(teacher, path)).task.report
    said = report.outputs.best()
    hits, judged = report.hits(said)
    classes = report.chunks[:, -2]
    group = classes[:128] if len(classes) > 128 else classes
    assert judged.tolist() == [int((group == one).sum() > 1) for one in classes]
    assert hits.tolist() == [int(classes[best] == own) for best, own in zip(said[:, 0], classes, strict=True)]
    assert 0 < report.teacher_quality < 1
    # A file in the order of its labels: nobody stands beside its own label alone.
    path.write_text("\n".join(["text,label", *sorted(rows)]))
    assert len(set(Workshop(spec_of(teacher, path)).task.report.chunks[:16, -2].tolist())) > 1
    # Without labels the teacher is right.
    path.write_text("\n".join(["text", *(row.split(",")[0] for row in rows)]))
    assert Workshop(spec_of(teacher, path)).task.report.teacher_quality == 1.0


def test_pairs_are_judged_by_rank(tmp_path: Path, text_file: Path) -> None:
    teacher = save_checkpoint(tmp_path / "teacher", "bert embeds", text_file)
    path = tmp_path / "pairs.csv"
    rows = [f"def {i} return,def {i * i % 97} class,{i % 7 / 2}" for i in range(400)]
    path.write_text("\n".join(["one,other,score", *rows, "def,class,"]))
    workshop = Workshop(spec_of(teacher, path, text_column="one,other", label_column="score"))
    report, model = workshop.task.report, workshop.teacher.model
    vectors = report.outputs.arrays()["vectors"].astype(float)
    first, second = np.split(vectors, 2)
    given = report.chunks[: len(first), -1] / 1e6
    expected = spearmanr((first * second).sum(1), given).statistic
    assert metrics_of(workshop.teacher, model, report, report.outputs.best())["Spearman"] == pytest.approx(
        expected, abs=1e-2
    )
    # Each row stands beside its own partner, with their own score.
    scores = {(one, other): float(score) for one, other, score in (row.split(",") for row in rows)}
    read, ids = workshop.teacher.processor, workshop.teacher.objective.ids(report.chunks)
    texts = [read.decode(row[row != 0]) for row in ids]
    for one, other, score in zip(*np.split(np.array(texts), 2), given, strict=True):
        assert scores[str(one), str(other)] == score
    path.write_text("\n".join(["one,other,score", *rows, "def,class,near"]))
    with pytest.raises(DataError, match=r"row 401: the label of a pair is a number, .*; got 'near'"):
        sentences(path, None, "one,other", "score")
    with pytest.raises(DataError, match="no column 'another'"):
        sentences(path, None, "one,another", "score")


def test_pairs_that_are_all_alike_have_no_rank(tmp_path: Path, text_file: Path) -> None:
    teacher = save_checkpoint(tmp_path / "teacher", "bert embeds", text_file)
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["one,other,score", *(f"def {i} return,def {i * i % 97} class,1" for i in range(400))]))
    workshop = Workshop(spec_of(teacher, path, text_column="one,other", label_column="score"))
    report = workshop.task.report
    with pytest.warns(ConstantInputWarning):
        found = metrics_of(workshop.teacher, workshop.teacher.model, report, report.outputs.best())
    assert set(found) == {"agreement"}  # JSON has no number for what is none

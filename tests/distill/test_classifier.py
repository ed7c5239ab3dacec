"""Short runs of a classifier's students: the task is another, the promises are the same."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import Architecture, parse_precisions, uniform_layers
from hwsearch.distill import workshop as workshop_module
from hwsearch.distill.job import STATISTICS, TaskSpec
from hwsearch.distill.judging import divergence
from hwsearch.distill.layers import with_layers
from hwsearch.distill.proxy import Student, load_state
from hwsearch.distill.recipe import Recipe, Stage
from hwsearch.distill.workshop import Workshop
from hwsearch.errors import DataError


def spec_of(teacher: Path, data: Path | str, label_column: str = "label") -> TaskSpec:
    return TaskSpec(
        teacher=str(teacher),
        data=str(data),
        sequence=24,
        chunks=60,
        held_out_chunks=10,
        recipe=Recipe(batch=2),
        label_column=label_column,
    )


@pytest.fixture(scope="module")
def workshop(tiny_classifier: Path, labelled_file: Path) -> Workshop:
    torch.set_num_threads(1)
    return Workshop(spec_of(tiny_classifier, labelled_file))


def narrow(workshop: Workshop, plan: str = "fp32") -> Architecture:
    own = workshop.facts().architecture
    return replace(own, width=64, layers=uniform_layers(2, 4, 4, 96, parse_precisions(plan, 2)))


def test_the_architecture_is_an_encoder_with_a_classifier(workshop: Workshop) -> None:
    own = workshop.facts().architecture
    assert (own.block, own.head, own.norm, own.gated_ffn) == ("encoder", "classify", "layernorm", False)
    assert own.parameters == pytest.approx(
        sum(weight.numel() for weight in workshop.teacher.model.parameters()), rel=0.05
    )


def test_the_teachers_own_students_lose_nothing(workshop: Workshop) -> None:
    student = Student(workshop.task, workshop.facts().architecture)
    score = student.score(workshop.task.select)
    assert score.loss < 1e-5
    assert score.retention == 1.0
    assert score.quality == workshop.task.select.teacher_quality
    assert sorted(workshop.finish().layers) == [1, 2, 3]


def test_layers_are_chosen_by_what_is_left_once_a_student_was_refitted(workshop: Workshop) -> None:
    own, teacher, select = workshop.facts().architecture, workshop.teacher.model, workshop.task.select

    def lost(kept: tuple[int, ...]) -> float:
        student = Student(workshop.task, replace(own, layers=tuple(own.layers[i] for i in kept)), layers=kept)
        return student.score(select).loss

    alone = [(0,), (1,), (2,)]
    assert workshop.task.layers[1][0] == min(alone, key=lost)
    without_refit = min(alone, key=lambda kept: with_layers(teacher, kept, lambda: divergence(teacher, select)))
    assert workshop.task.layers[1][0] != without_refit


@pytest.mark.parametrize("plan", ["fp32", "int8"])
def test_training_brings_a_student_nearer(workshop: Workshop, plan: str) -> None:
    student = Student(workshop.task, narrow(workshop, plan), layers=(0, 1))
    student.mark(workshop.task.select)
    student.train(60)
    student.mark(workshop.task.select)
    (_, before), (_, after) = student.curve
    assert after < 0.9 * before


def test_a_longer_training_begins_with_what_is_known_of_the_teacher(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chunks in ("STATISTICS_CHUNKS", "REFIT_CHUNKS"):
        monkeypatch.setattr(workshop_module, chunks, 20)
    for name in STATISTICS:
        workshop.compute_statistics(name)
    longer = Workshop(replace(workshop.spec, chunks=100))
    assert len(longer.tokens["train"]) > len(workshop.tokens["train"])
    monkeypatch.setattr(longer.teacher.model, "forward", lambda *_, **__: pytest.fail("the teacher was run again"))
    for name in STATISTICS:
        longer.compute_statistics(name)


def test_going_on_equals_never_having_stopped(workshop: Workshop, tmp_path: Path) -> None:
    whole, first = (Student(workshop.task, narrow(workshop)) for _ in range(2))
    whole.train(12)
    first.train(5)
    first.keep(tmp_path / "state.pt")
    second = Student(workshop.task, narrow(workshop), kept=load_state(tmp_path / "state.pt"))
    second.train(12)
    for mine, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_without_labels_the_teachers_answers_count(tiny_classifier: Path, labelled_file: Path, tmp_path: Path) -> None:
    """What is learned is the same; what quality is told by is the teacher."""
    texts = tmp_path / "texts.csv"
    pd.read_csv(labelled_file)[["text"]].to_csv(texts, index=False)
    alone = Workshop(spec_of(tiny_classifier, texts))
    labels_alone = Recipe(batch=2, stages=(Stage(answers=0.0, labels=1.0),))
    with pytest.raises(DataError, match=r"stage 1 of the recipe asks for labels alone, and texts\.csv has none"):
        Workshop(replace(spec_of(tiny_classifier, texts), recipe=labels_alone))
    assert alone.finish().quality == 1.0
    assert np.all(alone.tokens["train"][:, -1] == -1)
    assert float(alone.task.importance.heads.min()) > 0


def test_a_classifier_wants_texts_of_its_own(tiny_classifier: Path) -> None:
    with pytest.raises(DataError, match="a classifier is distilled on texts of its own: --data FILE"):
        Workshop(spec_of(tiny_classifier, ""))


def test_a_batch_holds_texts_of_about_one_length_and_a_pass_every_text_once(workshop: Workshop) -> None:
    student = Student(workshop.task, narrow(workshop))
    lengths = workshop.teacher.objective.lengths(workshop.task.chunks)
    assert lengths is not None
    batch, rows = 8, []
    for step in range(len(lengths) // batch):
        student.step = step
        rows.append(student._rows())
        assert len(rows[-1]) == batch
    assert len(np.unique(np.concatenate(rows))) == batch * len(rows)
    filled = sum(batch * lengths[of].max() for of in rows)
    as_they_come = sum(batch * lengths[i * batch : (i + 1) * batch].max() for i in range(len(rows)))
    assert lengths[np.concatenate(rows)].sum() <= filled < as_they_come

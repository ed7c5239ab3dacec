"""What quantising a part loses: only that part, the model left as it was, and gradients say much the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import parse_precisions, uniform_layers
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.quantise import QuantisedLinear
from hwsearch.distill.recipe import Recipe
from hwsearch.distill.rows import NO_ANSWER
from hwsearch.distill.sensitivity import Probe, sensitivity_in_worker
from hwsearch.distill.workshop import Workshop
from hwsearch.precision import Precision, Scheme

SCHEME = Scheme("dynamic", "uint8", "channel")


@pytest.fixture(scope="module", params=["lm", "classify"])
def workshop(
    request: pytest.FixtureRequest, tiny_teacher: Path, tiny_classifier: Path, text_file: Path, labelled_file: Path
) -> Workshop:
    torch.set_num_threads(1)
    teacher, data = (tiny_teacher, text_file) if request.param == "lm" else (tiny_classifier, labelled_file)
    return Workshop(
        TaskSpec(
            teacher=str(teacher), data=str(data), sequence=24, chunks=64, held_out_chunks=16, recipe=Recipe(batch=4),
            scheme=SCHEME, precisions=(Precision.INT8, Precision.INT4),
        )
    )  # fmt: skip


@pytest.mark.parametrize("together", [0, 1])
def test_gradients_say_what_measuring_says(workshop: Workshop, together: int) -> None:
    model, objective = workshop.teacher.model, workshop.teacher.objective
    few = torch.from_numpy(workshop.tokens["train"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found, probe = {}, Probe(model, objective, SCHEME, few, together)
    for precision in (Precision.INT8, Precision.W8A16, Precision.INT4):
        measured = probe.measured(precision)
        estimated = probe.estimated(precision)
        assert measured.shape == estimated.shape == (6 + (model.get_output_embeddings() is not None),)
        assert (measured > 0).all()
        ratio = np.log(estimated / measured)
        assert np.abs(ratio).max() < np.log(8)  # random weights and a few hundred answers
        found[precision] = measured.sum()
    assert found[Precision.W8A16] < found[Precision.INT8] < found[Precision.INT4]
    assert not any(isinstance(module, QuantisedLinear) for module in model.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_texts_are_quantised_as_the_runtime_sees_them(workshop: Workshop) -> None:
    """One by one is what each loses alone; at once, the ranges are of all."""

    def lost(texts: torch.Tensor, together: int = 0) -> np.ndarray:
        model, objective = workshop.teacher.model, workshop.teacher.objective
        return Probe(model, objective, SCHEME, texts, together).measured(Precision.INT8)

    chunks = workshop.tokens["train"]
    lengths = workshop.teacher.objective.lengths(chunks)
    if lengths is not None:
        chunks = chunks[lengths == np.bincount(lengths).argmax()]  # what fills a text up has a range too
    few = torch.from_numpy(chunks[:8])
    one_by_one = lost(few, together=1)
    asked = [int((workshop.teacher.objective.labels(text) != NO_ANSWER).sum()) for text in few.split(1)]
    alone = np.average([lost(text) for text in few.split(1)], axis=0, weights=asked)
    assert one_by_one == pytest.approx(alone, rel=0.01)
    assert np.abs(lost(few) / one_by_one - 1).max() > 0.1


def test_the_task_keeps_it_by_precision(workshop: Workshop) -> None:
    facts = workshop.finish()
    assert set(facts.sensitivities) == {Precision.INT8, Precision.INT4}
    parts = 6 + (facts.architecture.head == "lm")
    assert all(len(lost) == parts and min(lost) > 0 for lost in facts.sensitivities.values())


def test_a_students_own(workshop: Workshop, tmp_path: Path) -> None:
    task = workshop.task
    own = workshop.facts().architecture
    shape = own.layers[0]
    plan = parse_precisions("int8,fp32/int8", 2)
    architecture = replace(own, layers=uniform_layers(2, shape.heads, shape.kv_heads, 64, plan))
    student = Student(task, architecture)
    student.train(6)
    student.keep(tmp_path / "state.pt")
    found = sensitivity_in_worker(workshop, architecture, tmp_path / "state.pt", (Precision.INT8,))
    lost = found.measured[Precision.INT8]
    assert len(lost) == 4 + (own.head == "lm")
    added = lost[0] + lost[1] + lost[3]
    assert 0.3 * added < found.joint < 3 * added

"""The average that students are judged by, and that training knows nothing of it."""

from pathlib import Path

import pytest
import torch

from hwsearch.architecture import Architecture
from hwsearch.distill.averaging import WINDOW, Average
from hwsearch.distill.proxy import Student, load_state
from hwsearch.distill.workshop import Workshop
from tests.distill.test_proxy import small_task, student_shape


@pytest.fixture(scope="module")
def workshop(tiny_teacher: Path, text_file: Path) -> Workshop:
    torch.set_num_threads(1)
    return Workshop(small_task(tiny_teacher, text_file))


def shape(workshop: Workshop) -> Architecture:
    return student_shape(workshop, "int8")


def weights(student: Student) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in student.model.parameters()]


def test_the_average_of_steps_counts_later_ones_more() -> None:
    """Weights that are their step's number: t gets the share (w + 1) / (t + w) of what the others leave."""
    model = torch.nn.Linear(1, 1, bias=False)
    average, expected = Average(model), 0.0
    for step in range(1, 41):
        with average.trained():
            model.weight.data.fill_(step)
            average.follow(step, rests=False)
        expected += (WINDOW + 1) / (step + WINDOW) * (step - expected)
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
        assert average.last[0].item() == step
    assert 40 * (1 - 1.5 / WINDOW) < expected < 40
    with average.trained():
        assert model.weight.item() == 40
        average.follow(41, rests=True)
    assert model.weight.item() == 40


def test_weights_are_put_back_when_training_is_cut_off() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = Average(model)

    def cut_off() -> None:
        with average.trained():
            model.weight.data.fill_(2.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert model.weight.item() == 1.0
    assert average.last[0].item() == 2.0


def test_students_are_judged_by_the_average_and_trained_from_the_last_weights(workshop: Workshop) -> None:
    task = workshop.task
    student, undisturbed = Student(task, shape(workshop)), Student(task, shape(workshop))
    student.train(10)
    for _ in range(3):
        student.mark(task.select)
    before = weights(student)
    student.train(11)
    share = (WINDOW + 1) / (11 + WINDOW)
    for was, now, last in zip(before, weights(student), student.average.last, strict=True):
        torch.testing.assert_close(now, was + share * (last - was))
    assert any(not torch.equal(now, last) for now, last in zip(weights(student), student.average.last, strict=True))
    undisturbed.train(11)
    for one, other in zip(student.average.last, undisturbed.average.last, strict=True):
        assert torch.equal(one, other)


def test_where_the_rate_falls_the_last_weights_count(workshop: Workshop) -> None:
    student = Student(workshop.task, shape(workshop))
    student.train(12, cool_from=8)
    for now, last in zip(weights(student), student.average.last, strict=True):
        assert torch.equal(now, last)


def test_both_are_kept(workshop: Workshop, tmp_path: Path) -> None:
    task, whole, first = workshop.task, *(Student(workshop.task, shape(workshop)) for _ in range(2))
    whole.train(20)
    first.train(12)
    first.keep(tmp_path / "state.pt")
    state = load_state(tmp_path / "state.pt")
    assert all(torch.equal(state["model"][name], value) for name, value in first.model.state_dict().items())
    second = Student(task, shape(workshop), kept=state)
    second.train(20)
    for one, other in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.average.last, second.average.last, strict=True):
        assert torch.equal(one, other)

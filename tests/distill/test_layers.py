"""Which layers a student keeps: sets that are missed least, then as it is cut out, then after a few steps."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from hwsearch.distill.job import Job, work_of
from hwsearch.distill.judging import divergence
from hwsearch.distill.layers import NEAR, RIVALS, TRIED, choose_layers, near_sets
from hwsearch.distill.proxy import Student, load_state
from hwsearch.distill.workers import Workers
from hwsearch.distill.workshop import Workshop
from tests.distill.test_proxy import small_task, student_shape


@pytest.fixture(scope="module")
def workshop(tiny_teacher: Path, text_file: Path) -> Workshop:
    torch.set_num_threads(1)
    return Workshop(small_task(tiny_teacher, text_file))


def test_layers_are_chosen_together() -> None:
    def loss(kept: Sequence[int]) -> float:
        return -10.0 * (set(kept) == {0, 3}) - sum(kept)  # alone, 3 and 4 would be the best

    assert choose_layers(5, 2, loss) == ((0, 3), (3, 4), (2, 4), (1, 4), (2, 3))
    many = choose_layers(40, 3, lambda kept: -sum(kept))
    assert many == ((37, 38, 39), (36, 38, 39), (36, 37, 39), (36, 37, 38))


def test_layers_that_cannot_be_cut_out_are_no_choice() -> None:
    def loss(kept: Sequence[int]) -> float:
        return math.inf if kept[0] else float(sum(kept))

    assert choose_layers(4, 3, loss) == ((0, 1, 2), (0, 1, 3), (0, 2, 3))
    assert choose_layers(40, 39, loss)[-1] == (*range(35), *range(36, 40))


def test_a_judge_of_layers_is_asked_about_those_that_lose_least() -> None:
    asked = []

    def judge(kept: Sequence[int]) -> float:
        asked.append(tuple(kept))
        return sum(kept)

    best = choose_layers(7, 5, lambda kept: -sum(kept), judge)
    assert best == ((0, 1, 2, 3, 6), (0, 1, 2, 5, 6), (0, 1, 3, 5, 6), (0, 2, 3, 5, 6), (1, 2, 3, 5, 6))
    first = [tuple(i for i in range(7) if i != left) for left in range(5)]
    assert asked == [*first, *reversed(best)]


def test_a_student_keeps_the_layers_with_which_it_loses_least(workshop: Workshop) -> None:
    task, shape = workshop.task, student_shape(workshop)
    sets = task.layers[2]
    assert sets[0] == workshop.finish().layers[2]
    lost = {kept: divergence(Student(task, shape, layers=kept).model, task.few) for kept in sets}
    likely = max(sets, key=lambda kept: lost[kept])  # in place of the first, so that it is not taken for being it
    turned = dataclasses.replace(task, layers=task.layers | {2: (likely, *sets)})
    chosen = Student(turned, shape)
    assert chosen.layers == min(sets, key=lambda kept: lost[kept]) != likely
    assert divergence(chosen.model, task.few) == lost[chosen.layers]


def test_a_student_goes_on_with_the_layers_that_are_best_after_a_few_steps(workshop: Workshop, tmp_path: Path) -> None:
    """As if it had been given them."""
    task, shape = workshop.task, student_shape(workshop)
    near = Student(task, shape).near
    lost = [divergence(Student(task, shape, layers=kept).model, task.few) for kept in near]
    assert 2 <= len(near) <= RIVALS
    assert lost == sorted(lost)
    assert lost[-1] <= NEAR * lost[0]
    tried = {}
    for kept in near:
        student = Student(task, shape, layers=kept)
        student.train(TRIED)
        tried[kept] = divergence(student.model, task.few)
    best = min(near, key=tried.__getitem__)
    workers = Workers(workshop.spec, count=1)
    try:
        job = Job(str(tmp_path / "chosen.pt"), shape, steps=40, marks=(0, 25))
        chosen, before = workers.train(job).result(), workers.work_done
        given = workers.train(replace(job, path=str(tmp_path / "given.pt"), layers=best)).result()
    finally:
        workers.close()
    assert load_state(tmp_path / "chosen.pt")["layers"] == list(best)
    assert chosen == replace(given, seconds=chosen.seconds)
    assert [step for step, _ in chosen.curve] == [0, 25, 40]
    assert before == pytest.approx(work_of(shape, 40))


def test_sets_of_layers_that_are_far_from_the_best_are_not_tried() -> None:
    lost = {(0, 1): 1.2, (0, 2): 1.0, (0, 3): 1.11, (1, 2): 1.09, (1, 3): 1.05, (2, 3): 1.08}
    assert near_sets(tuple(lost), lost.__getitem__) == ((0, 2), (1, 3), (2, 3))
    assert near_sets(((0, 1), (0, 2), (0, 3)), lost.__getitem__) == ((0, 2),)

"""Who goes on, and who has lost."""

from dataclasses import dataclass

from hwsearch.search.rungs import BAND, CONTENDERS, KEEP, band_of, beaten, leveled, promoted

BUDGET = 400.0


@dataclass
class Student:
    number: int
    ms: float
    losses: tuple[float, ...] = ()
    waits: bool = True
    ended: bool = False


def one_band(count: int) -> list[Student]:
    return [Student(i, 100.0, (float((7 * i) % count),)) for i in range(count)]


def test_a_third_of_a_band_goes_on_and_the_best_first() -> None:
    assert promoted(one_band(KEEP - 1), 2, BUDGET) == []
    students = one_band(9)
    assert [students[n].losses[0] for n in promoted(students, 2, BUDGET)] == [0.0, 1.0, 2.0]


def test_nobody_goes_on_twice_or_beyond_the_last_rung() -> None:
    students = one_band(9)
    first = promoted(students, 2, BUDGET)[0]
    students[first].losses = (0.0, 0.0)
    assert first not in promoted(students, 2, BUDGET)
    assert len(promoted(students, 2, BUDGET)) == 2  # its place stays taken
    students[promoted(students, 2, BUDGET)[0]].waits = False  # in training
    assert len(promoted(students, 2, BUDGET)) == 1


def test_who_was_ended_takes_nobodys_place_when_a_run_is_extended() -> None:
    students = one_band(9)
    best = promoted(students, 2, BUDGET)[0]
    students[best].waits, students[best].ended = False, True
    assert [students[n].losses[0] for n in promoted(students, 2, BUDGET)] == [1.0, 2.0, 3.0]


def test_the_furthest_goes_on_first() -> None:
    students = [*one_band(9), *(Student(20 + i, 100.0, (-1.0 - i, float(i))) for i in range(3))]
    assert promoted(students, 3, BUDGET)[0] == 20


def test_other_bands_are_no_rivals() -> None:
    fast, slow = 100.0, 100.0 * BAND**2
    assert band_of(fast, BUDGET) != band_of(slow, BUDGET)
    assert band_of(BUDGET, BUDGET) == band_of(BUDGET / BAND * 1.01, BUDGET) == 0  # the first lies under the budget
    students = [Student(i, fast, (9.0 + i,)) for i in range(3)] + [Student(3 + i, slow, (0.1 * i,)) for i in range(3)]
    assert promoted(students, 2, BUDGET) == [3, 0]


def test_at_the_end_the_best_of_every_band_goes_on() -> None:
    students = [Student(0, 100.0, (1.0,)), Student(1, 100.0, (2.0,)), Student(2, 300.0, (3.0,))]
    assert promoted(students, 2, BUDGET) == []
    assert promoted(students, 2, BUDGET, over=True) == [0, 2]
    students[0].losses = (1.0, 1.0)
    assert promoted(students, 2, BUDGET, over=True) == [2]


def test_who_lies_far_behind_has_lost() -> None:
    students = one_band(9)
    lost = beaten(students, 2, BUDGET)
    assert [students[n].losses[0] for n in lost] == [float(i) for i in range(9 // KEEP + CONTENDERS, 9)]
    assert not set(lost) & set(promoted(students, 2, BUDGET))
    assert beaten(one_band(CONTENDERS), 2, BUDGET) == []


def test_losses_of_all_rungs_compare() -> None:
    found = leveled([(2.0, 1.0), (4.0, 2.4), (3.0, 1.5), (8.0,)], 2)
    assert found == [1.0, 2.4, 1.5, 4.0]  # the others' losses fell to a half in the median
    assert leveled([(2.0,), (3.0,)], 2) == [2.0, 3.0]
    assert leveled([(4.0, 2.0, 1.0), (4.0, 2.0), (4.0,)], 3) == [1.0, 1.0, 1.0]

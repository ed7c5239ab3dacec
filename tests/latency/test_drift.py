"""What a drift detector must find, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from hwsearch.latency.drift import FEWEST, suspect_points, suspects
from tests.latency.hat import RASPBERRY_PI, folder, read_encoders
from tests.latency.test_table import measured

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Noise = Callable[[np.random.Generator, int], Floats]

POINTS, SLOW = 100, np.log(1.15)


def normal(sd: float) -> Noise:
    return lambda rng, count: sd * rng.standard_normal(count)


def student(sd: float, freedom: float) -> Noise:
    return lambda rng, count: sd * rng.standard_t(freedom, count) / np.sqrt(freedom / (freedom - 2))


NOISES = {
    "normal 2 %": normal(0.02),
    "normal 3 %": normal(0.03),
    "t8 2.5 %": student(0.025, 8),
    "t5 3 %": student(0.03, 5),
}


def scattered(rng: np.random.Generator) -> Bools:
    return np.isin(np.arange(POINTS), rng.choice(POINTS, POINTS // 20, replace=False))


def one_run(rng: np.random.Generator) -> Bools:
    start = int(rng.integers(POINTS - POINTS // 20 + 1))
    return (np.arange(POINTS) >= start) & (np.arange(POINTS) < start + POINTS // 20)


@pytest.mark.parametrize("noise", NOISES.values(), ids=list(NOISES))
@pytest.mark.parametrize("where", [scattered, one_run])
def test_a_slow_step_is_found_and_little_else(noise: Noise, where: Callable[[np.random.Generator], Bools]) -> None:
    hits, alarms, slow_points, others = 0, 0, 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        slow = where(rng)
        found = suspects(noise(rng, POINTS) + SLOW * slow)
        hits, alarms = hits + int(found[slow].sum()), alarms + int(found[~slow].sum())
        slow_points, others = slow_points + int(slow.sum()), others + int((~slow).sum())
    assert hits >= 0.95 * slow_points
    assert alarms <= 0.01 * others


@pytest.mark.parametrize("noise", NOISES.values(), ids=list(NOISES))
def test_where_nothing_is_wrong_nothing_is_found(noise: Noise) -> None:
    found = [suspects(noise(np.random.default_rng(1000 + seed), POINTS)).mean() for seed in range(60)]
    assert np.mean(found) <= 0.01


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("step", [SLOW, -SLOW, np.log(10.0)])
def test_a_plateau_is_found_at_any_length_below_half(share: float, step: float) -> None:
    rng = np.random.default_rng(3)
    inside = np.arange(POINTS) < share * POINTS
    found = suspects(student(0.025, 8)(rng, POINTS) + step * inside)
    assert (~found[inside]).sum() <= 2  # these happen to lie nearer to the rest
    assert found[~inside].sum() <= 1


def test_points_of_a_plateau_that_agree_with_the_rest_are_left_alone() -> None:
    rng = np.random.default_rng(4)
    level = np.where(np.arange(POINTS) < 30, 1.0, 0.0)
    level[[5, 13, 14, 22]] = 0.0
    found = suspects(normal(0.02)(rng, POINTS) + level)
    assert found.tolist() == (level > 0).tolist()


def test_a_slow_drift_of_a_few_percent_is_no_plateau() -> None:
    rng = np.random.default_rng(5)
    assert not suspects(normal(0.025)(rng, POINTS) + np.linspace(-0.05, 0.05, POINTS)).any()


def test_each_point_is_judged_by_its_own_scatter() -> None:
    rng = np.random.default_rng(6)
    sd = np.where(np.arange(POINTS) % 4 == 0, 0.15, 0.02)
    residuals = sd * rng.standard_normal(POINTS)
    slow = np.isin(np.arange(POINTS), [3, 17, 50, 51, 93])
    assert suspects(residuals + SLOW * slow, sd).tolist() == slow.tolist()
    assert suspects(residuals + SLOW * slow).sum() != slow.sum()
    assert suspects(residuals + SLOW * slow, 1e3 * sd).tolist() == slow.tolist()  # a common factor is found


def test_it_does_not_depend_on_the_unit_of_time() -> None:
    rng = np.random.default_rng(7)
    residuals = normal(0.02)(rng, POINTS) + SLOW * scattered(rng)
    assert suspects(residuals + np.log(1000)).tolist() == suspects(residuals).tolist()


def test_small_and_odd_rows() -> None:
    assert suspects([]).tolist() == []
    assert not suspects(np.array([0.0] * (FEWEST - 2) + [1.0])).any()
    assert not suspects(np.zeros(20)).any()
    assert suspects(np.array([0.0] * 20 + [0.5])).tolist() == [False] * 20 + [True]


@pytest.mark.parametrize(
    ("residuals", "sd"),
    [
        (np.array([0.0, np.nan] * 10), None),
        (np.zeros((5, 5)), None),
        (np.zeros(20), np.ones(19)),
        (np.zeros(20), np.zeros(20)),
    ],
)
def test_what_is_no_row_of_numbers_is_refused(residuals: Floats, sd: Floats | None) -> None:
    with pytest.raises(ValueError, match="residuals"):
        suspects(residuals, sd)


@pytest.mark.parametrize("run", [False, True])
def test_slow_points_of_a_table_are_found_by_what_their_kernels_share(run: bool) -> None:
    points, tables = measured(80, seed=0)
    slow = {20, 21, 22, 23} if run else {3, 30, 31, 66}
    spoiled = [
        replace(
            point,
            case=replace(point.case, latency_ms=1.15 * point.case.latency_ms),
            kernels={name: 1.15 * time for name, time in point.kernels.items()},
        )
        if i in slow
        else point
        for i, point in enumerate(points)
    ]
    assert suspect_points(points, tables).sum() <= 1
    found = set(np.flatnonzero(suspect_points(spoiled, tables)).tolist())
    assert found >= slow
    assert len(found - slow) <= 1


@pytest.mark.skipif(folder() is None, reason="needs the HAT data sets: set HWSEARCH_HAT to their folder")
def test_the_plateau_at_the_beginning_of_the_raspberry_pi_file_is_found() -> None:
    from hwsearch.latency.calibrate import believe, estimate_cases, with_belief
    from hwsearch.profiles import find_profile

    place = folder()
    assert place is not None
    cases = read_encoders(place / RASPBERRY_PI)[:600]
    facts = find_profile("raspberry-pi-4")
    belief, noise = believe(facts, "pytorch", cases)
    fitted = with_belief(facts, "pytorch", belief, noise, cases, "")
    expected = [median for median, _, _ in estimate_cases(fitted, cases)]
    residuals = np.log([case.latency_ms / ms for case, ms in zip(cases, expected, strict=True)])
    found = suspects(residuals)
    tenfold = residuals[:121] > 1.0
    assert tenfold.sum() > 80
    assert found[:121][tenfold].all()
    assert found[125:].mean() < 0.1

"""The solver against every plan there is, and its times against the estimator's."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile
from hwsearch.search.precision import PartTimes, fair_rate, part_times, planned, solve, with_plan
from hwsearch.workload import Workload

FLOAT = (Precision.FP16, Precision.FP16)


def cost(plan: tuple[int, ...], losses: np.ndarray, times: PartTimes, rate: float) -> float:
    """Of one student's plan, added up part by part."""
    total, before = 0.0, 0
    for part, choice in enumerate(plan):
        total += losses[part, choice] + rate * (times.parts[0, part, choice] + times.changes[0, before, choice])
        before = choice
    return total + rate * times.changes[0, before, 0]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 3), st.floats(0.0, 10.0, allow_subnormal=False))
def test_no_plan_is_better(seed: int, parts: int, count: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    losses = np.concatenate([np.zeros((parts, 1)), rng.exponential(1.0, (parts, count - 1))], axis=1)
    changes = rng.exponential(0.5, (1, count, count)) * (1 - np.eye(count))
    times = PartTimes(rng.normal(0.0, 1.0, (1, parts, count)), changes)
    best = min(product(range(count), repeat=parts), key=lambda plan: cost(plan, losses, times, rate))
    found = tuple(int(i) for i in solve(losses, times, rate)[0])
    assert cost(found, losses, times, rate) == pytest.approx(cost(best, losses, times, rate), abs=1e-9)


def student(width: int, depth: int = 5) -> Architecture:
    return Architecture(
        block="decoder", width=width, head_dim=32, layers=uniform_layers(depth, 3, 3, 256, [FLOAT] * depth),
        gated_ffn=True, norm="rmsnorm", tied=False, vocab=2048, head="lm",
    ).with_float(Precision.FP16)  # fmt: skip


def test_times_of_parts_add_up_to_what_the_estimator_says() -> None:
    profile = find_profile("jetson-orin")
    estimator = Estimator(profile, profile.target(), Workload(64, 128, 0, 256))
    students, precisions = [student(96), student(192)], (Precision.FP16, Precision.INT8)
    times = part_times(students, precisions, lambda options: estimator(options).median_ms)
    assert (times.changes[:, 0, 1] > 0).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = rng.integers(0, 2, 10)
        for i, a in enumerate(students):
            one = PartTimes(times.parts[i : i + 1], times.changes[i : i + 1])
            added = cost(tuple(chosen.tolist()), np.zeros((10, 2)), one, 1.0)
            real = estimator.one(with_plan(a, chosen, precisions)).median_ms - estimator.one(a).median_ms
            assert added == pytest.approx(real, rel=1e-6, abs=1e-9)


def test_what_saves_no_time_stays_in_float() -> None:
    """int8 that is slower than float is chosen at no rate."""
    losses = np.tile([0.0, 1e-6], (8, 1))

    def price(options: list[Architecture]) -> np.ndarray:
        return np.array([10.0 + sum(layer.attention is Precision.INT8 for layer in a.layers) for a in options])

    (found,) = planned([student(96, 4)], (Precision.FP16, Precision.INT8), losses, price, 50.0)
    assert found == student(96, 4)


@pytest.mark.parametrize(("loss", "expected"), [(1e-6, Precision.INT8), (1.0, Precision.FP16)])
def test_the_head_is_a_part_too(loss: float, expected: Precision) -> None:
    """It is quantised where the time that it saves is worth what it loses beside the layers."""
    losses = np.concatenate([np.tile([0.0, 0.01], (8, 1)), [[0.0, loss]]])

    def price(options: list[Architecture]) -> np.ndarray:
        return 10.0 - np.array([a.parts.count(Precision.INT8) for a in options])

    (found,) = planned([student(96, 4)], (Precision.FP16, Precision.INT8), losses, price, 1.0)
    assert found.head_precision is expected
    assert found.precision_text.endswith("head.int8") == (expected is Precision.INT8)
    without = planned([student(96, 4)], (Precision.FP16, Precision.INT8), losses[:8], price, 50.0)
    assert without[0].head_precision is Precision.FP16


def test_the_fair_rate_is_loss_for_time() -> None:
    assert fair_rate(np.tile([0.0, 3.0], (4, 1)), np.tile([[0.0, -2.0]], (1, 4, 1))).tolist() == [1.5]
    # A part that saves nothing is not quantised, and of three precisions the one that saves most counts.
    losses = np.array([[0.0, 0.01, 0.5], [0.0, 1.0, 2.0]])
    assert fair_rate(losses, np.array([[[0.0, -1.0, -0.5], [0.0, 0.5, 0.2]]])).tolist() == [0.01]

"""What the sampler looks for, on students that a formula scores."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Job
from hwsearch.profiles import find_profile
from hwsearch.search.null import NullTrainer, rehearsed
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.proposer import FULLEST, RATES, RATIOS, Proposer
from hwsearch.search.sampler import Sampler
from hwsearch.search.trial import Trial
from hwsearch.units import Budget
from hwsearch.workload import Workload

TRAINER = NullTrainer()


def lost(student: Architecture) -> float:
    return TRAINER.train(Job("", student, 160)).result().loss


@pytest.fixture(scope="module")
def plan() -> Plan:
    profile = find_profile("jetson-orin")
    wishes = Wishes(budget=Budget(share=0.15), workload=Workload(64, 128, 0, 256))
    return Plan(wishes, profile, profile.target(), TRAINER.teacher)


@pytest.fixture(scope="module")
def proposer(plan: Plan) -> Proposer:
    return plan.proposer(TRAINER.finish().result())


def searched(plan: Plan, proposer: Proposer, count: int, least: dict[str, Any] | None) -> list[Trial]:
    sampler = Sampler(0, proposer.corners(), least)
    return rehearsed(sampler, proposer, count, lambda student: (plan.price.one(student).median_ms, lost(student)))


def test_few_trials_find_the_student_that_loses_least_in_the_budget(plan: Plan, proposer: Proposer) -> None:
    ratios = np.geomspace(*RATIOS, 7).tolist()
    grid = {a for d, h, f in product(plan.space.depths, ratios, ratios) for a in proposer.options(d, h, f, RATES[1])}
    students = list(grid)
    best = min(lost(a) for a, strain in zip(students, plan.strain(students), strict=True) if strain <= 1)
    trials = searched(plan, proposer, 16, FULLEST)
    corners = len(proposer.corners())
    assert min(t.losses[0] for t in trials[:corners]) > 1.02 * best  # there is something to find
    assert min(t.losses[0] for t in trials) < 1.005 * best


def test_one_turn_in_three_fills_the_budget_and_none_where_the_fastest_is_wanted(
    plan: Plan, proposer: Proposer
) -> None:
    corners = len(proposer.corners())
    by_turns = [t.settings["fill"] for t in searched(plan, proposer, corners + 6, FULLEST)[corners:]]
    assert by_turns[0] == by_turns[3] == FULLEST["fill"]
    assert {*by_turns[1:3], *by_turns[4:]} != {FULLEST["fill"]}
    along = searched(plan, proposer, corners + 6, None)[corners:]
    assert {along[0].settings["fill"], along[3].settings["fill"]} != {FULLEST["fill"]}


def test_a_sampler_that_begins_in_the_middle_goes_on_as_the_first(plan: Plan, proposer: Proposer) -> None:
    corners = len(proposer.corners())
    trials = searched(plan, proposer, corners + 4, FULLEST)
    for turn in range(4):
        known = trials[: corners + turn]
        asked = Sampler(0, proposer.corners(), FULLEST).ask(known)
        proposer(asked, {t.architecture for t in known})
        assert asked.params == trials[corners + turn].settings


def test_a_student_in_another_size_takes_no_turn(plan: Plan, proposer: Proposer) -> None:
    corners = proposer.corners()
    trials = searched(plan, proposer, 3, FULLEST)
    trials.append(replace(trials[0], number=3, resized=True))
    asked = Sampler(0, corners, FULLEST).ask(trials)
    proposer(asked, {t.architecture for t in trials})
    assert asked.params == corners[3]

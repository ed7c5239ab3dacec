"""Agreement of orders, and a whole fidelity run on the null score."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from hwsearch.profiles import find_profile
from hwsearch.search import fidelity
from hwsearch.search.fidelity import keep, kept, measure, measured_steps, stratified
from hwsearch.search.null import TEACHER, NullTrainer
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.rank import agreement, stages
from hwsearch.units import Budget
from tests.search.test_engine import BULK, Told


@pytest.fixture(scope="module")
def plan() -> Plan:
    orin = find_profile("jetson-orin")
    return Plan(Wishes(Budget(ms=500.0), BULK), orin, orin.target(), TEACHER)


def test_agreement_of_orders() -> None:
    truth = list(range(20))
    same, reverse = agreement(truth, truth), agreement(truth[::-1], truth)
    assert same is not None
    assert reverse is not None
    assert (same.tau, same.low, same.spearman) == pytest.approx((1.0, 1.0, 1.0))
    assert (reverse.tau, reverse.high) == pytest.approx((-1.0, -1.0))
    few = agreement([1, 2, 3], [4, 5, 6])
    assert few is not None
    assert few.chance == pytest.approx(1 / 6)  # three in order are nothing
    assert agreement([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert agreement([1, 2], [1, 2]) is None


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of two noisy measurements: the tau of very many pairs lies in 80 % of the intervals."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[list[float], list[float]]:
        x = rng.normal(size=count)
        return x.tolist(), (x + 0.5 * rng.normal(size=count)).tolist()

    whole = agreement(*draw(400))
    assert whole is not None
    found = [agreement(*draw(24)) for _ in range(120)]
    covered = np.mean([a is not None and a.low <= whole.tau <= a.high for a in found])
    assert 0.68 < covered < 0.92


def test_stages_judge_those_that_went_on() -> None:
    orin = find_profile("jetson-orin")
    plan = Plan(Wishes(Budget(ms=500.0), BULK), orin, orin.target(), TEACHER)
    smaller = plan.space.smallest[0]
    priced = [plan.priced(replace(smaller, width=64 + 16 * i)) for i in range(5)]
    students = [(result, {10: 5.0 - i, 20: 4.0 - i, 40: 3.0 + i}) for i, result in enumerate(priced)]
    del students[0][1][40]
    first, second = stages(students, [10, 20, 40])
    assert (first["steps"], first["further_steps"], first["students"]) == (10, 20, 5)
    assert first["scores"]["short run"]["tau"] == pytest.approx(1.0)
    assert first["scores"]["parameters"]["tau"] == pytest.approx(1.0)
    assert first["scores"]["depth"] is None  # all alike
    assert second["students"] == 4
    assert second["scores"]["short run"]["tau"] == pytest.approx(-1.0)
    assert stages(students[:2], [10, 20, 40]) == []


def test_candidates_are_spread_and_banded(plan: Plan) -> None:
    facts = NullTrainer().finish().result()
    found = stratified(plan, facts, 7, 5, 500.0, 300.0)
    assert len({c.architecture for c in found}) == 12
    spread, band = [c.ms for c in found if not c.band], [c.ms for c in found if c.band]
    assert len(band) == 5
    assert max(band) / min(band) < 1.1
    assert max(spread) / min(spread) > 3
    assert len({c.architecture.depth for c in found}) > 2


def test_fidelity_of_the_null_score(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula's short runs rank as its long ones do; parameters do not."""
    from hwsearch.distill.job import TaskSpec

    monkeypatch.setattr(fidelity.platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    trainer = NullTrainer()
    facts = trainer.finish().result()
    document = measure(plan, facts, TaskSpec(), trainer, Told(), tmp_path, 12, 1000, True, lambda *_: None)
    keys = {"candidates", "band", "tau", "tau_band", "tau_low", "tau_band_low", "baselines", "ceiling", "steps"}
    assert keys | {"full_steps", "cost_share", "rows"} <= set(document)
    assert document["tau"] == pytest.approx(1.0)
    assert document["ceiling"] == pytest.approx(1.0)
    assert document["steps"] == 50
    assert document["passes"]
    assert 0.05 < document["cost_share"] < 0.2
    assert document["baselines"]["parameters"]["tau"] < 1.0
    assert document["baselines"]["feed-forward PCA dimensions"]["tau"] is None
    assert len(document["rows"]) == 12
    assert len(trainer.jobs) == 24  # each with the text in two orders
    told = Told()
    assert measured_steps(plan.wishes, facts.digest, told) == plan.wishes
    assert any("hwsearch fidelity DIR" in line for line in told.said)
    assert keep(facts.digest, document)
    found = measured_steps(plan.wishes, facts.digest, told)
    assert (found.steps, found.long_steps, found.rungs) == (50, 1000, (50, 400))
    assert not keep("other", {**document, "passes": False})
    assert measured_steps(plan.wishes, "other", told) == plan.wishes
    again = kept(facts.digest)
    assert again is not None
    assert again["lengths"] == document["lengths"]

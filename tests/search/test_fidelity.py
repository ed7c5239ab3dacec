"""Agreement of orders, and a whole fidelity run on the null score."""

import tracemalloc
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from scipy.stats import kendalltau

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Job, ProxyScore
from hwsearch.errors import RunError, TrainingError
from hwsearch.profiles import find_profile
from hwsearch.search import fidelity
from hwsearch.search.candidates import stratified
from hwsearch.search.fidelity import keep, kept, measure, measured_steps, refused, trust
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


def test_the_interval_is_of_the_same_tau_where_scores_are_alike() -> None:
    depths = [float(i // 2) for i in range(12)]
    found = agreement(depths, [float(i) for i in range(12)])
    assert found is not None
    assert found.low <= found.tau <= found.high


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of two noisy measurements: the tau of very many pairs lies in 80 % of the intervals."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[list[float], list[float]]:
        x = rng.normal(size=count)
        return x.tolist(), (x + 0.5 * rng.normal(size=count)).tolist()

    whole = kendalltau(*draw(2000))[0]
    found = [agreement(*draw(24)) for _ in range(120)]
    covered = np.mean([a is not None and a.low <= whole <= a.high for a in found])
    assert 0.68 < covered < 0.92


def test_an_agreement_of_a_thousand_takes_no_room_of_all_pairs_drawn() -> None:
    values = np.random.default_rng(0).standard_normal((2, 1000))
    tracemalloc.start()
    try:
        found = agreement(values[0], values[0] + values[1])
        assert tracemalloc.get_traced_memory()[1] < 2**28  # of all pairs in every sample it would be gigabytes
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found.low < found.tau < found.high


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


def test_only_what_a_search_may_train_is_judged(plan: Plan) -> None:
    """On a profile made without the board, the median of what fits lies far under the budget."""
    facts = NullTrainer().finish().result()
    found = stratified(plan, facts, 6, 4, 0.7 * plan.budget_ms, 0.6 * plan.budget_ms)
    assert plan.strain([c.architecture for c in found]).max() <= 1.0
    beyond = stratified(plan, facts, 2, 0, plan.budget_ms, plan.budget_ms, strain=np.inf)
    assert plan.strain([c.architecture for c in beyond]).max() > 1.0


def test_a_space_of_few_students_is_an_error_and_no_endless_search(tmp_path: Path) -> None:
    from hwsearch.distill.job import TaskSpec

    orin = find_profile("jetson-orin")
    wishes = Wishes(Budget(ms=500.0), BULK, depths=(3,), widths=(64,), heads=(2,), ffns=(128, 160))
    small = Plan(wishes, orin, orin.target(), TEACHER)
    trainer = NullTrainer()
    with pytest.raises(
        RunError, match=r"8 students at least tell an order; [1-6] lie inside the budget: widen --depth"
    ):
        measure(
            small, trainer.finish().result(), TaskSpec(), trainer, Told(), tmp_path, 12, 1000, False, lambda *_: None
        )


class Diverging(NullTrainer):
    """Every third student cannot be trained."""

    def train(self, job: Job) -> Future[ProxyScore]:
        future = super().train(job)
        if len(self.jobs) % 3 == 0:
            future = Future()
            future.set_exception(TrainingError("the training diverged"))
        return future


def test_what_diverges_is_left_out_and_counted(plan: Plan, tmp_path: Path) -> None:
    from hwsearch.distill.job import TaskSpec

    trainer = Diverging()
    facts = trainer.finish().result()
    document = measure(plan, facts, TaskSpec(), trainer, Told(), tmp_path, 12, 1000, True, lambda *_: None)
    assert (document["candidates"], document["failed"], len(document["rows"])) == (8, 4, 8)
    assert document["ceiling"] == pytest.approx(1.0)
    assert document["band"] == 3
    assert keep("diverging", document) == document
    assert "3 students of one latency could be trained" in str(refused(document))
    assert kept("diverging") is None
    with pytest.raises(RunError, match="7 can be trained, 3 cannot"):
        measure(plan, facts, TaskSpec(), Diverging(), Told(), tmp_path, 10, 1000, False, lambda *_: None)


def test_a_first_rung_that_is_too_early_is_told() -> None:
    passing = {"passes": True, "steps": 300, "full_steps": 1000}
    assert trust(300, passing) is None
    assert trust(160, None) is None
    assert "300 steps at least" in str(trust(160, passing))
    assert "no short run" in str(trust(160, {**passing, "passes": False}))


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
    assert measured_steps(plan.wishes, facts.subject, told) == plan.wishes
    assert any("hwsearch fidelity DIR" in line for line in told.said)
    assert keep(facts.subject, document)
    found = measured_steps(plan.wishes, facts.subject, told)
    assert (found.steps, found.long_steps, found.rungs) == (50, 1000, (50, 350))
    # What a run with more steps has found is judged by what --steps auto begins with, not by that run's own.
    assert refused({**document, "full_steps": 2000}) is None
    assert "less than half of 1066" in str(refused({**document, "full_steps": 500}))
    keep("quick", {**document, "full_steps": 40, "steps": 4})
    assert measured_steps(plan.wishes, "quick", told) == plan.wishes
    assert "40 steps for full training" in told.said[-1]
    assert not keep("other", {**document, "passes": False})["passes"]
    assert measured_steps(plan.wishes, "other", told) == plan.wishes
    assert "no short run up to 35% of full" in told.said[-1]
    again = kept(facts.subject)
    assert again is not None
    assert again["lengths"] == document["lengths"]


class Contrary(NullTrainer):
    """Short runs say the contrary of full ones of the last five students, those in the band; with the text in another
    order full ones say the contrary of all."""

    def train(self, job: Job) -> Future[ProxyScore]:
        score, number = super().train(job).result(), int(Path(job.path).name.partition("-")[0])
        curve = [(step, -loss if number >= 7 and step < job.steps else loss) for step, loss in score.curve]
        future: Future[ProxyScore] = Future()
        future.set_result(replace(score, curve=tuple(curve), loss=-score.loss if job.order else score.loss))
        return future


def test_every_order_is_of_what_it_says(tmp_path: Path) -> None:
    from hwsearch.distill.job import TaskSpec

    orin, trainer = find_profile("jetson-orin"), Contrary()
    plan = Plan(Wishes(Budget(ms=500.0), BULK), orin, orin.target(), TEACHER)
    plan.rate = 0.5
    facts = trainer.finish().result()
    document = measure(plan, facts, TaskSpec(), trainer, Told(), tmp_path, 12, 1000, True, lambda *_: None)
    rows = document["rows"]
    full = np.array([row["full_loss"] for row in rows])
    band = np.array([row["band"] for row in rows])
    assert band.tolist() == [False] * 7 + [True] * 5
    assert max(row["ms"] for row in rows[7:]) < 1.1 * min(row["ms"] for row in rows[7:])
    for length in document["lengths"]:
        short = np.array([dict(row["curve"])[length["steps"]] for row in rows])
        assert kendalltau(short[~band], full[~band])[0] == pytest.approx(1.0)
        assert length["tau"] == pytest.approx(kendalltau(short, full)[0])
        assert length["tau_band"] == pytest.approx(-1.0)
        assert not length["passes"]
    assert not document["passes"]
    students = [Architecture.from_json(row["architecture"]) for row in rows]
    told = {"parameters": [s.parameters for s in students], "depth": [s.depth for s in students]}
    told["latency"] = [row["ms"] for row in rows]
    for name, sizes in told.items():  # the larger, the better
        assert document["baselines"][name]["tau"] == pytest.approx(kendalltau(-np.array(sizes), full)[0])
    assert document["baselines"]["parameters"]["tau"] > 0.3
    assert document["ceiling"] == pytest.approx(-1.0)
    assert [job.order for job in trainer.jobs] == [0] * 12 + [1] * 12
    assert len({job.path for job in trainer.jobs}) == 24
    assert {job.rate for job in trainer.jobs} == {0.5}


def test_full_training_reads_as_much_text_as_it_takes_steps(plan: Plan, tmp_path: Path) -> None:
    from hwsearch.distill.job import TaskSpec

    trainer, spec = NullTrainer(), TaskSpec(chunks=208)
    facts = trainer.finish().result()
    with pytest.raises(RunError, match=r"begun with 208 texts, and 1000 full steps read 4096.*--full-steps 26 at most"):
        measure(plan, facts, spec, trainer, Told(), tmp_path, 12, 1000, False, lambda *_: None)
    assert not trainer.jobs


def test_fewer_students_take_the_place_of_no_more() -> None:
    many = {"full_steps": 1000, "candidates": 24, "band": 10, "passes": True, "steps": 50}
    keep("another teacher", many)
    assert keep("another teacher", {**many, "candidates": 8, "passes": False}) == kept("another teacher")
    assert keep("another teacher", {**many, "steps": 80})["steps"] == 80


def test_a_quick_trial_takes_the_place_of_no_longer_one() -> None:
    long, quick = (
        {"full_steps": steps, "candidates": 12, "band": 5, "passes": passes, "steps": 16}
        for steps, passes in ((1000, False), (40, True))
    )
    keep("some teacher", long)
    assert keep("some teacher", quick) == kept("some teacher")
    found = kept("some teacher")
    assert found is not None
    assert found["full_steps"] == 1000


def test_an_order_that_chance_may_give_does_not_pass() -> None:
    """Three in the right order are one of six."""
    whole, three, four = (agreement(range(n), range(n)) for n in (8, 3, 4))
    assert three is not None
    assert three.tau == three.low == 1.0
    assert not fidelity.length(100, 1000, whole, three, 0.0).passes
    assert fidelity.length(100, 1000, whole, four, 0.0).passes

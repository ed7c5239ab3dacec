"""Whole searches on the null score: golden, resumed, refused."""

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.device import DeviceProfile
from hwsearch.distill.job import Job, ProxyScore, TaskSpec
from hwsearch.errors import NothingFits, RunError, TrainingError
from hwsearch.latency.estimator import Estimator
from hwsearch.latency.latency import Latency
from hwsearch.profiles import find_profile
from hwsearch.search.description import Description
from hwsearch.search.engine import SUITING, Engine
from hwsearch.search.finished import finished as student_of
from hwsearch.search.finished import stored_summary, stored_trials
from hwsearch.search.main_job import Deliver, run_search
from hwsearch.search.measured import _batches, _weights_mib, measured_teacher
from hwsearch.search.null import TEACHER, NullMeasurer, NullTrainer
from hwsearch.search.outcome import Outcome
from hwsearch.search.pareto import about, front
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.run import Run
from hwsearch.search.sampler import START_UP
from hwsearch.search.study import Study
from hwsearch.search.trial import Trial
from hwsearch.search.trials import DEATHS
from hwsearch.units import Budget, parse_budget
from hwsearch.workload import Workload

GOLDEN = Path(__file__).parent / "golden.json"
BULK = Workload(64, 128, 0, 256)


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def stage(self, name: str, total: float) -> None:
        self.said.append(f"stage {name}")

    def at(self, done: float, total: float | None = None, note: str = "") -> None:
        pass


def search(
    out: Path,
    trainer: NullTrainer | None = None,
    budget: str = "500ms",
    profile: DeviceProfile | None = None,
    told: Told | None = None,
    measurer: NullMeasurer | None = None,
    dry: bool = False,
    deliver: Deliver | None = None,
    storage: str | None = None,
    **wishes: Any,
) -> tuple[dict[str, Any], Outcome | None]:
    profile = profile or find_profile("jetson-orin")
    outcomes: list[Outcome] = []
    _, document = run_search(
        profile,
        profile.target(),
        Wishes(budget=parse_budget(budget), **{"workload": BULK, "trials": 12, "seed": 1, **wishes}),
        TaskSpec(),
        trainer or NullTrainer(),
        told or Told(),
        deliver or (lambda run, outcome, document: outcomes.append(outcome)),
        out,
        budget,
        dry,
        measurer=measurer,
        storage=storage,
    )
    return document, outcomes[0] if outcomes else None


def essence(document: dict[str, Any]) -> dict[str, Any]:
    """What must not change unnoticed: choices, not the last digits of prices."""
    return {
        "chosen": document["chosen"]["architecture"]["id"],
        "front": [result["architecture"]["id"] for result in document["front"]],
        "finalists": [finalist["trial"] for finalist in document["finalists"]],
        "baselines": {name: result["architecture"]["id"] for name, result in document["baselines"].items()},
    }


def test_the_golden_run(tmp_path: Path) -> None:
    """A whole search on a device that stands in a file and a score that is a formula, against the stored one.

    As many trials as precede the Gaussian process: its last digits, and with them its proposals, may differ between
    processors.
    Made anew by: python -m tests.search.test_engine
    """
    found, stored = essence(golden_search(tmp_path)), json.loads(GOLDEN.read_text())
    assert found == stored


def golden_search(folder: Path) -> dict[str, Any]:
    profile = find_profile(str(Path(__file__).parent / "null-board.toml"))
    return search(folder / "run", profile=profile, budget="0.4x", trials=START_UP)[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Outcome]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    document, outcome = search(folder)
    assert outcome is not None
    return folder, document, outcome


def test_the_summary_follows_the_contract(finished: tuple[Path, dict[str, Any], Outcome]) -> None:
    folder, document, _ = finished
    keys = {
        "study",
        "device",
        "target",
        "workload",
        "budget_ms",
        "teacher",
        "chosen",
        "front",
        "finalists",
        "baselines",
        "trials",
        "seconds",
    }
    assert keys | {"versions"} <= set(document)
    assert {"quality", "precision", "latency", "latency_fp32"} <= set(document["teacher"])
    result = {
        "trial",
        "architecture",
        "latency",
        "loss",
        "quality",
        "quality_low",
        "quality_high",
        "retention",
        "steps",
        "size_mib",
        "memory_mib",
    }
    latency = {"median_ms", "low_ms", "high_ms", "source", "extrapolated", "covered", "phases", "ops"}
    for r in (document["chosen"], *document["front"], *document["baselines"].values()):
        assert result <= set(r)
        assert latency <= set(r["latency"])
    assert all({"trial", "predicted_ms", "measured_ms"} <= set(finalist) for finalist in document["finalists"])
    assert set(document["trials"]) == {"complete", "stopped", "infeasible", "failed"}
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(document))


def test_the_chosen_one_lies_inside_the_budget_and_is_the_best_finalist(
    finished: tuple[Path, dict[str, Any], Outcome],
) -> None:
    _, document, outcome = finished
    assert outcome.chosen is not None
    assert outcome.chosen.latency.high_ms <= document["budget_ms"]
    assert all(trial.latency.high_ms <= document["budget_ms"] for trial in outcome.trials)
    assert outcome.chosen.trial == max(outcome.finalists, key=lambda r: r.quality or 0).trial
    assert len(outcome.finalists) >= 3
    assert outcome.infeasible > 0


def test_near_equals_are_told_apart_by_their_loss(tmp_path: Path) -> None:
    """A few hundred answers do not."""

    class Noisy(NullTrainer):
        """Quality on *select* is that of `luck` where a student is wide."""

        def __init__(self, luck: float) -> None:
            super().__init__()
            self.luck = luck

        def train(self, job: Job) -> Future[ProxyScore]:
            score = super().train(job).result()
            lucky = self.luck * (job.architecture.width > 64)
            done: Future[ProxyScore] = Future()
            retention = 0.9 + lucky
            done.set_result(
                replace(
                    score,
                    quality=0.6 * retention,
                    retention=retention,
                    retention_low=retention - 0.02,
                    retention_high=retention + 0.02,
                )
            )
            return done

    for luck in (0.01, -0.01, 0.025):  # the last outside the other's interval, inside that of the difference
        _, outcome = search(tmp_path / str(luck), Noisy(luck))
        assert outcome is not None
        assert outcome.chosen is not None
        assert outcome.chosen.trial == min(outcome.finalists, key=lambda r: r.loss or 1).trial
    _, outcome = search(tmp_path / "apart", Noisy(0.05))
    assert outcome is not None
    assert outcome.chosen is not None
    wide = [r for r in outcome.finalists if r.architecture.width > 64]
    assert outcome.chosen.trial == min(wide or outcome.finalists, key=lambda r: r.loss or 1).trial


def test_hand_made_students_are_at_the_same_latency_and_trained_alike(
    finished: tuple[Path, dict[str, Any], Outcome],
) -> None:
    _, _, outcome = finished
    assert outcome.chosen is not None
    assert set(outcome.baselines) == {"every other layer", "uniform width"}
    for result in outcome.baselines.values():
        assert 0.85 < result.latency.median_ms / outcome.chosen.latency.median_ms <= 1.0
        assert result.steps == outcome.chosen.steps


def test_finalists_get_the_long_run_and_report_is_looked_at_once(tmp_path: Path) -> None:
    trainer = NullTrainer()
    search(tmp_path / "run", trainer)
    short = begun(trainer)
    climbed = [job for job in students(trainer) if job.cool_from is None and job not in short]
    long = [job for job in students(trainer) if job.cool_from is not None]
    assert len(short) == 12
    assert 2 <= len(climbed) <= 6
    assert {job.steps for job in climbed} == {373}
    assert {job.path for job in climbed} <= {job.path for job in short}
    assert all(job.cool_from == 746 for job in long)
    assert all(job.steps == 1066 and job.steps * 0.15 <= 160 for job in long)
    assert [job.split for job in long] == ["select"] * 3 + ["report"] * 3
    assert all(job.start for job in long[:3])
    assert len({job.architecture for job in short}) == 12  # nothing is trained twice


def begun(trainer: NullTrainer) -> list[Job]:
    """The trials' first rungs."""
    return [job for job in students(trainer) if job.steps == 160]


def students(trainer: NullTrainer) -> list[Job]:
    """All but those that try a learning rate."""
    return [job for job in trainer.jobs if not tries_a_rate(job)]


def tries_a_rate(job: Job) -> bool:
    return "/rate-" in job.path


def tried(document: dict[str, Any]) -> int:
    return int(document["trials"]["complete"] + document["trials"]["stopped"])


class Dying(NullTrainer):
    """Is killed when it is handed its `last` job."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def train(self, job: Job) -> Future[ProxyScore]:
        if not tries_a_rate(job) and len(students(self)) == self.last:
            raise KeyboardInterrupt
        return super().train(job)


@pytest.mark.parametrize("last", [0, 1, 5, 9, 11, 13, 15, 17, 20])
def test_a_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, finished: tuple[Path, dict[str, Any], Outcome], last: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(folder, Dying(last))
    trainer = NullTrainer()
    document, _ = search(folder, trainer)
    _, undisturbed, _ = finished
    for name in ("chosen", "front", "finalists", "baselines"):
        assert document[name] == undisturbed[name], name
    climbs = 12 + undisturbed["trials"]["complete"]
    assert sum(job.cool_from is None for job in trainer.jobs) <= max(0, climbs - last) + 2  # two were under way
    assert not any(map(tries_a_rate, trainer.jobs))  # that is known


class Fond(NullTrainer):
    """Learns best at a quarter of the recipe's rate, and diverges at more than twice of it."""

    def train(self, job: Job) -> Future[ProxyScore]:
        done, score = Future[ProxyScore](), super().train(job).result()
        if job.rate > 2:
            done.set_exception(TrainingError("the training diverged"))
        else:
            done.set_result(replace(score, loss=score.loss * (1 + abs(math.log(4 * job.rate)))))
        return done


def test_all_learn_at_the_rate_that_suits(tmp_path: Path) -> None:
    trainer, told = Fond(), Told()
    document, _ = search(tmp_path / "run", trainer, told=told)
    rates = [job.rate for job in trainer.jobs if tries_a_rate(job)]
    assert rates == [1.0, 0.5, 0.25, 0.125]
    assert {job.rate for job in students(trainer)} == {0.25}
    assert document["learning_rate"]["taken"] == 0.25
    assert list(document["learning_rate"]["tried"]) == ["1", "0.5", "0.25", "0.125"]
    assert any(line.startswith("learning rate: 0.25 times the recipe's") for line in told.said)
    few = Fond()
    search(tmp_path / "few", few, steps=SUITING - 1)
    assert {job.rate for job in few.jobs} == {1.0}


def test_a_run_that_was_stopped_while_rates_were_tried_goes_on(tmp_path: Path) -> None:
    class Stopped(Fond):
        def train(self, job: Job) -> Future[ProxyScore]:
            if len(self.jobs) == 2:
                raise KeyboardInterrupt
            return super().train(job)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Stopped())
    document, _ = search(tmp_path / "run", Fond())
    assert document["chosen"] == search(tmp_path / "other", Fond())[0]["chosen"]
    assert document["learning_rate"]["taken"] == 0.25


def test_what_kills_its_process_while_rates_are_tried_is_given_up(tmp_path: Path) -> None:
    class Large(NullTrainer):
        def train(self, job: Job) -> Future[ProxyScore]:
            future = super().train(job)
            if tries_a_rate(job):
                future = Future()
                future.set_exception(BrokenProcessPool("a process was killed"))
            return future

    for _ in range(DEATHS):
        with pytest.raises(RunError, match="was killed"):
            search(tmp_path / "run", Large())
    trainer = Large()
    document, _ = search(tmp_path / "run", trainer)
    assert (tried(document), document["learning_rate"]["taken"]) == (12, 1.0)
    assert not any(map(tries_a_rate, trainer.jobs))


def test_a_finished_run_is_answered_from_its_folder_and_more_trials_extend_it(tmp_path: Path) -> None:
    folder, told = tmp_path / "run", Told()
    first, _ = search(folder)
    trainer = NullTrainer()
    again, _ = search(folder, trainer, told=told)
    assert again == json.loads(json.dumps(first))
    assert not trainer.jobs
    assert any("finished before" in line for line in told.said)
    more, _ = search(folder, trainer, trials=15)
    assert tried(more) == 15
    assert len(begun(trainer)) == 3


def test_another_run_does_not_get_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(folder)
    with pytest.raises(RunError, match=r"another run: .*seed \(1 there, 2 now\).*--out"):
        search(folder, seed=2)
    with pytest.raises(RunError, match="budget_ms"):
        search(folder, budget="501ms")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(RunError, match="not empty"):
        search(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot"):
        search(tmp_path / "file" / "run")


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"x": 1})
    with pytest.raises(RunError, match="another hwsearch is at work"):
        Run(tmp_path / "run", {"x": 1})
    run.close()
    Run(tmp_path / "run", {"x": 1}).close()


def test_nothing_fits_is_said_with_the_nearest_miss_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(NothingFits, match=r"nothing fits 5.00 ms.*smallest student.*Raise --budget") as miss:
        search(tmp_path / "run", budget="5ms")
    assert miss.value.exit_status == 3
    assert miss.value.details["chosen"] is None
    assert miss.value.details["nearest"]["latency"]["high_ms"] > 5
    assert not (tmp_path / "run").exists()


def test_what_fits_in_the_fastest_precision_fits() -> None:
    """int8 is slower than fp16 for a single small input: the nearest miss goes by time, not by bits."""
    orin = find_profile("jetson-orin")

    def plan(budget_ms: float) -> Plan:
        return Plan(Wishes(Budget(ms=budget_ms), Workload()), orin, orin.target(), TEACHER)

    smallest = plan(1.0).space.smallest
    highs = plan(1.0).price(smallest).high_ms
    assert len(smallest) == 2
    assert highs[0] != highs[1]
    plan(float(highs.min()) * 1.001).check()
    with pytest.raises(NothingFits) as miss:
        plan(float(highs.min()) * 0.999).check()
    assert miss.value.details.architecture == smallest[int(highs.argmin())]


def test_a_tight_budget_is_filled_before_the_space_is_called_used_up(tmp_path: Path) -> None:
    orin = find_profile("jetson-orin")
    plan = Plan(Wishes(Budget(ms=1.0), BULK), orin, orin.target(), TEACHER)
    least = float(plan.price(plan.space.smallest).high_ms.min())
    document, outcome = search(tmp_path / "run", budget=f"{1.05 * least}ms")
    assert outcome is not None
    space = plan.space
    shapes = [
        space.build(depth, width, pair, ffn, [(p, p)] * depth)
        for depth in space.depths
        for width in space.widths
        for pair in space.heads
        if space.fits(width, pair)
        for ffn in space.ffns
        for p in space.precisions
    ]
    fitting = int((plan.price(shapes).high_ms <= 1.05 * least).sum())
    assert tried(document) >= min(12, fitting)


def test_a_teacher_that_fits_is_the_answer(tmp_path: Path) -> None:
    told = Told()
    document, outcome = search(tmp_path / "run", budget="10s", told=told)
    assert outcome is None
    assert any("the teacher itself fits" in line for line in told.said)
    assert document["teacher"]["fits"]
    assert document["chosen"]["retention"] == 1.0
    assert document["chosen"]["architecture"]["depth"] == 6
    assert not (tmp_path / "run").exists()


def test_least_quality_picks_the_fastest_that_has_it(tmp_path: Path) -> None:
    best, outcome = search(tmp_path / "a")
    assert outcome is not None
    retentions = sorted(r.retention or 0 for r in outcome.finalists)
    wanted, _ = search(tmp_path / "b", min_quality=retentions[0])
    assert wanted["chosen"]["latency"]["median_ms"] <= best["chosen"]["latency"]["median_ms"]
    # Finalists lie where the wish does.
    passed = front([r for r in outcome.trials if r.steps == max(t.steps for t in outcome.trials)])
    slowest, fastest = passed[-1].retention or 0.0, passed[0].retention or 0.0
    for at, least in (("near", slowest), ("far", fastest)):
        _, found = search(tmp_path / at, min_quality=least)
        assert found is not None
        assert {r.trial for r in found.finalists} == {r.trial for r in about(passed, least, 3)}
    assert {r.trial for r in about(passed, slowest, 3)} != {r.trial for r in about(passed, fastest, 3)}
    none, _ = search(tmp_path / "c", min_quality=0.999)
    assert none["chosen"] is None
    assert none["front"]


def test_limits_of_size_are_kept(tmp_path: Path) -> None:
    _, outcome = search(tmp_path / "run", max_size_mib=0.6)
    assert outcome is not None
    assert all(trial.size_mib <= 0.6 for trial in outcome.trials)
    with pytest.raises(NothingFits, match="limits of size"):
        search(tmp_path / "other", max_size_mib=0.01)


def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, finished: tuple[Path, dict[str, Any], Outcome]
) -> None:
    """Proposals depend on how many were under way when the run began: that is remembered."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(folder, Dying(10))
    document, _ = search(folder, NullTrainer(count=5))
    assert document["front"] == finished[1]["front"]
    assert document["chosen"] == finished[1]["chosen"]


def measurer(ratio: float) -> NullMeasurer:
    profile = find_profile("jetson-orin")
    return NullMeasurer(Estimator(profile, profile.target(), BULK), ratio)


def test_finalists_are_measured_and_those_that_overshoot_are_replaced(tmp_path: Path) -> None:
    told, ruler = Told(), scattering("b", 1.3, 1.7)
    document, outcome = search(tmp_path / "run", told=told, measurer=ruler)
    assert outcome is not None
    assert outcome.overshot
    assert outcome.finalists
    assert any("Measure it anew" in line for line in told.said)
    assert not {r.trial for r in outcome.overshot} & {r.trial for r in outcome.finalists}
    assert all(r.latency.high_ms > 500 for r in outcome.overshot)
    expected = {r.trial: r.expected_loss or 0.0 for r in outcome.trials}
    seen = [expected.pop(r.trial) for r in (*outcome.overshot, *outcome.finalists)]
    assert max(seen) <= min(expected.values())  # by the next best, whatever they take
    # Those that were to be finalists were tried smaller, as what was measured of them says.
    smaller = [r for r in outcome.trials if (r.trial or 0) >= 12]
    assert 1 <= len(smaller) <= 9
    assert len({r.architecture for r in outcome.trials}) == len(outcome.trials)
    assert max(r.latency.median_ms for r in smaller) > 0.8 * 500
    for finalist in (*document["finalists"], *document["overshot"]):
        ratio = ruler.scale(Architecture.from_json(finalist["result"]["architecture"]))
        assert finalist["measured_ms"] == pytest.approx(ratio * finalist["predicted_ms"], rel=1e-6)
    assert all(finalist["result"]["latency"]["source"] == "measured" for finalist in document["finalists"])
    assert document["chosen"]["latency"]["source"] == "measured"
    assert document["chosen"]["latency"]["high_ms"] <= 500
    assert sum(document["chosen"]["latency"]["ops"].values()) == pytest.approx(
        document["chosen"]["latency"]["median_ms"], rel=0.01
    )
    over = [text.split()[1] for text in told.said if "over the budget" in text]
    assert len(over) == len(set(over)) >= len(outcome.overshot)
    assert {str(r.trial) for r in outcome.overshot} <= set(over)
    # What was measured is fed back: the other trials' estimates have moved towards it.
    _, before = search(tmp_path / "other")
    assert before is not None
    was = {r.architecture: r.latency.median_ms for r in before.trials}
    others = [r for r in outcome.trials if r.predicted is None and r.architecture in was]
    moved = [r.latency.median_ms / was[r.architecture] for r in others]
    assert moved
    assert all(1.3 < factor < 1.7 for factor in moved), moved
    # Those made by hand are measured too.
    assert all(r["latency"]["source"] == "measured" for r in document["baselines"].values())


def test_a_share_is_of_the_teacher_as_it_was_measured(tmp_path: Path) -> None:
    told, ruler = Told(), measurer(1.4)
    document, _ = search(tmp_path / "run", told=told, measurer=ruler, budget="0.4x")
    estimated, _ = search(tmp_path / "estimated", budget="0.4x", dry=True)
    assert document["budget_ms"] == pytest.approx(1.4 * estimated["budget_ms"])
    assert document["budget_ms"] == pytest.approx(0.4 * document["teacher"]["latency"]["median_ms"])
    assert document["teacher"]["latency"]["source"] == "measured"
    assert sum(document["teacher"]["latency"]["ops"].values()) == pytest.approx(document["budget_ms"] / 0.4)
    assert any(text.startswith("teacher: ") and "; measured)" in text for text in told.said)
    study = Study(tmp_path / "run" / "study.db", "run", make=False)
    assert study.described()["wishes"]["budget"]["ms"] == document["budget_ms"]  # what workers share
    study.close()


def test_what_was_measured_of_a_teacher_is_kept_for_what_measured_it(tmp_path: Path) -> None:
    first, second, other = measurer(1.4), measurer(99.0), measurer(1.5)
    first.subject = second.subject = f"one of {tmp_path.name}"
    other.subject = f"another of {tmp_path.name}"
    budgets = [
        search(tmp_path / str(i), measurer=ruler, budget="0.4x", dry=True)[0]["budget_ms"]
        for i, ruler in enumerate((first, second, other))
    ]
    assert budgets[0] == budgets[1] == pytest.approx(1.4 / 1.5 * budgets[2])
    assert first.measured
    assert not second.measured


def test_a_teacher_that_no_graph_holds_is_estimated() -> None:
    huge = replace(TEACHER, vocab=8_000_000)
    profile, ruler = find_profile("jetson-orin"), measurer(1.4)
    assert measured_teacher(profile, profile.target(), BULK, huge, ruler, Told()) == {}
    assert not ruler.measured


def test_what_no_graph_or_memory_holds_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sorted(r.architecture.size_mib for r in search(tmp_path / "any")[1].trials)  # type: ignore[union-attr]
    monkeypatch.setattr("hwsearch.search.measured.LARGEST_MIB", sizes[len(sizes) // 2])
    ruler = measurer(1.4)
    document, outcome = search(tmp_path / "run", measurer=ruler)
    assert outcome is not None
    assert ruler.measured
    assert all(replace(a, tied=False).size_mib <= sizes[len(sizes) // 2] for a in ruler.measured)
    ran = {a.digest for a in ruler.measured}
    for finalist, result in zip(document["finalists"], outcome.finalists, strict=True):
        assert (finalist["measured_ms"] is None) == (result.architecture.digest not in ran)
    rows = [replace(TEACHER, vocab=vocab) for vocab in (100, 200, 300, 90_000)]
    assert list(map(len, _batches(rows, 1.05 * sum(map(_weights_mib, rows[:2]))))) == [2, 1, 1]


@pytest.mark.parametrize("what", ["the teacher", "students"])
def test_what_cannot_be_measured_is_one_clear_line(tmp_path: Path, what: str) -> None:
    class Full(NullMeasurer):
        def measure(self, architectures: Sequence[Architecture], *_: Any) -> list[Latency]:
            if what == "students" and architectures[0].depth == TEACHER.depth == architectures[-1].depth:
                return super().measure(architectures)
            raise ValueError("the graph exceeds 2 GiB")

    profile = find_profile("jetson-orin")
    with pytest.raises(RunError, match=f"measuring {what} was stopped: ValueError: the graph exceeds 2 GiB"):
        search(tmp_path / "run", measurer=Full(Estimator(profile, profile.target(), BULK)))


@pytest.mark.parametrize("name", ["measured.json", "summary.json"])
@pytest.mark.parametrize("text", ['{"abc": 5}', '{"abc": {"median_ms": 1}}', '{"asked_trials": 99}', "[]", "{"])
def test_damaged_files_of_a_run_are_one_clear_line(tmp_path: Path, name: str, text: str) -> None:
    whole, _ = search(tmp_path / "run", measurer=measurer(1.4))
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(RunError, match=f"{name}.*delete it"):
        search(tmp_path / "run", measurer=measurer(1.4))
    (tmp_path / "run" / name).unlink()
    assert essence(search(tmp_path / "run", measurer=measurer(1.4))[0]) == essence(whole)


def test_the_runs_own_file_is_no_storage_beside_it(tmp_path: Path) -> None:
    own = tmp_path / "run" / "study.db"
    for address in (str(own), f"sqlite:///{own}"):
        with pytest.raises(RunError, match="the run's own: the study lies there without --storage"):
            search(tmp_path / "run", storage=address)
    assert not own.exists()


def test_a_run_in_the_folder_that_it_was_started_in_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert search(Path())[0]["study"] == "here"


class Scaled(NullMeasurer):
    """What is measured is what is estimated, times what `scale` says of the architecture."""

    def __init__(self, scale: Callable[[Architecture], float]) -> None:
        profile = find_profile("jetson-orin")
        super().__init__(Estimator(profile, profile.target(), BULK))
        self.scale = scale

    def measure(
        self, architectures: Sequence[Architecture], progress: Callable[[float], None] = lambda _: None
    ) -> list[Latency]:
        found = zip(super().measure(architectures, progress), map(self.scale, architectures), strict=True)
        return [
            replace(one, median_ms=s * one.median_ms, low_ms=s * one.low_ms, high_ms=s * one.high_ms)
            for one, s in found
        ]


def deep(depth: int) -> Scaled:
    """What is of one depth is faster than estimated."""
    return Scaled(lambda a: 0.7 if a.depth == depth else 1.0)


def scattering(salt: str, low: float = 0.55, high: float = 0.9) -> Scaled:
    """What is measured lies somewhere between two shares of what is estimated, by the architecture."""
    return Scaled(lambda a: low + (high - low) * hashlib.sha256((salt + a.digest).encode()).digest()[0] / 255)


def test_finalists_that_leave_room_are_tried_larger_until_they_do_not(tmp_path: Path) -> None:
    ruler = deep(4)
    _, outcome = search(tmp_path / "run", measurer=ruler, budget="270ms")
    assert outcome is not None
    assert outcome.chosen is not None
    before = [r for r in outcome.trials if (r.trial or 0) < 12 and r.predicted and r.architecture.depth == 4]
    assert before
    assert all(r.latency.high_ms < outcome.chosen.latency.high_ms <= 270 for r in before)
    larger = [r for r in outcome.trials if (r.trial or 0) >= 12 and r.architecture.depth == 4]
    filled = [r.latency.high_ms / 270 for r in larger]
    assert len(larger) > 1  # the first left room again
    assert filled == sorted(filled)
    assert filled[0] < 0.93 < filled[-1] <= 1.0
    assert outcome.chosen.trial == larger[-1].trial
    assert outcome.chosen.predicted is not None
    assert outcome.chosen.predicted.median_ms > 270  # what was measured of its like said that it fits
    again, same = search(tmp_path / "run", measurer=ruler, budget="270ms")
    assert same is None
    assert again["chosen"]["architecture"]["id"] == outcome.chosen.architecture.id
    assert again["asked_trials"] == 12
    _, more = search(tmp_path / "run", measurer=ruler, budget="270ms", trials=14)
    assert more is not None
    assert len(more.trials) >= len(outcome.trials) + 2  # those in another size are none of the 14
    _, fastest = search(tmp_path / "fastest", measurer=ruler, budget="270ms", min_quality=0.3)
    assert fastest is not None
    assert len(fastest.trials) == 12  # the fastest is looked for: none is tried larger


@pytest.mark.parametrize(
    ("left", "ruler"),
    [
        (1, deep(4)),
        (3, deep(4)),
        (6, deep(4)),
        (9, scattering("c")),
        (8, scattering("e")),
        (5, scattering("e")),
        (5, scattering("f")),
    ],
)
def test_a_run_that_was_killed_while_finalists_are_resized_ends_alike(
    tmp_path: Path, left: int, ruler: NullMeasurer
) -> None:
    whole = NullTrainer()
    undisturbed, outcome = search(tmp_path / "whole", whole, measurer=ruler, budget="300ms")
    assert outcome is not None
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", Dying(len(students(whole)) - left), measurer=ruler, budget="300ms")
    taken_up, resumed = search(tmp_path / "cut", measurer=ruler, budget="300ms")
    assert resumed is not None
    assert taken_up["trials"] == undisturbed["trials"]
    assert [r.architecture for r in resumed.trials] == [r.architecture for r in outcome.trials]
    assert [r.trial for r in resumed.finalists] == [r.trial for r in outcome.finalists]
    assert resumed.chosen == outcome.chosen
    now, before = ([r.latency.median_ms for r in o.trials] for o in (resumed, outcome))
    assert now == pytest.approx(before)
    # What is read back has the prices of the run's end.
    stored = {r.trial: r.latency.median_ms for r in stored_trials(tmp_path / "cut")}
    assert stored == {r.trial: pytest.approx(r.latency.median_ms) for r in resumed.trials}


def test_any_seed_will_do(tmp_path: Path) -> None:
    _, outcome = search(tmp_path / "run", seed=2**40 + 7, trials=16)
    assert outcome is not None
    assert len(outcome.trials) == 16


def test_hand_made_students_take_as_long_as_the_chosen_one_when_they_are_run(tmp_path: Path) -> None:
    _, outcome = search(tmp_path / "run", measurer=deep(TEACHER.depth), depths=(2, 3))
    assert outcome is not None
    assert outcome.chosen is not None
    latency_ms = outcome.chosen.latency.median_ms
    for name, result in outcome.baselines.items():
        assert 0.85 * latency_ms < result.latency.median_ms, name
        assert result.latency.low_ms <= latency_ms, name


def test_nothing_is_chosen_when_nothing_holds_the_budget_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(NothingFits, match="nothing fits"):
        search(tmp_path / "other", measurer=measurer(50.0))

    class Slowing(NullMeasurer):
        """After what is measured before the trials everything is slower still."""

        def measure(
            self, architectures: Sequence[Architecture], progress: Callable[[float], None] = lambda _: None
        ) -> list[Latency]:
            found = super().measure(architectures, progress)
            if architectures[0].width < TEACHER.width:
                self.ratio = 50.0
            return found

    profile = find_profile("jetson-orin")
    ruler = Slowing(Estimator(profile, profile.target(), BULK), 8.0)
    document, outcome = search(tmp_path / "run", measurer=ruler, budget="1200ms")
    assert outcome is not None
    assert document["chosen"] is None
    assert not outcome.finalists
    assert len(outcome.overshot) == len(outcome.trials)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first, second = measurer(1.4), measurer(99.0)
    first.subject = second.subject = tmp_path.name

    class Dead(NullTrainer):
        def train(self, job: Job) -> Future[ProxyScore]:
            if job.cool_from is not None and not tries_a_rate(job):
                raise KeyboardInterrupt
            return super().train(job)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dead(), measurer=first)
    assert first.measured
    document, _ = search(tmp_path / "run", measurer=second)
    assert not {a.digest for a in first.measured} & {a.digest for a in second.measured}
    assert document["finalists"][0]["measured_ms"] == pytest.approx(1.4 * document["finalists"][0]["predicted_ms"])


def test_a_run_whose_folder_has_moved_keeps_its_trials(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dying(9))
    kept = len(stored_trials(tmp_path / "run"))
    assert kept
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    trainer = NullTrainer()
    document, _ = search(tmp_path / "elsewhere", trainer)
    assert document["study"] == "run"  # as it is called in its storage
    assert tried(document) == 12
    assert len(begun(trainer)) <= 12 - kept


def test_minutes_end_the_trials_and_the_same_command_goes_on(tmp_path: Path) -> None:
    short, _ = search(tmp_path / "run", minutes=1e-9)
    assert tried(short) == 1  # the first is always tried
    whole, _ = search(tmp_path / "run")
    assert tried(whole) == 12


def test_what_time_left_waiting_goes_on_with_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    late = [0.0]
    monkeypatch.setattr("time.time", lambda: now() + late[0])

    class Long(NullTrainer):
        """The minutes are over as the last trial begins, before any may go on to the last rung."""

        def train(self, job: Job) -> Future[ProxyScore]:
            late[0] = 3600.0 * (len({one.architecture for one in students(self)}) >= 11)
            return super().train(job)

    short, _ = search(tmp_path / "run", Long(), minutes=30)
    assert tried(short) == 12
    longer = NullTrainer()
    whole, _ = search(tmp_path / "run", longer)
    assert students(longer)
    assert essence(whole) == essence(search(tmp_path / "undisturbed")[0])
    again = NullTrainer()
    assert essence(search(tmp_path / "run", again)[0]) == essence(whole)
    assert not again.jobs


def test_a_session_that_time_ended_tries_no_other_size_and_leaves_that_to_the_next(tmp_path: Path) -> None:
    def one() -> dict[str, Any]:
        return {"measurer": scattering("a"), "budget": "290ms"}

    undisturbed, _ = search(tmp_path / "undisturbed", **one())
    assert tried(undisturbed) > 12
    short, _ = search(tmp_path / "run", minutes=1e-9, **one())
    assert tried(short) == 1
    whole, _ = search(tmp_path / "run", **one())
    assert whole["asked_trials"] == 12
    assert (tried(whole), essence(whole)) == (tried(undisturbed), essence(undisturbed))


def test_time_that_ends_before_another_size_is_tried_leaves_that_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, late, pick = time.time, [0.0], Engine._to_be_resized
    monkeypatch.setattr("time.time", lambda: now() + late[0])

    def picked(*asked: Any) -> Any:
        late[0] += 3600.0
        return pick(*asked)

    undisturbed, _ = search(tmp_path / "undisturbed", measurer=scattering("c"), budget="300ms")
    assert tried(undisturbed) > 12
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_to_be_resized", picked)
        short, _ = search(tmp_path / "run", measurer=scattering("c"), budget="300ms", minutes=30)
    assert (tried(short), short["asked_trials"]) == (12, 11)
    whole, _ = search(tmp_path / "run", measurer=scattering("c"), budget="300ms")
    assert (tried(whole), essence(whole)) == (tried(undisturbed), essence(undisturbed))


class Killed(NullTrainer):
    """Its process is gone from its `last` job on."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def train(self, job: Job) -> Future[ProxyScore]:
        future = super().train(job)
        if len(students(self)) > self.last:
            future = Future()
            future.set_exception(BrokenProcessPool("a process was killed"))
        return future


@pytest.mark.parametrize("last", [0, 5, 12, 16])
def test_a_killed_process_is_one_clear_line_at_any_time(tmp_path: Path, last: int) -> None:
    with pytest.raises(RunError, match=r"was killed.*the same command goes on"):
        search(tmp_path / "run", Killed(last))
    document, _ = search(tmp_path / "run")
    assert (tried(document), document["trials"]["failed"]) == (12, 0)


def test_a_run_whose_student_could_not_be_written_answers_and_writes_it_anew(tmp_path: Path) -> None:
    def stopped(*_: object) -> None:
        raise RunError("the work was stopped: ValueError: in an exporter; the same command goes on from there")

    folder, trainer = tmp_path / "run", NullTrainer()
    with pytest.raises(RunError, match="in an exporter"):
        search(folder, deliver=stopped)
    assert stored_summary(folder)["chosen"] is not None
    document, outcome = search(folder, trainer)
    assert outcome is not None  # it was delivered
    assert not begun(trainer)
    assert document["asked_trials"] == 12


def test_progress_of_a_run_that_is_taken_up_again_counts_what_is_left(tmp_path: Path) -> None:
    whole = NullTrainer()
    search(tmp_path / "whole", whole)
    last = max(i for i, job in enumerate(students(whole)) if job.steps == 160)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", Dying(last + 1))  # all trials are begun
    totals = set[float | None]()

    class Shown(Told):
        def at(self, done: float, total: float | None = None, note: str = "") -> None:
            if "stage full training" not in self.said and note.startswith("trial"):
                totals.add(total)

    class Slow(NullTrainer):
        def train(self, job: Job) -> Future[ProxyScore]:
            found, future = super().train(job).result(), Future[ProxyScore]()
            threading.Timer(0.6, future.set_result, [found]).start()
            return future

    search(tmp_path / "cut", Slow(), told=Shown())
    assert totals
    assert all(totals)


def test_what_kills_its_process_again_and_again_is_given_up(tmp_path: Path) -> None:
    for _ in range(DEATHS):
        with pytest.raises(RunError, match="was killed"):
            search(tmp_path / "run", Killed(0))
    document, _ = search(tmp_path / "run")
    assert tried(document) + document["trials"]["failed"] == 12
    study = Study(tmp_path / "run" / "study.db", "run")
    failed = [trial for trial in study.trials() if trial.reason]
    study.close()
    assert [trial.number for trial in failed] == [0, 1]  # the two that were under way
    assert "3 times what trained it was killed" in failed[0].reason


class Short(NullTrainer):
    """Of memory, for some jobs."""

    def __init__(self, some: Callable[[Job], object]) -> None:
        super().__init__()
        self.some = some

    def train(self, job: Job) -> Future[ProxyScore]:
        future = super().train(job)
        if self.some(job):
            future = Future()
            future.set_exception(RunError("not enough memory: you tried to allocate 40 GiB"))
        return future


def test_students_by_hand_that_cannot_be_trained_do_not_keep_the_answer_back(tmp_path: Path) -> None:
    def by_hand(job: Job) -> object:
        return job.layers

    for _ in range(DEATHS):
        with pytest.raises(RunError, match="40 GiB"):
            search(tmp_path / "run", Short(by_hand))
    document, outcome = search(tmp_path / "run", Short(by_hand))
    assert document["chosen"]["architecture"]["id"] == search(tmp_path / "sound")[0]["chosen"]["architecture"]["id"]
    assert outcome is not None
    assert not outcome.baselines
    assert "3 times training stopped" in outcome.missing_baselines["every other layer"]


def test_what_ends_with_an_error_again_and_again_is_given_up_alone(tmp_path: Path) -> None:
    def second(job: Job) -> object:
        return Path(job.path).name.startswith("1-")

    for _ in range(DEATHS):
        with pytest.raises(RunError, match="40 GiB"):
            search(tmp_path / "run", Short(second))
    document, _ = search(tmp_path / "run", Short(second))
    assert (document["trials"]["failed"], tried(document)) == (1, 11)
    study = Study(tmp_path / "run" / "study.db", "run")
    (failed,) = (trial for trial in study.trials() if trial.reason)
    study.close()
    assert failed.number == 1
    assert "ended with an error" in failed.reason


def test_results_are_seen_in_the_order_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Trial] = []
    passed = Study.passed

    def noted(self: Study, trial: Trial, result: Any) -> Trial:
        seen.append(trial)
        return passed(self, trial, result)

    monkeypatch.setattr(Study, "passed", noted)
    search(tmp_path / "run")
    assert [trial.due for trial in seen] == sorted(trial.due for trial in seen)
    begun_at = [trial.number for trial in seen if not trial.losses]
    assert begun_at != sorted(begun_at)  # a small student does not wait for a large one that was begun before it


class FailingLong(NullTrainer):
    """One finalist and one hand-made student cannot be trained."""

    def train(self, job: Job) -> Future[ProxyScore]:
        future = super().train(job)
        if sum(j.cool_from is not None for j in students(self)) in (2, 5) and job in students(self)[-1:]:
            future = Future()
            future.set_exception(TrainingError("the training diverged"))
        return future


def test_long_runs_that_fail_are_left_out(tmp_path: Path) -> None:
    document, outcome = search(tmp_path / "run", FailingLong())
    assert outcome is not None
    assert len(outcome.finalists) == 2
    assert document["missing_baselines"]["every other layer"] == "the training diverged"
    assert set(document["baselines"]) == {"uniform width"}


class Failing(NullTrainer):
    """Some students diverge, some fail."""

    def train(self, job: Job) -> Future[ProxyScore]:
        future = super().train(job)
        if job in begun(self) and len(begun(self)) % 5 == 2:
            future = Future()
            future.set_exception(TrainingError("out of numbers"))
        return future


def test_failed_trials_are_counted_and_kept_apart(tmp_path: Path) -> None:
    document, outcome = search(tmp_path / "run", Failing())
    assert document["trials"]["failed"] == 3
    assert tried(document) == 9
    assert outcome is not None
    study = Study(tmp_path / "run" / "study.db", "run")
    assert [trial.reason for trial in study.trials() if trial.result is None] == ["out of numbers"] * 3
    study.close()


def test_a_study_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(folder)
    study = Study(folder / "study.db", "run")
    spec = study.described()["spec"]
    study.describe(spec={**spec, "later": 1})
    with pytest.raises(RunError, match=r"was begun by hwsearch .*: Object contains unknown field `later`"):
        Description(study)
    study.close()
    with pytest.raises(RunError, match="unknown field `later`"):
        student_of(folder)


def test_a_study_that_was_damaged_is_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(folder)
    content = bytearray((folder / "study.db").read_bytes())
    content[9 * 4096 : 20 * 4096] = b"\x5a" * (11 * 4096)
    (folder / "study.db").write_bytes(content)
    with pytest.raises(RunError, match=r"study\.db cannot be reached any more|is not a study that can be opened"):
        stored_trials(folder)


def test_a_study_of_another_program_is_refused(tmp_path: Path) -> None:
    import optuna

    folder = tmp_path / "run"
    search(folder)
    (folder / "summary.json").unlink()
    (folder / "study.db").write_bytes(b"this is no database, although it has the name of one" * 100)
    with pytest.raises(RunError, match="not a study"):
        search(folder)
    (folder / "study.db").unlink()
    foreign = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}", study_name="run", directions=["minimize", "minimize"]
    )
    foreign.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    with pytest.raises(RunError, match="no record of hwsearch"):
        search(folder)


def test_a_space_that_is_used_up_ends_the_trials(tmp_path: Path) -> None:
    told = Told()
    document, _ = search(
        tmp_path / "run",
        told=told,
        trials=200,
        depths=(2,),
        widths=(64, 96),
        ffns=(128, 160),
        precisions=None,
        heads=(2,),
    )
    assert 4 <= tried(document) < 200
    assert any("used up" in line for line in told.said)


def test_fronts() -> None:
    _, outcome = search_cached()
    best = front(outcome.trials)
    for r in best:
        assert not any(
            o.latency.median_ms <= r.latency.median_ms and (o.loss or 0) < (r.loss or 0) for o in outcome.trials
        )
    assert len(best) > 4
    retained = [r.retention or 0.0 for r in best]
    assert retained == sorted(retained)
    assert about(best, retained[3], 3) == best[1:4]  # the fastest that retains so much, and faster ones
    assert about(best, retained[0], 3) == about(best, 0.0, 3) == best[:3]
    assert about(best, 1.0, 3) == best[-3:]
    assert about(best[:2], 1.0, 3) == best[:2]
    assert about([], 0.5, 3) == []


def search_cached() -> tuple[dict[str, Any], Outcome]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        document, outcome = search(Path(folder) / "run")
    assert outcome is not None
    return document, outcome


if __name__ == "__main__":
    import tempfile

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(essence(golden_search(Path(folder))), indent=2) + "\n")

"""Workers beside the main job, on the null score."""

import math
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from msgspec.structs import replace

from hwsearch.distill.job import Facts, Job, ProxyScore
from hwsearch.errors import RunError
from hwsearch.files import read_json
from hwsearch.search.description import Description
from hwsearch.search.null import NullTrainer
from hwsearch.search.owner import membership
from hwsearch.search.result import scored
from hwsearch.search.study import Study
from hwsearch.search.trial import Trial
from hwsearch.search.trials import Climb, Trials
from hwsearch.search.worker import join
from tests.search.test_engine import Dying, Told, begun, scattering, search, tried


@pytest.mark.parametrize("last", [1, 7, 14])
def test_a_worker_finishes_what_a_killed_main_job_began(tmp_path: Path, last: int) -> None:
    folder = tmp_path / "run"
    main, helper, after = Dying(last), NullTrainer(), NullTrainer()
    with pytest.raises(KeyboardInterrupt):
        search(folder, main)
    study = Study(f"sqlite:///{folder / 'study.db'}", "run", make=False)
    found = join(study, lambda _: helper, Told())
    assert found == {"study": "run", "rungs": len(helper.jobs), "trials": 12}
    assert len({trial.architecture for trial in study.trials()}) == 12
    assert all(trial.ended for trial in study.trials())
    study.close()
    document, _ = search(folder, after)
    assert tried(document) == 12
    assert not begun(after)
    trained = [(job.path, job.steps) for job in (*main.jobs, *helper.jobs)]
    assert len(trained) - len(set(trained)) <= 2  # what was under way when it was killed
    assert {job.path.rsplit("/", 1)[0] for job in helper.jobs} == {str((folder / "students").resolve())}


def test_what_a_worker_refused_is_counted_too(tmp_path: Path) -> None:
    folder, helper = tmp_path / "run", NullTrainer()

    def help_out() -> None:
        study = Study(f"sqlite:///{folder / 'study.db'}", "run", make=False)
        join(study, lambda _: helper, Told())
        study.close()

    thread = threading.Thread(target=help_out)

    class Helped(NullTrainer):
        """A worker joins after some jobs, and has begun some of its own before this goes on."""

        def train(self, job: Job) -> Future[ProxyScore]:
            if len(self.jobs) == 5:
                thread.start()
                until = time.monotonic() + 60
                while len(helper.jobs) < 3 and time.monotonic() < until:
                    time.sleep(0.01)
            return super().train(job)

    document, _ = search(folder, Helped())
    thread.join()
    assert helper.jobs
    (folder / "summary.json").unlink()
    assert search(folder)[0]["trials"] == document["trials"]


def test_a_storage_of_its_own_and_a_folder_that_holds_all(tmp_path: Path) -> None:
    from hwsearch.search.finished import stored_trials

    url = f"sqlite:///{tmp_path / 'shared.db'}"
    document = storage_search(tmp_path / "run", url, "orin")
    assert document["study"] == "orin"
    assert len(stored_trials(tmp_path / "run")) == tried(document)
    with pytest.raises(RunError, match=r"study 'orin' is of another search: seed.*--study"):
        storage_search(tmp_path / "other", url, "orin", seed=5)


def storage_search(folder: Path, storage: str, name: str, **wishes: int) -> dict[str, object]:
    from hwsearch.distill.job import TaskSpec
    from hwsearch.profiles import find_profile
    from hwsearch.search.main_job import run_search
    from hwsearch.search.plan import Wishes
    from hwsearch.units import Budget
    from tests.search.test_engine import BULK

    profile = find_profile("jetson-orin")
    asked = Wishes(budget=Budget(ms=500.0), workload=BULK, **{"trials": 6, **wishes})
    return run_search(
        profile,
        profile.target(),
        asked,
        TaskSpec(),
        NullTrainer(),
        Told(),
        lambda *_: None,
        folder,
        storage=storage,
        name=name,
    )[1]


def test_a_run_goes_on_in_another_storage_from_where_it_is(tmp_path: Path) -> None:
    from hwsearch.search.finished import stored_trials

    folder, url = tmp_path / "run", f"sqlite:///{tmp_path / 'shared.db'}"
    search(folder)
    before = [(r.trial, r.architecture) for r in stored_trials(folder)]
    moved = NullTrainer()
    search(folder, moved, storage=url, trials=16)
    assert len(begun(moved)) == 4
    after = [(r.trial, r.architecture) for r in stored_trials(folder)]
    assert after[: len(before)] == before
    assert len(after) == 16
    search(folder, trials=20)
    with pytest.raises(RunError, match=r"study\.db has 20 trials of this search, study 'run' in sqlite.* 16; leave"):
        search(folder, storage=url, trials=21)
    assert len(stored_trials(folder)) == 20


def test_a_run_whose_study_lies_elsewhere_is_not_begun_anew(tmp_path: Path) -> None:
    folder, url = tmp_path / "run", f"sqlite:///{tmp_path / 'shared.db'}"

    class Keeping(Dying):
        """Leaves states in training."""

        def train(self, job: Job) -> Future[ProxyScore]:
            Path(job.path).parent.mkdir(exist_ok=True)
            Path(job.path).touch()
            return super().train(job)

    with pytest.raises(KeyboardInterrupt):
        search(folder, Keeping(5), storage=url)
    with pytest.raises(
        RunError, match=r"students in training and no study\.db: if its study lies in a --storage, name"
    ):
        search(folder)
    assert tried(search(folder, storage=url)[0]) == 12


def test_a_worker_of_an_earlier_session_hears_what_is_asked_now(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(folder, trials=6, minutes=0.0)
    study, helper = Study(folder / "study.db", "run"), NullTrainer()
    study.describe(until=time.time() - 1)

    def late(spec: object) -> NullTrainer:
        """The main job's next session begins while this one loads its teacher."""
        known = study.described()
        study.describe(wishes={**known["wishes"], "trials": 14}, until=None)
        return helper

    assert join(study, late, Told())["trials"] == 14
    assert len(begun(helper)) >= 8
    study.close()


class Stranger(NullTrainer):
    """Has another text."""

    def _facts(self) -> Facts:
        facts = super()._facts()
        return Facts("null-teacher", "1" * 16, facts.architecture, "other text", 2, quality=0.6, layers=facts.layers)


def test_a_worker_with_another_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dying(3))
    study = Study(tmp_path / "run" / "study.db", "run")
    with pytest.raises(RunError, match=r"other teacher, text or recipe .*--teacher"):
        join(study, lambda _: Stranger(), Told())
    study.close()
    empty = Study(tmp_path / "empty.db", "empty")
    with pytest.raises(RunError, match="not begun by hwsearch search"):
        join(empty, lambda _: NullTrainer(), Told())
    empty.close()


def test_a_worker_does_not_wait_for_a_main_job_that_died_before_its_first_trial(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dying(3))
    begun = Study(tmp_path / "run" / "study.db", "run")
    early = Study(tmp_path / "early.db", "early")
    early.describe(**{name: fact for name, fact in begun.described().items() if name != "began"})
    with pytest.raises(RunError, match=r"main job of study 'early' ended before its first trial"):
        join(early, lambda _: NullTrainer(), Told())
    begun.close()
    early.close()


def test_a_worker_prices_by_what_the_main_job_has_measured(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dying(3), measurer=scattering("a"))
    study = Study(tmp_path / "run" / "study.db", "run")
    _, plan = Description(study).open(NullTrainer(), Told())
    measured = read_json(tmp_path / "run" / "measured.json")
    assert {architecture.digest for architecture in plan.price.learned} == set(measured)
    for architecture, ratio in plan.price.learned.items():
        (estimated,) = plan.price.uncorrected([architecture]).median_ms
        assert estimated * math.exp(ratio) == pytest.approx(measured[architecture.digest]["median_ms"])
    study.close()


def test_the_main_jobs_minutes_are_the_workers_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dying(3), minutes=60)
    study = Study(tmp_path / "run" / "study.db", "run")
    study.describe(until=time.time() - 1)
    helper = NullTrainer()
    join(study, lambda _: helper, Told())
    assert len(helper.jobs) <= 2  # what was under way is finished, and nothing begun
    study.close()


def test_a_storage_that_goes_away_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dying(3))
    study = Study(tmp_path / "run" / "study.db", "run")

    class Cutting(NullTrainer):
        """The database is damaged while it trains."""

        def train(self, job: Job):  # type: ignore[no-untyped-def]
            (tmp_path / "run" / "study.db").write_bytes(b"nothing of the kind")
            return super().train(job)

    with pytest.raises(RunError, match=r"cannot be reached any more .*the same command goes on"):
        join(study, lambda _: Cutting(), Told())
    study.close()


def test_what_another_passes_while_nothing_is_left_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main job looked for work, the other's student passed its rung, the main job looked for others: and ended."""
    folder, others = tmp_path / "run", list[Trial]()
    studies, look = list[Study](), Trials._next

    class Joined(NullTrainer):
        """Another begins a student after some jobs."""

        def train(self, job: Job) -> Future[ProxyScore]:
            if len(self.jobs) == 4:
                studies.append(Study(folder / "study.db", "run", make=False))
                first = studies[0].trials()[0]
                layers = tuple(replace(layer, ffn=layer.ffn - 32) for layer in first.architecture.layers)
                narrower = replace(first.architecture, layers=layers)
                with studies[0].alone():
                    others.append(studies[0].begin(narrower, first.ms, first.settings, first.distributions, other))
            return super().train(job)

    def passed_after(self: Trials, owner: str) -> Climb | None:
        climb = look(self, owner)
        if climb is None and others and not others[0].losses:
            job = Job("", others[0].architecture, self.plan.wishes.steps)
            score = replace(NullTrainer().train(job).result(), loss=0.01)
            with studies[0].alone():
                priced = self.plan.priced(others[0].architecture, others[0].number)
                others[0] = studies[0].passed(others[0], scored(priced, score))
        return climb

    monkeypatch.setattr(Trials, "_next", passed_after)
    with membership() as other:
        document, _ = search(folder, Joined(count=1), steps=20)
        trials = studies[0].trials()
    studies[0].close()
    assert others[0].losses
    assert tried(document) == 12
    assert all(trial.ended for trial in trials)
    assert len(trials[others[0].number].losses) > 1


class Counting(NullTrainer):
    """Remembers the state that every climb goes on from."""

    def train(self, job: Job):  # type: ignore[no-untyped-def]
        Path(job.path).parent.mkdir(parents=True, exist_ok=True)
        Path(job.path).touch()
        return super().train(job)


def test_a_worker_elsewhere_keeps_its_students_where_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dying(3))
    study = Study(tmp_path / "run" / "study.db", "run")
    join(study, lambda _: Counting(), Told(), out=tmp_path / "mine")
    assert any((tmp_path / "mine" / "students").iterdir())
    study.close()


@pytest.mark.parametrize("form", ["sqlite:///{}", "{}"])
def test_a_storage_that_is_not_there_is_not_begun(tmp_path: Path, form: str) -> None:
    with pytest.raises(RunError, match="there is no such file"):
        Study(form.format(tmp_path / "typo.db"), "run", make=False)
    assert not list(tmp_path.iterdir())


def test_a_storage_that_goes_away_before_a_worker_begins_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", Dying(3))
    path = tmp_path / "run" / "study.db"
    study = Study(path, "run")
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match="cannot be reached any more"):
        join(study, lambda _: NullTrainer(), Told())
    study.close()

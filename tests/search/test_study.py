"""A study that several share: who owns what, and what is left when one is killed."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from msgspec.structs import replace

from hwsearch.errors import RunError
from hwsearch.profiles import find_profile
from hwsearch.search import study as module
from hwsearch.search.null import TEACHER
from hwsearch.search.owner import LEFT, membership
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.result import Result
from hwsearch.search.storage import public
from hwsearch.search.study import Study
from hwsearch.search.trial import Trial
from hwsearch.units import Budget
from hwsearch.workload import Workload


@pytest.fixture(params=["file", "url", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return {
        "file": tmp_path / "study.db",
        "url": f"sqlite:///{tmp_path / 'study.db'}",
        "journal": str(tmp_path / "study.log"),
    }[request.param]


def begun(study: Study, owner: str) -> Trial:
    return study.begin(TEACHER, 12.5, {}, {}, owner)


def scored() -> Result:
    orin = find_profile("jetson-orin")
    plan = Plan(Wishes(Budget(ms=500.0), Workload(64, 128, 0, 256)), orin, orin.target(), TEACHER)
    return Result(0, TEACHER, plan.price.one(TEACHER), 1.0, 2.0, loss=0.5, quality=0.4, retention=0.8, steps=160)


def test_a_trial_from_begin_to_end_is_read_as_it_was_written(storage: Path | str) -> None:
    study = Study(storage, "mine")
    with membership() as owner:
        trial = begun(study, owner)
        assert study.trials() == [trial]
        assert not trial.waits
        trial = study.passed(trial, scored())
        assert trial.waits
        trial = study.take(trial, owner)
        trial = study.passed(trial, scored())
        study.end(trial)
    other = Study(storage, "mine", make=False)
    (read,) = other.trials()
    assert read.losses == (0.5, 0.5)
    assert read.ended
    assert read.result == scored()
    assert read.architecture == TEACHER
    study.close()
    other.close()


def test_the_living_keep_their_trials_and_the_dead_lose_them(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", "mine")
    with membership() as owner:
        mine = begun(study, owner)
        assert not study.abandoned(mine)
    assert study.abandoned(mine)  # whoever it was has left, though the process is alive
    script = (
        "from hwsearch.search.study import *; from hwsearch.search.owner import *; import sys, time\n"
        "from hwsearch.search.null import TEACHER\n"
        f"study = Study(Path({str(tmp_path / 'study.db')!r}), 'mine')\n"
        "with membership() as owner:\n"
        "    study.begin(TEACHER, 1.0, {}, {}, owner); print('begun', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    theirs = study.trials()[1]
    assert not study.abandoned(theirs)
    child.kill()
    child.communicate()
    assert study.abandoned(theirs)
    with membership() as owner:
        assert not study.abandoned(study.take(theirs, owner))
    study.close()


def test_what_was_given_up_is_anybodys_at_once(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", "mine")
    with membership() as owner:
        begun(study, owner)
        study.leave(owner)
        (trial,) = study.trials()
        assert study.abandoned(trial)
        assert not trial.waits  # it is not paused: it is to be finished first
    study.close()


def test_a_beat_that_stands_still_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path / "study.db", "mine")
    trial = begun(study, "elsewhere/1/2.00/0")
    assert not study.abandoned(trial)
    monkeypatch.setattr(module, "STALE_S", 0.0)
    time.sleep(0.01)
    study.beat(trial)
    assert not study.abandoned(trial)  # it has moved since
    time.sleep(0.01)
    assert study.abandoned(trial)
    study.close()


def test_a_beat_of_an_earlier_rung_says_nothing_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, later = Study(tmp_path / "study.db", "mine"), [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: later[0])
    trial = begun(study, "elsewhere/1/2.00/0")
    study.beat(trial)
    assert not study.abandoned(trial)
    trial = study.passed(trial, scored())
    later[0] += 10 * module.STALE_S  # it waits
    trial = study.take(trial, "elsewhere/1/2.00/0")
    assert not study.abandoned(trial)
    later[0] += 2 * module.STALE_S
    assert study.abandoned(trial)
    trial = study.take(trial, "yonder/1/2.00/0")
    assert not study.abandoned(trial)  # one survivor has taken it up: not for another to do so too
    study.close()


def test_who_lost_a_trial_while_it_stood_still_writes_nothing_into_it(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", "mine")
    mine = begun(study, "elsewhere/1/2.00/0")
    assert study.held(mine)
    theirs = study.take(mine, "yonder/1/2.00/0")
    assert not study.held(mine)
    assert theirs.died == 1
    study.end(study.passed(theirs, scored()))
    study.beat(mine)  # of an ended trial: Optuna would refuse
    assert study.trials()[0].ended
    study.close()


def test_what_was_half_ended_is_finished_for_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path / "study.db", "mine")
    trial = study.passed(begun(study, "nobody/1/2.00/0"), scored())
    monkeypatch.setattr(study, "_tell", lambda _: None)  # killed over it
    study.end(trial)
    monkeypatch.undo()
    other = Study(tmp_path / "study.db", "mine")
    other.tidy()
    (frozen,) = other._study.get_trials()
    assert frozen.state.is_finished()
    assert frozen.user_attrs["quality"] == 0.4
    study.close()
    other.close()


def test_a_zombie_owns_nothing() -> None:
    from hwsearch.search.owner import alive

    script = "from hwsearch.search.owner import membership\nwith membership() as name: print(name, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert child.stdout is not None
    name = child.stdout.readline().decode().strip()
    assert alive(name) is True
    assert alive("x" + name) is None
    child.kill()
    deadline = time.monotonic() + 60
    while alive(name) and time.monotonic() < deadline:  # nobody has reaped it
        time.sleep(0.01)
    assert alive(name) is False
    child.communicate()
    assert alive(name) is False


def test_one_decides_at_a_time(storage: Path | str) -> None:
    Study(storage, "mine").close()
    inside, most = 0, 0

    def decide() -> None:
        nonlocal inside, most
        study = Study(storage, "mine", make=False)
        for _ in range(5):
            with study.alone():
                inside += 1
                most = max(most, inside)
                begun(study, "nobody/1/2.00/0")
                inside -= 1
        study.close()

    threads = [threading.Thread(target=decide) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = Study(storage, "mine")
    assert most == 1
    assert [trial.number for trial in study.trials()] == list(range(15))
    study.close()


def test_a_copy_holds_everything(storage: Path | str, tmp_path: Path) -> None:
    study = Study(storage, "mine")
    study.describe(folder="here")
    study.end(study.passed(begun(study, "nobody/1/2.00/0"), scored()))
    study.copy(tmp_path / "copy.db")
    copy = Study(tmp_path / "copy.db", "whatever its folder is called")
    assert copy.name == "mine"
    assert copy.described() == {"folder": "here"}
    (there,), (here,) = copy.trials(), study.trials()
    assert there.result == here.result
    study.close()
    copy.close()


def test_what_is_no_study_is_one_clear_line_without_a_password(tmp_path: Path) -> None:
    Study(f"sqlite:///{tmp_path / 'study.db'}", "other").close()
    with pytest.raises(RunError, match=r"no study 'mine' .*have: other"):
        Study(f"sqlite:///{tmp_path / 'study.db'}", "mine", make=False)
    with pytest.raises(RunError, match=r"can be opened|driver") as error:
        Study("postgresql://me:secret@127.0.0.1:1/none", "mine")
    assert "secret" not in str(error.value)
    with pytest.raises(RunError, match=r"can be opened.*--storage"):
        Study("magic://", "mine")


@pytest.mark.parametrize("text", [b"a line", b"a line\nand another", b'{"my": "json"}\n', b"\xff\x00"])
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "notes.log"
    path.write_bytes(text)
    with pytest.raises(RunError, match=r"is no journal of Optuna's; name a file of its own with --storage"):
        Study(str(path), "mine")
    assert path.read_bytes() == text
    path.write_bytes(b"")
    Study(str(path), "mine").close()
    assert Study(str(path), "mine", make=False).name == "mine"


@pytest.mark.parametrize("torn", [b'{"op_code":8,"worker_id":', b"{" + 3 * 2**20 * b"x"])
def test_a_line_of_a_journal_stands_whole_or_not_at_all(
    torn: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.log"
    study = Study(str(path), "s")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            study.describe(rates=[1])
    assert path.read_bytes() == before
    study.describe(rates=[2])
    path.write_bytes(path.read_bytes() + torn)  # as a writer that was killed leaves it
    study.describe(rates=[3])
    study.close()
    again = Study(str(path), "s", make=False)
    assert again.described()["rates"] == [3]
    assert torn not in path.read_bytes()
    again.close()


@pytest.mark.parametrize("name", ["a?b", "a%20b", "run{1}", "me@work", "a#b"])
def test_a_study_lies_where_its_path_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "study.db"
    path.parent.mkdir()
    study = Study(path, "mine")
    with study.alone():
        begun(study, "nobody")
    study.close()
    assert [found.name for found in tmp_path.iterdir()] == [name]
    again = Study(path, "mine", make=False)
    assert len(again.trials()) == 1
    again.close()
    assert public(path) == str(path) == public(str(path))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@db.example/hw", "postgresql://...@db.example/hw"),
        ("postgresql://me:se@cret@db.example/hw?sslmode=require", "postgresql://...@db.example/hw"),
        ("postgresql://db.example/hw?user=me&password=secret", "postgresql://db.example/hw"),
        ("postgresql://db.example/hw?user=me@work&password=secret", "postgresql://..."),
        ("postgresql://me:secret?@db.example/hw", "postgresql://..."),
        ("sqlite:////data/study.db?timeout=5", "sqlite:////data/study.db"),
    ],
)
def test_no_error_shows_a_password(url: str, shown: str) -> None:
    assert public(url) == shown


def test_options_of_a_url_are_no_part_of_its_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    Study(url, "mine").close()
    study = Study(f"{url}?timeout=5", "mine", make=False)
    with study.alone():
        begun(study, "nobody")
    study.close()
    assert {path.name for path in tmp_path.iterdir()} == {"study.db", "study.db.alone"}


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_study_that_would_not_outlive_its_search_is_refused(url: str) -> None:
    with pytest.raises(RunError, match="it lies in a file, sqlite:///FILE"):
        Study(url, "mine")
    with pytest.raises(RunError, match="it lies in a file, sqlite:///FILE"):
        Study(url, "mine", make=False)


@pytest.mark.parametrize("amid", ["INSERT", "SELECT"])
def test_ctrl_c_amid_a_transaction_waits_for_its_end(amid: str, tmp_path: Path) -> None:
    """Raised there it left a lock, and whoever then left the study waited a minute for it, and failed."""
    study = Study(tmp_path / "study.db", "mine")
    struck = []

    def strike(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith(amid) and not struck:
            struck.append(statement)
            signal.raise_signal(signal.SIGINT)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    try:
        with membership() as owner:
            sqlalchemy.event.listen(study._storage._backend.engine, "before_cursor_execute", strike)
            with pytest.raises(KeyboardInterrupt), study.alone():
                trial = study.take(begun(study, owner), owner)
            struck.clear()
            with pytest.raises(KeyboardInterrupt):
                study.leave(owner)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert study.trials() == [replace(trial, owner=LEFT)]
    study.close()

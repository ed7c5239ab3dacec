"""Runs from the command line on a small teacher with real training: answered, exported, repriced, killed, taken up."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from msgspec.structs import replace

from hwsearch.cli.search import _deliver
from hwsearch.errors import ExportError
from hwsearch.profiles import find_profile
from hwsearch.search.finished import finished as student_of
from hwsearch.search.finished import stored_trials
from hwsearch.search.run import Run
from tests.cli.test_cli import document, line_of, run
from tests.search.test_engine import BULK, search

CHUNKED = ["--batch", "512", "--sequence", "64", "--repeat", "64"]


def command(teacher: Path, text: Path, out: Path, *more: str) -> list[str]:
    where = ["--device", "jetson-orin", "--budget", "0.9x", "--teacher", str(teacher), "--data", str(text)]
    return [*where, *CHUNKED, "--trials", "4", "--steps", "8", "--out", str(out), *more]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, text_file: Path
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, document(*command(tiny_teacher, text_file, folder))


def test_a_run_leaves_everything_that_a_person_opens(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["trials"]["complete"] + summary["trials"]["stopped"] == 4
    assert len(pd.read_csv(folder / "trials.csv")) == 4
    assert len(pd.read_csv(folder / "pareto.csv")) == len(summary["front"])
    assert (folder / "report.html").stat().st_size > 1_000_000  # plotly is inside
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]  # nothing half-written


@pytest.mark.parametrize(
    ("end", "chooses", "stands"),
    [(KeyboardInterrupt, True, True), (ExportError, True, False), (ExportError, False, False)],
)
def test_an_earlier_answers_student_stands_until_another_is_written(
    tmp_path: Path, end: type[BaseException], chooses: bool, stands: bool
) -> None:
    summary, outcome = search(tmp_path / "run")
    assert outcome is not None
    (tmp_path / "run" / "chosen").mkdir()

    class Ending:
        """Workers of which a student's export ends in some way."""

        def run(self, *_: object) -> Future[None]:
            future = Future[None]()
            future.set_exception(end())
            return future

    deliver = _deliver(Ending(), find_profile("t4").target(), BULK)  # type: ignore[arg-type]
    own = Run(tmp_path / "run", json.loads((tmp_path / "run" / "run.json").read_text()))
    try:
        with pytest.raises(end) if chooses else nullcontext():
            deliver(own, outcome if chooses else replace(outcome, chosen=None), summary)
    finally:
        own.close()
    assert (tmp_path / "run" / "chosen").exists() is stands


def test_the_chosen_student_is_loaded_by_stock_transformers(finished: tuple[Path, dict[str, Any]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, summary = finished
    model = AutoModelForCausalLM.from_pretrained(folder / "chosen", local_files_only=True)
    chosen = summary["chosen"]["architecture"]
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (chosen["depth"], chosen["width"])
    tokens = AutoTokenizer.from_pretrained(folder / "chosen", local_files_only=True)("def add(", return_tensors="pt")
    with torch.inference_mode():
        assert torch.isfinite(model(tokens["input_ids"]).logits).all()


def test_the_same_command_prints_the_stored_answer(
    finished: tuple[Path, dict[str, Any]], tiny_teacher: Path, text_file: Path
) -> None:
    folder, summary = finished
    status, out, err = run(*command(tiny_teacher, text_file, folder), "--json")
    assert status == 0
    assert json.loads(out) == summary
    assert "finished before" in err


def test_a_run_is_the_same_wherever_its_files_lie(
    finished: tuple[Path, dict[str, Any]], tiny_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    teacher = shutil.copytree(tiny_teacher, tmp_path / tiny_teacher.name)
    text = Path(shutil.copy(text_file, tmp_path / text_file.name))
    status, out, err = run(*command(teacher, text, finished[0]), "--json")
    assert status == 0, err
    assert json.loads(out) == finished[1]


def test_another_command_does_not_get_the_folder(
    finished: tuple[Path, dict[str, Any]], tiny_teacher: Path, text_file: Path
) -> None:
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    status, _, err = run(*command(tiny_teacher, text_file, folder, "--seed", "5"))
    assert status == 1
    assert "holds another run" in line_of(err)
    assert "seed" in line_of(err)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def test_any_trial_is_exported(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, _ = finished
    # A Transformers folder needs no text: it may be gone.
    said = document("export", str(folder), "--trial", "1", "--to", str(tmp_path / "one"), "--data", "gone.txt")
    assert said["trial"] == 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", local_files_only=True)
    assert model.config.hidden_size == said["architecture"]["width"]
    status, _, err = run("export", str(folder), "--trial", "99", "--to", str(tmp_path / "none"))
    assert status == 1
    assert "no finished trial 99 (have: 0, 1, 2, 3)" in line_of(err)
    assert not (tmp_path / "none").exists()


def test_another_runtime_is_of_the_runs_own_device_as_it_was(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, summary = finished
    shutil.copytree(folder, tmp_path / "run")
    slow = {**summary, "target": {**summary["target"], "power_mode": "30W"}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(slow))
    there = document("report", str(tmp_path / "run"), "--runtime", "tensorrt")
    assert there["target"]["power_mode"] == "30W"
    assert there["chosen"]["latency"]["median_ms"] > 1.1 * summary["chosen"]["latency"]["median_ms"]
    assert document("report", str(tmp_path / "run"), "--device", "jetson-orin")["target"]["power_mode"] == "MAXN"


def test_a_board_of_ones_own_is_in_the_run(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The file of its profile may have gone, and a shipped one may have its name."""
    folder, summary = finished
    shutil.copytree(folder, tmp_path / "run")
    own = {**summary, "target": {**summary["target"], "device": "t4"}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(own))
    there = document("report", str(tmp_path / "run"), "--runtime", "tensorrt")
    same = document("report", str(folder), "--runtime", "tensorrt")
    assert there["teacher"]["latency"]["median_ms"] == same["teacher"]["latency"]["median_ms"]


def test_the_front_is_priced_on_another_device(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    there = document("report", str(folder), "--device", "t4")
    assert there["device"] == "t4"
    assert there["chosen"]["latency"]["median_ms"] != summary["chosen"]["latency"]["median_ms"]
    assert (folder / "report-t4-tensorrt.html").is_file()
    status, out, _ = run("report", str(folder))
    assert status == 0
    assert summary["chosen"]["architecture"]["id"] in out


@pytest.mark.parametrize("content", [b'{"study": "x"', b"{}", b'{"study": "x", "device": "t4"}', b'{"a": "\xff"}'])
def test_a_damaged_summary_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    for arguments in (["report", str(tmp_path)], ["export", str(tmp_path), "--to", str(tmp_path / "out")]):
        status, _, err = run(*arguments)
        assert status == 1
        assert str(tmp_path / "summary.json") in line_of(err)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": {}},
        {"chosen": 5},
        {"workload": {"batch": 0}},
        {"workload": None},
        {"teacher": {}},
        {"target": 5},
        {"budget_ms": "soon"},
        {"seconds": None},
        {"trials": {}},
        {"versions": []},
    ],
)
def test_a_summary_of_other_values_is_one_clear_line(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, change: dict[str, Any]
) -> None:
    shutil.copy(finished[0] / "study.db", tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(finished[1] | change))
    status, _, err = run("report", str(tmp_path))
    assert status == 1
    assert f"{tmp_path / 'summary.json'} is damaged" in line_of(err)


def test_a_chosen_trial_that_is_no_number_is_one_clear_line(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copy(finished[0] / "study.db", tmp_path)
    chosen = finished[1]["chosen"] | {"trial": "seven"}
    (tmp_path / "summary.json").write_text(json.dumps(finished[1] | {"chosen": chosen}))
    status, _, err = run("export", str(tmp_path), "--to", str(tmp_path / "out"))
    assert status == 1
    assert "summary.json is damaged" in line_of(err)


@pytest.mark.parametrize(("to", "says"), [(".", "started in"), ("/proc/x/y", "cannot write /proc/x/y")])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_done(
    finished: tuple[Path, dict[str, Any]], to: str, says: str
) -> None:
    for command_ in ("export", "distill"):
        status, _, err = run(command_, str(finished[0]), "--to", to)
        assert status == 1
        assert says in line_of(err)
        assert "trial" not in err


@pytest.mark.parametrize("kind", ["file", "no rights"])
def test_an_out_that_cannot_be_written_is_said_before_anything_is_trained(
    kind: str, tmp_path: Path, tiny_teacher: Path, text_file: Path
) -> None:
    if kind == "file":
        (tmp_path / "there").write_text("a file")
        out = tmp_path / "there" / "run"
    else:
        out = Path("/proc/hwsearch-run")  # not even root writes there
    status, _, err = run(*command(tiny_teacher, text_file, out))
    assert status == 1
    assert "Choose another --out" in line_of(err)


def test_a_teacher_or_a_text_that_is_none_is_one_clear_line(
    tmp_path: Path, tiny_teacher: Path, text_file: Path
) -> None:
    """Which ways there are to be none: tests/distill/test_student.py and test_data.py."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "teacher" / "model.safetensors").write_text("not one")
    (tmp_path / "teacher" / "tokenizer.json").write_text("{}")
    (tmp_path / "data.txt").write_bytes(b"\xff\xfe\x00")
    for teacher, text, says in (
        (tmp_path / "teacher", text_file, "cannot load the checkpoint"),
        (tiny_teacher, tmp_path / "data.txt", "not text in UTF-8"),
    ):
        status, out, err = run(*command(teacher, text, tmp_path / "run"))
        assert (status, out) == (1, "")
        assert says in line_of(err)
        assert not (tmp_path / "run").exists()


def test_nothing_fits_has_a_status_of_its_own(tmp_path: Path, tiny_teacher: Path, text_file: Path) -> None:
    arguments = [text if text != "0.9x" else "0.01ms" for text in command(tiny_teacher, text_file, tmp_path / "run")]
    status, out, err = run(*arguments, "--json")
    assert status == 3
    assert "nothing fits" in line_of(err)
    assert json.loads(out)["nearest"]["latency"]["high_ms"] > 0.01
    assert not (tmp_path / "run").exists()


def finished_trials(folder: Path) -> dict[int, str]:
    """What the study holds, by number."""
    try:
        with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as study:
            rows = study.execute("select number, datetime_complete from trials where state = 'COMPLETE'").fetchall()
    except sqlite3.OperationalError:
        return {}
    return dict(rows)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_taken_up_by_the_same_command(
    end: signal.Signals, tmp_path: Path, tiny_teacher: Path, text_file: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "hwsearch", *command(tiny_teacher, text_file, folder, "--json")]
    arguments[arguments.index("4")] = "7"
    # A check that runs in a shell's background has Ctrl-C ignored, and would hand that on.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, usual)
    deadline = time.monotonic() + 300
    while len(before := finished_trials(folder)) < 2:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(running.pid, end)
    _, err = running.communicate(timeout=60)
    assert running.returncode == (130 if end == signal.SIGINT else -signal.SIGKILL), err
    if end == signal.SIGINT:
        assert "what was finished is kept" in line_of(err)
    assert not (folder / "summary.json").exists()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    after = finished_trials(folder)
    assert before.items() <= after.items()  # not lost, and not done again
    assert len(after) == 7
    summary = json.loads(done.stdout)
    assert summary["trials"]["complete"] + summary["trials"]["stopped"] == 7
    assert summary["chosen"] is not None


def test_graphs_are_exported_for_the_runs_runtime(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, summary = finished
    said = document("export", str(folder), "--format", "tensorrt", "--to", str(tmp_path / "trt"))
    assert said["architecture"]["id"] == summary["chosen"]["architecture"]["id"]
    assert said["parity"]["model.onnx"]["answers"] > 500
    whole, _, past = (tmp_path / "trt" / "build.sh").read_text().partition("model_with_past")
    assert whole.count("512x64") == 4  # as many as the run searched for
    assert "attention_mask:512x65" in past
    status, _, err = run("export", str(folder), "--static", "--to", str(tmp_path / "none"))
    assert status == 2
    assert "--static is of graphs" in err


def test_a_distillation_goes_on_with_the_layers_that_were_searched(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    trial = next(result for result in stored_trials(folder) if result.architecture.depth < 3)
    state = student_of(folder, trial.trial).state
    searched = torch.load(state, weights_only=True)
    sets = combinations(range(3), trial.architecture.depth)
    other = next(list(kept) for kept in sets if list(kept) != searched["layers"])
    torch.save(searched | {"layers": other}, state)
    said = document(*distilling(folder, tmp_path / "to", 30), "--trial", str(trial.trial))
    assert torch.load(folder / said["state"], weights_only=True)["layers"] == other


def distilling(folder: Path, to: Path, steps: int) -> list[str]:
    return ["distill", str(folder), "--steps", str(steps), "--to", str(to), "--json"]


def test_a_killed_distillation_ends_with_the_same_weights(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, summary = finished
    steps = 200
    arguments = [sys.executable, "-m", "hwsearch", *distilling(folder, tmp_path / "first", steps)]
    running = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list((folder / "distilled").rglob("*-constant-128.pt")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.kill()
    running.communicate(timeout=60)
    assert not (tmp_path / "first").exists()
    said = json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert (said["after"]["steps"], said["trial"]) == (steps, summary["chosen"]["trial"])
    assert said["before"] == summary["chosen"]
    assert said["fits"] == (said["latency"]["high_ms"] <= said["budget_ms"] == summary["budget_ms"])
    shutil.rmtree(folder / "distilled")
    document(*distilling(folder, tmp_path / "second", steps))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    assert "After full distillation" in (folder / "report.html").read_text()
    assert json.loads((folder / "distilled.json").read_text())["after"]["loss"] == said["after"]["loss"]
    assert (tmp_path / "first" / "tensorrt" / "build.py").is_file()
    # Exported from then on is what was distilled, while it is there.
    _, _, err = run("export", str(folder), "--to", str(tmp_path / "third"))
    assert f"distilled fully, {steps} steps" in err
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == weights[0]
    shutil.rmtree(folder / "distilled")
    _, _, err = run("export", str(folder), "--to", str(tmp_path / "third"))
    assert "trained in the search" in err
    assert (tmp_path / "third" / "model.safetensors").read_bytes() != weights[0]
    (folder / "distilled.json").write_text(json.dumps({**said, "state": 5}))
    status, _, err = run("report", str(folder))
    assert status == 1
    assert "got `int` - at `$.state`; delete it, or distil anew" in line_of(err)
    (folder / "distilled.json").unlink()


def test_distilling_refuses_what_it_would_overwrite_before_it_trains(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = finished
    (tmp_path / "thesis.txt").write_text("do not touch")
    status, _, err = run(*distilling(folder, tmp_path, 30))
    assert status == 1
    assert "holds no exported student" in line_of(err)
    (tmp_path / "precision.json").write_text('{"mine": 1}')  # a file of that name makes no export
    status, _, err = run(*distilling(folder, tmp_path, 30))
    assert status == 1
    assert "holds no exported student" in line_of(err)
    assert (tmp_path / "thesis.txt").read_text() == "do not touch"
    for needed in (folder, folder.parent):
        for command_ in (distilling(folder, needed, 30), ("export", str(folder), "--to", str(needed))):
            status, _, err = run(*command_)
            assert status == 1
            assert f"{needed} is, or holds, {folder}" in line_of(err)
    for inside in (folder / "distilled", folder / "distilled" / "student"):
        status, _, err = run(*distilling(folder, inside, 30))
        assert status == 1
        assert "where what is trained is kept" in line_of(err)
        assert not inside.exists()
    status, _, err = run("distill", str(folder), "--trial", "77", "--to", str(tmp_path / "x"))
    assert status == 1
    assert "no finished trial 77" in line_of(err)


def test_a_recipe_of_ones_own_is_followed_and_told(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise MemoryError("no room for the graph")

    monkeypatch.setattr("hwsearch.cli.distill._measured", failing)  # what was trained is told all the same
    folder, summary = finished
    recipe = tmp_path / "mine.toml"
    stages = "[[stages]]\nsteps = 8\nanswers = 0.0\nhidden = 1.0\n[[stages]]\n"
    recipe.write_text(f'source = "A & B <1999>"\nbatch = 4\nassistants = [0.5]\n{stages}')
    monkeypatch.setattr("hwsearch.search.finished.finished", lambda *asked: replace(student_of(*asked), rate=0.25))
    before = set((folder / "distilled").rglob("*.pt"))
    said = document(*distilling(folder, tmp_path / "to", 45), "--recipe", str(recipe))
    assert said["recipe"] == {"name": str(recipe), "source": "A & B <1999>"}
    assert said["latency"] == summary["chosen"]["latency"]
    names = [path.name for path in set((folder / "distilled").rglob("*.pt")) - before]
    assert {name.split("-")[1] for name in names} == {"0.25"}  # of the assistant and of the student
    assert len({name.split("-")[0] for name in names}) == 2
    (assistant,) = said["assistants"]
    assert assistant["steps"] == said["after"]["steps"] == 45
    chosen = summary["chosen"]["architecture"]
    assert assistant["architecture"]["parameters"] >= chosen["parameters"]
    assert json.loads((tmp_path / "to" / "config.json").read_text())["num_hidden_layers"] == chosen["depth"]
    page = (folder / "report.html").read_text()
    assert "A &amp; B &lt;1999&gt;" in page
    status, _, err = run(*distilling(folder, tmp_path / "to", 30), "--recipe", "two-stage")
    assert status == 1
    assert "last stage begins after 1024 steps" in line_of(err)
    recipe.write_text('teachers = ["to"]\n')
    status, _, err = run(*distilling(folder, tmp_path / "to", 30), "--recipe", str(recipe))
    assert status == 1
    assert f"{tmp_path / 'to'} is, or holds, {tmp_path / 'to'}, which is needed" in line_of(err)
    status, _, err = run(*distilling(folder, tmp_path / "to", 30), "--recipe", "no-such")
    assert status == 1
    assert "no recipe 'no-such'" in line_of(err)

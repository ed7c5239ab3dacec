"""Names of the Hub stand where paths do: fetched into its cache, or one clear line."""

import subprocess
import sys
from pathlib import Path

import pytest

from hwsearch.distill.job import Moved, TaskSpec
from hwsearch.errors import DataError, TeacherError
from hwsearch.hub import checkpoint, data_file


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "model").mkdir(parents=True)
    assert checkpoint("me/model") == tmp_path / "me" / "model"
    assert checkpoint("./no/such") == tmp_path / "no" / "such"
    assert data_file("text.csv") == tmp_path / "text.csv"


def test_a_link_is_read_as_its_own_name_says(tmp_path: Path) -> None:
    """As caches lay files out whose own names are hashes."""
    (tmp_path / "0a1b2c").write_text('{"text": "hello"}\n')
    link = tmp_path / "train.jsonl"
    link.symlink_to(tmp_path / "0a1b2c")
    assert data_file(str(link)) == link
    assert Moved(data=link, held_out=link).of(TaskSpec()) == TaskSpec(data=str(link), held_out=str(link))


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_what_was_fetched_once_is_taken_without_a_network(tmp_path: Path, kind: str) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / f"{kind}--me--mine"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    for name in ("config.json", "train.csv"):
        (cached / "snapshots" / commit / name).write_text("{}")
    ask = {
        "models": "from hwsearch.hub import checkpoint; print(checkpoint('me/mine'))",
        "datasets": "from hwsearch.hub import data_file; print(data_file('hf://datasets/me/mine/train.csv'))",
    }
    command = [sys.executable, "-c", ask[kind]]
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    end = "train.csv" if kind == "datasets" else commit
    assert Path(found).name == end
    assert Path(found).is_relative_to(cached)


def test_what_nobody_has_is_one_clear_line() -> None:
    with pytest.raises(TeacherError, match="there is no folder nobody/nothing") as failure:
        checkpoint("nobody/nothing")
    assert "\n" not in str(failure.value)
    with pytest.raises(DataError, match="gave no hf://datasets/nobody/nothing") as missing:
        data_file("hf://datasets/nobody/nothing/a.csv")
    assert "\n" not in str(missing.value)
    with pytest.raises(DataError, match="hf://datasets/OWNER/NAME/FILE"):
        data_file("hf://somewhere")

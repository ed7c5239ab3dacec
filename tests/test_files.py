import os
import time
from pathlib import Path

import pytest

from hwsearch.errors import RunError
from hwsearch.files import TEMPORARY, sweep, whole
from hwsearch.search.run import Run, differences


def test_what_is_written_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text("before")

    def write() -> None:
        with whole(path) as temporary:
            temporary.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(RunError, match="cannot write"):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_nobodys_files_are_swept(tmp_path: Path) -> None:
    """A folder of a person's own with nothing but hidden files in it counts as empty: these stay."""
    own = [tmp_path / name for name in (".env.template", ".git-attribute", ".vscode.settings_")]
    for path in own:
        path.write_text("mine")
    (tmp_path / ".cache.abcdefgh").mkdir()
    folder, busy = tmp_path / f"{TEMPORARY}folder", tmp_path / f"{TEMPORARY}busy"
    for path in (folder, busy):
        (path / "student").mkdir(parents=True)
        (path / "student" / "model.safetensors").write_text("half")
    left, young = tmp_path / f"{TEMPORARY}abcdefgh", tmp_path / f"{TEMPORARY}ijklmnop.pt"
    for path in (left, young):
        path.write_text("half")
    hours_ago = time.time() - 7200
    for path in (left, folder / "student" / "model.safetensors", folder / "student", folder, busy / "student", busy):
        os.utime(path, (hours_ago, hours_ago))
    Run(tmp_path, {"of": "a test"}).close()
    assert not left.exists()
    assert not folder.exists()
    assert young.exists()  # somebody may be writing it
    assert (busy / "student" / "model.safetensors").exists()
    assert all(path.read_text() == "mine" for path in own)
    assert (tmp_path / ".cache.abcdefgh").is_dir()
    sweep(tmp_path / "nothing there")


def test_what_differs_is_named_by_its_own_place() -> None:
    stored, now = {"a": 1, "spec": {"sequence": 64, "recipe": {"batch": 8}}}, {"a": 1, "spec": {"sequence": 64}}
    assert differences(stored, {**now, "spec": {"sequence": 64, "recipe": {"batch": 16}}}) == (
        "spec.recipe.batch (8 there, 16 now)"
    )
    assert "spec.recipe" in differences(stored, now)

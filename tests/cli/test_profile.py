"""hwsearch profile, on a board: written, run, taken back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from hwsearch.bench.machine import check_here, facts, this_machine
from hwsearch.cli import cli
from hwsearch.errors import ProfileError
from hwsearch.profiles import find_profile
from hwsearch.runtime import Figure

SMALL = ["--depth", "1-2", "--width", "64", "--sequence", "16-32", "--batch", "1-2"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["profile", *arguments])


def test_a_kit_goes_to_a_board_and_its_table_prices_students(tmp_path: Path) -> None:
    kit, own = tmp_path / "kit", tmp_path / "own"
    written = run(
        "--device", "my-board", "--kit", str(kit), "--points", "8", "--minutes", "0.2", "--threads", "1", *SMALL
    )
    assert written.exit_code == 0, written.output
    early = run("--import", str(kit), "--to", str(own))
    assert "python3 run.py" in str(early.exception)
    done = subprocess.run([sys.executable, str(kit / "run.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = run("--import", str(kit), "--to", str(own), "--json")
    assert taken.exit_code == 0, taken.output
    assert json.loads(taken.stdout)["device"] == "my-board"
    assert json.loads(taken.stdout)["profile"] == str(own / "my-board.toml")
    assert (own / "my-board" / "onnxruntime" / "measured.toml").is_file()
    shape = ["--layers", "2", "--width", "64", "--heads", "2", "--ffn", "128", "--sequence", "24"]
    priced = CliRunner().invoke(cli, ["latency", "--device", str(own / "my-board.toml"), *shape, "--json"])
    assert priced.exit_code == 0, priced.output
    found = json.loads(priced.stdout)
    assert found["source"] == "table"
    assert 0 < found["low_ms"] < found["high_ms"]


def test_a_board_is_called_by_its_own_name_whatever_the_alias(tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    made = run("--device", "jetson-orin", "--runtime", "tensorrt", "--kit", str(kit), "--points", "8", *SMALL)
    assert made.exit_code == 0, made.output
    manifest = json.loads((kit / "manifest.json").read_text())
    assert manifest["device"] == "jetson-agx-orin-64gb"
    assert manifest["facts"]["borrows"] == list(find_profile("jetson-orin").runtimes["tensorrt"].borrows)
    other = run("--device", "t4", "--import", str(kit))
    assert "the kit is for jetson-agx-orin-64gb" in other.output
    other = run("--runtime", "onnxruntime", "--import", str(kit))
    assert "the kit measures tensorrt; got --runtime onnxruntime" in other.output


def test_a_kit_in_a_folder_whose_name_is_no_text_is_named_as_far_as_it_can_be(tmp_path: Path) -> None:
    kit = tmp_path / os.fsdecode(b"kit\xff")
    made = run("--device", "b", "--kit", str(kit), "--points", "8", *SMALL, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["kit"] == str(tmp_path / "kit\N{REPLACEMENT CHARACTER}")
    assert (kit / "manifest.json").is_file()


def test_this_machine_is_measured_as_what_it_can_be() -> None:
    here = facts(this_machine(1))
    check_here(here)
    with pytest.raises(ProfileError, match="cores, and this machine"):
        check_here(replace(here, cores=Figure(512, "made up")))
    with pytest.raises(ProfileError, match="is not"):
        check_here(replace(here, cores=None))
    check_here(replace(here, cores=None), kit=True)
    with pytest.raises(ProfileError, match=r"is sparc, and this machine .* --ssh"):
        check_here(replace(here, machine="sparc"), kit=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kit", "k", "--import", "k"], "exclude each other"),
        (["--kit", "k"], "give the board a name"),
        (["--device", "x y", "--kit", "k"], "small letters"),
        (["--device", "new-board", "--runtime", "tflite", "--kit", "k"], "no profile with runtime 'tflite'"),
        (["--device", "new-board", "--runtime", "tflite"], "measured with onnxruntime or pytorch"),
        (["--device", "new-board", "--kit", "k", "--phase", "decode-token"], "for what is measured on this machine"),
        (["--device", "b", "--runtime", "onnxruntime-cuda", "--points", "8", *SMALL], "no CUDAExecutionProvider"),
        (["--device", "b", "--runtime", "onnxruntime-tensorrt", "--points", "8", *SMALL], "no TensorrtExecution"),
        (["--device", "b", "--ssh", "-oProxyCommand=x"], "user@board"),
        (["--import", "nowhere"], "manifest"),
        (["--runtime", "tensorrt"], "under a name of its own"),
        (["--device", "t4", "--runtime", "onnxruntime"], "the processor of this machine is not t4"),
        (["--device", "t4", "--runtime", "pytorch"], "the processor of this machine is not t4"),
    ],
)
def test_wrong_wishes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code != 0
    assert said in result.output + str(result.exception)
    assert not (tmp_path / "k").exists()

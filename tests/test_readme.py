"""The README against the code: every command and option it shows exists, the help it prints is the real one."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hwsearch.cli import cli
from hwsearch.latency.cases import COLUMNS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"```(?:\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(
    {
        line.partition("hwsearch ")[2].strip("`")
        for line in [*"".join(FENCES).splitlines(), *re.findall(r"`(hwsearch [^`]*)`", README)]
        if re.match(r"^(\$ |pip install.*&& )?hwsearch ", line)
    }
)


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("-")}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_shown_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.replace("[", "").replace("]", "").replace("...", ""))
    name = words[0] if words and not words[0].startswith("-") else "search"
    assert name in cli.commands, line
    known = {*options_of(cli.commands[name]), "--help"}
    assert {word for word in words if word.startswith("--")} <= known, line


def test_every_command_is_in_the_readme() -> None:
    for name in cli.commands:
        assert any(line.startswith((name, "-") if name == "search" else name) for line in COMMANDS), name


def test_the_help_shown_is_the_real_one() -> None:
    shown = next(fence for fence in FENCES if fence.startswith("$ hwsearch search --help"))
    command = [sys.executable, "-m", "hwsearch", "search", "--help"]
    environment = {**os.environ, "COLUMNS": "80"}
    real = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT).stdout
    assert shown.partition("\n")[2] == real


def test_the_whole_check_runs_the_readmes_test_command() -> None:
    wanted = next(line for fence in FENCES for line in fence.splitlines() if line.endswith("python -m pytest"))
    assert wanted.startswith("pip install -c constraints.txt")
    check = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in check
    assert r"python -m pytest$" in check


def test_every_benchmark_and_file_that_is_named_exists() -> None:
    for path in re.findall(r"`(?:python )?((?:benchmarks|hwsearch|tests|device_profiles)/[\w/.]+)", README):
        assert (ROOT / path).exists(), path
    catalogue = (ROOT / "benchmarks" / "README.md").read_text()
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        assert f"`{path.name}`" in catalogue, path.name


def test_every_column_of_cases_is_explained() -> None:
    for name in COLUMNS:
        assert name in README, name


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"\b[A-Z]{2,}_[A-Z_]+\b", re.sub(r"`[^`]*`", "", README))

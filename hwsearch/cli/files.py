"""Files of a run that lie elsewhere than where it was begun."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hwsearch.distill.job import Moved

OPTIONS = (
    click.option("--teacher", help="Folder of the teacher, if it lies elsewhere than where the run was begun."),
    click.option("--data", type=click.Path(path_type=Path), help="Text, likewise."),
    click.option("--eval", "held_out", type=click.Path(path_type=Path), help="Held-out text, likewise."),
    click.option(
        "--trust-remote-code", "trusted", is_flag=True, help="Run code that lies in the teacher's checkpoint."
    ),
)


def moved_files(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say where files lie, given to a command as `moved`."""

    @functools.wraps(command)
    def given(teacher: str | None, data: Path | None, held_out: Path | None, trusted: bool, **others: Any) -> None:
        command(moved=Moved(teacher, data, held_out, trusted), **others)

    for option in reversed(OPTIONS):
        given = option(given)
    return given

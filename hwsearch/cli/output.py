"""What commands share: printing JSON and tables, data to stdout and the rest to stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")


def print_json(value: Any) -> None:
    """One JSON document to stdout; what is not a number is null."""
    from hwsearch.files import pretty

    # click.echo takes a full disk for a pipe that nobody reads any more, and says nothing.
    sys.stdout.write(pretty(value) + "\n")
    sys.stdout.flush()


def console() -> Console:
    """For data: stdout, as wide as the terminal, or wide enough for any table where there is none."""
    from rich.console import Console

    # Names come from outside: brackets in them are no markup.
    width = None if sys.stdout.isatty() else 160
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, soft_wrap=False)


def note(message: str) -> None:
    """A line for the person, to stderr."""
    click.echo(message, err=True)

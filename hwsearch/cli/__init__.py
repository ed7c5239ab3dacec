"""The command line: parses, calls one function, prints. Nothing heavy is imported before a command runs.

`hwsearch --device X --budget 280ms` is short for `hwsearch search --device X --budget 280ms`: the group puts the
default command in front of arguments that begin with an option that is not its own, and keeps "did you mean" for a
mistyped command.
"""

from __future__ import annotations

import difflib
import os
import sys
from typing import Any

import click

from hwsearch import __version__, interrupt
from hwsearch.errors import HwsearchError

DEFAULT_COMMAND = "search"


class Commands(click.Group):
    """A group with a default command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0].startswith("-") and args[0].partition("=")[0] not in own:
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name not in self.commands:
            near = difflib.get_close_matches(name, self.commands, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(self.commands)}."
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hwsearch")
def cli() -> None:
    """Find the student transformer that loses least inside a latency budget on a device.

    The main job needs no command:

      hwsearch --device jetson-orin --budget 280ms
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error, 2 wrong usage, 3 nothing fits, 130 interrupted;
    errors take one line on stderr."""
    interrupt.remember()
    try:
        status = cli.main(arguments, prog_name="hwsearch", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.NoArgsIsHelpError as help_:
        click.echo(help_.format_message())
        sys.exit(0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except HwsearchError as error:
        _fail(str(error), error.exit_status)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; what was finished is kept, and the same command goes on from there", 130)
    except BrokenPipeError:
        _silence()
        sys.exit(1)
    except OSError as error:  # of stdout; a file has a name
        if error.filename:
            _fail(f"{error.filename}: {error.strerror}", 1)
        _silence()
        _fail(f"cannot write the output: {error.strerror or error}", 1)


def _silence() -> None:
    """Nothing more goes to stdout, not what is still kept back for it either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> Any:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(status)


from hwsearch.cli import devices, distill, fidelity, finished, latency, profile, search, validate, worker  # noqa: E402

cli.add_command(search.search)
cli.add_command(worker.worker)
cli.add_command(fidelity.fidelity)
cli.add_command(finished.report)
cli.add_command(finished.export)
cli.add_command(distill.distill)
cli.add_command(latency.latency)
cli.add_command(validate.validate)
cli.add_command(profile.profile)
cli.add_command(devices.devices)

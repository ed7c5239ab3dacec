"""What is known of each device: `hwsearch devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hwsearch.cli.device import HOST, find
from hwsearch.cli.output import console, json_option, print_json
from hwsearch.errors import ProfileError

if TYPE_CHECKING:
    from hwsearch.device import DeviceProfile


@click.command()
@click.argument("name", required=False)
@json_option
def devices(name: str | None, as_json: bool) -> None:
    """What is known of each device, and how it is known."""
    from hwsearch.profiles import load_profile, profile_files

    if name is not None:
        found = find(name)
        if as_json:
            print_json(found)
        else:
            _describe(found)
        return
    profiles = []
    for path in profile_files():
        try:
            profiles.append(load_profile(path))
        except ProfileError as error:
            click.echo(f"left out: {error}", err=True)
    if as_json:
        print_json(profiles)
        return
    from rich.table import Table

    table = Table(box=None)
    for column in ("device", "also", "runtimes (rows measured)", "how it is known"):
        table.add_column(column, overflow="fold")
    for found in profiles:
        runtimes = ", ".join(
            f"{name} ({runtime.fit.rows if runtime.fit else 0})" for name, runtime in found.runtimes.items()
        )
        table.add_row(
            found.name,
            ", ".join(found.aliases),
            runtimes,
            _known(found),
        )
    table.add_row(HOST, "", "onnxruntime, pytorch", "measured on first use, in about a minute")
    console().print(table)


def _known(profile: DeviceProfile) -> str:
    """How a device is known, in a few words."""
    if profile.board_at_hand:
        own = [name for name, runtime in profile.runtimes.items() if runtime.measured]
        return "measured on the device" + (f": {', '.join(own)}" if len(own) < len(profile.runtimes) else "")
    if any(runtime.fit and runtime.fit.rows for runtime in profile.runtimes.values()):
        return "published rows, no board at hand"
    return "extrapolated from related devices: no rows of its own"


def surer(profile: DeviceProfile, name: str) -> str:
    """The command that would make a runtime's latencies surer."""
    from hwsearch.cli.profile import WITH_A_KIT

    start = f"hwsearch profile --device {profile.name} --runtime {name}"
    measured = bool(profile.runtimes[name].table)  # beside a table, timings of whole models change nothing
    if profile.name == HOST or (measured and name not in WITH_A_KIT and _is_here(profile)):
        return f"{start} --points 100 --minutes 5"
    if measured or name in WITH_A_KIT:
        return f"{start} --ssh USER@HOST"
    return f"{start} --from-cases YOUR-TIMINGS.csv"


def _is_here(profile: DeviceProfile) -> bool:
    """Whether this machine can be the device."""
    from hwsearch.bench.machine import check_here

    try:
        check_here(profile)
    except ProfileError:
        return False
    return True


def _describe(profile: DeviceProfile) -> None:
    from rich.table import Table

    out = console()
    out.print(profile.title, style="bold", end="  ")
    out.print(", ".join([profile.name, *profile.aliases]))
    if profile.note:
        out.print(profile.note)
    facts = Table(box=None, title="facts", title_justify="left")
    for column in ("", "value", "source"):
        facts.add_column(column)
    for label, figure in (
        ("cache MiB", profile.cache_mib),
        ("memory MiB", profile.memory_mib),
        *((f"peak {k}", v) for k, v in profile.peaks.items()),
    ):
        facts.add_row(label, f"{figure.value:g}", figure.source)
    for mode, speed in profile.power_modes.items():
        sources = " / ".join(dict.fromkeys((speed.compute.source, speed.bandwidth.source)))
        facts.add_row(f"mode {mode}", f"compute x{speed.compute.value:g}, memory x{speed.bandwidth.value:g}", sources)
    out.print(facts)
    out.print(evidence(profile))
    better = Table(box=None, title="what would make it surer", title_justify="left", show_header=False)
    for name in profile.runtimes:
        better.add_row(name, surer(profile, name))
    out.print(better)
    for name, runtime in profile.runtimes.items():
        if runtime.parameters is None:
            continue
        from hwsearch.latency.analytic import figures_of

        table = Table(box=None, title=f"{name} {runtime.version}: {runtime.note}".rstrip(": "), title_justify="left")
        for column in ("parameter", "value", "sd of log", "source"):
            table.add_column(column, overflow="fold")
        for parameter, figure in figures_of(runtime.parameters).items():
            table.add_row(parameter, f"{figure.value:.4g}", f"{figure.sd:.2f}", figure.source)
        out.print(table)


def evidence(profile: DeviceProfile) -> Any:
    """A table of what each runtime rests on."""
    from rich.table import Table

    table = Table(box=None, title="evidence", title_justify="left")
    for column in ("runtime", "how", "rows", "models", "mean error on unseen models (rows, in 90 % interval)"):
        table.add_column(column, overflow="fold")
    for name, runtime in profile.runtimes.items():
        fit = runtime.fit
        errors = fit.leave_one_model_out if fit else {}
        text = ", ".join(f"{p} {e.mape:.1%} ({e.rows}, {e.coverage:.0%})" for p, e in errors.items())
        models = ", ".join(fit.models) if fit else ""
        how = "measured table" if runtime.table else "modelled"
        if fit and len(fit.models) > 8:
            models = f"{len(fit.models)} models"
        if not (fit and fit.rows):
            how = "extrapolated"
            text, models = f"borrows {', '.join(runtime.borrows) or 'the datasheet'}", "none"
        table.add_row(name, how, str(fit.rows if fit else 0), models, text)
    return table

"""How wrong a profile is on measured cases: `hwsearch validate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from hwsearch.cli.device import device_option, find, note_modes
from hwsearch.cli.output import console, json_option, note, print_json
from hwsearch.errors import HwsearchError


@click.command()
@device_option
@click.option("--cases", "file", type=click.Path(path_type=Path), required=True, help="CSV of measured latencies.")
@click.option(
    "--leave-one-model-out", "unseen", is_flag=True, help="Price each model by a fit on the rows of the others."
)
@json_option
def validate(device: str, file: Path, unseen: bool, as_json: bool) -> None:
    """How wrong is a profile on measured cases?"""
    from hwsearch.latency.cases import mismatch, read_cases
    from hwsearch.latency.validate import validate as compare

    profile = find(device)
    result = compare(profile, read_cases(file), unseen)
    if not result.rows:
        raise HwsearchError(
            f"{file} has no row of {profile.name!r} and a runtime of its profile ({', '.join(profile.runtimes)}); "
            "nothing to compare"
        )
    if result.skipped:
        names = sorted({mismatch(case, profile) for case in result.skipped})
        note(f"skipped {len(result.skipped)} cases of what the profile does not have: {', '.join(names)}")
    note_modes(profile, [case for case, _ in result.rows])
    if as_json:
        print_json(result.to_json())
        return
    from rich.table import Table

    table = Table(title="priced by a fit that has not seen the model" if unseen else None, box=None)
    for column in (
        "device",
        "runtime",
        "precision",
        "n",
        "mean error",
        "within 10 %",
        "rank corr.",
        "in 90 % interval",
        "width",
    ):
        table.add_column(
            column, justify="left" if column in ("device", "runtime", "precision") else "right", overflow="fold"
        )
    rows: list[tuple[tuple[str, str, str], Any]] = list(result.groups().items())
    if (overall := result.scores()) is not None:
        rows.append((("all", "", ""), overall))
    for names_of_group, s in rows:
        numbers = (
            f"{s.mape:.1%}",
            f"{s.within_10:.0%}",
            "" if math.isnan(s.spearman) else f"{s.spearman:.3f}",
            f"{s.coverage_90:.0%}",
            f"{s.width_90:.0%}",
        )
        table.add_row(*names_of_group, str(s.n), *numbers)
    console().print(table)

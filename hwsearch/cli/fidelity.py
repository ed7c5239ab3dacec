"""Whether short runs may be relied on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwsearch.cli.files import moved_files
from hwsearch.cli.output import console, json_option, note, print_json
from hwsearch.cli.progress import Progress
from hwsearch.distill.job import Moved

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--candidates",
    type=click.IntRange(8, 24),
    default=12,
    show_default=True,
    help="Students to train fully; 24 tell more.",
)
@click.option("--full-steps", type=click.IntRange(40), help="Of full training; a finalist's by default.")
@click.option("--ceiling", is_flag=True, help="Train each once more: how well full training agrees with itself.")
@moved_files
@json_option
def fidelity(
    folder: Path,
    candidates: int,
    full_steps: int | None,
    ceiling: bool,
    moved: Moved,
    as_json: bool,
) -> None:
    """Does a short run rank students as full training does? Trains some of a run's space to the end."""
    from hwsearch.distill.workers import Workers, ffn_dimensions_of
    from hwsearch.files import pretty, write_text
    from hwsearch.report.page import write_page
    from hwsearch.search.description import Description
    from hwsearch.search.fidelity import keep, measure, refused
    from hwsearch.search.finished import stored_study, stored_summary, stored_trials
    from hwsearch.search.plan import STEPS

    with stored_study(folder) as study:
        description = Description(study)
    spec = moved.of(description.spec)
    workers = Workers(spec)
    try:
        with Progress() as progress:
            facts, plan = description.open(workers, progress)
            document = measure(
                plan,
                facts,
                spec,
                workers,
                progress,
                folder / "fidelity",
                candidates,
                full_steps or plan.wishes.long_steps,
                ceiling,
                ffn_dimensions_of,
            )
    finally:
        workers.close()
    write_text(folder / "fidelity.json", pretty(document))
    if (folder / "summary.json").is_file():
        write_page(folder / "report.html", stored_summary(folder), stored_trials(folder))
    known = keep(facts.subject, document)
    if (reason := refused(known)) is None:
        note(f"{known['steps']} steps rank as full training for this teacher and text: --steps auto takes them")
    else:
        note(f"{reason}: --steps auto takes {STEPS}")
    if as_json:
        print_json(document)
    else:
        print_fidelity(document, console())


def print_fidelity(document: dict[str, Any], out: Console) -> None:
    """Lengths of the short run and what costs nothing, each with how well it orders students."""
    from rich.table import Table

    from hwsearch.search.fidelity import by_chance

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("score", "cost", "Kendall tau", "80 % interval", "Spearman", "tau in band", "80 % interval", ""):
        table.add_column(column, justify="left" if column in ("score", "") else "right", overflow="fold")

    def line(name: str, cost: float, row: dict[str, Any], mark: str = "") -> None:
        texts = []
        for where in ("", "_band"):
            value, low, high = (row[f"tau{where}{end}"] for end in ("", "_low", "_high"))
            interval = "" if value is None else f"{low:.2f} to {high:.2f}"
            texts += ["" if value is None else f"{value:.2f}", interval]
        spearman = "" if row["spearman"] is None else f"{row['spearman']:.2f}"
        table.add_row(name, f"{cost:.0%}", texts[0], texts[1], spearman, texts[2], texts[3], mark)

    for row in document["lengths"]:
        passed = "passes" if row["passes"] else "may be chance" if by_chance(row) else ""
        mark = "taken" if row["steps"] == document["steps"] and document["passes"] else passed
        line(f"{row['steps']} steps", row["cost_share"], row, mark)
    for name, row in document["baselines"].items():
        line(name, 0.0, row)
    out.print(
        f"{document['candidates']} students trained for {document['full_steps']} steps, {document['band']} of them "
        "within 10 % of one latency"
    )
    out.print(table)
    if document["ceiling"] is not None:
        out.print(f"full training agrees with itself, the text in another order: tau {document['ceiling']:.2f}")
    if not document["passes"]:
        out.print("no short run passes; the one with the highest lower bound is named in the JSON document")

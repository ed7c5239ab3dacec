"""Joining a study."""

from __future__ import annotations

from pathlib import Path

import click

from hwsearch.cli.files import moved_files
from hwsearch.cli.output import console, json_option, print_json
from hwsearch.cli.progress import Progress
from hwsearch.distill.job import Moved


@click.command()
@click.option("--study", required=True, help="Its name: the search's --study, by default the name of its --out.")
@click.option("--storage", required=True, help="As sqlite:///FILE, postgresql://USER@HOST/NAME, or a journal file.")
@moved_files
@click.option("--out", type=click.Path(path_type=Path), help="Folder of students in training; the run's by default.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Students at once, as far as memory holds them; by default one a core, eight at most.",
)
@json_option
def worker(
    study: str,
    storage: str,
    moved: Moved,
    out: Path | None,
    processes: int | None,
    as_json: bool,
) -> None:
    """Join a study that a search has begun, from another process or another machine."""
    from hwsearch.distill.job import TaskSpec
    from hwsearch.distill.workers import Workers
    from hwsearch.search.study import Study
    from hwsearch.search.worker import join

    pools: list[Workers] = []

    def make_trainer(spec: TaskSpec) -> Workers:
        pools.append(Workers(spec, processes))
        return pools[-1]

    joined = Study(storage, study, make=False)
    try:
        with Progress() as progress:
            found = join(joined, make_trainer, progress, moved, out)
    finally:
        for pool in pools:
            pool.close()
        joined.close()
    if as_json:
        print_json(found)
    else:
        console().print(f"{found['rungs']} rungs trained here; study {found['study']!r} has {found['trials']} trials")

"""Joining a study."""

from __future__ import annotations

from pathlib import Path

import click

from hwsearch.cli.output import console, json_option, print_json
from hwsearch.cli.progress import Progress


@click.command()
@click.option("--study", required=True, help="Its name, as the summary of its run has it.")
@click.option("--storage", required=True, help="As sqlite:///FILE, postgresql://USER@HOST/NAME, or a journal file.")
@click.option("--teacher", help="Folder of the teacher on this machine, if it lies elsewhere here.")
@click.option("--data", type=click.Path(path_type=Path), help="Text on this machine, likewise.")
@click.option("--eval", "held_out", type=click.Path(path_type=Path), help="Held-out text on this machine, likewise.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of students in training; the run's by default.")
@click.option("--processes", type=click.IntRange(1), help="Students at once; one a core, or a GPU, by default.")
@json_option
def worker(
    study: str,
    storage: str,
    teacher: str | None,
    data: Path | None,
    held_out: Path | None,
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
            found = join(joined, make_trainer, progress, teacher, data, held_out, out)
    finally:
        for pool in pools:
            pool.close()
        joined.close()
    if as_json:
        print_json(found)
    else:
        console().print(f"{found['rungs']} rungs trained here; study {found['study']!r} has {found['trials']} trials")

"""The full training of a student that was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwsearch.cli.files import moved_files
from hwsearch.cli.output import console, json_option, note, print_json
from hwsearch.cli.progress import Progress
from hwsearch.cli.types import Positive
from hwsearch.distill.job import Moved
from hwsearch.distill.recipe import names, read_recipe

if TYPE_CHECKING:
    from hwsearch.latency.latency import Latency
    from hwsearch.search.finished import Finished


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--trial", type=click.IntRange(0), help="A trial's number; the chosen one by default.")
@click.option(
    "--steps",
    type=click.IntRange(30),
    help="In all; the rate falls from 30 % of them on, later in a short training; by default as many as pay.",
)
@click.option(
    "--minutes",
    type=Positive(),
    help="That training may take, the trial of learning rates apart; ends sooner where longer no longer pays.",
)
@click.option(
    "--recipe", "recipe_name", help=f"A TOML file, or one that comes with hwsearch: {', '.join(names())}.", default=None
)
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Folder to write the student to.")
@moved_files
@json_option
def distill(
    folder: Path,
    trial: int | None,
    steps: int | None,
    minutes: float | None,
    recipe_name: str | None,
    to: Path,
    moved: Moved,
    as_json: bool,
) -> None:
    """Train the chosen student of a finished run fully, export and measure it.

    Writes a Transformers folder, and in it `onnx` or `tensorrt` where the run's runtime is one of these. What was
    trained is kept in the run's folder: the same command goes on from there. More of the text may be used than was
    searched on.
    """
    import msgspec

    from hwsearch.distill.workers import Workers, layers_of
    from hwsearch.errors import ExportError, GraphError, RunError
    from hwsearch.export.forms import deliver
    from hwsearch.export.student import refuse
    from hwsearch.files import pretty, write_text
    from hwsearch.report.page import write_page
    from hwsearch.report.tables import overrun
    from hwsearch.search.assistants import with_assistants
    from hwsearch.search.distillation import Distillation, check_stages, with_text
    from hwsearch.search.finished import finished, stored_summary, stored_trials
    from hwsearch.search.trainer import complete, result_of
    from hwsearch.units import format_ms

    if steps is not None and minutes is not None:
        raise click.UsageError("--steps and --minutes exclude each other")
    run = finished(folder, trial, moved)
    recipe = run.spec.recipe
    if recipe_name is not None:
        own = read_recipe(recipe_name)
        recipe = msgspec.structs.replace(own, seed=own.seed or recipe.seed)
    refuse(to, [*run.needs(folder), *map(Path, recipe.teachers)])
    kept, workers = folder / "distilled", None
    if kept.resolve() in (to.resolve(), *to.resolve().parents):
        raise RunError(f"{kept} is where what is trained is kept; choose another --to")
    if steps is not None:
        check_stages(recipe.before_last, steps)
    spec = with_text(msgspec.structs.replace(run.spec, recipe=recipe), steps)
    try:
        with Progress() as progress:
            progress.say(f"trial {run.trial}: {run.architecture.id}")
            each = minutes and minutes / (1 + len(recipe.assistants))
            spec, assistants = with_assistants(
                spec, run.architecture, kept, progress, run.check_teacher, run.rate, steps, each
            )
            workers = Workers(spec, count=1)  # one student: all threads work on it
            facts = result_of(workers.open())
            run.check_teacher(facts.weights)
            if facts.text != run.text:
                progress.say(f"the text is not that of the search: {facts.corpus}")
            facts = complete(workers, facts, progress)
            stages, states = spec.recipe.before_last, kept / facts.digest
            layers = result_of(workers.run(layers_of, run.state))
            work = Distillation(run.architecture, workers, states, progress, layers, stages, run.rate)
            score, state = work.run(steps, each)
            progress.say("exporting, and measuring where the runtime is at hand")
            where = (to, run.target.runtime, run.workload, run.target.threads, True)
            failure, parity = None, {}
            try:
                parity = result_of(workers.run(deliver, run.architecture, state, *where))
            except (ExportError, RunError) as error:  # what was trained is worth a word all the same
                failure = error
            measured = None
            if failure is None:
                try:
                    measured = _measured(run, to)
                except Exception as error:  # of a runtime, for lack of memory perhaps: the training is done
                    progress.say(f"the graph could not be timed: {type(error).__name__}: {error}")
            latency = measured or run.latency
    finally:
        if workers is not None:
            workers.close()
    summary = stored_summary(folder)
    budgets = float(summary["budget_ms"]), dict(summary.get("phases_ms") or {})
    document = {
        "trial": run.trial,
        "architecture": run.architecture.to_json(),
        "before": run.judged,
        "after": msgspec.to_builtins(score),
        "latency": msgspec.to_builtins(latency),
        "parity": parity,
        "recipe": {
            "name": recipe_name or "answers",
            "source": recipe.source if recipe_name else read_recipe("answers").source,
        },
        "assistants": assistants,
        "state": str(state.relative_to(folder)),
        "budget_ms": budgets[0],
        "fits": latency.filled(*budgets) <= 1.0,
        "folder": str(to) if failure is None or isinstance(failure, GraphError) else None,
    }
    for path in (folder / "distilled.json", kept / f"{run.trial}.json"):  # the last one, and that of each trial
        write_text(path, pretty(document))
    write_page(folder / "report.html", stored_summary(folder), stored_trials(folder))
    if failure is not None:
        raise failure
    if as_json:
        print_json(document)
        return
    before = f"; {run.judged['retention']:.1%} when it was chosen" if run.judged else ""
    out = console()
    out.print(
        f"{run.architecture.id} keeps {score.retention:.1%} (90 % interval {score.retention_low:.1%} to "
        f"{score.retention_high:.1%}) of the teacher's quality after {score.steps} steps{before}"
    )
    interval = f"90 % interval {format_ms(latency.low_ms)} to {format_ms(latency.high_ms)}"
    known = "its graph as it was run" if measured else f"as the search had it: {latency.certainty}"
    out.print(f"{format_ms(latency.median_ms)} of {format_ms(budgets[0])} ({interval}), {known}; written to {to}")
    if missed := overrun(latency, *budgets):
        out.print(missed, style="bold")
    note(f"report: {folder / 'report.html'}")


def _measured(run: Finished, to: Path) -> Latency | None:
    """What the exported graph takes on the target; None where it is not at hand, or the student is no graph."""
    from hwsearch.bench.measurer import measurer_of

    measurer = measurer_of(run.profile, run.target, run.workload)
    name = "model_with_past.onnx" if run.workload.new_tokens else "model.onnx"
    graph = (to / "onnx" if run.architecture.uniform else to) / name
    if measurer is None or not graph.is_file():
        return None
    return measurer.measure_graph(graph, run.architecture.vocab)

"""What is done with a finished run: report, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from hwsearch.cli.files import moved_files
from hwsearch.cli.output import console, json_option, note, print_json
from hwsearch.cli.progress import Progress
from hwsearch.distill.job import Moved
from hwsearch.errors import HwsearchError, RunError

if TYPE_CHECKING:
    from hwsearch.export.forms import GraphForm
    from hwsearch.export.parity import Parity
    from hwsearch.search.finished import Finished


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--device", help="Price the run's students on another device.")
@click.option("--runtime", help="Of the device; its first by default. Alone: of the run's own device.")
@json_option
def report(folder: Path, device: str | None, runtime: str | None, as_json: bool) -> None:
    """Build a run's report again, or with another device's latencies."""
    from hwsearch.cli.device import HOST, find
    from hwsearch.report.page import write_page
    from hwsearch.report.tables import print_summary
    from hwsearch.search.elsewhere import reprice
    from hwsearch.search.finished import stored_profile, stored_summary, stored_trials

    document, trials, name = stored_summary(folder), stored_trials(folder), "report.html"
    try:
        if device or runtime:
            own = document["target"]
            mode, threads = (None, None) if device else (own["power_mode"], own["threads"] or None)
            if device or own["device"] == HOST:  # another runtime of this machine may have to be measured
                profile = find(device or HOST, threads, runtime, document["workload"]["new_tokens"])
            else:  # what a file has said of a board is in the run
                profile = stored_profile(folder)
            known = profile.runtimes.get(runtime or "")
            target = profile.target(runtime, mode, threads if known and known.threads else None)
            document, trials = reprice(document, trials, profile, target)
            name = f"report-{profile.name}-{target.runtime}.html"
        write_page(folder / name, document, trials)
        if not as_json:
            print_summary(document, None, console())
    except (HwsearchError, OSError):
        raise
    except Exception as error:  # of what a summary lacks, or has in another kind than was written
        raise RunError(f"{folder / 'summary.json'} is damaged: {type(error).__name__}: {error}") from error
    if as_json:
        print_json(document)
    else:
        note(f"report: {folder / name}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--trial", type=click.IntRange(0), help="A trial's number; the chosen one by default.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["huggingface", "onnx", "tensorrt"]),
    default="huggingface",
    show_default=True,
    help="For Transformers; graphs for ONNX Runtime, with a script that times them; the same for TensorRT, with a "
    "trtexec line and a script that builds an engine.",
)
@click.option("--static", is_flag=True, help="model.onnx for the run's batch and sequence alone.")
@moved_files
@json_option
def export(
    folder: Path,
    trial: int | None,
    to: Path,
    form: Literal["huggingface"] | GraphForm,
    static: bool,
    moved: Moved,
    as_json: bool,
) -> None:
    """Write a student of a finished run in a form that other programs load."""
    from hwsearch.export.student import refuse
    from hwsearch.search.finished import finished

    run = finished(folder, trial, moved)
    refuse(to, run.needs(folder))
    with Progress() as progress:
        progress.say(f"trial {run.trial}: {run.architecture.id}, as {_trained(run)}")
        parity = _write(run, to, form, static, progress)
    document = {"trial": run.trial, "architecture": run.architecture.to_json(), "format": form, "folder": str(to)}
    if as_json:
        print_json({**document, "parity": parity})
        return
    console().print(f"{run.architecture.id} written to {to}")
    for name, found in parity.items():
        rounding = f", where its quantised parts cause {found.kl_of_rounding:.1e}" if found.kl_of_rounding else ""
        if found.kl_of_arithmetic:
            rounding += f", and other last bits {found.kl_of_arithmetic:.1e}"
        # What stock Transformers computes is in float.
        what = "is loaded as it was saved" if form == "huggingface" else "computes what was trained"
        console().print(f"{name} {what}: {found.kl:.1e} nats away on {found.answers} answers{rounding}")


def _trained(run: Finished) -> str:
    if run.distilled:
        return f"distilled fully, {run.distilled} steps"
    return "trained in the search; hwsearch distill trains it fully"


def _write(
    run: Finished, to: Path, form: Literal["huggingface"] | GraphForm, static: bool, progress: Progress
) -> dict[str, Parity]:
    """Write an export; how near it comes, by file."""
    from hwsearch.distill.teacher import teacher_of
    from hwsearch.distill.workers import mendable
    from hwsearch.distill.workshop import Workshop
    from hwsearch.export.forms import write_graph
    from hwsearch.export.huggingface import write_huggingface
    from hwsearch.export.student import TrainedStudent

    given = (run.spec.scheme, run.architecture, run.state)
    if form == "huggingface":
        if static:
            raise click.UsageError("--static is of graphs: --format onnx or tensorrt")
        teacher = teacher_of(run.spec)
        run.check_teacher(teacher.digest)
        return write_huggingface(TrainedStudent.load(teacher, *given), to)
    workshop = Workshop(run.spec)
    run.check_teacher(workshop.teacher.digest)
    student = TrainedStudent.load(workshop.teacher, *given)
    progress.say("writing graphs, each checked against the student on held-out text: half a minute or more")
    with mendable("writing the graphs"):
        return write_graph(student, workshop, form, to, run.workload, run.target.threads, static)

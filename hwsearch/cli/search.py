"""The main job."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from msgspec.structs import replace

from hwsearch.cli.device import device_option
from hwsearch.cli.output import console, json_option, print_json
from hwsearch.cli.progress import Progress
from hwsearch.cli.types import COUNT, NONE_OR_MORE, BudgetType, Numbers, Positive, Steps
from hwsearch.distill.families.tasks import TaskName
from hwsearch.distill.job import DType
from hwsearch.errors import ExportError, NothingFits

if TYPE_CHECKING:
    from hwsearch.device import Target
    from hwsearch.distill.workers import Workers
    from hwsearch.precision import Scheme
    from hwsearch.search.main_job import Deliver
    from hwsearch.search.outcome import Outcome
    from hwsearch.search.plan import Wishes
    from hwsearch.search.run import Run
    from hwsearch.units import Budget
    from hwsearch.workload import Workload

BULK = {
    "batch": 64,
    "sequence": 128,
    "new_tokens": 0,
    "repeat": 256,
}  # the embedded teacher's job: 16,384 chunks of 128 tokens
LONE = {"batch": 1, "sequence": 128, "new_tokens": 0, "repeat": 1}


@click.command(short_help="Find the best student inside the budget (the main job; the word may be left out).")
@device_option
@click.option("--budget", type=BudgetType(), required=True, help="As 280ms, 1.5s, or 0.25x of the teacher's latency.")
@click.option(
    "--teacher",
    help="Folder, or OWNER/NAME on the Hub, of a causal language model (Llama, Mistral, Qwen 2 and 3, GPT-2), or of a "
    "classifier, tagger, masked language model or sentence encoder (BERT and its kin), or of an image classifier (ViT, "
    "DeiT); the embedded one by default.",
)
@click.option(
    "--task",
    type=click.Choice(get_args(TaskName)),
    metavar="TASK",
    help=f"What the teacher is for, by default what its checkpoint says: {', '.join(get_args(TaskName))}.",
)
@click.option(
    "--teacher-dtype",
    type=click.Choice(get_args(DType)),
    default="float32",
    show_default=True,
    help="Of the teacher's weights: half precision takes half the memory, and what a checkpoint is stored in is shared "
    "by all processes. int8 is of its answers, on a GPU with little memory ('.[large]').",
)
@click.option(
    "--trust-remote-code", is_flag=True, help="Run code that lies in the teacher's checkpoint; it may do anything."
)
@click.option(
    "--data",
    help="Text to distil on, the Python standard library by default; texts of their own as CSV, TSV, JSONL, Parquet, "
    "a text a line, or a folder that datasets has saved; a folder of images for each class. "
    "hf://datasets/OWNER/NAME/FILE is one of the Hub.",
)
@click.option("--eval", "held_out", help="Text to judge on; a part of --data by default.")
@click.option(
    "--text-column",
    default="text",
    show_default=True,
    help="Of such a file; first,second for pairs of texts; lists of words for a tagger, paths of images (image by "
    "default) for an image classifier.",
)
@click.option(
    "--label-column", default="label", show_default=True, help="Of such a file; without it the teacher's answers count."
)
@click.option("--runtime", help="On the device; the profile's first by default.")
@click.option("--power-mode", help="Of the device; the profile's first by default.")
@click.option("--threads", type=click.IntRange(1), help="Of the runtime on the device; the profile's by default.")
@click.option("--batch", type=COUNT, help="Sequences at once.")
@click.option("--sequence", type=click.IntRange(2, COUNT.max), help="Tokens of one input.")
@click.option("--new-tokens", type=NONE_OR_MORE, help="Tokens generated after it.")
@click.option("--repeat", type=COUNT, help="How many in a row the budget covers.")
@click.option("--depth", type=Numbers(), help="Layers to choose from, as 2-4.")
@click.option("--width", type=Numbers(), help="Widths to choose from, as 64,96,128.")
@click.option("--heads", type=Numbers(), help="Head counts to choose from.")
@click.option("--ffn", type=Numbers(), help="Feed-forward sizes to choose from.")
@click.option("--precision", help="Precisions of a layer's parts to choose from, as fp16,int8.")
@click.option(
    "--space",
    type=click.Choice(["macro", "per-layer"]),
    default="macro",
    show_default=True,
    help="Precisions are solved at a rate of exchange, or chosen one by one by Optuna.",
)
@click.option(
    "--uneven",
    is_flag=True,
    help="Let layers differ in heads and feed-forward size: for graphs, stock Transformers cannot load such students.",
)
@click.option(
    "--min-quality",
    type=Positive(1),
    help="Least retention of the teacher's accuracy; the fastest that has it is chosen.",
)
@click.option("--max-size-mib", type=Positive(), help="Limit of the stored weights.")
@click.option("--max-memory-mib", type=Positive(), help="Limit of weights, activations and cached keys and values.")
@click.option("--budget-ttft", type=BudgetType(), help="Of the first token of a generation, as 50ms.")
@click.option("--budget-tpot", type=BudgetType(), help="Of each token after it, as 8ms.")
@click.option("--trials", type=click.IntRange(1), default=16, show_default=True, help="Students to try.")
@click.option("--minutes", type=Positive(), help="Begin no trial and no further rung after this time.")
@click.option(
    "--steps",
    type=Steps(),
    default="160",
    show_default=True,
    help="Of a trial's first rung; finalists get 6.7 times as many. 'auto': the least that 'hwsearch fidelity' found "
    "to rank as full training does.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; reports/<what it is> by default.")
@click.option("--study", help="Its name in --storage; that of the run's folder by default.")
@click.option(
    "--storage",
    help="Where workers find the study: sqlite:///FILE, postgresql://USER@HOST/NAME, or a journal file; "
    "study.db in the run's folder by default.",
)
@click.option("--dry-run", is_flag=True, help="Price the teacher and the space, and stop.")
@json_option
def search(device: str, out: Path | None, dry_run: bool, as_json: bool, budget: Budget, **options: Any) -> None:
    """Find the student that loses least inside a latency budget on a device."""
    from hwsearch.bench.measurer import measurer_of
    from hwsearch.cli.device import find
    from hwsearch.distill.families import image_at
    from hwsearch.distill.job import TaskSpec, chunks_of
    from hwsearch.distill.recipe import Recipe
    from hwsearch.distill.workers import Workers
    from hwsearch.hub import checkpoint, data_file
    from hwsearch.search.fidelity import measured_steps
    from hwsearch.search.main_job import run_search
    from hwsearch.search.plan import with_room
    from hwsearch.search.trainer import result_of

    teacher = checkpoint(options["teacher"], options["trust_remote_code"]) if options["teacher"] else None
    if teacher and options["sequence"] is None and (image := image_at(teacher)):
        options["sequence"] = image.tokens
    wishes = _wishes(budget, options)
    profile = find(device, options["threads"], options["runtime"], options["new_tokens"])
    target = profile.target(options["runtime"], options["power_mode"], options["threads"])
    scheme = profile.runtimes[target.runtime].scheme
    spec = TaskSpec(
        teacher=str(teacher) if teacher else "",
        data=str(data_file(options["data"])) if options["data"] else "",
        held_out=str(data_file(options["held_out"])) if options["held_out"] else "",
        sequence=wishes.workload.sequence,
        chunks=chunks_of(wishes.long_steps, Recipe()),
        recipe=Recipe(seed=wishes.seed),
        scheme=scheme,
        together=_together(wishes, scheme),
        precisions=tuple(p for p in wishes.precisions or TaskSpec().precisions if not p.is_float),
        text_column=options["text_column"],
        label_column=options["label_column"],
        task=options["task"] or "",
        teacher_dtype=options["teacher_dtype"],
        trust_remote_code=options["trust_remote_code"],
    )
    workers = Workers(spec)
    try:
        with Progress() as progress:
            if options["teacher"] and options["batch"] is None:
                architecture = result_of(workers.open()).architecture
                measures = measurer_of(profile, target, wishes.workload) is not None
                wishes, lone = with_room(wishes, profile, target, architecture, measures), wishes
                if wishes is not lone:
                    progress.say(
                        f"no student of this teacher takes {budget} of its time on {lone.workload.batch} x "
                        f"{lone.workload.sequence} tokens: launching its kernels takes more. {wishes.workload.batch} "
                        "sequences at once are searched for; --batch says how many"
                    )
                    workers.close()
                    spec = replace(spec, together=_together(wishes, scheme))
                    workers = Workers(spec)
            if workers.few:
                progress.say(
                    f"{workers.count} students are trained at once: memory holds no more, each beside a teacher in "
                    f"{spec.teacher_dtype}. All share one in the floats that it is stored in: --teacher-dtype"
                )
            progress.say(f"workload: {wishes.workload}, {wishes.workload.tokens:,} tokens")
            if options["steps"] == "auto":
                wishes = measured_steps(wishes, result_of(workers.open()).subject, progress)
            folder, document = run_search(
                profile,
                target,
                wishes,
                spec,
                workers,
                progress,
                _deliver(workers, target, wishes.workload),
                out,
                str(budget),
                dry_run,
                measurer_of(profile, target, wishes.workload),
                options["storage"],
                options["study"],
            )
    except NothingFits as miss:
        if as_json:
            print_json(miss.details)
        raise
    finally:
        workers.close()
    if as_json:
        print_json(document)
    else:
        from hwsearch.report.tables import print_summary

        print_summary(document, folder, console())


def _together(wishes: Wishes, scheme: Scheme) -> int:
    """Texts that are judged at once (`TaskSpec.together`): what the runtime sees, where ranges are of all of it."""
    return wishes.workload.batch if scheme.activations == "dynamic" else 0


def _wishes(budget: Budget, options: dict[str, Any]) -> Wishes:
    from hwsearch.precision import Precision
    from hwsearch.search.plan import Wishes
    from hwsearch.workload import Workload

    given = {name: options[name] for name in LONE if options[name] is not None}
    workload = BULK if not given and not options["teacher"] else {**LONE, **given}
    try:
        precisions = (
            tuple(Precision(name.strip()) for name in options["precision"].split(",")) if options["precision"] else None
        )
    except ValueError as error:
        raise click.UsageError(f"precisions are {', '.join(map(str, Precision))}: {error}") from None
    own = {"steps": options["steps"]} if options["steps"] != "auto" else {}
    limits = ("min_quality", "max_size_mib", "max_memory_mib", "budget_ttft", "budget_tpot")
    if options["budget_tpot"] and not workload["new_tokens"]:
        raise click.UsageError("--budget-tpot is of a generated token; say how many with --new-tokens N")
    return Wishes(
        budget=budget,
        workload=Workload(**workload),
        depths=options["depth"],
        widths=options["width"],
        heads=options["heads"],
        ffns=options["ffn"],
        precisions=precisions,
        **own,
        **{name: options[name] for name in ("trials", "seed", "minutes", "space", "uneven", *limits)},
    )


def _deliver(workers: Workers, target: Target, workload: Workload) -> Deliver:
    """Write everything that a person opens."""

    def deliver(run: Run, outcome: Outcome, document: dict[str, Any]) -> None:
        from hwsearch.export.forms import deliver as write
        from hwsearch.report.page import write_page
        from hwsearch.report.tables import write_tables
        from hwsearch.search.finished import with_later
        from hwsearch.search.trainer import result_of

        write_tables(run.folder, outcome)
        write_page(run.folder / "report.html", with_later(document, run.folder), outcome.trials)
        folder, chosen = run.folder / "chosen", outcome.chosen
        if chosen is None or chosen.trial is None:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier answer
            return
        state = run.student(chosen.trial, chosen.architecture, "long")
        try:
            result_of(
                workers.run(write, chosen.architecture, state, folder, target.runtime, workload, target.threads, False)
            )
        except ExportError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    return deliver

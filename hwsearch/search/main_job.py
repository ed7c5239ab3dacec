"""The main job: from a person's wishes to a run's documents."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hwsearch.device import DeviceProfile, Target
from hwsearch.distill.families.tasks import TASKS
from hwsearch.distill.job import Facts, TaskSpec
from hwsearch.errors import ArchitectureError, ExportError, NothingFits, RunError
from hwsearch.files import pretty, write_text
from hwsearch.latency.tables import table_of_target
from hwsearch.precision import Precision
from hwsearch.search.description import describe
from hwsearch.search.engine import Engine
from hwsearch.search.fidelity import kept, refused, trust
from hwsearch.search.finished import plain_summary
from hwsearch.search.measured import Measurer, measured_teacher
from hwsearch.search.outcome import Outcome
from hwsearch.search.owner import membership
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.precision import explained
from hwsearch.search.run import Run, default_folder
from hwsearch.search.storage import file_of, reachable
from hwsearch.search.study import Study
from hwsearch.search.summary import summarise, versions
from hwsearch.search.trainer import Progress, Trainer, complete, result_of
from hwsearch.units import format_ms

if TYPE_CHECKING:
    from hwsearch.distill.sensitivity import Sensitivity

Deliver = Callable[[Run, Outcome, dict[str, Any]], None]


def run_search(
    profile: DeviceProfile,
    target: Target,
    wishes: Wishes,
    spec: TaskSpec,
    trainer: Trainer,
    progress: Progress,
    deliver: Deliver,
    out: Path | None = None,
    budget_text: str = "",
    dry_run: bool = False,
    measurer: Measurer | None = None,
    storage: str | None = None,
    name: str | None = None,
) -> tuple[Path | None, dict[str, Any]]:
    """Search, and write the run's folder; returns it (None where nothing was written) and the summary.

    Args:
        profile, target: of the device.
        wishes: of the person.
        spec: of the task that `trainer` works on.
        trainer: who trains.
        progress: who is told.
        deliver: writes the report and the chosen student into the run's folder; the summary is written after it, last
            of all.
        out: folder of the run.
        budget_text: as the person wrote it, for the folder's name.
        dry_run: stop once everything is priced.
        measurer: of the target, where its runtime is at hand.
        storage: of the study; a file in the run's folder by default.
        name: of the study; its folder's by default.

    Raises:
        NothingFits: not even the smallest student; `details` is the summary.
        RunError: the folder cannot be used.
        ArchitectureError: the teacher or the runtime cannot meet a wish.
        ProfileError: the profile does not say what a wish takes.
    """
    started = time.monotonic()
    facts = result_of(trainer.open())
    teacher = facts.architecture
    if facts.longest is not None and wishes.workload.sequence + wishes.workload.new_tokens > facts.longest:
        raise ArchitectureError(
            f"{facts.teacher} reads and writes at most {facts.longest} tokens; --sequence and --new-tokens ask for "
            f"{wishes.workload.sequence} and {wishes.workload.new_tokens}"
        )
    measured = measured_teacher(profile, target, wishes.workload, teacher, measurer, progress) if measurer else None
    plan = Plan(wishes, profile, target, teacher, measures=measurer is not None, measured=measured)
    _introduce(plan, facts.teacher, facts.corpus, progress)
    if plan.teacher_fits:
        progress.say(
            f"the teacher itself fits: {format_ms(plan.teacher_latency.high_ms)} at most in {plan.teacher_precision}. "
            "The budget is no constraint, and no student loses less than its teacher"
        )
        return None, summarise("", plan, facts.task, None, time.monotonic() - started)
    try:
        plan.check()
        if dry_run:
            return None, summarise("", plan, facts.task, None, time.monotonic() - started)
        return _search(
            plan, facts, spec, trainer, progress, deliver, out, budget_text, measurer, started, storage, name
        )
    except NothingFits as miss:
        raise NothingFits(
            str(miss), summarise("", plan, facts.task, None, time.monotonic() - started, miss.details)
        ) from None


def sensitivity_in_worker(workshop: Any, *arguments: Any) -> Sensitivity | None:
    """`distill.sensitivity.sensitivity_in_worker`, which brings torch along, imported where it is run."""
    from hwsearch.distill.sensitivity import sensitivity_in_worker as measure

    return measure(workshop, *arguments)


def _search(
    plan: Plan,
    facts: Facts,
    spec: TaskSpec,
    trainer: Trainer,
    progress: Progress,
    deliver: Deliver,
    out: Path | None,
    budget_text: str,
    measurer: Measurer | None,
    started: float,
    storage: str | None,
    name: str | None,
) -> tuple[Path, dict[str, Any]]:
    """The search itself, in the folder of its run."""
    wishes = plan.wishes
    identity = _identity(plan, facts, spec)
    run = Run(out or default_folder(plan.profile.name, budget_text, facts.teacher, identity), identity)
    try:
        stored = plain_summary(run.folder) if run.path("summary.json").is_file() else None
        if stored is not None and stored.get("asked_trials", 0) >= wishes.trials:
            progress.say(f"this run was finished before; its answer stands in {run.folder}")
            return run.folder, stored
        own = run.path("study.db")
        if storage and (file := file_of(storage)) and file.resolve() == own.resolve():
            raise RunError(f"{own} is the run's own: the study lies there without --storage; leave it out")
        if not storage and not own.is_file() and any(run.path("students").glob("*")):
            raise RunError(
                f"{run.folder} has students in training and no study.db: if its study lies in a --storage, name it; "
                "choose another --out to begin anew"
            )
        study = Study(storage or own, name or run.name, before=own if storage else None)
        try:
            with membership() as main, reachable(study.address):
                describe(study, plan, facts, identity, spec, run.folder, main)
                facts = complete(trainer, facts, progress)
                progress.say(f"teacher: {TASKS[facts.task].metric} {facts.quality:.1%} on select")
                known = kept(facts.subject)
                if warning := trust(wishes.steps, known):
                    way = "; --steps auto takes what is known" if known and not refused(known) else ""
                    progress.say(f"{warning}. Students may be stopped too early{way}")
                outcome = Engine(plan, facts, trainer, run, study, progress, measurer).search()
            if storage:
                study.copy(own)  # the folder holds all that a report needs
        finally:
            study.close()
        document = {
            **summarise(study.name, plan, facts.task, outcome, time.monotonic() - started),
            "sensitivity": _sensitivity(plan, outcome, run, trainer),
            "asked_trials": outcome.asked,
            "fidelity": known,
        }
        try:
            deliver(run, outcome, document)
        except ExportError:
            write_text(run.path("summary.json"), pretty(document))  # the search itself is done
            raise
        except RunError:  # no fault of the student: the same command writes it anew
            document.pop("asked_trials")
            write_text(run.path("summary.json"), pretty(document))
            raise
        write_text(run.path("summary.json"), pretty(document))
        return run.folder, document
    finally:
        run.close()


def _sensitivity(plan: Plan, outcome: Outcome, run: Run, trainer: Trainer) -> dict[str, Any] | None:
    """What the chosen student's precisions cost and buy; None where it has none to choose from."""
    chosen, precisions = outcome.chosen, plan.space.precisions
    quantised = [p for p in precisions if not p.is_float]
    if chosen is None or chosen.trial is None or not precisions[0].is_float or not quantised:
        return None
    state = run.student(chosen.trial, chosen.architecture, "long")
    found = result_of(trainer.run(sensitivity_in_worker, chosen.architecture, state, quantised))
    if found is None:  # a trainer that invents scores
        return None
    head = plan.space.quantised_head
    return explained(chosen.architecture, precisions, found, lambda options: plan.price(options).median_ms, head)


def _identity(plan: Plan, facts: Facts, spec: TaskSpec) -> dict[str, Any]:
    """Everything that changes a score, a price or the choice; not how many trials are wanted, nor where files lie."""
    wishes: dict[str, Any] = msgspec.to_builtins(plan.wishes)
    for name in ("trials", "minutes", "budget", "budget_ttft", "budget_tpot"):
        wishes.pop(name)
    own = plan.profile.runtimes[plan.target.runtime]  # others may be measured between two parts of a run
    profile = {**msgspec.to_builtins(plan.profile), "runtimes": msgspec.to_builtins(own)}
    identity = {
        "task": facts.digest,
        "teacher": facts.weights,
        "text": facts.text,
        "spec": spec.placeless,
        "target": plan.target,
        "table": table.digest if (table := table_of_target(plan.profile, plan.target)) else None,
        "profile": hashlib.sha256(msgspec.json.encode(profile)).hexdigest()[:12],
        "budget_ms": plan.budget_ms,
        "phases_ms": plan.phases_ms,
        **wishes,
        "versions": versions(),
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(identity))
    return plain


def _introduce(plan: Plan, teacher: str, corpus: str, progress: Progress) -> None:
    latency = plan.teacher_latency
    progress.say(f"target: {plan.target}")
    progress.say(
        f"teacher: {teacher}, {plan.teacher.parameters / 1e6:.1f} M parameters, {format_ms(latency.median_ms)} in "
        f"{plan.teacher_precision} (90 % interval {format_ms(latency.low_ms)} to {format_ms(latency.high_ms)}; "
        f"{latency.certainty}); text: {corpus}"
    )
    progress.say(
        f"budget: {format_ms(plan.budget_ms)}, {plan.budget_ms / latency.median_ms:.2f} of the teacher's; "
        f"{plan.space.size:.1e} students to choose from"
    )
    for phase, ms in plan.phases_ms.items():
        progress.say(f"budget of one {phase.replace('_', ' ')}: {format_ms(ms)}")
    if Precision.INT4 in plan.space.precisions and not plan.target.runtime.startswith("onnxruntime"):
        progress.say(f"int4 is priced for {plan.target.runtime}, but export writes it for onnxruntime alone")

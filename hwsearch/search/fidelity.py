"""Does the short run rank students as the full one does? Measured on the user's own teacher and text.

A few students are trained to the end: some spread over the latencies inside the budget, some of nearly one latency,
where parameters and latency say nothing. Their curves show what a run of any length would have said of them, so that
one training of each judges every length. The shortest that passes is kept for the teacher and text (`--steps auto`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from hwsearch.distill.job import COOL, Facts, Job, ProxyScore, TaskSpec, chunks_of
from hwsearch.errors import RunError, TrainingError
from hwsearch.files import pretty, read_json, read_or_drop, sweep, write_text
from hwsearch.search.candidates import stratified
from hwsearch.search.plan import RUNGS, STEPS, Plan, Wishes, full_of
from hwsearch.search.proposer import Given
from hwsearch.search.rank import Agreement, agreement
from hwsearch.search.trainer import Progress, Trainer, result_of

SHARES = (0.05, 0.08, 0.1, 0.15, 0.2, RUNGS[-1])  # of full training: lengths of a short run that are judged
PASSES = {"tau": 0.9, "tau_low": 0.8, "tau_band": 0.75, "tau_band_low": 0.5}  # at least
LEAST = 8  # students; fewer say nothing of an order
LEAST_BAND = 4  # of them in the band, and one more to begin with: an order of three is right by chance too often
CHANCE = 0.05  # that an order at random agrees as well, at most


class Length(msgspec.Struct, frozen=True):
    """What short runs of one length say.

    Attributes:
        steps: of the short run.
        cost_share: of a full run, evaluations included.
        all, band: agreement with full training; of the band alone. None where there are too few.
        passes: whether it may be relied on.
    """

    steps: int
    cost_share: float
    all: Agreement | None
    band: Agreement | None
    passes: bool


def measure(
    plan: Plan,
    facts: Facts,
    spec: TaskSpec,
    trainer: Trainer,
    progress: Progress,
    folder: Path,
    candidates: int,
    full_steps: int,
    second: bool,
    features: Callable[..., Any],
) -> dict[str, Any]:
    """Train candidates fully and judge short runs by them; the contract's document.

    Args:
        plan: of the search that is judged.
        facts: of the task, complete.
        spec: of the task.
        trainer: who trains.
        progress: who is told.
        folder: keeps the students; what is there is gone on from.
        candidates: how many; four tenths of them in one band.
        full_steps: of full training.
        second: train them once more with the text in another order: how well full agrees with itself.
        features: for `Trainer.run`: the feed-forward dimensions of a student.

    Raises:
        RunError: there are too few students inside the budget, or too few can be trained; or the task has less text
            than such full training reads.
    """
    if spec.chunks < (wanted := chunks_of(full_steps, spec.recipe)):
        raise RunError(
            f"the run was begun with {spec.chunks} texts, and {full_steps} full steps read {wanted}: fewer are learnt "
            f"by heart. Take --full-steps {spec.chunks // spec.recipe.batch} at most, or a run with more --steps"
        )
    band = max(LEAST_BAND + 1, round(0.4 * candidates))
    proposer = plan.proposer(facts)
    fullest = [a for corner in proposer.corners() if (a := proposer(Given(corner), ())) is not None]
    most = float(plan.price(fullest).median_ms.max())
    students = stratified(plan, facts, candidates - band, band, most, 0.9 * most)
    _enough(len(students), "lie inside the budget: widen --depth, --width, --heads, --ffn or --budget of the run")
    _enough(
        sum(student.band for student in students),
        "of them lie within 10 % of one latency: widen --depth, --width, --heads, --ffn or --budget of the run",
        LEAST_BAND,
    )
    shorts = sorted({max(2, int(share * full_steps)) for share in SHARES})
    marks = (0, *shorts)
    cool = round(COOL * full_steps)

    def job(number: int, order: int) -> Job:
        a = students[number].architecture
        name = f"{number}-{a.digest}-{full_steps}{f'-{order}' if order else ''}.pt"
        return Job(str(folder / name), a, full_steps, cool_from=cool, marks=marks, order=order, rate=plan.rate)

    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    orders = (0, 1) if second else (0,)
    futures = [trainer.train(job(i, order)) for order in orders for i in range(len(students))]
    dimensions = [trainer.run(features, student.architecture) for student in students]
    progress.stage("full training", float(len(futures)))
    waiting = set(futures)
    while waiting:
        waiting = set(wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).not_done)
        progress.at(float(len(futures) - len(waiting)))
    found = [_score(future) for future in futures]
    trained = [i for i in range(len(students)) if all(found[i :: len(students)])]
    failed = len(students) - len(trained)
    _enough(len(trained), f"can be trained, {failed} cannot")
    scores, again = ([s for i in trained if (s := found[part + i])] for part in (0, len(found) - len(students)))
    students, dimensions = [students[i] for i in trained], [dimensions[i] for i in trained]
    curves = [dict(score.curve) for score in scores]
    full = [score.loss for score in scores]
    inside = [student.band for student in students]
    _enough(sum(inside), "of those that can be trained lie within 10 % of one latency", LEAST_BAND - 1)

    def judged(score: Sequence[float]) -> tuple[Agreement | None, Agreement | None]:
        own = [(s, t) for s, t, b in zip(score, full, inside, strict=True) if b]
        return agreement(score, full), agreement(*zip(*own, strict=True))

    evaluation = spec.held_out_chunks / spec.recipe.batch / 3  # a pass forward is a third of a step
    lengths = [length(steps, full_steps, *judged([curve[steps] for curve in curves]), evaluation) for steps in shorts]
    reliable = list(takewhile(lambda found: found.passes, reversed(lengths)))  # one that passes between others is luck
    chosen = (
        reliable[-1]
        if reliable
        else max(lengths, key=lambda found: (found.all.low if found.all else -1.0, -found.steps))
    )
    free = {
        "parameters": [-float(s.architecture.parameters) for s in students],
        "depth": [-float(s.architecture.depth) for s in students],
        "latency": [-s.ms for s in students],
        "zero steps": [c[0] for c in curves],
        "feed-forward PCA dimensions": [-float(result_of(d) or 0) for d in dimensions],
    }
    baselines = {name: judged(score) for name, score in free.items()}
    ceiling = agreement([score.loss for score in again], full) if second else None
    return {
        "candidates": len(students),
        "failed": failed,
        "band": sum(inside),
        **_shown(chosen.all, chosen.band),
        "baselines": {name: _shown(*found) for name, found in baselines.items()},
        "ceiling": ceiling.tau if ceiling else None,
        "steps": chosen.steps,
        "full_steps": full_steps,
        "cost_share": chosen.cost_share,
        "passes": bool(reliable),
        "lengths": [
            {"steps": f.steps, "cost_share": f.cost_share, "passes": f.passes, **_shown(f.all, f.band)} for f in lengths
        ],
        "rows": [
            {
                "architecture": student.architecture.to_json(),
                "ms": student.ms,
                "band": student.band,
                "full_loss": loss,
                "curve": score.curve,
                **{name: values[i] for name, values in free.items()},
            }
            for i, (student, loss, score) in enumerate(zip(students, full, scores, strict=True))
        ],
    }


def _score(future: Future[ProxyScore]) -> ProxyScore | None:
    """None where the student cannot be trained."""
    try:
        return result_of(future)
    except TrainingError:
        return None


def _enough(count: int, what: str, least: int = LEAST) -> None:
    if count < least:
        raise RunError(f"{least} students at least tell an order; {count} {what}")


def length(steps: int, full_steps: int, whole: Agreement | None, band: Agreement | None, evaluation: float) -> Length:
    """Judge a length of short runs; `evaluation` is the cost of one look at the held-out set, in steps."""
    share = (steps + evaluation) / (full_steps + evaluation)
    shown = _shown(whole, band)
    passes = all(shown[name] is not None and shown[name] >= least for name, least in PASSES.items())
    passes = passes and not by_chance(shown)
    return Length(steps, share, whole, band, passes)


def by_chance(row: Mapping[str, Any]) -> bool:
    """Whether an order of the contract's document is one that chance gives too often."""
    return any((row.get(name) or 0.0) > CHANCE for name in ("chance", "chance_band"))


def _shown(whole: Agreement | None, band: Agreement | None) -> dict[str, Any]:
    return {
        "tau": whole.tau if whole else None,
        "tau_low": whole.low if whole else None,
        "tau_high": whole.high if whole else None,
        "spearman": whole.spearman if whole else None,
        "chance": whole.chance if whole else None,
        "tau_band": band.tau if band else None,
        "tau_band_low": band.low if band else None,
        "tau_band_high": band.high if band else None,
        "spearman_band": band.spearman if band else None,
        "chance_band": band.chance if band else None,
    }


def keep(subject: str, document: dict[str, Any]) -> dict[str, Any]:
    """Keep what was found for a teacher and text (`Facts.subject`), for the reports of their runs and `--steps auto`;
    returns what is known now. What longer full training, or as long of more students, has found is not given up for
    less, and a band too small to pass says nothing for others."""
    before = kept(subject)
    if before is not None and _weight(before) > _weight(document):
        return before
    if document["band"] < LEAST_BAND:
        return before or document
    found = {name: value for name, value in document.items() if name != "rows"}
    write_text(_path(subject), pretty({**found, "measured": time.time()}))
    return found


def _weight(document: dict[str, Any]) -> tuple[int, int]:
    return document["full_steps"], document["candidates"]


def kept(subject: str) -> dict[str, Any] | None:
    """What was found for a teacher and text, but for the rows; None where it was not measured."""
    return read_or_drop(_path(subject), read_json)


def measured_steps(wishes: Wishes, subject: str, progress: Progress) -> Wishes:
    """The wishes with the shortest run that passes for a teacher and text; as they are where none is known to."""
    found = kept(subject)
    if found is None:
        progress.say(
            f"no short run is known to rank this teacher's students on this text: {wishes.steps} steps are taken. "
            "Measure some on this run once it is done: hwsearch fidelity DIR"
        )
        return wishes
    if reason := refused(found):
        progress.say(f"{reason}; {wishes.steps} steps are taken")
        return wishes
    progress.say(f"{found['steps']} of {found['full_steps']} steps rank as full training does (hwsearch fidelity)")
    return msgspec.structs.replace(wishes, steps=found["steps"], full_steps=found["full_steps"])


def refused(found: dict[str, Any]) -> str | None:
    """Why `--steps auto` takes `STEPS` and not what was found; None where it takes that."""
    if found["band"] < LEAST_BAND:
        return f"{found['band']} students of one latency could be trained, and {LEAST_BAND} at least tell an order"
    if not found["passes"]:
        return trust(STEPS, found)
    if found["full_steps"] < full_of(STEPS) / 2:  # a trial of the command, say
        return (
            f"hwsearch fidelity took {found['full_steps']} steps for full training, less than half of {full_of(STEPS)}"
        )
    return None


def trust(steps: int, found: dict[str, Any] | None) -> str | None:
    """What speaks against a first rung of so many steps, by what was found; None where nothing does."""
    if found is None or (found["passes"] and found["steps"] <= steps):
        return None
    if found["passes"]:
        return f"{found['steps']} steps at least rank as full training does, by hwsearch fidelity; got {steps}"
    return f"no short run up to {SHARES[-1]:.0%} of full ranks as full training does, by hwsearch fidelity"


def _path(subject: str) -> Path:
    return platformdirs.user_cache_path("hwsearch") / "fidelity" / f"{subject}.json"

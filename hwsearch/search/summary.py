"""The answer as one document: what `--json` prints and `summary.json` holds."""

from __future__ import annotations

from importlib.metadata import version
from math import isfinite
from typing import Any

import msgspec

from hwsearch.distill.families.tasks import TASKS, TaskName
from hwsearch.search.outcome import Outcome
from hwsearch.search.plan import Plan
from hwsearch.search.rates import best
from hwsearch.search.result import Result

KEYS = {"study", "device", "target", "workload", "budget_ms", "teacher", "chosen", "front", "finalists", "baselines"}
KEYS |= {"trials", "seconds", "versions"}
PACKAGES = ("hwsearch", "torch", "transformers", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Of what a score depends on."""
    return {name: version(name) for name in PACKAGES}


def summarise(
    study: str,
    plan: Plan,
    task: TaskName,
    outcome: Outcome | None,
    seconds: float,
    nearest: Result | None = None,
) -> dict[str, Any]:
    """The document.

    Args:
        study: its name.
        plan: what was asked and what the price decides.
        task: that the teacher is for.
        outcome: what was found; None when nothing fits or the teacher does.
        seconds: that it took.
        nearest: the nearest miss when nothing fits.
    """
    teacher = {
        "task": task,
        "metric": TASKS[task].metric,
        "quality": outcome.teacher_quality if outcome else None,
        "metrics": outcome.teacher_metrics if outcome else {},
        "precision": str(plan.teacher_precision),
        "latency": msgspec.to_builtins(plan.teacher_latency),
        "latency_fp32": msgspec.to_builtins(plan.teacher_latency_fp32),
        "architecture": plan.teacher.in_float(plan.teacher_precision).to_json(),
        "fits": plan.teacher_fits,
    }
    chosen: Result | None = outcome.chosen if outcome else None
    if chosen is None and plan.teacher_fits:
        chosen = teacher_result(plan)
    document: dict[str, Any] = {
        "study": study,
        "device": plan.profile.name,
        "target": msgspec.to_builtins(plan.target),
        "workload": msgspec.to_builtins(plan.wishes.workload),
        "budget_ms": plan.budget_ms,
        "teacher": teacher,
        "chosen": chosen.to_json() if chosen else None,
        "front": [result.to_json() for result in outcome.front] if outcome else [],
        "finalists": [_finalist(result) for result in outcome.finalists] if outcome else [],
        "baselines": {name: result.to_json() for name, result in outcome.baselines.items()} if outcome else {},
    }
    document["phases_ms"] = plan.phases_ms
    document["overshot"] = [_finalist(result) for result in outcome.overshot] if outcome else []
    document["note"] = plan.profile.note
    document["missing_baselines"] = outcome.missing_baselines if outcome else {}
    document["stages"] = outcome.stages if outcome else []
    rates = outcome.rates if outcome else {}
    document["learning_rate"] = {
        "taken": best(rates),
        "tried": {f"{rate:g}": loss for rate, loss in rates.items() if isfinite(loss)},
    }
    if nearest is not None:
        document["nearest"] = nearest.to_json()
    document["trials"] = {
        "complete": len(outcome.trials) - outcome.stopped if outcome else 0,
        "stopped": outcome.stopped if outcome else 0,
        "infeasible": outcome.infeasible if outcome else 0,
        "failed": outcome.failed if outcome else 0,
    }
    return {**document, "seconds": seconds, "versions": versions()}


def teacher_result(plan: Plan) -> Result:
    """The teacher as an answer: it fits and loses nothing."""
    result = plan.priced(plan.teacher.in_float(plan.teacher_precision))
    return msgspec.structs.replace(result, latency=plan.teacher_latency, loss=0.0, retention=1.0)


def _finalist(result: Result) -> dict[str, Any]:
    return {
        "trial": result.trial,
        "predicted_ms": (result.predicted or result.latency).median_ms,
        "measured_ms": result.latency.median_ms if result.predicted else None,
        "result": result.to_json(),
    }

"""Students of sizes in between, trained in turn: each is taught by those before it and teaches those after it.

That is the chain of Mirzadeh et al. 2020 (arXiv:1902.03393), and denser: the teacher and every earlier assistant go on
being listened to (Son et al. 2021, arXiv:2009.08825).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.workers import Workers
from hwsearch.export.forms import deliver
from hwsearch.precision import Precision
from hwsearch.search.distillation import Distillation
from hwsearch.search.trainer import Progress, complete, result_of
from hwsearch.space import heads_share_width
from hwsearch.workload import Workload


def with_assistants(
    spec: TaskSpec,
    student: Architecture,
    folder: Path,
    progress: Progress,
    check: Callable[[str], None],
    rate: float = 1.0,
    steps: int | None = None,
    minutes: float | None = None,
) -> tuple[TaskSpec, list[dict[str, Any]]]:
    """Train the assistants of a recipe; the task with them as teachers, and what each of them keeps of its own teacher.

    Args:
        spec: of the task.
        student: that they are to teach.
        folder: where their states and they themselves are kept.
        progress: who is told.
        check: raises unless the teacher, by the hash of its weights, is the student's.
        rate: over the recipe's, as of `Distillation`.
        steps: of each, as many as pay by default.
        minutes: that the training of each may take.
    """
    recipe, found = spec.recipe, []
    for share in recipe.assistants:
        own = replace(spec, recipe=replace(recipe, assistants=()))
        workers = Workers(own, count=1)
        try:
            facts = result_of(workers.open())
            check(facts.weights)
            facts = complete(workers, facts, progress)
            assistant = between(student, facts.architecture, share)
            progress.say(f"assistant: {assistant.id}")
            states, stages = folder / facts.digest, recipe.before_last
            work = Distillation(assistant, workers, states, progress, stages=stages, rate=rate)
            score, state = work.run(steps, minutes)
            to = states / f"{assistant.digest}-assistant"
            result_of(workers.run(deliver, assistant, state, to, "", Workload(1, spec.sequence), 1, False))
        finally:
            workers.close()
        found.append({"architecture": assistant.to_json(), "retention": score.retention, "steps": score.steps})
        recipe = replace(recipe, teachers=(*recipe.teachers, str(to.resolve())))
    return replace(spec, recipe=replace(recipe, assistants=())), found


def between(student: Architecture, teacher: Architecture, share: float) -> Architecture:
    """An assistant in fp32, of a size between a student's (a share of 0) and its teacher's (1)."""

    def size(own: int, whole: int) -> int:
        return round(own + share * (whole - own))

    widest, whole = max(student.layers, key=lambda layer: (layer.heads, layer.ffn)), teacher.layers[0]
    group = whole.heads // whole.kv_heads if widest.heads > widest.kv_heads else 1
    kv_heads = size(widest.kv_heads, whole.kv_heads)
    heads, width = group * kv_heads, size(student.width, teacher.width)
    width = heads * teacher.head_dim if heads_share_width(teacher) else max(heads, width // heads * heads)
    parts = [(Precision.FP32, Precision.FP32)] * size(student.depth, teacher.depth)
    return replace(
        teacher.in_float(Precision.FP32),
        width=width,
        tied=teacher.tied and width == teacher.width,
        layers=uniform_layers(len(parts), heads, kv_heads, size(widest.ffn, whole.ffn), parts),
    )

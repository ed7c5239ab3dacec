"""What slices are worth: a tenth of the steps from the teacher's parts beside ten times as many from fresh weights.

Students of several sizes are begun both ways; each gets the best of three learning rates, as a quarter of its steps
tells, or 100 of them: in fewer, most of which warm the rate up, a low one is ahead that later is not. Held-out KL and
accuracy are on *select*.

python benchmarks/head_start.py [--teacher DIR --data FILE --sequence 64] [--steps 100] [--fresh-steps 1000]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import msgspec
import torch

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.task import Task
from hwsearch.distill.workshop import Workshop
from hwsearch.precision import Precision
from hwsearch.space import heads_share_width

SHARES = ((1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.34, 0.67), (1.0, 0.25), (0.17, 0.34))  # of depth, of everything else
RATES = (1.0, 3.0, 0.3)  # over the recipe's
TRIED = 100  # steps of each at least


def student_of(teacher: Architecture, depth: float, share: float) -> Architecture:
    whole = teacher.layers[0]
    kv_heads = max(1, round(share * whole.kv_heads))
    heads = kv_heads * (whole.heads // whole.kv_heads)
    width = (
        heads * teacher.head_dim if heads_share_width(teacher) else max(1, round(share * teacher.width / heads)) * heads
    )
    layers = max(1, round(depth * teacher.depth))
    plan = [(Precision.FP32, Precision.FP32)] * layers
    return msgspec.structs.replace(
        teacher,
        width=width,
        tied=teacher.tied and width == teacher.width,
        layers=uniform_layers(layers, heads, kv_heads, max(1, round(share * whole.ffn)), plan),
    )


def trained(task: Task, architecture: Architecture, fresh: int | None, steps: int) -> dict[str, float]:
    students = {rate: Student(task, architecture, fresh, rate=rate) for rate in RATES}
    for student in students.values():
        student.train(min(steps, max(steps // 4, TRIED)))
    rate, best = min(students.items(), key=lambda student: student[1].score(task.select).loss)
    best.train(steps)
    score = best.score(task.select)
    return {"kl": round(score.loss, 4), "accuracy": round(score.quality, 4), "steps": steps, "rate": rate}


def begun(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Workshop]:
    """What was asked for, with the options of a teacher beside the parser's own; and its workshop, on one thread."""
    parser.add_argument("--teacher", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--sequence", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    teacher, data = (str(Path(path).resolve()) if path else "" for path in (options.teacher, options.data))
    return options, Workshop(TaskSpec(teacher=teacher, data=data, sequence=options.sequence))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--fresh-steps", type=int, default=1000)
    options, workshop = begun(parser)
    task, whole = workshop.task, workshop.facts().architecture
    rows = []
    for shares in SHARES:
        architecture = student_of(whole, *shares)
        sliced = trained(task, architecture, None, options.steps)
        fresh = trained(task, architecture, 0, options.fresh_steps)
        rows.append(
            {"architecture": architecture.id, "slices": sliced, "fresh": fresh, "ahead": sliced["kl"] < fresh["kl"]}
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps({"teacher": workshop.facts().teacher, "ahead": sum(row["ahead"] for row in rows), "rows": rows}))


if __name__ == "__main__":
    main()

"""Which layers should a student keep? Chosen by what the teacher says without the others, and as hwsearch does.

The two are the same where students are not refitted. Of the others, students with two thirds of the teacher's width are
cut out both ways and trained: held-out KL on *select* before it and after it.

python benchmarks/layers.py --teacher DIR --data FILE [--sequence 64] [--steps 100] [--rate 0.5]
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from typing import Any

import platformdirs
from head_start import begun, student_of

from hwsearch.distill.judging import divergence
from hwsearch.distill.proxy import Student
from hwsearch.distill.student import choose_layers, with_layers
from hwsearch.distill.task import HeldOut
from hwsearch.distill.teacher import teacher_outputs
from hwsearch.distill.workshop import SUBSET_CHUNKS

WIDTH = 2 / 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.5)
    options, workshop = begun(parser)
    task, whole = workshop.task, workshop.facts().architecture
    teacher = task.teacher
    chunks = task.chunks[: SUBSET_CHUNKS * teacher.objective.inputs_a_chunk]
    probe = HeldOut(
        teacher.objective,
        chunks,
        teacher_outputs(teacher, chunks, platformdirs.user_cache_path("hwsearch") / "outputs"),
    )

    @cache
    def without(kept: tuple[int, ...]) -> float:
        return with_layers(teacher.model, kept, lambda: divergence(teacher.model, probe))

    rows = []
    for depth in range(2, whole.depth):
        architecture = student_of(whole, depth / whole.depth, WIDTH)
        row: dict[str, Any] = {"student": f"{depth} x {architecture.width}"}
        for name, layers in (
            ("without the others", choose_layers(whole.depth, depth, without)),
            ("hwsearch", task.layers[depth]),
        ):
            student = Student(task, architecture, layers=layers, rate=options.rate)
            before = student.score(task.select).loss
            student.train(options.steps)
            row[name] = {"layers": layers, "kl": [round(before, 4), round(student.score(task.select).loss, 4)]}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    print(json.dumps({"steps": options.steps, "rate": options.rate, "rows": rows}))


if __name__ == "__main__":
    main()

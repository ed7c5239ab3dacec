"""Which layers should a student keep? Chosen by what the teacher says without the others, by what a student loses as
it is cut out with them, and as hwsearch does, by what it loses after its first steps.

Students with a share of the teacher's width are cut out with every set of layers that hwsearch lets them choose from,
and with the one by what the teacher says, and trained: held-out KL on *select* before, after the first steps (on the
texts that hwsearch looks at) and at the end.

python benchmarks/layers.py [--teacher DIR --data FILE --sequence 64] [--share 0.67] [--steps 100] [--rate 0.5]
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache

import platformdirs
from head_start import begun, student_of

from hwsearch.distill.judging import divergence
from hwsearch.distill.layers import TRIED, choose_layers, with_layers
from hwsearch.distill.proxy import Student
from hwsearch.distill.task import HeldOut
from hwsearch.distill.teacher import teacher_outputs
from hwsearch.distill.workshop import SUBSET_CHUNKS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--share", type=float, default=2 / 3, help="of the teacher's width, heads and units")
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
        architecture = student_of(whole, depth / whole.depth, options.share)
        alone = choose_layers(whole.depth, depth, without)[0]
        near = Student(task, architecture).near
        sets: dict[tuple[int, ...], list[float]] = {}
        for layers in dict.fromkeys([alone, *task.layers[depth]]):
            student = Student(task, architecture, layers=layers, rate=options.rate)
            before = student.score(task.select).loss
            student.train(TRIED)
            tried = divergence(student.model, task.few)
            student.train(options.steps)
            sets[layers] = [round(loss, 4) for loss in (before, tried, student.score(task.select).loss)]
        rows.append(
            {
                "student": f"{depth} x {architecture.width}",
                "without the others": str(alone),
                "as cut out": str(near[0]),
                "hwsearch": str(min(near, key=lambda layers: sets[layers][1])),
                "sets": {str(layers): found for layers, found in sets.items()},
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps({"steps": options.steps, "rate": options.rate, "rows": rows}))


if __name__ == "__main__":
    main()

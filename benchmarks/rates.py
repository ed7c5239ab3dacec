"""Which learning rate suits a student of a given distance from its teacher, in a short run?

Students of the table in `students.json`, or trials of a finished run, at several multiples of the recipe's rate:
held-out KL on *select* at a constant rate, and after the rate has fallen to zero over half as many steps again.

python benchmarks/rates.py [--students 42 35 27 51] [--rates 1 0.5 0.25 0.12] [--steps 640]
python benchmarks/rates.py --run DIR --students 0 7 ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from students import TABLE, facts_of, workshop

from hwsearch.architecture import Architecture
from hwsearch.distill.proxy import Student
from hwsearch.distill.workshop import Workshop
from hwsearch.files import read_json
from hwsearch.search.finished import finished, stored_trials

FALL = 0.5  # of the steps, in which the rate then falls


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--students", type=int, nargs="+", default=[42, 35, 27, 51])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.12])
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.run:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        task = Workshop(finished(options.run).spec).task
        architectures = {r.trial: r.architecture for r in stored_trials(options.run)}
    else:
        facts_of(0)
        task, rows = workshop(0).task, read_json(TABLE)["students"]
        architectures = {i: Architecture.from_json(row["architecture"]) for i, row in enumerate(rows)}
    found: list[dict[str, Any]] = []
    for number in options.students:
        architecture = architectures[number]
        row: dict[str, Any] = {"architecture": architecture.id, "rates": {}}
        for rate in options.rates:
            student = Student(task, architecture, rate=rate)
            for stop in (0, options.steps // 4, options.steps // 2, options.steps):
                student.train(stop)
                student.mark(task.select)
            end = round((1 + FALL) * options.steps)
            student.train(end, cool_from=options.steps, end=end)
            student.mark(task.select)
            row["rates"][str(rate)] = [(step, round(loss, 4)) for step, loss in student.curve]
        found.append(row)
        print(json.dumps(row), flush=True)
    print(json.dumps({"students": found}))


if __name__ == "__main__":
    main()

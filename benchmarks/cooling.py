"""From which of a training's steps on should the rate fall?

Students of the table in `students.json`, or trials of a finished run, trained for the same steps at multiples of the
recipe's rate, which falls to zero from a share of the steps on: KL and retention on *report*.

python benchmarks/cooling.py [--students 42 51] [--held 0.7 0.3 0.02] [--rates 1 0.5] [--steps 1536] [--run DIR]
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from rates import students_of

from hwsearch.distill.proxy import Student


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--students", type=int, nargs="+", default=[42, 51])
    parser.add_argument("--held", type=float, nargs="+", default=[0.7, 0.3, 0.02])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--steps", type=int, default=1536)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    task, architectures = students_of(options.run)
    found: list[dict[str, Any]] = []
    for number, rate, held in product(options.students, options.rates, options.held):
        student = Student(task, architectures[number], rate=rate)
        student.train(options.steps, cool_from=round(held * options.steps), end=options.steps)
        score = student.score(task.report)
        row = {"architecture": architectures[number].id, "rate": rate, "held": held}
        found.append(row | {"kl": round(score.loss, 4), "retention": round(score.retention, 4)})
        print(json.dumps(found[-1]), flush=True)
    print(json.dumps({"steps": options.steps, "students": found}))


if __name__ == "__main__":
    main()

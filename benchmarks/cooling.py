"""From which of a distillation's steps on should the rate fall?

Students of a finished run, trained on the text that `hwsearch distill` takes for the same steps, at multiples of the
recipe's rate, which falls to zero from a share of the steps on: KL and retention on *report*.

python benchmarks/cooling.py DIR [--students 0 7] [--held 0.7 0.3 0.02] [--rates 1 0.5] [--steps 1536]
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch

from hwsearch.distill.proxy import Student
from hwsearch.distill.workshop import Workshop
from hwsearch.search.distillation import with_text
from hwsearch.search.finished import finished, stored_trials


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--students", type=int, nargs="+", help="trials; the chosen one by default")
    parser.add_argument("--held", type=float, nargs="+", default=[0.7, 0.3, 0.02])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--steps", type=int, default=1536)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    run = finished(options.run)
    task = Workshop(with_text(run.spec, options.steps)).task
    architectures = {trial.trial: trial.architecture for trial in stored_trials(options.run)}
    found: list[dict[str, Any]] = []
    for number, rate, held in product(options.students or [run.trial], options.rates, options.held):
        student = Student(task, architectures[number], rate=rate)
        student.train(options.steps, cool_from=round(held * options.steps), end=options.steps)
        score = student.score(task.report)
        row = {"architecture": architectures[number].id, "rate": rate, "held": held}
        found.append(row | {"kl": round(score.loss, 4), "retention": round(score.retention, 4)})
        print(json.dumps(found[-1]), flush=True)
    print(json.dumps({"steps": options.steps, "students": found}))


if __name__ == "__main__":
    main()

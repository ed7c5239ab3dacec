"""Is a student cut out of its teacher better than the same shape trained from scratch for the same steps?

Takes the chosen student of a finished run, trains its architecture from fresh weights on the same data with the same
recipe and steps, and judges both on *report*.

python benchmarks/from_scratch.py reports/<run>
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import msgspec
import torch

from hwsearch.architecture import Architecture
from hwsearch.distill.job import COOL
from hwsearch.distill.proxy import Student
from hwsearch.distill.workshop import Workshop
from hwsearch.search.finished import finished


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--rates", default="1,2,4", help="learning rates to try for the fresh student, times the recipe's"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    summary = json.loads((arguments.run / "summary.json").read_text())
    spec = finished(arguments.run).spec
    chosen = summary["chosen"]
    architecture, steps = Architecture.from_json(chosen["architecture"]), chosen["steps"]
    workshop = Workshop(spec)
    fresh = {}
    for factor in map(float, arguments.rates.split(",")):
        recipe = msgspec.structs.replace(spec.recipe, rate=factor * spec.recipe.rate)
        student = Student(dataclasses.replace(workshop.task, recipe=recipe), architecture, fresh=0)
        student.train(steps, cool_from=round(COOL * steps))
        score = student.score(workshop.task.report)
        fresh[factor] = {name: getattr(score, name) for name in ("quality", "quality_low", "quality_high", "retention")}
    best = max(fresh.values(), key=lambda score: score["quality"])
    result = {
        "architecture": architecture.id,
        "steps": steps,
        "cut_out": {name: chosen[name] for name in ("quality", "quality_low", "quality_high", "retention")},
        "from_scratch": best,
        "ahead": chosen["quality"] > best["quality"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

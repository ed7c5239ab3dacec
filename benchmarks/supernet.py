"""Should slices be trained before students are cut? A supernet beside the teacher's weights as they are.

The teacher's weights are trained through the slicing, every step as one student of some size (Cai et al. 2020, Once for
all, arXiv:1908.09791); students are then cut out of these. How well do short runs from there order the table's students
(`benchmarks/students.py`, whose own slices are those of its day), and what is left of the head start when a student is
trained fully?

python benchmarks/supernet.py [--steps 1000] [--rate 1.0] [--short 0,40,80] [--full 1066]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import torch
from head_start import student_of
from scipy.stats import kendalltau
from students import TABLE, workshop
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill import student as slicing
from hwsearch.distill.averaging import Average
from hwsearch.distill.job import COOL
from hwsearch.distill.lesson import Lesson
from hwsearch.distill.proxy import Student
from hwsearch.distill.quantise import quantise_parts, restore
from hwsearch.distill.task import Task
from hwsearch.files import read_json
from hwsearch.precision import Precision

SMALLEST = 0.25  # of the teacher's width, heads and units that a step trains
FULLY = ((3, 80, 2, 1, 192), (4, 174, 6, 3, 461))  # depth, width, heads, key-value heads, units; small and large


class Weight:
    """What `build_student` takes for a weight that it detaches, and is not detached."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def detach(self) -> Tensor:
        return self.weight


def sliced(task: Task, source: Mapping[str, Tensor], architecture: Architecture) -> tuple[Any, dict[str, Tensor]]:
    """A student and its weights cut out of `source`, through which gradients pass; they are not loaded."""
    teacher, found = task.teacher.model, dict[str, Tensor]()
    student = slicing.empty_student(teacher, architecture, task.layers[architecture.depth][0])
    with (
        mock.patch.object(teacher, "state_dict", return_value={name: Weight(w) for name, w in source.items()}),
        mock.patch.object(slicing, "empty_student", return_value=student),
        mock.patch.object(student, "load_state_dict", found.update),
    ):
        plan = slicing.StudentPlan(architecture, task.layers[architecture.depth][0])
        slicing.build_student(teacher, plan, task.importance)
    return student, found


def supernet(task: Task, whole: Architecture, steps: int, rate: float) -> dict[str, Tensor]:
    """The teacher's weights, trained as students of every size: at the recipe's rate, the second half of it falling."""
    weights, own = task.teacher.model.state_dict(), dict[int, torch.nn.Parameter]()
    source = {n: own.setdefault(w.data_ptr(), torch.nn.Parameter(w.detach().clone())) for n, w in weights.items()}
    rate *= task.recipe.rate * task.teacher.objective.rate
    optimizer = torch.optim.Adam(own.values(), betas=(0.9, 0.98), fused=True)
    rng = np.random.default_rng(0)
    reader = Student(task, student_of(whole, 0.5, 0.5))
    for step in range(steps):
        share = math.exp(rng.uniform(math.log(SMALLEST), 0))
        architecture = student_of(whole, rng.integers(1, whole.depth + 1) / whole.depth, share)
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / task.recipe.warm_up, 2 * (1 - step / steps))
        optimizer.zero_grad(set_to_none=True)
        model, cut = sliced(task, source, architecture)
        reader.model, reader.step = model.train(), step
        with (
            _reparametrize_module(model, cut, tie_weights=True),
            Lesson(task.recipe.stages[0], task, model, reader.layers, reader.maps) as lesson,
        ):
            reader._loss(lesson, reader._rows()).backward()
        torch.nn.utils.clip_grad_norm_(own.values(), task.recipe.clip)
        optimizer.step()
    return {name: weight.detach() for name, weight in source.items()}


def begun(task: Task, architecture: Architecture, source: Mapping[str, Tensor] | None, rate: float = 1.0) -> Student:
    student = Student(task, architecture, layers=task.layers[architecture.depth][0], rate=rate)
    if source is not None:
        restore(student.model)
        student.model.load_state_dict(sliced(task, source, architecture)[1])
        quantise_parts(student.model, architecture, task.scheme)
        student.average = Average(student.model)
    return student


def orders(task: Task, source: Mapping[str, Tensor], marks: list[int]) -> dict[str, Any]:
    """Kendall's tau of the table's students after some steps with the same trained fully, overall and in the band."""
    table = read_json(TABLE)
    rows = table["students"]
    band = np.array([row["band"] for row in rows])
    full = np.array([dict(map(tuple, row["curve"]))[table["full_steps"]] for row in rows])
    scores: dict[str, list[list[float]]] = {"slices": [], "supernet": []}
    for row in rows:
        scores["slices"].append([dict(map(tuple, row["curve"]))[mark] for mark in marks])
        student, losses = begun(task, Architecture.from_json(row["architecture"]), source), []
        for mark in marks:
            student.train(mark)
            losses.append(student.score(task.select).loss)
        scores["supernet"].append(losses)
    found: dict[str, Any] = {}
    for name, values in scores.items():
        for mark, losses in zip(marks, np.array(values).T, strict=True):
            overall, inside = (kendalltau(losses[k], full[k]).statistic for k in (slice(None), band))
            found.setdefault(name, {})[str(mark)] = [round(float(overall), 3), round(float(inside), 3)]
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def fully(task: Task, whole: Architecture, source: Mapping[str, Tensor], steps: int) -> list[dict[str, Any]]:
    rows = []
    for depth, width, heads, kv_heads, units in FULLY:
        layers = uniform_layers(depth, heads, kv_heads, units, [(Precision.FP32, Precision.FP32)] * depth)
        architecture = msgspec.structs.replace(whole, width=width, tied=False, layers=layers)
        row: dict[str, Any] = {"architecture": architecture.id}
        for name, weights in (("slices", None), ("supernet", source)):
            row[name] = []
            for rate in (0.5, 1.0):
                student = begun(task, architecture, weights, rate)
                untrained = student.score(task.select).loss
                student.train(steps, cool_from=round(COOL * steps))
                row[name].append({"rate": rate, "untrained": untrained, "kl": student.score(task.select).loss})
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--short", default="0,40,80")
    parser.add_argument("--full", type=int, default=1066)
    options = parser.parse_args()
    task, whole = workshop(0).task, workshop(0).facts().architecture
    began = time.perf_counter()
    source = supernet(task, whole, options.steps, options.rate)
    seconds = round(time.perf_counter() - began)
    marks = [int(mark) for mark in options.short.split(",")]
    result = {"seconds": seconds, "tau": orders(task, source, marks), "full": fully(task, whole, source, options.full)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""What a student begins with: hwsearch's slices beside each of their parts left out, and beside other ways.

Every tenth student of the table (`benchmarks/students.py`) is begun each way and trained at the search's recipe; what
counts is held-out KL on *select* before training, after a short run and after a longer one, over that of hwsearch's.

- channels: the widest directions are channels, not principal directions of the residual stream
- stream alone: its principal directions, without those of the loss's gradient
- no take-over: output projections keep their columns, and do not make up for the dropped ones
- first ones: heads and feed-forward units by their place, not by importance
- even layers, late dropped: layers evenly spaced; all but the last of the late ones dropped
- refitted: besides, every output projection and the head solve a ridge regression for the teacher's own stream, layer
  by layer, on what the student itself computes
- random: fresh weights

python benchmarks/slices.py [--steps 160,640]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any
from unittest import mock

import numpy as np
import torch
from students import TABLE, workshop
from torch import Tensor

from hwsearch.architecture import Architecture
from hwsearch.distill import student as slicing
from hwsearch.distill.proxy import Student
from hwsearch.distill.quantise import quantise_parts, restore
from hwsearch.distill.task import Task
from hwsearch.files import read_json

EVERY = 10
FIT_CHUNKS, RIDGE = 96, 1e-2
OWN = "hwsearch"


def channels(task: Task) -> Task:
    own = task.importance
    stream = {name: torch.diag(moments.diagonal()) for name, moments in own.stream.items()}
    return replace(task, importance=replace(own, stream=stream, slopes=torch.diag(own.slopes.diagonal())))


def stream_alone(task: Task) -> Task:
    own = task.importance
    return replace(task, importance=replace(own, slopes=torch.zeros_like(own.slopes)))


def first_ones(task: Task) -> Task:
    def falling(values: Tensor) -> Tensor:
        return torch.arange(values.shape[1], 0, -1.0).expand_as(values)

    own = task.importance
    return replace(task, importance=replace(own, heads=falling(own.heads), ffn=falling(own.ffn)))


def even(count: int, depth: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.linspace(0, count - 1, depth).round()) if depth > 1 else (0,)


def late_dropped(count: int, depth: int) -> tuple[int, ...]:
    return (*range(depth - 1), count - 1)


WAYS: dict[str, dict[str, Any]] = {
    OWN: {},
    "channels": {"task": channels},
    "stream alone": {"task": stream_alone},
    "no take-over": {"patch": True},
    "first ones": {"task": first_ones},
    "even layers": {"layers": even},
    "late dropped": {"layers": late_dropped},
    "refitted": {"after": True},
    "random": {"fresh": 0},
}


@contextmanager
def without_take_over(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with mock.patch.object(slicing, "_take_over", lambda weight, moments, kept: weight.index_select(1, kept)):  # noqa: ARG005
        yield


@torch.no_grad()
def refit(student: Student) -> None:
    """Output projections, layer by layer, and the head: the teacher's stream regressed on what the student computes."""
    teacher: Any = student.task.teacher.model
    model: Any = student.model
    restore(model)
    inputs = torch.from_numpy(student.task.chunks[:FIT_CHUNKS, :-1])
    kept = student.layers

    def seen(run: Callable[[], Any], **modules: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keeper(name: str) -> Any:
            def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG001
                found[name] = arguments[0].flatten(0, 1)

            return hook

        handles = [m.register_forward_pre_hook(keeper(name)) for name, m in modules.items()]
        run()
        for handle in handles:
            handle.remove()
        return found

    norms = {f"in{i}": layer.input_layernorm for i, layer in enumerate(teacher.model.layers)}
    norms |= {f"mid{i}": layer.post_attention_layernorm for i, layer in enumerate(teacher.model.layers)}
    norms |= {f"in{len(teacher.model.layers)}": teacher.model.norm}
    stream = seen(lambda: teacher.model(input_ids=inputs, use_cache=False), **norms)
    # The student's embedding is the teacher's, rotated: what rotates it, by least squares.
    basis = torch.linalg.lstsq(teacher.model.embed_tokens.weight, model.model.embed_tokens.weight).solution

    def solved(x: Tensor, y: Tensor) -> Tensor:
        among = x.T.double() @ x.double()
        among += RIDGE * among.diagonal().mean() * torch.eye(len(among), dtype=among.dtype)
        return torch.linalg.solve(among, x.T.double() @ y.double()).float()

    for i, layer in enumerate(model.model.layers):
        after = kept[i + 1] if i + 1 < len(kept) else len(teacher.model.layers)
        for projection, norm, target in (
            (layer.self_attn.o_proj, layer.input_layernorm, stream[f"mid{kept[i]}"]),
            (layer.mlp.down_proj, layer.post_attention_layernorm, stream[f"in{after}"]),
        ):
            read = seen(lambda: model.model(input_ids=inputs, use_cache=False), x=projection, stream=norm)
            left = target @ basis - read["stream"] - read["x"] @ projection.weight.T
            projection.weight += solved(read["x"], left).T
    if not student.architecture.tied:
        own, its = (net.model(input_ids=inputs, use_cache=False).last_hidden_state for net in (model, teacher))
        model.lm_head.weight.copy_(teacher.lm_head.weight @ solved(own.flatten(0, 1), its.flatten(0, 1)).T)
    quantise_parts(model, student.architecture, student.task.scheme)


def curve(architecture: Architecture, name: str, steps: tuple[int, ...]) -> list[float]:
    """Held-out KL at each number of steps, begun one way."""
    way, task = WAYS[name], workshop(0).task
    layers = way["layers"](len(task.layers), architecture.depth) if "layers" in way else None
    with without_take_over("patch" in way):
        student = Student(way.get("task", lambda t: t)(task), architecture, way.get("fresh"), layers)
    if "after" in way:
        refit(student)
    for stop in (0, *steps):
        student.train(stop)
        student.mark(task.select)
    return [loss for _, loss in student.curve]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", default="160,640")
    steps = tuple(int(text) for text in parser.parse_args().steps.split(","))
    students = [Architecture.from_json(row["architecture"]) for row in read_json(TABLE)["students"]][::EVERY]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = {name: [pool.submit(curve, a, name, steps) for a in students] for name in WAYS}
        found = {}
        for name, futures in jobs.items():
            found[name] = np.array([future.result() for future in futures])
            over = np.exp(np.log(found[name] / found[OWN]).mean(0))
            print(name, over.round(3), file=sys.stderr)
    result = {
        name: {
            str(stop): {
                "kl": round(float(np.exp(np.log(values[:, i]).mean())), 4),
                "over_own": round(float(np.exp(np.log(values[:, i] / found[OWN][:, i]).mean())), 4),
                "own_ahead": int((values[:, i] > found[OWN][:, i]).sum()),
            }
            for i, stop in enumerate((0, *steps))
        }
        for name, values in found.items()
    }
    print(json.dumps({"students": [a.id for a in students], "ways": result}))


if __name__ == "__main__":
    main()

"""What a training step costs, and what its two tricks save: the loss fused with the head, and a process for each core.

Students of three sizes are trained for a few steps, each way in turn; the minimum of several rounds counts.

python benchmarks/steps.py
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec
import torch
from torch import Tensor

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill import objective
from hwsearch.distill.families import architecture_of
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.task import Task, Workshop
from hwsearch.precision import Precision

SHAPES = ((2, 64, (2, 1), 160), (3, 96, (3, 3), 256), (4, 128, (4, 2), 352))
ROUNDS, STEPS = 5, 4
SPEC = TaskSpec(chunks=256, held_out_chunks=8)


def plain_kl(hidden: Tensor, weight: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
    """`losses.head_kl` as a chain of PyTorch operations."""
    log_q = torch.log_softmax(hidden @ weight.T, -1)
    inside = torch.xlogy(probabilities, probabilities) - probabilities * log_q.gather(-1, indices)
    rest = (1 - probabilities.sum(-1)).clamp_min(0)
    q_rest = (1 - log_q.gather(-1, indices).exp().sum(-1)).clamp_min(1e-6)
    return (inside.sum(-1) + torch.xlogy(rest, rest / q_rest)).mean()


def student(task: Task, depth: int, width: int, heads: tuple[int, int], ffn: int) -> Student:
    teacher = architecture_of(task.teacher.model.config, Precision.FP32)
    plan = [(Precision.FP32, Precision.FP32)] * depth
    shape: Architecture = msgspec.structs.replace(
        teacher, width=width, tied=False, layers=uniform_layers(depth, *heads, ffn, plan)
    )
    return Student(task, shape)


def seconds_a_step(one: Student) -> float:
    started = time.perf_counter()
    one.train(one.step + STEPS)
    return (time.perf_counter() - started) / STEPS


def in_process(threads: int) -> float:
    """Seconds of CPU-bound training of the middle student in a process of its own, the set-up left out."""
    torch.set_num_threads(threads)
    one = student(Workshop(SPEC).task, *SHAPES[1])
    seconds_a_step(one)
    started = time.perf_counter()
    one.train(one.step + 10 * STEPS)
    return (time.perf_counter() - started) / (10 * STEPS)


def main() -> None:
    torch.set_num_threads(1)
    task = Workshop(SPEC).task
    fused, losses = objective.head_kl, {}
    for shape in SHAPES:
        one, best = student(task, *shape), {"fused": 1e9, "plain": 1e9}
        for _ in range(ROUNDS):
            for name, loss in (("fused", fused), ("plain", plain_kl)):
                objective.head_kl = loss  # type: ignore[assignment]
                best[name] = min(best[name], seconds_a_step(one))
        objective.head_kl = fused
        losses[f"{shape[0]}x{shape[1]}"] = {**best, "times_faster": best["plain"] / best["fused"]}
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        together = max(pool.map(in_process, [1] * cores)) / cores
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        alone = pool.submit(in_process, cores).result()
    print(json.dumps({"fused_loss": losses, "cores": cores, "processes_over_threads": alone / together}))


if __name__ == "__main__":
    main()

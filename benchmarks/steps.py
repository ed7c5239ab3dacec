"""What a training step costs, and what its tricks save: the loss fused with the head, rounding in vectorised passes,
quantised layers' products in int8 and bfloat16 where a processor has instructions for them, all others in float32, and
a process for each core.

Students of four sizes are trained for a few steps, each way in turn; the minimum of several rounds counts. Rounding and
quantised layers' products are timed on students in int8.

python benchmarks/steps.py
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any
from unittest import mock

import msgspec
import torch
from torch import Tensor

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill import products, quantise
from hwsearch.distill.families import architecture_of
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.losses import head_kl
from hwsearch.distill.objectives import next_token
from hwsearch.distill.proxy import Student
from hwsearch.distill.quantise import on_grid
from hwsearch.distill.task import Task
from hwsearch.distill.workshop import Workshop
from hwsearch.precision import Precision

SHAPES = ((2, 64, (2, 1), 160), (3, 96, (3, 3), 256), (4, 128, (4, 2), 352), (4, 176, (2, 1), 512))
ROUNDS, STEPS = 5, 4
SPEC = TaskSpec(chunks=256, held_out_chunks=8)


def plain_kl(hidden: Tensor, weight: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
    """`losses.head_kl` as a chain of PyTorch operations."""
    log_q = torch.log_softmax(hidden @ weight.T, -1)
    inside = torch.xlogy(probabilities, probabilities) - probabilities * log_q.gather(-1, indices)
    rest = (1 - probabilities.sum(-1)).clamp_min(0)
    q_rest = (1 - log_q.gather(-1, indices).exp().sum(-1)).clamp_min(1e-6)
    return (inside.sum(-1) + torch.xlogy(rest, rest / q_rest)).mean()


def kernels(x: Tensor, scale: Tensor, bounds: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """`quantise.on_grid` by PyTorch's own fake-quantise kernels."""
    if bounds is None:
        zero = torch.zeros(scale.numel(), dtype=torch.int32)
        if scale.dim():
            return torch.fake_quantize_per_channel_affine(x, scale.flatten(), zero, 0, -127, 127)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero[0], -127, 127)
    low, high = (int(end) for end in bounds)
    zero = torch.tensor(-low if high - low == 255 else 0, dtype=torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, low + int(zero), high + int(zero))


def autocast(like: Tensor, in_bfloat16: bool = False) -> torch.autocast:
    """`objective.products` on a processor, or as on a GPU."""
    return torch.autocast(like.device.type, torch.bfloat16, enabled=in_bfloat16 and torch.is_grad_enabled())


def student(
    task: Task,
    depth: int,
    width: int,
    heads: tuple[int, int],
    ffn: int,
    precision: Precision = Precision.FP32,
    device: str = "cpu",
) -> Student:
    teacher = architecture_of(task.teacher.model.config, Precision.FP32)
    plan = [(precision, precision)] * depth
    shape: Architecture = msgspec.structs.replace(
        teacher, width=width, tied=False, layers=uniform_layers(depth, *heads, ffn, plan)
    )
    return Student(task, shape, device=device)


def seconds_a_step(one: Student) -> float:
    started = time.perf_counter()
    one.train(one.step + STEPS)
    return (time.perf_counter() - started) / STEPS


def name(shape: tuple[int, int, tuple[int, int], int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def in_turns(one: Student, module: Any, function: str, ways: dict[str, Any]) -> dict[str, float]:
    """The least seconds of a step with each of two functions in a module's place, and how many times faster the first
    is."""
    best = dict.fromkeys(ways, 1e9)
    for _ in range(ROUNDS):
        for way, own in ways.items():
            with mock.patch.object(module, function, own):
                best[way] = min(best[way], seconds_a_step(one))
    first, second = best.values()
    return {**best, "times_faster": second / first}


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
    losses = {
        name(shape): in_turns(student(task, *shape), next_token, "head_kl", {"fused": head_kl, "plain": plain_kl})
        for shape in SHAPES
    }
    rounding = {
        name(shape): in_turns(
            student(task, *shape, Precision.INT8), quantise, "on_grid", {"passes": on_grid, "kernels": kernels}
        )
        for shape in SHAPES
    }
    integers = {
        name(shape): in_turns(
            student(task, *shape, Precision.INT8),
            products,
            "_has_instructions",
            {"int8 and bfloat16": lambda: True, "float32": lambda: False},
        )
        for shape in SHAPES
    }
    precisions = {
        name(shape): in_turns(
            student(task, *shape),
            next_token,
            "products",
            {"float32": autocast, "bfloat16": partial(autocast, in_bfloat16=True)},
        )
        for shape in SHAPES
    }
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        together = max(pool.map(in_process, [1] * cores)) / cores
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        alone = pool.submit(in_process, cores).result()
    result = {"fused_loss": losses, "rounding": rounding, "integers": integers, "autocast": precisions, "cores": cores}
    print(json.dumps(result | {"processes_over_threads": alone / together}))


if __name__ == "__main__":
    main()

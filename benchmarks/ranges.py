"""Where should the range of static int8 activations end? What rounding costs a student, by how its ranges are found.

Students are trained in TensorRT's scheme, with ranges as hwsearch has them (running minimum and maximum of the
training batches), or with ranges that are learned (LSQ, Esser et al. 2019, arXiv:1902.08153); or in float and then
quantised with ranges of calibration batches: least and largest, and percentile and entropy as ONNX Runtime's own
calibration finds them.

python benchmarks/ranges.py [--steps 640]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.quantise import QuantisedLinear, quantise_parts, restore
from hwsearch.distill.task import Task
from hwsearch.distill.workshop import Workshop
from hwsearch.precision import Precision, Scheme

SCHEME = Scheme("static", "int8", "channel")
CALIBRATION = 32  # chunks
SHAPES = ((3, 96, 3, 256), (6, 64, 2, 160), (2, 128, 2, 512))  # depth, width, heads, feed-forward


class Learned(torch.autograd.Function):
    """Rounding to multiples of a scale that has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        steps = x / scale
        rounded = steps.round().clamp(-127, 127)
        ctx.save_for_backward(steps, rounded)
        return rounded * scale

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        steps, rounded = ctx.saved_tensors
        inside = steps.abs() <= 127
        by_scale = (d * torch.where(inside, rounded - steps, rounded)).sum() / (127 * steps.numel()) ** 0.5
        return d * inside, by_scale


class LearnedLinear(QuantisedLinear):
    """With a scale of the input that is trained."""

    log_scale: torch.nn.Parameter

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        return torch.nn.functional.linear(*self.rounded(input), self.bias)

    def rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the parent's, the input by its own scale."""
        return Learned.apply(x, self.log_scale.exp()), self._weights()  # type: ignore[no-untyped-call]


def learned(student: Student) -> None:
    """Ranges as they are become scales that are trained."""
    scales = []
    for module in student.model.modules():
        if isinstance(module, QuantisedLinear):
            module.__class__ = LearnedLinear
            largest = torch.maximum(-module.low, module.high)
            module.log_scale = torch.nn.Parameter((largest / 127).log())  # type: ignore[assignment]
            scales.append(module.log_scale)
    student.optimizer.add_param_group({"params": scales})


def calibrated(student: Student, task: Task, method: str) -> dict[str, tuple[float, float]]:
    """Ranges of the inputs of a float student's linear layers, by module."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    percentile = float(method.partition(" ")[2] or 0)
    kind = method.partition(" ")[0]
    bins = {"entropy": 128, "percentile": 2048}.get(kind, 2048)
    collector = HistogramCollector(kind, kind == "percentile", bins, 128, percentile, "same")
    extremes: dict[str, tuple[float, float]] = {}
    names = {module: name for name, module in student.model.named_modules() if isinstance(module, torch.nn.Linear)}

    def watch(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        name = names[module]  # type: ignore[index]
        low, high = (float(end) for end in given[0].aminmax())
        before = extremes.get(name, (0.0, 0.0))
        extremes[name] = (min(low, before[0]), max(high, before[1]))
        if kind != "min-max":
            collector.collect({name: given[0].numpy()})

    handles = [module.register_forward_pre_hook(watch) for module in names]
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        chunks = torch.from_numpy(task.chunks[:CALIBRATION])
        for part in chunks.split(8):
            task.teacher.objective.logits(student.model, part)
        found = extremes if kind == "min-max" else {n: d[:2] for n, d in collector.compute_collection_result().items()}
    for handle in handles:
        handle.remove()
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=640)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    workshop = Workshop(TaskSpec(scheme=SCHEME))
    task, own = workshop.task, workshop.facts().architecture
    found: dict[str, list[float]] = {}

    def note(name: str, loss: float) -> None:
        found.setdefault(name, []).append(loss)
        print(f"{name}: {loss:.4f}", file=sys.stderr, flush=True)

    for depth, width, heads, ffn in SHAPES:
        plan = [(Precision.INT8, Precision.INT8)] * depth
        layers = uniform_layers(depth, heads, heads, ffn, plan)
        architecture: Architecture = msgspec.structs.replace(own, width=width, tied=False, layers=layers)

        def trained(architecture: Architecture, change: Callable[[Student], None] | None = None) -> Student:
            student = Student(task, architecture)
            if change:
                student.train(20)
                change(student)
            student.train(steps)
            return student

        plain = trained(architecture.with_precision(Precision.FP32))
        note("float", plain.score(task.select).loss)
        note("trained in int8, running ranges", trained(architecture).score(task.select).loss)
        note("trained in int8, learned ranges", trained(architecture, learned).score(task.select).loss)
        for method in ("min-max", "percentile 99.9", "percentile 99.99", "percentile 99.999", "entropy"):
            ranges = calibrated(plain, task, method)
            quantise_parts(plain.model, architecture, SCHEME)
            for name, module in plain.model.named_modules():
                if isinstance(module, QuantisedLinear):
                    module.low.fill_(ranges[name][0])
                    module.high.fill_(ranges[name][1])
            plain._judged = None
            note(f"trained in float, then {method}", plain.score(task.select).loss)
            restore(plain.model)
    base = np.log(found["float"])
    result = {name: round(float(np.exp((np.log(losses) - base).mean())), 4) for name, losses in found.items()}
    print(json.dumps({"steps": steps, "students": len(SHAPES), "kl_over_that_in_float": result}))


if __name__ == "__main__":
    main()

"""Is the precision solver exact, is it fast, and may what single parts lose be added up?

- exact: against all 43 million plans of students with eight layers, two parts each, in three precisions, priced for a
  Jetson AGX Orin, what parts lose drawn at random; and how long it takes, pricing left out
- additive: 60 random plans of a trained student, int8 with its activations rounded: the sum of what parts lose alone
  against what the plan loses as a whole, by Kendall's tau; and the estimate from gradients against what was measured

python benchmarks/precision.py [--steps 160]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill.families import family_of
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.losses import summed_kl
from hwsearch.distill.proxy import Student
from hwsearch.distill.quantise import quantise_parts, restore
from hwsearch.distill.sensitivity import BATCH, Probe
from hwsearch.distill.workshop import Workshop
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision, Scheme
from hwsearch.profiles import find_profile
from hwsearch.search.precision import PartTimes, fair_rate, part_times, solve, with_plan
from hwsearch.workload import Workload

STUDENTS, PLANS, CHUNKS = 12, 60, 16
PRECISIONS = (Precision.FP16, Precision.INT8, Precision.INT4)
SCHEMES = {
    "dynamic uint8, as ONNX Runtime": Scheme("dynamic", "uint8"),
    "static int8, as TensorRT": Scheme("static", "int8", "channel"),
}


def every_plan(losses: Any, times: PartTimes, rate: float) -> float:
    """The least cost of all plans of one student of 16 parts, every one of them looked at."""
    costs, change = losses + rate * times.parts[0], rate * times.changes[0]
    count = len(change)
    plans = np.stack(np.meshgrid(*[np.arange(count)] * 8, indexing="ij"), -1).reshape(-1, 8)

    def half(parts: Any) -> Any:
        own = parts[np.arange(8), plans].sum(1)
        return own + change[plans[:, :-1], plans[:, 1:]].sum(1)

    first = half(costs[:8]) + change[0, plans[:, 0]]
    second = half(costs[8:]) + change[plans[:, -1], 0]
    return min(
        float((first[i : i + 729, None] + change[plans[i : i + 729, -1]][:, plans[:, 0]] + second).min())
        for i in range(0, len(plans), 729)
    )


def cost_of(chosen: Any, losses: Any, times: PartTimes, rate: float) -> float:
    around = np.concatenate([[0], chosen, [0]])
    own = losses[np.arange(len(chosen)), chosen] + rate * times.parts[0, np.arange(len(chosen)), chosen]
    return float(own.sum() + rate * times.changes[0, around[:-1], around[1:]].sum())


def exactness() -> dict[str, Any]:
    profile = find_profile("jetson-orin")
    estimator, rng = Estimator(profile, profile.target(), Workload(16, 128)), np.random.default_rng(0)
    same, took = 0, []
    for _ in range(STUDENTS):
        width, ffn = 64 * int(rng.integers(2, 13)), 128 * int(rng.integers(2, 17))
        student = Architecture(
            block="encoder", width=width, head_dim=64, vocab=30522, head="classify",
            layers=uniform_layers(8, width // 64, width // 64, ffn, [(Precision.FP16,) * 2] * 8),
        ).with_float(Precision.FP16)  # fmt: skip
        losses = np.concatenate([np.zeros((16, 1)), np.sort(rng.lognormal(-6, 1.5, (16, 2)), axis=1)], axis=1)
        times = part_times([student], PRECISIONS, lambda options: estimator(options).median_ms)
        rate = float(np.exp(rng.uniform(-3, 3)) * fair_rate(losses, times.parts)[0])
        started = time.perf_counter()
        chosen = solve(losses, times, rate)[0]
        took.append(time.perf_counter() - started)
        best = every_plan(losses, times, rate)
        same += abs(cost_of(chosen, losses, times, rate) - best) < 1e-12 + 1e-9 * abs(best)
    return {"students": STUDENTS, "plans_each": 3**16, "same_optimum": same, "worst_ms": round(1e3 * max(took), 3)}


def additivity(name: str, scheme: Scheme, steps: int) -> dict[str, Any]:
    """Of a student of the teacher's depth and half its width, as trained and in float when it is looked at."""
    workshop = Workshop(TaskSpec(scheme=scheme))
    task, own = workshop.task, workshop.facts().architecture
    plain = [(Precision.FP32, Precision.FP32)]
    layers = uniform_layers(own.depth, 3, 3, 256, plain * own.depth)
    architecture = Architecture(**{**{f: getattr(own, f) for f in own.__struct_fields__}, "width": 96, "tied": False,
                                   "layers": layers})  # fmt: skip
    student = Student(task, architecture)
    student.train(steps)
    model, objective = student.model.eval().requires_grad_(False), task.teacher.objective
    few = torch.from_numpy(task.select.chunks[:CHUNKS])
    probe = Probe(model, objective, scheme, few)
    alone, estimated = probe.measured(Precision.INT8), probe.estimated(Precision.INT8)
    assert family_of(model.config)
    with torch.inference_mode():
        wanted = [objective.logits(model, part) for part in few.split(BATCH)]
    rng, joint, added, bits = np.random.default_rng(0), [], [], []
    for _ in range(PLANS):
        chosen = rng.random(len(alone)) < rng.uniform(0.1, 0.9)
        mixed = with_plan(architecture, chosen.astype(np.int64), (Precision.FP32, Precision.INT8))
        quantise_parts(model, mixed, scheme)
        with torch.inference_mode():
            found = [objective.logits(model, part) for part in few.split(BATCH)]
        restore(model)
        lost = sum(summed_kl(p, q) for p, q in zip(wanted, found, strict=True))
        joint.append(lost / sum(p.shape[0] * p.shape[1] for p in wanted))
        added.append(float(alone[chosen].sum()))
        bits.append(int(chosen.sum()))
    ratio = np.array(joint)[np.array(added) > 0] / np.array(added)[np.array(added) > 0]
    return {
        "scheme": name,
        "plans": PLANS,
        "tau": round(float(kendalltau(added, joint).statistic), 3),
        "tau_of_bits": round(float(kendalltau(bits, joint).statistic), 3),
        "joint_over_sum": round(float(np.exp(np.log(ratio).mean())), 3),
        "tau_of_estimates": round(float(kendalltau(alone, estimated).statistic), 3),
        "estimated_over_measured": round(float(np.exp(np.log(estimated / alone).mean())), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=160)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    result = {"solver": exactness(), "additive": [additivity(name, s, steps) for name, s in SCHEMES.items()]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

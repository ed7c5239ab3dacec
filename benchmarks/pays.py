"""Does int8 pay where the search puts it? Parts in int8 beside their float twins in the same model, on this machine.

Random students get the plan that the solver gives them at a fair rate. Each of their int8 parts is then put back into
float, alone, and both models are run in turn, each in two sessions: how its memory lies makes a session of a small
model some percent faster or slower for good. Of the parts whose predicted saving is above the noise floor, how many are
faster in int8? The floor is the 95th percentile of half of what the saving differs by from one session to the other.

python benchmarks/pays.py [--models 16] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from msgspec.structs import replace
from scipy import stats

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.bench.measuring import reference_run
from hwsearch.bench.onnxruntime import FACTS, prepare
from hwsearch.bench.timing import Reference, take_turns
from hwsearch.cli.device import find
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.search.precision import planned
from hwsearch.workload import Workload

SECONDS, ROUNDS, MOST_PARTS = 1.5, 20, 6  # for each that is run; of turns; of parts of a model that are looked at
SESSIONS = 2
PRECISIONS = (Precision.FP32, Precision.INT8)


def draw(rng: np.random.Generator) -> tuple[Architecture, Workload]:
    """Depth 2 to 8, width 64 to 512, in float."""
    decoder, depth = bool(rng.integers(2)), int(rng.integers(2, 9))
    heads = int(rng.integers(1, 9))
    width, ffn = 64 * heads, 64 * int(rng.integers(1, 4 * heads + 1))
    layers = uniform_layers(depth, heads, heads, ffn, [(Precision.FP32, Precision.FP32)] * depth)
    architecture = Architecture(
        block="decoder" if decoder else "encoder", width=width, head_dim=64, layers=layers, gated_ffn=decoder,
        norm="rmsnorm" if decoder else "layernorm",
    )  # fmt: skip
    return architecture, Workload(int(rng.integers(1, 5)), int(rng.integers(8, 129)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    profile = find("host", options.threads, None, 0)
    target = profile.target(None, None, options.threads)
    reference = Reference(reference_run(replace(FACTS, threads=options.threads), "onnxruntime"))
    rows, apart = list[tuple[float, float]](), list[float]()
    for number in range(options.models):
        rng = np.random.default_rng((0, number))
        plain, workload = draw(rng)
        estimator = Estimator(profile, target, workload)
        losses = np.concatenate([np.zeros((2 * plain.depth, 1)), rng.lognormal(-6, 1, (2 * plain.depth, 1))], axis=1)
        price = lambda a, e=estimator: e(a).median_ms  # noqa: E731
        (student,) = planned([plain], PRECISIONS, losses, price, 1.0)
        parts = ("attention", "feed_forward")
        places = [(i, j) for i, a in enumerate(student.layers) for j in parts if getattr(a, j) is Precision.INT8]
        places = [places[k] for k in rng.permutation(len(places))[:MOST_PARTS]]
        twins = []
        for i, j in places:
            layers = list(student.layers)
            layers[i] = replace(layers[i], **{j: Precision.FP32})
            twins.append(replace(student, layers=tuple(layers)))
        models = [student, *twins]
        runs = {
            f"{n} {i}": prepare(a, workload, options.threads) for n in range(SESSIONS) for i, a in enumerate(models)
        }
        found = take_turns(runs, SECONDS * len(runs), reference=reference, enough=ROUNDS)
        usual = reference.usual
        measured = np.array([[found[f"{n} {i}"].low_ms(usual) for i in range(len(models))] for n in range(SESSIONS)])
        savings = measured[:, 1:] / measured[:, :1] - 1
        apart += (np.abs(savings[0] - savings[1]) / 2).tolist()
        predicted = estimator(models).median_ms
        rows += zip((predicted[1:] / predicted[0] - 1).tolist(), savings.mean(0).tolist(), strict=True)
        print(f"{number}: {student.id} {workload}: {[f'{p:+.1%} {m:+.1%}' for p, m in rows[len(rows) - len(places):]]}",
              file=sys.stderr, flush=True)  # fmt: skip
    floor = float(np.quantile(apart, 0.95))
    above = [(p, m) for p, m in rows if p > floor]
    faster = sum(m > 0 for _, m in above)
    result = {
        "models": options.models,
        "parts_in_int8": len(rows),
        "noise_floor": round(floor, 4),
        "above_it": len(above),
        "faster": faster,
        "share": round(faster / max(1, len(above)), 4),
        "p": float(stats.binomtest(faster, len(above), alternative="greater").pvalue) if above else None,
        "predicted_saving": round(float(np.mean([p for p, _ in above])), 4),
        "measured_saving": round(float(np.mean([m for _, m in above])), 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""How wrong is a freshly measured table on models that it has not seen? Measured on this machine.

A table of `--points` points is measured in at most `--minutes`, as `hwsearch profile --device host` does, of batches
of 1 to 8. Then random
encoders and decoders are drawn by another sampler, priced, and timed whole, in turn and beside the same reference
model; those that take a millisecond at least are judged (of new tokens, a tenth of one). They are timed twice: how far
the two disagree is the noise floor.

python benchmarks/unseen.py [--seed 1] [--threads 1] [--points 100] [--minutes 5] [--models 60] [--phase decode_token]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from scipy.stats import binomtest, spearmanr

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.bench import onnxruntime
from hwsearch.bench.host import fitted, host_measuring
from hwsearch.bench.machine import facts, this_machine
from hwsearch.bench.points import Ranges
from hwsearch.bench.timing import take_turns
from hwsearch.latency.estimator import Estimator
from hwsearch.latency.latency import Latency
from hwsearch.precision import Precision
from hwsearch.workload import PHASES, Phase, Workload

AT_ONCE = 15
LEAST_MS = {"prefill": 1.0, "decode_token": 0.1}
SECONDS = 25.0  # that a turn of `AT_ONCE` models is timed for


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--phase", choices=PHASES, default="prefill")
    parser.add_argument("--table", type=Path, help="keep the table here, or go on with the one that is there")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    machine = this_machine(options.threads)
    folder = options.table or Path(tempfile.mkdtemp())
    measuring = host_measuring(machine, Ranges(), folder)
    started = time.monotonic()
    measuring.measure(options.points, options.minutes * 60, phase=options.phase)
    profiling = time.monotonic() - started
    say(f"{len(measuring.cases)} points in {profiling:.0f} s")

    known = facts(machine)
    runtime = replace(known.runtimes["onnxruntime"], table=str(folder.resolve()))
    profile = fitted(replace(known, runtimes={"onnxruntime": runtime}), measuring)
    rows: list[tuple[Latency, float, float]] = []
    while len(rows) < options.models:
        drawn = [draw(rng, options.phase) for _ in range(AT_ONCE)]
        runs = {str(i): onnxruntime.prepare(a, w, options.threads, options.phase) for i, (a, w) in enumerate(drawn)}
        first, second = (take_turns(runs, SECONDS, reference=measuring.reference, enough=10) for _ in range(2))
        usual = measuring.reference.usual
        for i, (architecture, workload) in enumerate(drawn):
            one, two = first[str(i)], second[str(i)]
            measured = (one + two).low_ms(usual)
            if measured < LEAST_MS[options.phase] or len(rows) == options.models:
                continue
            found = one_pass(Estimator(profile, profile.target(), workload).one(architecture), options.phase)
            floor = one.low_ms(usual) / two.low_ms(usual)
            rows.append((found, measured, floor))
            say(
                f"{found.median_ms / measured - 1:+7.1%} {measured:9.2f} ms  floor {floor - 1:+6.1%}  "
                f"{architecture.id} {workload}"
            )
    print(
        json.dumps(
            {**judge(rows), "points": len(measuring.cases), "profiling_s": round(profiling), "threads": options.threads}
        )
    )


def one_pass(found: Latency, phase: Phase) -> Latency:
    """Of a phase alone."""
    scale = found.phases[phase] / found.median_ms
    return replace(found, median_ms=found.median_ms * scale, low_ms=found.low_ms * scale, high_ms=found.high_ms * scale)


def draw(rng: np.random.Generator, phase: Phase = "prefill") -> tuple[Architecture, Workload]:
    """Depth 1 to 12, width 64 to 480, mixed precision, sequence 16 to 256, batch 1 to 8; up to 64 new tokens."""
    decoder = bool(rng.integers(2)) or phase == "decode_token"
    head_dim = int(rng.choice([32, 64]))
    heads = int(rng.integers(1, 513 // head_dim))
    width = max(64, heads * head_dim)
    kv_heads = heads // int(rng.choice([d for d in (1, 2, 4) if heads % d == 0])) if decoder else heads
    depth = int(rng.integers(1, 13))
    quantised = rng.uniform(size=(depth, 2)) < rng.uniform()
    plan = [tuple(Precision.INT8 if q else Precision.FP32 for q in pair) for pair in quantised]
    lm = decoder and bool(rng.integers(2))
    architecture = Architecture(
        block="decoder" if decoder else "encoder",
        width=width,
        head_dim=head_dim,
        layers=uniform_layers(depth, heads, kv_heads, int(rng.integers(width // 16, width // 4 + 1)) * 16, plan),  # type: ignore[arg-type]
        gated_ffn=decoder,
        norm="rmsnorm" if decoder else "layernorm",
        vocab=int(rng.integers(1000, 8001)) if lm else 0,
        head="lm" if lm else "none",
        head_precision=Precision.FP32,
        embedding_precision=Precision.FP32,
        kv_precision=Precision.FP32,
    )
    workload = Workload(int(rng.integers(1, 9)), int(rng.integers(16, 257)))
    return architecture, replace(workload, new_tokens=int(rng.integers(1, 65))) if phase == "decode_token" else workload


def judge(rows: list[tuple[Latency, float, float]]) -> dict[str, object]:
    """What is said of the estimates, errors and shares as fractions."""
    predicted = np.array([found.median_ms for found, _, _ in rows])
    measured = np.array([ms for _, ms, _ in rows])
    floor = np.abs(np.log([noise for _, _, noise in rows]))
    error = predicted / measured - 1
    inside = sum(found.low_ms <= ms <= found.high_ms for found, ms, _ in rows)
    decades = {}
    for decade in sorted({int(np.floor(np.log10(ms))) for ms in measured}):
        here = np.floor(np.log10(measured)) == decade
        if here.sum() >= 3:
            decades[f"{10.0**decade:g} ms"] = round(float(spearmanr(predicted[here], measured[here]).statistic), 4)
    return {
        "models": len(rows),
        "within_10": round(float((np.abs(error) <= 0.1).mean()), 4),
        "mape": round(float(np.abs(error).mean()), 4),
        "bias": round(float(np.median(error)), 4),
        "worst": round(float(np.abs(error).max()), 4),
        "spearman_by_decade": decades,
        "coverage_90": round(inside / len(rows), 4),
        "coverage_p": round(float(binomtest(inside, len(rows), 0.9).pvalue), 4),
        "width_90": round(float(np.mean([(f.high_ms - f.low_ms) / f.median_ms for f, _, _ in rows])), 4),
        "noise_floor": round(float(floor.mean()), 4),
        "noise_floor_worst": round(float(floor.max()), 4),
        "extrapolated": sum(found.extrapolated for found, _, _ in rows),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

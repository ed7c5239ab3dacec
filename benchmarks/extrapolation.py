"""How wrong is the analytic model outside the widths that it was fitted on? Measured on this machine.

Decoders of 512 to 1,024 channels are timed and fitted; decoders of 64 to 256 are judged. The error for each halving of
the width is what `GROWTH` in latency/analytic.py stands for.

python benchmarks/extrapolation.py [--seconds 60]
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.bench import onnxruntime
from hwsearch.bench.machine import facts, runtime_of, this_machine
from hwsearch.bench.measuring import reference_run
from hwsearch.bench.points import case_of
from hwsearch.bench.timing import Reference, take_turns
from hwsearch.latency.calibrate import believe, estimate_cases, with_belief
from hwsearch.precision import Precision
from hwsearch.workload import Workload

PLANS = (Precision.FP32, Precision.INT8)


def decoder(layers: int, width: int, head_dim: int, precision: Precision) -> Architecture:
    heads = width // head_dim
    parts = uniform_layers(layers, heads, heads, width * 8 // 96 * 32, [(precision, precision)] * layers)
    return Architecture("decoder", width, head_dim, parts, True, "rmsnorm")


WIDE = [(decoder(1, w, 64, p), Workload(b, 128)) for w in (512, 768, 1024) for b in (1, 8, 24) for p in PLANS]
NARROW = [(decoder(4, w, 32, p), Workload(b, 128)) for w in (64, 96, 128, 192, 256) for b in (8, 64) for p in PLANS]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    machine = this_machine()
    runtime = runtime_of(machine)
    models = {f"{architecture.id} {workload}": (architecture, workload) for architecture, workload in (*WIDE, *NARROW)}
    runs = {name: onnxruntime.prepare(*model, machine.threads) for name, model in models.items()}
    reference = Reference(reference_run(runtime, "onnxruntime"))
    samples = take_turns(runs, seconds, reference=reference)
    cases = [
        replace(case_of("host", "onnxruntime", runtime, *model, name), latency_ms=samples[name].low_ms(reference.usual))
        for name, model in models.items()
    ]
    wide, narrow = ([case for case in cases if (case.width >= 512) is is_wide] for is_wide in (True, False))
    known = facts(machine)
    belief, noise = believe(known, "onnxruntime", wide)
    fitted = with_belief(known, "onnxruntime", belief, noise, wide, "wide")
    intervals = estimate_cases(fitted, narrow)
    errors = np.array(
        [np.log(median / case.latency_ms) for case, (median, _, _) in zip(narrow, intervals, strict=True)]
    )
    octaves = np.array([np.log2(512 / case.width) for case in narrow])
    inside = [low <= case.latency_ms <= high for case, (_, low, high) in zip(narrow, intervals, strict=True)]
    for case, error in zip(narrow, errors, strict=True):
        print(
            f"{case.model:24} {case.precision!s:5} {case.latency_ms:8.2f} ms  {np.expm1(error):+.1%}", file=sys.stderr
        )
    result = {
        "fitted_on": len(wide),
        "judged_on": len(narrow),
        "noise": round(noise, 3),
        "mape": round(float(np.abs(np.expm1(errors)).mean()), 3),
        "rms_for_each_halving": round(float(np.sqrt(np.mean((errors / octaves) ** 2))), 3),
        "coverage_90": float(np.mean(inside)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

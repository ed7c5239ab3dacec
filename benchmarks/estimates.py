"""How fast are prices? CPU seconds of 100,000 estimates, of `hwsearch --help` and of `hwsearch latency`.

python benchmarks/estimates.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np

from hwsearch.architecture import Architecture, Layer
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile
from hwsearch.workload import Workload

COUNT, ROUNDS = 100_000, 3
ENCODER = ["--layers", "12", "--width", "768", "--heads", "12", "--ffn", "3072", "--json"]


def architectures(count: int) -> list[Architecture]:
    """Random decoders of 2 to 6 layers, each part of each layer in fp16 or int8."""
    rng = np.random.default_rng(0)
    precisions = (Precision.FP16, Precision.INT8)
    depths, widths, heads, ffns = (rng.integers(*ends, count).tolist() for ends in ((2, 7), (4, 13), (1, 4), (2, 17)))
    plans = rng.integers(0, 2, (count, 12)).tolist()
    return [
        Architecture(
            "decoder",
            16 * width,
            32,
            tuple(Layer(2 * h, h, 32 * ffn, precisions[plan[i]], precisions[plan[6 + i]]) for i in range(depth)),
            True,
            "rmsnorm",
            vocab=2048,
            head="lm",
        )
        for depth, width, h, ffn, plan in zip(depths, widths, heads, ffns, plans, strict=True)
    ]


def child_seconds(*command: str) -> float:
    """CPU seconds of a command, the least of a few runs."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "hwsearch", *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(ROUNDS))


def main() -> None:
    found = architectures(COUNT)
    profile = find_profile("jetson-orin")
    price = Estimator(profile, profile.target(), Workload(64, 128, 0, 256))
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        price(found)
        seconds.append(time.process_time() - started)
    result = {
        "architectures": COUNT,
        "first_cpu_s": round(seconds[0], 3),
        "best_cpu_s": round(min(seconds), 3),
        "help_cpu_s": round(child_seconds("--help"), 3),
        "latency_cpu_s": round(child_seconds("latency", "--device", "jetson-orin", *ENCODER), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Do two sessions agree on what a model takes? The same five models, timed again and again on this machine.

Between sessions all cores are busy, as in a search. The same samples are read in three ways: by the low tenths of the
model and of the reference (`bench.timing`), with each sample divided by its own reference once that is 6 % slow, and
without a reference.

python benchmarks/sessions.py [--sessions 12] [--busy 15] [--neighbour]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from hwsearch.architecture import Architecture, Layer
from hwsearch.bench.host import host_profile
from hwsearch.bench.local import local
from hwsearch.bench.measuring import reference_run
from hwsearch.bench.timing import LOW, QUIET, Reference, Samples, take_turns
from hwsearch.latency.tables import folder_of, measured_facts
from hwsearch.precision import Precision
from hwsearch.workload import Workload

WORKLOAD = Workload(1, 128)
SHAPES = (  # depth, width, feed-forward, precision
    (4, 320, 1280, Precision.INT8),
    (3, 352, 1408, Precision.INT8),
    (6, 192, 1536, Precision.INT8),
    (4, 224, 1536, Precision.INT8),
    (6, 384, 1536, Precision.FP32),
)
SPELL, REST = 0.3, 0.6  # seconds that a neighbour works and rests, on the mean


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--busy", type=float, default=15.0, help="seconds of work on all cores between two sessions")
    parser.add_argument("--neighbour", action="store_true", help="that comes and goes on one core in the meantime")
    options = parser.parse_args()
    profile = host_profile(say=lambda text: print(text, file=sys.stderr))
    target = profile.target()
    runtime = profile.runtimes[target.runtime]
    usual = float(measured_facts(folder_of(runtime.table))["reference_ms"])
    bench, reference = local(target.runtime), reference_run(replace(runtime, threads=target.threads), target.runtime)
    sessions = list[dict[str, Samples]]()
    beside = multiprocessing.Process(target=neighbour, daemon=True)
    if options.neighbour:
        beside.start()
    for number in range(options.sessions):
        keep_busy(options.busy, target.threads)
        runs = {
            f"{shape[0]}x{shape[1]}": bench.prepare(built(*shape), WORKLOAD, target.threads, "prefill")
            for shape in SHAPES
        }
        sessions.append(take_turns(runs, 3.0 * len(runs), reference=Reference(reference), enough=12))
        told = {name: f"{samples.low_ms(usual):.3f}" for name, samples in sessions[-1].items()}
        print(f"session {number}: {told}", file=sys.stderr)
    ways: dict[str, Callable[[Samples], float]] = {
        "low tenths": lambda samples: samples.low_ms(usual),
        "sample by sample": lambda samples: sample_by_sample(samples, usual),
        "no reference": lambda samples: float(np.quantile(samples.wall, LOW)),
    }
    found = {}
    for way, read in ways.items():
        logs = np.log([[read(samples) for samples in session.values()] for session in sessions])
        found[way] = {
            "sd_percent": round(100 * float(np.sqrt(logs.var(axis=0, ddof=1).mean())), 2),
            "ms": dict(zip(sessions[0], np.exp(logs.mean(axis=0)).round(3).tolist(), strict=True)),
        }
    print(json.dumps({"sessions": options.sessions, "neighbour": options.neighbour, **found}))


def built(depth: int, width: int, ffn: int, precision: Precision) -> Architecture:
    """An encoder with heads of 32 channels."""
    layer = Layer(width // 32, width // 32, ffn, precision, precision)
    return Architecture("encoder", width, 32, (layer,) * depth, vocab=30522, head="classify")


def sample_by_sample(samples: Samples, usual: float) -> float:
    """The low tenth of the samples whose reference was near its usual time where there are six, else of all, each
    divided by how slow its reference was."""
    slow = np.array(samples.reference) / usual
    drift = np.where(slow > QUIET, slow, 1.0)
    quiet = drift == 1.0
    return float(np.quantile((np.array(samples.wall) / drift)[quiet if quiet.sum() >= 6 else slice(None)], LOW))


def keep_busy(seconds: float, threads: int) -> None:
    """Products of matrices, as training has them."""
    import torch

    torch.set_num_threads(threads)
    matrix, end = torch.randn(1024, 1024), time.monotonic() + seconds
    while time.monotonic() < end:
        matrix = torch.tanh(matrix @ matrix / 32)


def neighbour() -> None:
    """Work on one core, with pauses."""
    rng = random.Random(0)
    while True:
        end = time.monotonic() + rng.expovariate(1 / SPELL)
        while time.monotonic() < end:
            sum(x * x for x in range(10_000))
        time.sleep(rng.expovariate(1 / REST))


if __name__ == "__main__":
    main()

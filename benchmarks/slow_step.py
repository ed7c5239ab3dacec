"""Is a machine that was slow for a while seen in the latency table that it left? On a real table, spoiled on purpose.

A twentieth of a measured table's points, scattered or in one run, get all their times multiplied by 1.15, and the table
is built anew from them. `suspect_points` then says which points do not agree with the rest. Beside it stands what the
leave-one-out residuals of the whole times alone would say, each over its own predicted scatter.

python benchmarks/slow_step.py --table FOLDER [--seed 0] [--repeats 10] [--share 0.05] [--step 1.15]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from hwsearch.bench import machine
from hwsearch.errors import ProfileError
from hwsearch.latency.cases import Case
from hwsearch.latency.drift import suspect_points, suspects
from hwsearch.latency.points import Point, read_points
from hwsearch.latency.table import LatencyTable
from hwsearch.profiles import find_profile
from hwsearch.runtime import Runtime
from hwsearch.workload import OpTable

LONG_MS = 2.0  # what takes longer is also counted by itself


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", type=Path, required=True, help="folder with cases.csv and kernels.csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.05, help="of the points that are made slow")
    parser.add_argument("--step", type=float, default=1.15, help="factor on their times")
    options = parser.parse_args()
    points = [point for point in read_points(options.table) if point.kernels]
    runtime = runtime_of(points[0].case)
    tables = [point.case.ops(runtime) for point in points]
    long = np.array([point.case.latency_ms > LONG_MS for point in points])
    size = max(1, round(options.share * len(points)))
    result: dict[str, object] = {
        "points": len(points),
        "slow": size,
        "step": options.step,
        "untouched": round(float(suspect_points(points, tables).mean()), 4),
    }
    judges: dict[str, Callable[[Sequence[Point], Sequence[OpTable]], np.ndarray]] = {
        "": suspect_points,
        "_whole_time_alone": by_whole_time,
    }
    for kind in ("scattered", "run"):
        found: dict[str, list[np.ndarray]] = {name: [] for name in judges}
        slow = []
        for repeat in range(options.repeats):
            rng = np.random.default_rng((options.seed, repeat))
            slow.append(chosen(rng, len(points), size, kind))
            spoiled = [made_slow(p, options.step) if s else p for p, s in zip(points, slow[-1], strict=True)]
            for name, judge in judges.items():
                found[name].append(judge(spoiled, tables))
            hit = found[""][-1][slow[-1]]
            print(
                f"{kind} {repeat}: {hit.sum()} of {size}, and {found[''][-1].sum() - hit.sum()} others", file=sys.stderr
            )
        truth = np.array(slow)
        for name, flags in found.items():
            flagged = np.array(flags)
            result[kind + name] = {
                "flagged": round(float(flagged[truth].mean()), 4),
                "flagged_above_2_ms": round(float(flagged[truth & long].mean()), 4),
                "others_flagged": round(float(flagged[~truth].mean()), 4),
            }
    print(json.dumps(result))


def runtime_of(case: Case) -> Runtime:
    """The runtime that a table's points were measured with."""
    try:
        return find_profile(case.device).runtimes[case.runtime]
    except (ProfileError, KeyError):
        return machine.runtime_of(machine.this_machine(case.threads or None))


def chosen(rng: np.random.Generator, count: int, size: int, kind: str) -> np.ndarray:
    """`size` of `count` points, scattered or in one run, [count]."""
    if kind == "run":
        start = int(rng.integers(count - size + 1))
        return (np.arange(count) >= start) & (np.arange(count) < start + size)
    return np.isin(np.arange(count), rng.choice(count, size, replace=False))


def made_slow(point: Point, step: float) -> Point:
    """The point with every time of it multiplied."""
    case = replace(point.case, latency_ms=step * point.case.latency_ms)
    return replace(point, case=case, kernels={name: step * time for name, time in point.kernels.items()})


def by_whole_time(points: Sequence[Point], tables: Sequence[OpTable]) -> np.ndarray:
    """Which points' whole times do not agree with what the others say of them, [points]."""
    rows = LatencyTable(points, tables).held_out()
    residual = [np.log(case.latency_ms / median) for case, (median, _, _) in rows]
    return suspects(residual, [np.log(high / low) for _, (_, low, high) in rows])


if __name__ == "__main__":
    main()

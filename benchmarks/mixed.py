"""Does choosing the precision of every part pay? Whole searches at five budgets on this machine, with precisions
solved, and with one throughout.

Each finds, trains, runs and judges its student as the main job does; all have the same budget in milliseconds, as
measured. A run that was stopped goes on where it was.

python benchmarks/mixed.py [--trials 12] [--steps 80] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import platformdirs

WORK = platformdirs.user_cache_path("hwsearch") / "mixed"
BUDGETS = (0.12, 0.18, 0.25, 0.35, 0.5)  # of the teacher's latency
WAYS: dict[str, list[str]] = {
    "mixed": [],
    "float": ["--precision", "fp32"],
    "int8": ["--precision", "int8"],
}


def search(budget: float, way: str, options: argparse.Namespace) -> dict[str, Any]:
    out = WORK / f"{budget:g}-{way}-{options.trials}-{options.steps}"
    command = [
        sys.executable, "-m", "hwsearch", "--device", "host", "--budget", f"{budget:g}x", "--batch", "1",
        "--sequence", "128", "--threads", str(options.threads), "--trials", str(options.trials),
        "--steps", str(options.steps), "--out", str(out), "--json", *WAYS[way],
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    rows = []
    for budget in BUDGETS:
        row: dict[str, Any] = {"budget": budget}
        for way in WAYS:
            chosen = search(budget, way, options)["chosen"]
            if chosen is not None:
                row[way] = {
                    "architecture": chosen["architecture"]["id"],
                    "ms": round(chosen["latency"]["median_ms"], 3),
                    "quality": round(chosen["quality"], 4),
                    "low": round(chosen["quality_low"], 4),
                    "high": round(chosen["quality_high"], 4),
                }
        uniform = max((row[way] for way in ("float", "int8") if way in row), key=lambda found: found["quality"])
        row["ahead_by"] = round(row["mixed"]["quality"] - uniform["quality"], 4)
        row["slower_by"] = round(row["mixed"]["ms"] / uniform["ms"] - 1, 3)  # than the best of one precision
        row["interval"] = round((uniform["high"] - uniform["low"]) / 2, 4)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "budgets": len(rows),
                "mixed_is_ahead": sum(row["ahead_by"] > 0 for row in rows),
                "behind_by_more_than_the_interval": sum(row["ahead_by"] < -row["interval"] for row in rows),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()

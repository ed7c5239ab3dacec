"""The main job as a new user runs it: time, memory, and what it promises.

Runs `hwsearch --device D --budget T` in an empty cache and an empty folder, watches the memory of all its processes
together, and checks its summary against the bars.

python benchmarks/main_job.py [--device jetson-orin] [--budget 280ms]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from hwsearch.search.summary import KEYS


def memory_mib(process: psutil.Process) -> float:
    """Of a process and its children, memory that they share counted once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 2**20


def watch(command: list[str], environment: dict[str, str], folder: Path) -> tuple[str, float, float]:
    """stdout, seconds and peak MiB of a command; what it says on stderr is passed on."""
    started, peak = time.monotonic(), 0.0
    with (folder / "stdout").open("w+") as out:
        running = subprocess.Popen(command, stdout=out, env=environment, cwd=folder)
        process = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, memory_mib(process))
            time.sleep(0.5)
        seconds = time.monotonic() - started
        if running.returncode:
            sys.exit(f"{' '.join(command)} ended with status {running.returncode}")
        out.seek(0)
        return out.read(), seconds, peak


def tried(summary: dict[str, Any]) -> int:
    """Students that were trained, whether others have beaten them or not."""
    return int(summary["trials"]["complete"] + summary["trials"]["stopped"])


def bars(summary: dict[str, Any], seconds: float, peak: float) -> dict[str, bool]:
    """What the main job promises."""
    chosen, steps = summary["chosen"], [finalist["result"]["steps"] for finalist in summary["finalists"]]
    ahead = all(chosen["quality"] > result["quality"] for result in summary["baselines"].values())
    return {
        "under 8 minutes": seconds < 480,
        "under 3 GiB": peak < 3072,
        "16 architectures": tried(summary) >= 16,
        "15 % of a finalist's steps each": min(r["steps"] for r in summary["front"]) >= 0.15 * max(steps),
        "a front of 5": len(summary["front"]) >= 5,
        "contract": set(summary) >= KEYS,
        "interval under the budget": chosen["latency"]["high_ms"] <= summary["budget_ms"],
        "ahead of hand-made": ahead,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="jetson-orin")
    parser.add_argument("--budget", default="280ms")
    parser.add_argument("--out", type=Path, help="keep the run in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = (arguments.out or folder / "run").resolve()
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        command = [sys.executable, "-m", "hwsearch", "--device", arguments.device, "--budget", arguments.budget]
        text, seconds, peak = watch([*command, "--out", str(out), "--json"], environment, folder)
    summary = json.loads(text)
    chosen = summary["chosen"]
    result = {
        "seconds": round(seconds),
        "peak_mib": round(peak),
        "trials": tried(summary),
        "front": len(summary["front"]),
        "chosen": chosen["architecture"]["id"],
        "median_ms": round(chosen["latency"]["median_ms"], 1),
        "high_ms": round(chosen["latency"]["high_ms"], 1),
        "retention": [round(chosen[key], 4) for key in ("retention", "retention_low", "retention_high")],
        "hand_made": {
            name: {"median_ms": round(r["latency"]["median_ms"], 1), "retention": round(r["retention"], 4)}
            for name, r in summary["baselines"].items()
        },
        "bars": bars(summary, seconds, peak),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

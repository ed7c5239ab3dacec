"""Latency against quality from end to end on this machine's CPU: the main command, and what `hwsearch distill` does.

At each budget the chosen student, with the layers that the search had, and the students that a person would make by
hand at its latency, are distilled fully and alike, and run in turn with the teacher in float and, as it is, in int8,
all as graphs of their shapes (`bench.measurer`); quality is judged on *report*. A run that was stopped goes on where it
was.

python benchmarks/curve.py [--budgets 0.15 0.2326 0.35 0.5] [--steps 6144] [--threads 1]
python benchmarks/curve.py --runs DIR ...       (searches that are there already, those of mixed.py say)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from hwsearch.architecture import Architecture
from hwsearch.bench.measurer import HostMeasurer, measurer_of
from hwsearch.cli.progress import Progress
from hwsearch.distill.job import Job
from hwsearch.distill.workers import Workers, layers_of
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.search.baselines import hand_made_as_run
from hwsearch.search.distillation import CHUNKS, Distillation
from hwsearch.search.finished import Finished, finished
from hwsearch.search.trainer import complete, result_of
from hwsearch.space import derive

WORK = platformdirs.user_cache_path("hwsearch") / "curve"
FASTER = 1 / 4.3  # than the teacher in float32


def search(budget: float, threads: int) -> Path:
    out = WORK / f"{budget:.4g}"
    command = [
        sys.executable, "-m", "hwsearch", "--device", "host", "--budget", f"{budget:.6g}x", "--batch", "1",
        "--sequence", "128", "--threads", str(threads), "--out", str(out), "--json",
    ]  # fmt: skip
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return out


def students(
    run: Finished, teacher: Architecture, measurer: HostMeasurer
) -> dict[str, tuple[Architecture, tuple[int, ...] | None]]:
    """The chosen one and those made by hand that take as long, with the teacher's layers behind them."""
    (latency,) = measurer.measure([run.architecture])
    space = derive(teacher, run.profile.runtimes[run.target.runtime])
    estimator = Estimator(run.profile, run.target, run.workload)
    found: dict[str, tuple[Architecture, tuple[int, ...] | None]] = {
        "chosen": (run.architecture, layers_of(None, run.state))
    }
    for made in hand_made_as_run(space, estimator, measurer.measure, latency.median_ms)[0]:
        found[made.name] = (made.architecture, made.layers)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.15, FASTER, 0.35, 0.5])
    parser.add_argument("--runs", type=Path, nargs="+", default=[])
    parser.add_argument("--alone", action="store_true", help="leave the students made by hand out")
    parser.add_argument("--steps", type=int, default=6144)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with Progress() as progress:
        for folder in options.runs or [search(budget, options.threads) for budget in options.budgets]:
            run = finished(folder)
            own = json.loads((folder / "summary.json").read_text())
            budget = own["budget_ms"] / own["teacher"]["latency"]["median_ms"]
            spec = msgspec.structs.replace(run.spec, chunks=CHUNKS)
            measurer = measurer_of(run.profile, run.target, run.workload)
            assert measurer is not None
            everyone = students(run, Architecture.from_json(own["teacher"]["architecture"]), measurer)
            if options.alone:
                everyone = {"chosen": everyone["chosen"]}
            workers = Workers(spec, count=1)
            facts = complete(workers, result_of(workers.open()), progress)
            teacher = facts.architecture
            whole = teacher.with_precision(Precision.INT8)
            if "head" not in spec.scheme.keeps_float:
                whole = msgspec.structs.replace(whole, head_precision=Precision.INT8)
            everyone["teacher, int8"] = (whole, None)
            latencies = measurer.measure([teacher, *(a for a, _ in everyone.values())])
            row: dict[str, Any] = {"budget": round(budget, 4), "teacher_ms": round(latencies[0].median_ms, 3)}
            for (name, (architecture, layers)), latency in zip(everyone.items(), latencies[1:], strict=True):
                states = WORK / "states" / facts.digest / name.replace(" ", "-")
                if name == "teacher, int8":  # as it is: training only takes it away from itself
                    path = str(states / f"{architecture.digest}.pt")
                    score = result_of(workers.train(Job(path, architecture, steps=0, split="report")))
                else:
                    score, _ = Distillation(architecture, workers, states, progress, layers, rate=run.rate).run(
                        options.steps
                    )
                row[name] = {
                    "architecture": architecture.id,
                    "ms": round(latency.median_ms, 3),
                    "faster": round(latencies[0].median_ms / latency.median_ms, 2),
                    "retention": round(score.retention, 4),
                    "low": round(score.retention_low, 4),
                    "high": round(score.retention_high, 4),
                    "kl": round(score.loss, 4),
                }
                progress.say(f"{budget:.3g} {name}: {row[name]}")
            workers.close()
            rows.append(row)
    print(json.dumps({"steps": options.steps, "threads": options.threads, "rows": rows}))


if __name__ == "__main__":
    main()

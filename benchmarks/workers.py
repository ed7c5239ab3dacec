"""Do two workers do the work of two? The same study of the embedded teacher, trained by one and by two processes.

Each has one thread and one core. The study's first trials are its corners, which do not depend on what was found, so
that both ways train the same students. Counted from the first trial's beginning to the last one's end, in turns.

python benchmarks/workers.py [--trials 10] [--steps 60] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import Future
from pathlib import Path

import optuna

from hwsearch.distill.job import Job, ProxyScore, TaskSpec, work_of
from hwsearch.distill.workers import Workers
from hwsearch.profiles import find_profile
from hwsearch.search.main_job import run_search
from hwsearch.search.null import NullProgress
from hwsearch.search.plan import Wishes
from hwsearch.search.study import Study
from hwsearch.units import Budget
from hwsearch.workload import Workload


class Beginner(Workers):
    """Begins a study, finds its learning rate, and leaves its trials to others."""

    def train(self, job: Job) -> Future[ProxyScore]:
        if not Path(job.path).name.startswith("rate-"):
            raise KeyboardInterrupt
        return super().train(job)


def begin(storage: str, folder: Path, trials: int, steps: int) -> None:
    profile = find_profile("jetson-orin")
    target = profile.target()
    spec = TaskSpec(scheme=profile.runtimes[target.runtime].scheme)
    wishes = Wishes(budget=Budget(ms=280.0), workload=Workload(64, 128, 0, 256), trials=trials, steps=steps)
    workers = Beginner(spec)
    try:
        run_search(
            profile,
            target,
            wishes,
            spec,
            workers,
            NullProgress(),
            lambda *_: None,
            folder,
            storage=storage,
            name="workers",
        )
    except KeyboardInterrupt:
        pass
    finally:
        workers.close()


def timed(count: int, trials: int, steps: int) -> dict[str, float]:
    """Trials and training work a minute of `count` workers."""
    with tempfile.TemporaryDirectory() as made:
        storage = f"sqlite:///{made}/study.db"
        begin(storage, Path(made) / "run", trials, steps)
        command = [sys.executable, "-m", "hwsearch", "worker", "--study", "workers", "--storage", storage]
        cores = sorted(os.sched_getaffinity(0))
        processes = [
            subprocess.Popen(["taskset", "-c", str(cores[i]), *command, "--processes", "1"], stdout=subprocess.DEVNULL)
            for i in range(count)
        ]
        for process in processes:
            if process.wait():
                sys.exit("a worker has failed")
        study = Study(storage, "workers", make=False)
        found = study.trials()
        study.close()
        times = optuna.load_study(study_name="workers", storage=storage).get_trials(deepcopy=False)
        begun = min(t.datetime_start for t in times if t.datetime_start)
        ended = max(t.datetime_complete for t in times if t.datetime_complete)
    minutes = (ended - begun).total_seconds() / 60
    work = sum(work_of(t.architecture, t.result.steps) for t in found if t.result)
    return {"trials": len(found), "minutes": minutes, "trials_a_minute": len(found) / minutes, "work": work / minutes}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    best = {1: 0.0, 2: 0.0}
    work = dict(best)
    for _ in range(options.rounds):
        for count in best:
            found = timed(count, options.trials, options.steps)
            print(count, found, file=sys.stderr)
            best[count] = max(best[count], found["trials_a_minute"])
            work[count] = max(work[count], found["work"])
    result = {"trials_a_minute": best, "ratio": best[2] / best[1], "ratio_of_work": work[2] / work[1]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

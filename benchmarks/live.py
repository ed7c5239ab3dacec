"""Whole searches against other ways to spend the same processor time, on one budget: who ends with the best student?

- hwsearch: the README's first command, everything that it does counted
- NSGA-II: plain Optuna on the raw space (every part of every layer), short runs from random weights; what does not fit
  is dropped before it is trained
- random: random students inside the budget, scored by hwsearch's short runs from slices
- by hand: every other layer, uniform width, whole model in int8, at the latency of hwsearch's choice

The others go on until they have used the processor seconds of hwsearch's command. Every choice is then trained fully,
from slices and with the rate falling at the end, all alike, and judged on *report*. Seeds draw other text and other
proposals. A run that was stopped goes on where it was.

python benchmarks/live.py [--seeds 3] [--full-steps 2048]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
import platformdirs
from scipy import stats
from students import workshop

from hwsearch.architecture import Architecture
from hwsearch.distill.job import COOL, Facts
from hwsearch.files import pretty, read_json, write_text
from hwsearch.profiles import find_profile
from hwsearch.search.baselines import hand_made
from hwsearch.search.plan import Plan, Wishes
from hwsearch.units import Budget
from hwsearch.workload import Workload

DEVICE, BUDGET_MS, STEPS = "jetson-orin", 280.0, 160
WORK = platformdirs.user_cache_path("hwsearch") / "live"
WORKLOAD = Workload(64, 128, 0, 256)


def plan_of(facts: Facts) -> Plan:
    profile = find_profile(DEVICE)
    wishes = Wishes(budget=Budget(ms=BUDGET_MS), workload=WORKLOAD)
    return Plan(wishes, profile, profile.target(), facts.architecture)


def facts_of(seed: int) -> Facts:
    found: Facts = workshop(seed).finish()
    return found


def short_run(seed: int, architecture: Architecture, fresh: bool) -> tuple[float, float]:
    """The loss after a short run, and the processor seconds that it took."""
    from hwsearch.distill.proxy import Student

    task, started = workshop(seed).task, time.process_time()
    student = Student(task, architecture, fresh=0 if fresh else None)
    student.train(STEPS)
    loss = student.score(task.select).loss
    return loss, time.process_time() - started


def full_run(seed: int, architecture: Architecture, layers: tuple[int, ...] | None, steps: int, path: Path) -> Any:
    """The score on *report* after full training."""
    from hwsearch.distill.proxy import Student, load_state

    task = workshop(seed).task
    student = Student(task, architecture, layers=layers, kept=load_state(path) if path.is_file() else None)
    cool = round(COOL * steps)
    for stop in range(256, steps + 1, 256):
        if student.step < stop:
            student.train(stop, cool_from=cool, end=steps)
            student.keep(path)
    return msgspec.to_builtins(student.score(task.report))


def ours(seed: int) -> dict[str, Any]:
    """The README's command: its choice, and the processor seconds of all that it does."""
    folder = WORK / f"search-{seed}"
    if folder.is_dir():
        shutil.rmtree(folder)  # it was cut off: what it had used so far is not known
    command = [sys.executable, "-m", "hwsearch", "--device", DEVICE, "--budget", f"{BUDGET_MS:g}ms"]
    command += ["--seed", str(seed), "--out", str(folder), "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(done.stdout)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    chosen = document["chosen"]
    return {"architecture": chosen["architecture"], "ms": chosen["latency"]["median_ms"], "cpu_seconds": seconds}


def other(
    name: str, seed: int, seconds: float, pool: ProcessPoolExecutor, told: Callable[[str], None]
) -> dict[str, Any]:
    """Short runs until the processor seconds are used; the best inside the budget."""
    plan = plan_of(pool.submit(facts_of, seed).result())
    fresh = name == "NSGA-II"
    sampler = (
        optuna.samplers.NSGAIISampler(seed=seed) if name == "NSGA-II" else optuna.samplers.RandomSampler(seed=seed)
    )
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    found: list[tuple[float, Architecture]] = []
    used, dropped = 0.0, 0
    under_way: dict[Future[tuple[float, float]], tuple[optuna.Trial, Architecture, float]] = {}

    def ask() -> tuple[optuna.Trial, Architecture, float]:
        nonlocal dropped
        while True:
            trial = study.ask()
            a = plan.space.sample(lambda key, options, trial=trial: trial.suggest_categorical(key, list(options)))
            if plan.space.fits(a.width, a.layers[0].shape[:2]) and plan.holds(price := plan.price.one(a)):
                return trial, a, price.median_ms
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            dropped += 1

    while used < seconds or under_way:
        while used < seconds and len(under_way) < 2:
            asked = ask()
            under_way[pool.submit(short_run, seed, asked[1], fresh)] = asked
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            (loss, took), (trial, a, ms) = future.result(), under_way.pop(future)
            used += took
            study.tell(trial, [ms, loss])
            found.append((loss, a))
        told(f"{name} {seed}: {used:.0f} of {seconds:.0f} s, {len(found)} students")
    _, best = min(found, key=lambda one: one[0])
    return {
        "architecture": best.to_json(),
        "ms": plan.price.one(best).median_ms,
        "cpu_seconds": used,
        "students": len(found),
        "dropped": dropped,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full-steps", type=int, default=2048)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / "choices.json"
    choices: dict[str, Any] = read_json(path) if path.is_file() else {}

    def told(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def choose(key: str, find: Callable[[], dict[str, Any]]) -> None:
        if key not in choices:
            choices[key] = find()
            write_text(path, pretty(choices))
            told(f"{key}: {choices[key]['architecture']['id']}")

    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for seed in range(options.seeds):
            pool.submit(facts_of, seed).result()  # the teacher's outputs are there for all
            choose(f"hwsearch {seed}", lambda seed=seed: ours(seed))  # type: ignore[misc]
            seconds = choices[f"hwsearch {seed}"]["cpu_seconds"]
            for name in ("NSGA-II", "random"):
                choose(f"{name} {seed}", lambda n=name, s=seed, c=seconds: other(n, s, c, pool, told))  # type: ignore[misc]
            plan = plan_of(pool.submit(facts_of, seed).result())
            for made in hand_made(plan.space, plan.price, choices[f"hwsearch {seed}"]["ms"])[0]:
                ms = plan.price.one(made.architecture).median_ms
                one = {"architecture": made.architecture.to_json(), "ms": ms, "layers": made.layers}
                choose(f"{made.name} {seed}", lambda one=one: one)  # type: ignore[misc]
        jobs = {}
        for key, choice in choices.items():
            layers = tuple(choice["layers"]) if choice.get("layers") else None
            state = WORK / f"{key.replace(' ', '-')}-{options.full_steps}.pt"
            a = Architecture.from_json(choice["architecture"])
            jobs[key] = pool.submit(full_run, int(key.split()[-1]), a, layers, options.full_steps, state)
        scores = {}
        for key, job in jobs.items():
            scores[key] = job.result()
            told(f"{key}: {scores[key]['retention']:.3f}")
    ways: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, score in scores.items():
        for name in ("retention", "loss"):
            ways[key.rpartition(" ")[0]][name].append(score[name])
        ways[key.rpartition(" ")[0]]["ms"].append(choices[key]["ms"])
    own = np.array(ways["hwsearch"]["retention"])
    result = {}
    for name, values in ways.items():
        gaps = own - values["retention"]
        t = stats.t.ppf(0.95, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else np.nan
        result[name] = {
            **{key: np.round(found, 4).tolist() for key, found in values.items()},
            "mean_retention": round(float(np.mean(values["retention"])), 4),
            "behind_hwsearch": round(float(gaps.mean()), 4),
            "interval_90": round(float(t), 4),
        }
    print(json.dumps({"full_steps": options.full_steps, "ways": result}))


if __name__ == "__main__":
    main()

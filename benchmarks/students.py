"""The table that scores, rungs and samplers are judged on: 64 students of the embedded teacher, trained to full.

Drawn stratified: 44 spread over the latencies up to two fifths of the teacher's, 20 within 10 % of one. Each is trained
from slices at the search's constant rate, its held-out KL on *select* noted on the way; then every fourth once more
with another seed (other text in another order), and from random weights. "Full" is the smallest power of two of steps,
1,024 at least, at which doubling lowers the held-out KL by less than 3 % on average over every eighth of them.

Takes hours; a run that was stopped goes on where it was, and what is done stands in the table at any time.

python benchmarks/students.py [--until 4096] [--processes 2] [--device cuda:0]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs

from hwsearch.architecture import Architecture
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.recipe import Recipe
from hwsearch.files import read_json, write_text
from hwsearch.profiles import find_profile
from hwsearch.search.candidates import Candidate, stratified
from hwsearch.search.plan import Plan, Wishes
from hwsearch.units import Budget, format_seconds
from hwsearch.workload import Workload

TABLE = Path(__file__).parent / "students.json"
WORK = platformdirs.user_cache_path("hwsearch") / "students"
WORKLOADS = {
    "jetson-orin": Workload(64, 128, 0, 256),
    "t4": Workload(64, 128, 0, 256),
    "graviton3": Workload(1, 128),
}
MARKS = (0, 10, 20, 40, 80, 120, 160, 240, 320, 480, 640, 800, 1024)  # and half powers of two from there on
SPREAD, BAND = 44, 20
LARGEST = 0.4  # of the teacher's latency
FIRST_FULL, GAIN = 1024, 0.03
PROBES = 8  # every eighth student goes twice as far, to see what full is
AGAIN = 4  # every fourth is trained with another seed too, and from random weights


def plan_of(device: str, facts: Any) -> Plan:
    profile = find_profile(device)
    wishes = Wishes(budget=Budget(share=LARGEST), workload=WORKLOADS[device])
    return Plan(wishes, profile, profile.target(), facts.architecture)


def draw(facts: Any) -> list[Candidate]:
    """The students, those of the band last."""
    plan = plan_of("jetson-orin", facts)
    least = float(min(plan.price(plan.space.smallest).median_ms))
    return stratified(plan, facts, SPREAD, BAND, plan.budget_ms, float(np.sqrt(least * plan.budget_ms)), strain=np.inf)


@cache
def workshop(seed: int, device: str = "cpu") -> Any:
    import torch

    from hwsearch.distill.workshop import Workshop

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    scheme = find_profile("jetson-orin").runtimes["tensorrt"].scheme
    return Workshop(TaskSpec(recipe=Recipe(seed=seed), scheme=scheme), device)


def facts_of(seed: int, device: str) -> Any:
    return workshop(seed, device).finish()


def train(architecture: Architecture, run: Run, until: int, device: str) -> dict[str, Any]:
    """One student up to `until` steps, gone on from where it was: its curve and what scores cost nothing."""
    import torch

    from hwsearch.distill.importance import ffn_dimensions
    from hwsearch.distill.proxy import Student, load_state

    task = workshop(run.seed, device).task
    begin = partial(Student, task, architecture, fresh=0 if run.fresh else None)
    dimensions = ffn_dimensions(begin().model, task.teacher.objective, torch.from_numpy(task.chunks[:32]))
    path = WORK / f"{run.student}-{run.key}.pt"
    student = begin(kept=load_state(path) if path.is_file() else None, device=device)
    halves = (round(2 ** (i / 2)) for i in range(21, 64))
    for stop in (*MARKS, *halves):
        if stop > until:
            break
        if stop > student.step or not student.curve:
            student.train(stop)
            student.mark(task.select)
            student.keep(path)
    return {"curve": student.curve, "seconds": student.seconds, "ffn_dimensions": dimensions}


def gain(rows: list[dict[str, Any]], steps: int) -> float:
    """By how much doubling `steps` lowers the KL, on average over those that have come so far."""
    curves = [dict(row["curve"]) for row in rows[::PROBES]]
    return 1 - float(np.exp(np.mean([np.log(curve[2 * steps] / curve[steps]) for curve in curves])))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--until", type=int, default=16384, help="steps at most")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="to train on")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    WORK.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        facts = pool.submit(facts_of, 0, options.device).result()
        table = read_json(TABLE) if TABLE.is_file() else new_table(facts)
        price(table, facts)
        rows = table["students"]
        everyone = [Run(i, "curve") for i in sorted(range(len(rows)), key=lambda i: not rows[i]["band"])]
        probes = [Run(i, "curve") for i in range(0, len(rows), PROBES)]
        steps = FIRST_FULL
        while steps < options.until and not table["full_steps"]:
            advance(pool, table, probes, 2 * steps, options.device)
            if gain(rows, steps) < GAIN:
                table["full_steps"] = steps
            steps *= 2
        if table["full_steps"]:
            advance(pool, table, everyone, table["full_steps"], options.device)
            others = [Run(i, "second_curve", seed=1) for i in range(0, len(rows), AGAIN)]
            others += [Run(i, "random_curve", fresh=True) for i in range(0, len(rows), AGAIN)]
            advance(pool, table, others, table["full_steps"], options.device)
        write_text(TABLE, shown(table))
    print(json.dumps({"full_steps": table["full_steps"], "students": len(rows)}))


class Run(NamedTuple):
    """A student's training, and where in its row the curve stands."""

    student: int
    key: str
    fresh: bool = False
    seed: int = 0


def advance(pool: ProcessPoolExecutor, table: dict[str, Any], runs: list[Run], steps: int, device: str) -> None:
    """Every run up to `steps`; what is there already takes no time."""
    rows = table["students"]
    runs = [run for run in runs if steps not in dict(rows[run.student].get(run.key, ()))]
    jobs: dict[Future[dict[str, Any]], Run] = {
        pool.submit(train, Architecture.from_json(rows[run.student]["architecture"]), run, steps, device): run
        for run in runs
    }
    started = time.monotonic()
    for done, future in enumerate(as_completed(jobs), start=1):
        run, found = jobs[future], future.result()
        row = rows[run.student]
        row[run.key] = [[step, round(loss, 5)] for step, loss in found["curve"]]
        if device != "cpu":
            row[f"{run.key}_device"] = device
        if run.key == "curve":
            row |= {"seconds": round(found["seconds"], 1), "ffn_dimensions": found["ffn_dimensions"]}
        write_text(TABLE, shown(table))
        left = format_seconds((time.monotonic() - started) / done * (len(jobs) - done))
        print(f"{steps} steps: {done} of {len(jobs)}, {left} left", file=sys.stderr)


def new_table(facts: Any) -> dict[str, Any]:
    rows = [
        {"architecture": c.architecture.to_json(), "parameters": c.architecture.parameters, "band": c.band}
        for c in draw(facts)
    ]
    return {"command": "python benchmarks/students.py", "full_steps": None, "students": rows}


def price(table: dict[str, Any], facts: Any) -> None:
    """Write what today's code says of every student's latency into its row."""
    rows = table["students"]
    students = [Architecture.from_json(row["architecture"]) for row in rows]
    for device in WORKLOADS:
        plan = plan_of(device, facts)
        prices = plan.price([a.with_float(plan.runtime.float_beside()) for a in students])
        for i, row in enumerate(rows):
            ms = (prices.low_ms[i], prices.median_ms[i], prices.high_ms[i])
            row.setdefault("ms", {})[device] = [round(float(x), 4) for x in ms]


def shown(table: dict[str, Any]) -> str:
    """As JSON with a line a student."""
    rows = ",\n".join(json.dumps(row) for row in table["students"])
    head = json.dumps({key: value for key, value in table.items() if key != "students"})
    return f'{head[:-1]}, "students": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    main()

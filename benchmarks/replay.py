"""Scores, rungs and samplers, replayed on the table of students that were trained to full (`benchmarks/students.py`).

- proxy: how well short runs of every length order the students as full training does, beside what costs nothing;
- rungs: trials in random order, stopped by the search's own rule, against no early stopping: the front as the search
  has it, by what its students lose after full training;
- samplers: the search's own beside random, NSGA-II and TPE of plain Optuna on the raw space. A proposal becomes the
  nearest student of the table that was not tried: a repeat costs nobody anything here, which flatters plain Optuna.
  Samplers see the short runs' scores, and are judged by full training.

Hypervolumes are of latency and KL, up to a tenth beyond the table's worst, as a share of that of the table's own front.

python benchmarks/replay.py [--device jetson-orin] [--seeds 20]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import optuna
from msgspec.structs import replace
from students import FIRST_FULL, TABLE, gain, plan_of

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Facts
from hwsearch.files import read_json
from hwsearch.precision import Precision
from hwsearch.search.null import NullTrainer, rehearsed
from hwsearch.search.pareto import unbeaten
from hwsearch.search.plan import RUNGS
from hwsearch.search.proposer import FULLEST
from hwsearch.search.rank import agreement
from hwsearch.search.rungs import leveled, promoted
from hwsearch.search.sampler import Sampler
from hwsearch.search.trial import Trial

TRIALS = (25, 50)
BAND = 0.1  # of one latency


class Student(NamedTuple):
    """A row of the table."""

    number: int
    architecture: Architecture
    ms: float
    band: bool
    curve: dict[int, float]
    row: dict[str, Any]

    def after(self, steps: int) -> float:
        """The loss after a number of steps; between those that were noted on a straight line in log-log."""
        noted = sorted((step, loss) for step, loss in self.curve.items() if step)
        return float(np.exp(np.interp(np.log(steps), *np.log(np.array(noted)).T)))

    def further(self, steps: int, doublings: float = 1.0) -> float:
        """The loss that a straight line in log-log through a step and the one at half of it leads to."""
        earlier = min((s for s in self.curve if 0 < s < steps), key=lambda s: abs(np.log(2 * s / steps)))
        slope = np.log(self.curve[steps] / self.curve[earlier]) / np.log(steps / earlier)
        return float(self.curve[steps] * 2 ** (doublings * min(slope, 0.0)))


def load(device: str) -> tuple[list[Student], int]:
    table = read_json(TABLE)
    rows = [row for row in table["students"] if row.get("curve")]
    full = min(max(s for s, _ in row["curve"]) for row in rows)
    if full < (table["full_steps"] or full + 1):
        print(f"the table is not finished: {len(rows)} students, full taken as {full}", file=sys.stderr)
    full = min(full, table["full_steps"] or full)
    ms = np.array([row["ms"][device][1] for row in rows])
    # Prices have changed since the table was drawn: the band lies where most of its students do.
    inside = abs(ms / np.median(ms[[row["band"] for row in rows]]) - 1) <= BAND
    students = [
        Student(i, Architecture.from_json(r["architecture"]), float(ms[i]), bool(inside[i]), dict(r["curve"]), r)
        for i, r in enumerate(rows)
    ]
    return students, full


def mark(student: Student, steps: float) -> int:
    """The noted step nearest to a wanted one."""
    return min((s for s in student.curve if s), key=lambda s: abs(np.log(s / steps)))


def hypervolume(points: Sequence[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Of what the points are better than, up to a corner."""
    area, height = 0.0, corner[1]
    for x, y in sorted(points):
        if y < height and x < corner[0]:
            area += (corner[0] - x) * (height - y)
            height = y
    return area


class Judge:
    """Hypervolume of some students, by full training, over that of all."""

    def __init__(self, students: Sequence[Student], full: int) -> None:
        self.points = [(s.ms, s.curve[full]) for s in students]
        self.corner = (1.1 * max(x for x, _ in self.points), 1.1 * max(y for _, y in self.points))
        self.whole = hypervolume(self.points, self.corner)

    def __call__(self, chosen: Sequence[int]) -> float:
        return hypervolume([self.points[i] for i in chosen], self.corner) / self.whole


def proxies(students: Sequence[Student], full: int) -> dict[str, Any]:
    truth = [s.curve[full] for s in students]
    inside = [s.band for s in students]

    def judged(
        score: Sequence[float], over: Sequence[float] = truth, banded: Sequence[bool] = inside
    ) -> dict[str, Any]:
        whole = agreement(score, over)
        near = [(a, b) for a, b, i in zip(score, over, banded, strict=True) if i]
        band = agreement([a for a, _ in near], [b for _, b in near])
        found = {}
        for name, a in (("", whole), ("_band", band)):
            if a:
                found |= {f"tau{name}": a.tau, f"tau{name}_low": a.low, f"spearman{name}": a.spearman}
        return {key: round(value, 3) for key, value in found.items()}

    result: dict[str, Any] = {"candidates": len(students), "band": sum(inside), "full_steps": full}
    lengths = sorted({mark(students[0], share * full) for share in (0.02, 0.04, 0.08, 0.12, 0.15, 0.2, 0.3, 0.4)})
    result["steps"] = {s: {"share": round(s / full, 3), **judged([x.curve[s] for x in students])} for s in lengths}
    result["extrapolated_by_a_doubling"] = {s: judged([x.further(s) for x in students]) for s in lengths}
    free: dict[str, Callable[[Student], float]] = {
        "parameters": lambda s: -s.architecture.parameters,
        "depth": lambda s: -s.architecture.depth,
        "latency": lambda s: -s.ms,
        "zero steps": lambda s: s.curve[0],
        "feed-forward PCA dimensions": lambda s: -s.row["ffn_dimensions"],
    }
    result["baselines"] = {name: judged([score(s) for s in students]) for name, score in free.items()}
    for key in ("second_curve", "random_curve"):
        known = [s for s in students if s.row.get(key) and full in dict(s.row[key])]
        if len(known) > 2:
            other = [dict(s.row[key])[full] for s in known]
            banded = [s.band for s in known]
            result[key] = {"students": len(known), "band": sum(banded)}
            result[key] |= judged(other, [s.curve[full] for s in known], banded)
            if key == "random_curve":
                ratio = np.exp(np.mean(np.log(np.array(other) / [s.curve[full] for s in known])))
                result[key]["kl_over_that_from_slices"] = round(float(ratio), 3)
    doubled = [FIRST_FULL * 2**i for i in range(8) if FIRST_FULL * 2**i <= full]
    result["gain_of_a_doubling"] = {steps: round(gain([s.row for s in students], steps), 4) for steps in doubled}
    return result


def rungs(students: Sequence[Student], full: int, seeds: int) -> dict[str, Any]:
    """Every student once, in random order, one rung at a time; the search's rule says who goes on."""
    judge, found = Judge(students, full), []
    steps = [*(int(share * full) for share in RUNGS), full]
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(students)).tolist()
        climbing: dict[int, Trial] = {}
        spent = 0
        waiting = list(order)
        while True:
            over = not waiting
            ready = promoted(climbing.values(), len(steps), max(s.ms for s in students), over)
            if ready:
                number = ready[0]
            elif waiting:
                number = waiting.pop(0)
                climbing[number] = Trial(
                    number=number, architecture=students[number].architecture, ms=students[number].ms
                )
            else:
                break
            trial = climbing[number]
            rung = len(trial.losses)
            spent += steps[rung] - (steps[rung - 1] if rung else 0)
            climbing[number] = replace(trial, losses=(*trial.losses, students[number].after(steps[rung])))
        whole = [number for number, trial in climbing.items() if len(trial.losses) == len(steps)]
        losses = leveled([trial.losses for trial in climbing.values()], len(steps))
        front = unbeaten([(t.ms, loss, n) for (n, t), loss in zip(climbing.items(), losses, strict=True)])
        found.append((spent / (len(students) * full), judge(front), judge(whole), len(whole)))
    shares, volumes, ends, counts = (np.array(column) for column in zip(*found, strict=True))
    return {
        "steps": steps,
        "share_of_steps": round(float(shares.mean()), 3),
        "hypervolume": round(float(volumes.mean()), 4),
        "worst": round(float(volumes.min()), 4),
        "hypervolume_of_the_ended": round(float(ends.mean()), 4),
        "trained_to_the_end": round(float(counts.mean()), 1),
    }


def features(a: Architecture) -> list[float]:
    """Where a student lies: octaves of its sizes, and its share of int8."""
    layer = a.layers[0]
    parts = [p is Precision.INT8 for x in a.layers for p in (x.attention, x.feed_forward)]
    return [np.log2(a.depth), np.log2(a.width), np.log2(layer.heads) / 2, np.log2(layer.ffn) / 2, float(np.mean(parts))]


def replay(name: str, seed: int, device: str) -> list[float]:
    """Hypervolume after 25 and 50 trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    students, full = load(device)
    judge, short = Judge(students, full), int(RUNGS[0] * full)
    places = np.array([features(s.architecture) for s in students])
    scores = [s.after(short) for s in students]
    facts: Facts = NullTrainer().finish().result()
    plan = plan_of(device, facts)
    tried: list[int] = []

    def nearest(a: Architecture) -> int:
        among = [i for i in range(len(students)) if i not in tried]
        return among[int(np.abs(places[among] - features(a)).sum(1).argmin())]

    if name == "hwsearch":
        proposer = plan.proposer(facts)

        def told(proposal: Architecture) -> tuple[float, float]:
            tried.append(nearest(proposal))
            return students[tried[-1]].ms, scores[tried[-1]]

        rehearsed(Sampler(seed, proposer.corners(), FULLEST), proposer, max(TRIALS), told)
        return [judge(tried[:n]) for n in TRIALS]
    samplers = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        "TPE": lambda: optuna.samplers.TPESampler(seed=seed),
    }
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=samplers[name]())
    space = plan.space
    while len(tried) < max(TRIALS):
        trial_ = study.ask()
        a = space.sample(lambda key, options, trial_=trial_: trial_.suggest_categorical(key, list(options)))
        number = nearest(a)
        tried.append(number)
        study.tell(trial_, [students[number].ms, scores[number]])
    return [judge(tried[:n]) for n in TRIALS]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="jetson-orin")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    students, full = load(options.device)
    result: dict[str, Any] = {"proxy": proxies(students, full), "rungs": rungs(students, full, options.seeds)}
    names = ("hwsearch", "random", "NSGA-II", "TPE")
    with ProcessPoolExecutor() as pool:
        jobs = {n: [pool.submit(replay, n, seed, options.device) for seed in range(options.seeds)] for n in names}
        volumes = {n: np.array([future.result() for future in jobs[n]]) for n in names}
    result["samplers"] = {
        n: {
            t: {"mean": round(float(v[:, i].mean()), 4), "worst": round(float(v[:, i].min()), 4)}
            for i, t in enumerate(TRIALS)
        }
        for n, v in volumes.items()
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

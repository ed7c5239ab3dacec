"""How near a search comes to the best student inside a budget, by the number of its trials.

Students score what a smooth surface through the table of trained students says (`benchmarks/students.json`, KL on
*select* after 160 steps; a thin plate spline over octaves of their sizes): unlike the table itself it knows every
student that a search may propose. The best is the best of what all searches have found and a grid of settings leads
to. A search that looks along the front alone is beside one that by turns looks for the student that loses least.

python benchmarks/budget.py [--seeds 4]
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import numpy as np
import optuna
from numpy.typing import NDArray
from replay import features
from scipy.interpolate import RBFInterpolator
from students import TABLE, WORKLOADS

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Facts
from hwsearch.files import read_json
from hwsearch.profiles import find_profile
from hwsearch.search.null import NullTrainer, rehearsed
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.proposer import FULLEST, RATES, RATIOS
from hwsearch.search.sampler import Sampler
from hwsearch.units import Budget

BUDGETS = (("jetson-orin", 0.12), ("jetson-orin", 0.19), ("jetson-orin", 0.35), ("t4", 0.3), ("graviton3", 0.3))
TRIALS = (12, 16, 25, 40)
WAYS = {"front alone": None, "by turns": FULLEST}
STEPS, GRID, SMOOTHING = 160, 5, 0.5


class Surface:
    """What students lose, by the table; the logarithm of it.

    Attributes:
        error: root mean square of what it says of a student of the table without that student.
    """

    def __init__(self) -> None:
        rows = read_json(TABLE)["students"]
        places = np.array([features(Architecture.from_json(row["architecture"])) for row in rows])
        losses = np.log([dict(row["curve"])[STEPS] for row in rows])
        self._spline = _spline(places, losses)
        kept = [np.arange(len(rows)) != i for i in range(len(rows))]
        off = [losses[i] - _spline(places[k], losses[k])(places[i : i + 1])[0] for i, k in enumerate(kept)]
        self.error = float(np.sqrt(np.mean(np.square(off))))

    def __call__(self, students: Sequence[Architecture]) -> NDArray[np.float64]:
        return np.asarray(self._spline(np.array([features(a) for a in students])))


def _spline(places: NDArray[np.float64], losses: NDArray[np.float64]) -> RBFInterpolator:
    return RBFInterpolator(places, losses, smoothing=SMOOTHING)


def plan_of(device: str, share: float) -> tuple[Plan, Facts]:
    profile, facts = find_profile(device), NullTrainer().finish().result()
    wishes = Wishes(budget=Budget(share=share), workload=WORKLOADS[device])
    return Plan(wishes, profile, profile.target(), facts.architecture), facts


def least(device: str, share: float) -> float:
    """The least that any student inside the budget loses, of those that a grid of settings leads to."""
    plan, facts = plan_of(device, share)
    proposer, ratios = plan.proposer(facts), np.geomspace(*RATIOS, GRID).tolist()
    rates = np.geomspace(*RATES, 3).tolist()
    found = {a for settings in product(plan.space.depths, ratios, ratios, rates) for a in proposer.options(*settings)}
    students = list(found)
    inside = plan.strain(students) <= 1
    return float(Surface()([a for a, fits in zip(students, inside, strict=True) if fits]).min())


def searched(device: str, share: float, way: str, seed: int) -> list[float]:
    """What one student after the other loses; the logarithm of it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    (plan, facts), surface = plan_of(device, share), Surface()
    proposer = plan.proposer(facts)
    sampler = Sampler(seed, proposer.corners(), WAYS[way])

    def told(student: Architecture) -> tuple[float, float]:
        return plan.price.one(student).median_ms, float(np.exp(surface([student])[0]))

    return [float(np.log(trial.losses[0])) for trial in rehearsed(sampler, proposer, max(TRIALS), told)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=4)
    seeds = range(parser.parse_args().seeds)
    with ProcessPoolExecutor() as pool:
        floors = [pool.submit(least, *budget) for budget in BUDGETS]
        runs = [[[pool.submit(searched, *b, way, seed) for seed in seeds] for way in WAYS] for b in BUDGETS]
        best = np.array([floor.result() for floor in floors])
        losses = np.array([[[run.result() for run in way] for way in budget] for budget in runs])
    best = np.minimum(best, losses.min((1, 2, 3)))  # [budgets]
    so_far = np.minimum.accumulate(losses, -1)[..., [n - 1 for n in TRIALS]]  # [budgets, ways, seeds, TRIALS]
    behind = np.exp(so_far - best[:, None, None, None]) - 1
    result = [
        {
            "device": device,
            "budget": f"{share}x",
            **{
                way: {
                    n: {"mean": round(m, 4), "worst": round(w, 4)} for n, m, w in zip(TRIALS, mean, worst, strict=True)
                }
                for way, mean, worst in zip(WAYS, found.mean(1).tolist(), found.max(1).tolist(), strict=True)
            },
        }
        for (device, share), found in zip(BUDGETS, behind, strict=True)
    ]
    print(json.dumps({"error_of_the_surface": round(Surface().error, 3), "kl_above_the_best": result}))


if __name__ == "__main__":
    main()

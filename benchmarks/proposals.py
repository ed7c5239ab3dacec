"""How long a proposal takes in a large study: what the sampler asks for, and the architecture that is made of it.

A study of so many trials with random settings and losses, and then some proposals more; the median of them counts.

python benchmarks/proposals.py [--trials 5000]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from hwsearch.profiles import find_profile
from hwsearch.search.null import NullTrainer
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.proposer import FULLEST
from hwsearch.search.sampler import Sampler
from hwsearch.search.trial import Trial
from hwsearch.units import Budget
from hwsearch.workload import Workload

PROPOSALS = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=5000)
    count = parser.parse_args().trials
    profile, facts = find_profile("jetson-orin"), NullTrainer().finish().result()
    wishes = Wishes(budget=Budget(ms=500.0), workload=Workload(64, 128, 0, 256))
    plan = Plan(wishes, profile, profile.target(), facts.architecture)
    proposer, rng = plan.proposer(facts), np.random.default_rng(0)
    sampler = Sampler(0, [], FULLEST)
    first = sampler.ask([])
    proposer(first, set())
    sampler.dropped(first)

    def drawn() -> dict[str, Any]:
        settings = {}
        for name, distribution in first.distributions.items():
            ends = np.array([distribution.low, distribution.high], float)  # type: ignore[attr-defined]
            log = getattr(distribution, "log", False)
            value = float(np.exp(rng.uniform(*np.log(ends)))) if log else float(rng.uniform(*ends))
            settings[name] = round(value) if name == "depth" else value
        return settings

    trials = [
        Trial(
            number=i, architecture=facts.architecture, settings=drawn(), distributions=first.distributions,
            ms=float(rng.uniform(100, 500)), losses=(float(rng.uniform(0.5, 3)),), ended=True,
        )
        for i in range(count)
    ]  # fmt: skip
    took = []
    for _ in range(PROPOSALS + 1):
        started = time.perf_counter()
        asked = sampler.ask(trials)
        architecture = proposer(asked, set())
        took.append(time.perf_counter() - started)
        assert architecture is not None
        trials.append(
            Trial(
                number=len(trials), architecture=architecture, settings=asked.params,
                distributions=asked.distributions, ms=plan.price.one(architecture).median_ms,
                losses=(float(rng.uniform(0.5, 3)),), ended=True,
            )
        )  # fmt: skip
        sampler.kept(asked, trials[-1])
    milliseconds = [round(1e3 * seconds, 1) for seconds in took]
    print(json.dumps({
        "trials": count, "first_ms": milliseconds[0], "median_ms": float(np.median(milliseconds[1:])),
        "most_ms": max(milliseconds[1:]),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

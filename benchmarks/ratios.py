"""What do a few measured students say of the others? At random budgets on this machine, the corners of a search are
measured and as many other students that nearly fill the budget; these are then told by the first three corners, and by
all of them: as all alike by their mean, and by a Gaussian process over shapes, as a search does (`latency/ratios.py`).

python benchmarks/ratios.py [--searches 10] [--seed 0] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict

import numpy as np

from hwsearch.bench import host
from hwsearch.bench.measurer import measurer_of
from hwsearch.latency.ratios import Ratios
from hwsearch.search.candidates import stratified
from hwsearch.search.null import NullProgress, NullTrainer
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.proposer import Given
from hwsearch.search.trainer import complete, result_of
from hwsearch.units import Budget
from hwsearch.workload import Workload

FULL = 0.93  # share of the budget that the others take by the estimate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--searches", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    profile = host.host_profile(options.threads, lambda text: print(text, file=sys.stderr))
    trainer, target, rng = NullTrainer(), profile.target(), np.random.default_rng(options.seed)
    facts = complete(trainer, result_of(trainer.open()), NullProgress())
    off: dict[str, list[float]] = defaultdict(list)
    for number in range(options.searches):
        workload = Workload(int(rng.integers(1, 9)), int(rng.integers(32, 129)))
        share = float(np.exp(rng.uniform(np.log(0.06), np.log(0.6))))
        wishes = Wishes(budget=Budget(share=share), workload=workload, seed=number)
        plan = Plan(wishes, profile, target, facts.architecture, measures=True)
        ruler = measurer_of(profile, target, workload)
        assert ruler is not None
        proposer = plan.proposer(facts)
        corners = [student for corner in proposer.corners() if (student := proposer(Given(corner), ())) is not None]
        corners = list(dict.fromkeys(corners))
        drawn = stratified(plan, facts, 0, len(corners), plan.budget_ms, FULL * plan.budget_ms, seed=number)
        others = [one.architecture for one in drawn if one.architecture not in corners]
        students = [*corners, *others]
        measured = np.array([latency.median_ms for latency in ruler.measure(students)])
        logs = np.log(measured / plan.price.uncorrected(students).median_ms)
        known, asked = logs[: len(corners)], logs[len(corners) :]
        off["estimated"] += asked.tolist()
        for count in (3, len(corners)):
            name = f"told by {count if count == 3 else 'all corners'}"
            off[f"{name}, alike"] += (asked - known[:count].sum() / (count + 1)).tolist()
            ratios = Ratios(dict(zip(corners[:count], known.tolist(), strict=False)))
            off[f"{name}, by shape"] += (asked - np.log(ratios(others))).tolist()
        rms = {name: round(float(np.sqrt(np.mean(np.square(values)))), 4) for name, values in off.items()}
        print(f"{number + 1} of {options.searches}: {len(asked)} by {len(corners)}", rms, file=sys.stderr, flush=True)
    print(json.dumps({"students": len(off["estimated"]), "threads": options.threads, "rms": rms}))


if __name__ == "__main__":
    main()

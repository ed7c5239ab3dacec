"""Students for a comparison: some spread over the latencies inside a budget, some of nearly one latency."""

from __future__ import annotations

import math
from itertools import count
from typing import NamedTuple

import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.distill.job import Facts
from hwsearch.search.plan import Plan
from hwsearch.search.proposer import RATES, RATIOS

NEAR = 0.045  # either way from the band's middle
CLOSE = (0.05, 0.004)  # to a wanted latency, in log: of the spread ones, of those in the band
WIDEST = (1.0, 0.05)  # to a wanted latency, and to the band's middle: farther off, the space has no more there
TRIES = 20  # proportions before another depth is drawn


class Candidate(NamedTuple):
    """A student to be trained fully."""

    architecture: Architecture
    ms: float
    band: bool


def stratified(
    plan: Plan,
    facts: Facts,
    spread: int,
    band: int,
    most_ms: float,
    middle_ms: float,
    seed: int = 0,
    strain: float = 1.0,
) -> list[Candidate]:
    """Students of random depth, proportions and precisions; fewer than wanted where the space has no more.

    Args:
        plan: of the search.
        facts: of the task, complete.
        spread: how many are spread over the latencies up to `most_ms`, evenly in log.
        band: how many lie within 10 % of one another around `middle_ms`; they come last.
        most_ms, middle_ms: latencies.
        seed: of the draw.
        strain: on the budget at most, as `Plan.strain`: 1 for what a search may train.
    """
    proposer = plan.proposer(facts)
    rng = np.random.default_rng(seed)
    least = float(plan.price(plan.space.smallest).median_ms.min())
    wanted = [(ms, False) for ms in np.geomspace(min(1.05 * least, most_ms), most_ms, spread)]
    wanted += [(ms, True) for ms in middle_ms * rng.uniform(1 - NEAR, 1 + NEAR, band)]
    rates = (0.0, 1.0, RATES[1])
    found: list[Candidate] = []
    exhausted: set[bool] = set()
    for ms, inside in wanted:
        if inside in exhausted:
            continue
        near, repeats = CLOSE[inside], 0
        depth = int(rng.choice(plan.space.depths))
        for attempt in count(1):
            if attempt % TRIES == 0:
                depth = int(rng.choice(plan.space.depths))
                near *= 1.2 if attempt > 20 * TRIES else 1.0
                if near > WIDEST[inside] or repeats > TRIES:
                    exhausted.add(inside)
                    break
            heads, ffn = np.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1]), 2)).tolist()
            options = [o for o in proposer.options(depth, heads, ffn, float(rng.choice(rates))) if plan.admits(o)]
            if strain < np.inf and options:
                options = [o for o, s in zip(options, plan.strain(options), strict=True) if s <= strain]
            if not options:
                continue
            prices = plan.price(options).median_ms
            off = np.abs(np.log(prices / ms))
            if inside:
                off[np.abs(np.log(prices / middle_ms)) > WIDEST[1]] = np.inf
            best = int(off.argmin())
            if off[best] < near:
                if all(options[best] != other.architecture for other in found):
                    found.append(Candidate(options[best], float(prices[best]), inside))
                    break
                repeats += 1
    return found

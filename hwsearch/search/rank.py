"""How well one order agrees with another, and how sure that is; what a run's own trials say of its short runs."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from scipy.stats import kendalltau, spearmanr

from hwsearch.search.result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.8


class Agreement(msgspec.Struct, frozen=True):
    """Of a score with the truth, over some candidates.

    Attributes:
        tau: Kendall's, -1 to 1.
        low, high: 80 % bootstrap interval of it, over candidates.
        chance: how often an order at random agrees as well; of few candidates an interval alone would say too much.
        spearman: rank correlation.
        count: of candidates.
    """

    tau: float
    low: float
    high: float
    chance: float
    spearman: float
    count: int


def agreement(score: Sequence[float], truth: Sequence[float]) -> Agreement | None:
    """How well a score orders what has a truth; None for fewer than three candidates, or where all are alike."""
    x, y = np.asarray(score, float), np.asarray(truth, float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    # A candidate that was drawn twice says nothing of an order: pairs of it with itself are 0 here.
    one, other = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    drawn = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES).astype(float)

    def over_pairs(of_each: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = ((drawn @ of_each) * drawn).sum(1)
        return found

    # Kendall's tau b: pairs that are alike in one of the two count half.
    counted = np.sqrt(over_pairs(np.abs(one)) * over_pairs(np.abs(other)))
    taus = over_pairs(one * other)[counted > 0] / counted[counted > 0]
    low, high = np.quantile(taus, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    tau, chance = kendalltau(x, y, alternative="greater")
    return Agreement(float(tau), float(low), float(high), float(chance), float(spearmanr(x, y)[0]), len(x))


def stages(students: Sequence[tuple[Result, Mapping[int, float]]], steps: Sequence[int]) -> list[dict[str, Any]]:
    """How well each stage of a run ordered the students that were trained on to the next, beside what costs nothing.

    Args:
        students: each with its scores, by the steps after which it had them.
        steps: of the stages, rising.
    """
    found = []
    for short, long in pairwise(steps):
        known = [(result, scores) for result, scores in students if short in scores and long in scores]
        truth = [scores[long] for _, scores in known]
        orders = {
            "short run": [scores[short] for _, scores in known],
            "parameters": [-float(result.architecture.parameters) for result, _ in known],
            "depth": [-float(result.architecture.depth) for result, _ in known],
            "latency": [-result.latency.median_ms for result, _ in known],
        }
        judged = {name: agreement(order, truth) for name, order in orders.items()}
        if judged["short run"] is not None:
            shown = {
                name: a and {"tau": a.tau, "low": a.low, "high": a.high, "chance": a.chance}
                for name, a in judged.items()
            }
            found.append({"steps": short, "further_steps": long, "students": len(known), "scores": shown})
    return found

"""How well one order agrees with another, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from scipy.stats import kendalltau, spearmanr

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES = 2000
CONFIDENCE = 0.8


class Agreement(msgspec.Struct, frozen=True):
    """Of a score with the truth, over some candidates.

    Attributes:
        tau: Kendall's, -1 to 1.
        low, high: 80 % bootstrap interval of it, over candidates.
        spearman: rank correlation.
        count: of candidates.
    """

    tau: float
    low: float
    high: float
    spearman: float
    count: int


def agreement(score: Sequence[float], truth: Sequence[float]) -> Agreement | None:
    """How well a score orders what has a truth; None for fewer than three candidates, or where all are alike."""
    x, y = np.asarray(score, float), np.asarray(truth, float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    # A candidate that was drawn twice says nothing of an order: pairs of it with itself are left out.
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    drawn = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES)
    pairs = np.einsum("ri,rj->rij", drawn, drawn)
    pairs[:, np.arange(len(x)), np.arange(len(x))] = 0
    counted = pairs.sum((1, 2))
    taus = (pairs * signs).sum((1, 2))[counted > 0] / counted[counted > 0]
    low, high = np.quantile(taus, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Agreement(float(kendalltau(x, y)[0]), float(low), float(high), float(spearmanr(x, y)[0]), len(x))

"""How sure a score is."""

import numpy as np

from hwsearch.distill.judging import bootstrap


def test_bootstrap_intervals_hold_the_truth_nine_times_in_ten() -> None:
    rng = np.random.default_rng(0)
    inside, trials, tokens = 0, 200, 50
    for _ in range(trials):
        chance = rng.beta(20, 20, 80)  # chunks differ
        hits, teacher = rng.binomial(tokens, 0.5 + (chance - 0.5) / 2), rng.binomial(tokens, 0.5, 80)
        (_, low, high), _ = bootstrap(hits, teacher, np.full(len(hits), tokens))
        inside += low <= 0.5 <= high
    assert 0.83 < inside / trials < 0.96


def test_retention_is_paired() -> None:
    hits = np.array([40, 10, 30, 25] * 20)
    (_, low, high), (retention, r_low, r_high) = bootstrap(hits, hits, np.full(len(hits), 50))
    assert high - low > 0.05
    assert retention == r_low == r_high == 1.0

"""Which measured points do not agree with the rest: single slow ones, and plateaus of a throttled or busy machine.

Given is, for each point in the order of measuring, the logarithm of measured over expected. Most points lie at one
level and scatter around it by a Student distribution whose scale and tails are read off the points themselves. Against
it stand

- plateaus: runs of points at another level, above or below. The level as it goes along is the path of least cost: every
  point pays its improbability there, but never more than an outlier, and every change of level pays too (Fearnhead &
  Rigaill 2019, doi:10.1080/01621459.2017.1385466; on a grid of levels it is a Viterbi path);
- single slow points: so far above the main level that at most a share `WRONG` of those called slow would be chance
  (Benjamini & Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x). The more of them there are, the less each needs
  to stand out. A disturbed machine is slower, not faster: what lies below says how far the scatter alone goes.

Not the library `ruptures`: none of its costs is bounded, so that one wild point makes a segment of its own, and it has
no place for a known scatter of each point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwsearch.latency.kernels import kernels_of
from hwsearch.latency.points import Point
from hwsearch.latency.table import Z90, LatencyTable

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from hwsearch.workload import OpTable

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

WRONG = 0.15  # share of the slow points that may be chance
ALARM = 0.007  # chance at which a single point may be called slow, however many are
FEWEST = 8  # points below which there is no rest to agree with
NORMAL_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
TAILS = (8.0, 0.8)  # prior of the degrees of freedom, mildly heavy tails: median, and sd of the logarithm
CLEAN = 2.0  # scales above its level up to which a point helps to tell the scatter
OUTLIER = 4.5  # log-likelihood that a point costs at most: what a normal one costs at 3 standard deviations
APART = 2.0  # scales between the main level and a plateau, at least
STEP = 0.5  # scales between the levels of the grid
LEVELS = 400  # in the grid, at most
ROUNDS = 3
NEAR = 0.05  # share of the points, before one and after it, that do not bear witness for it
SHARED_US = 1.0  # sd of what the profiler adds to every kernel of one point alike


def suspects(residuals: ArrayLike, sd: ArrayLike | None = None) -> Bools:
    """Which points do not agree with the rest.

    Args:
        residuals: logarithm of measured over expected, in the order of measuring, [points].
        sd: how far each is expected to scatter, up to a common factor that is found here; all alike by default,
            [points].

    Returns:
        Which to measure again or to leave out, [points]; none of fewer than `FEWEST`.

    Raises:
        ValueError: the two are not rows of finite numbers of one length, or an sd is not positive.
    """
    from scipy.stats import false_discovery_control, t

    values = np.asarray(residuals, np.float64)
    relative = np.ones_like(values) if sd is None else np.asarray(sd, np.float64)
    if values.ndim != 1 or values.shape != relative.shape:
        raise ValueError(f"residuals and sd are rows of one length; got {values.shape} and {relative.shape}")
    if not (np.isfinite(values).all() and np.isfinite(relative).all() and (relative > 0).all()):
        raise ValueError("residuals are finite, and every sd is finite and positive")
    if len(values) < FEWEST:
        return np.zeros(len(values), bool)
    relative = relative / np.median(relative)
    # Differences of neighbours do not see plateaus: at first the smaller of the two stands for the scatter.
    steps = np.diff(values) / np.hypot(relative[1:], relative[:-1])
    spread, freedom = min(_mad((values - np.median(values)) / relative), _mad(steps)), TAILS[0]
    if spread == 0.0:  # more than half agree to the last digit: nothing says how far one may be off
        return np.asarray(values > np.median(values))
    for _ in range(ROUNDS):
        level = _path(values, spread * relative, freedom)
        main = _main(values, level, spread)
        level = np.where(np.abs(level - main) < APART * spread, main, level)
        spread, freedom = _scatter((values - level) / relative, spread)
    plateau = np.abs(values - main) > np.abs(values - level)
    found = plateau.copy()
    chance = t.sf((values - main) / (spread * relative), freedom)[~plateau]
    found[~plateau] = (false_discovery_control(chance) <= WRONG) & (chance <= ALARM)
    return found


def suspect_points(points: Sequence[Point], tables: Sequence[OpTable], fused: bool = False) -> Bools:
    """Which points of a measured table do not agree with the rest.

    The time of a whole model alone tells little: on its others a table is a few percent off, by tens of percent where
    the points are sparse. A slow machine slows all kernels of a point alike, so the evidence is the factor that they
    share, from what each surface says when the point is left out, and from the whole time (`_factors`). What was found
    is left out of the surfaces, and everything judged anew.

    Args:
        points: in the order of measuring.
        tables: the op table of each, of one architecture.
        fused: whether the runtime fuses attention.

    Returns:
        Which to measure again or to leave out, [points].
    """
    found = np.zeros(len(points), bool)
    for _ in range(ROUNDS if len(points) >= FEWEST else 0):
        kept = np.flatnonzero(~found).tolist()
        clean = LatencyTable([points[i] for i in kept], [tables[i] for i in kept], fused)
        table = LatencyTable(points, tables, fused, clean.hypers) if found.any() else clean
        before, found = found, suspects(*_factors(table, tables, found))
        if (found == before).all():
            break
    return found


def _factors(table: LatencyTable, tables: Sequence[OpTable], out: Bools) -> tuple[Floats, Floats]:
    """The logarithm of the factor by which all of a point's times exceed what the others say, and its sd, [points].

    Generalised least squares over the point's kernels and its whole time. A kernel has the error and sd that its
    surface gives without the point, without those measured just before and after (a slow spell would vouch for itself)
    and without every point `out`; all have in common what the profiler adds, which weighs on short ones.
    """
    witnesses: list[list[tuple[float, float, float]]] = [[] for _ in tables]  # error, sd, share of what is added
    members: dict[str, list[int]] = {}
    for owner, (point, ops) in enumerate(zip(table.points, tables, strict=True)):
        for kernel in kernels_of(ops, table.fused):
            if kernel.name in point.kernels:
                members.setdefault(kernel.name, []).append(owner)
    for name, owners in members.items():
        for row, owner in enumerate(owners):
            gone = out[owners] | (np.abs(np.array(owners) - owner) <= NEAR * len(tables))
            error, sd = table.surfaces[name].without(gone)
            here = int(gone[:row].sum())
            added = SHARED_US / table.points[owner].kernels[name]
            witnesses[owner].append((-float(error[here]), float(sd[here]), added))
    for owner, (case, (median, low, high)) in enumerate(table.held_out()):
        witnesses[owner].append((float(np.log(case.latency_ms / median)), float(np.log(high / low)) / (2 * Z90), 0.0))
    factors, doubts = np.empty(len(tables)), np.empty(len(tables))
    for owner, rows in enumerate(witnesses):
        errors, sds, shared = np.array(rows).T
        inverse = np.linalg.inv(np.diag(sds**2) + np.outer(shared, shared))
        factors[owner] = (inverse @ errors).sum() / inverse.sum()
        doubts[owner] = inverse.sum() ** -0.5
    return factors, doubts


def _mad(values: Floats) -> float:
    return float(NORMAL_MAD * np.median(np.abs(values - np.median(values))))


def _path(values: Floats, scale: Floats, freedom: float) -> Floats:
    """The level at each point, [points]; `scale` is each point's own, [points]."""
    from scipy.stats import t

    step = max(STEP * float(np.median(scale)), float(np.ptp(values)) / LEVELS)
    grid = np.arange(values.min(), values.max() + step, step)
    change = np.log(len(values)) + OUTLIER / 2
    cost = t.logpdf(0.0, freedom) - t.logpdf((values[:, None] - grid) / scale[:, None], freedom)
    cost = np.minimum(cost, OUTLIER)
    total, stays = cost[0], np.arange(len(grid))
    came = np.empty((len(values), len(grid)), np.int64)
    for i in range(1, len(values)):
        best = int(total.argmin())
        came[i] = np.where(total <= total[best] + change, stays, best)
        total = np.minimum(total, total[best] + change) + cost[i]
    path = np.empty(len(values), np.int64)
    path[-1] = int(total.argmin())
    for i in range(len(values) - 1, 0, -1):
        path[i - 1] = came[i, path[i]]
    return np.asarray(grid[path])


def _main(values: Floats, level: Floats, spread: float) -> float:
    """The level that most points are at: their median."""
    levels, count = np.unique(level, return_counts=True)
    near = np.abs(levels[:, None] - levels) < APART * spread
    here = near[int((near @ count).argmax())]
    return float(np.median(values[np.isin(level, levels[here])]))


def _scatter(deviations: Floats, spread: float) -> tuple[float, float]:
    """Scale and degrees of freedom of the Student distribution that the points follow, but for the slow ones.

    Maximum a posteriori on what lies below `CLEAN` times the `spread` known so far, of the distribution cut off there.
    """
    from scipy.optimize import minimize
    from scipy.stats import t

    cut = CLEAN * spread
    clean = deviations[deviations <= cut]

    def loss(theta: Floats) -> float:
        scale, freedom = np.exp(theta)
        fitting = t.logpdf(clean / scale, freedom).sum() - len(clean) * (theta[0] + t.logcdf(cut / scale, freedom))
        return float(0.5 * ((theta[1] - np.log(TAILS[0])) / TAILS[1]) ** 2 - fitting)

    start = np.log([spread, TAILS[0]])
    bounds = [(start[0] - np.log(4.0), start[0] + np.log(4.0)), (np.log(1.5), np.log(200.0))]
    scale, freedom = np.exp(minimize(loss, start, method="L-BFGS-B", bounds=bounds).x)
    return float(scale), float(freedom)

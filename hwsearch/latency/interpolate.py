"""A time as a function of shapes, from measured points: a roofline of its own and a Gaussian process on what is left.

    log time = log(a + b . terms) + g(features)

The roofline's constants are the non-negative ones with the least relative error (`scipy.optimize.nnls`); g has a
Matern-5/2 kernel with a length for each feature (Rasmussen & Williams 2006, chapters 4 and 5), so that inside the
measured shapes what is interpolated is measured over modelled time, and outside them it fades to the roofline with an
interval that grows to the process's own spread.

Written here because the estimator must not import scikit-learn (a second of CPU) to price a shape in microseconds, and
reads nothing of a fitted process but its lengths and two spreads; the fit itself is scipy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Priors of the logarithms of length (in doublings), spread and noise: medians, and an sd of 1 for each. Times that are
# smooth in the logarithm of a shape change over a few doublings, by tens of percent, and repeat within a few percent.
LENGTH, SPREAD, NOISE = 3.0, 0.25, 0.03
FEWEST = 4  # points below which there is no process, only a roofline


@dataclass(frozen=True, slots=True)
class Hyper:
    """What a fit decides: `length` of each feature, `spread` of the process and `noise` of a point, all of the
    logarithm."""

    length: tuple[float, ...]
    spread: float
    noise: float


class Surface:
    """The time of one kind of kernel over its shapes.

    Args:
        features: log2 of sizes, [points, features].
        terms: what the roofline adds up, as operations and bytes of one run, [points, terms].
        time: microseconds of one run, [points].
        doubt: sd of the logarithm that a point is known with, [points].
        hyper: of an earlier fit on the same points; fitted now unless given.

    Attributes:
        hyper: of the process; None with fewer than `FEWEST` points.
        low, high: the smallest and largest of each feature, [features].
    """

    def __init__(
        self,
        features: Floats,
        terms: Floats,
        time: Floats,
        doubt: Floats,
        hyper: Hyper | None = None,
    ) -> None:
        self.features, self.doubt = features, doubt
        self.low, self.high = features.min(axis=0), features.max(axis=0)
        self._roofline = _roofline(terms, time)
        residual = np.log(time / self.floor(terms))
        self._offset = float(np.median(residual))
        self._residual = residual - self._offset
        self.hyper = hyper or (_fit(features, self._residual, doubt) if len(time) >= FEWEST else None)
        if self.hyper is None:
            # Next to nothing is known: the roofline through the points, and the prior's whole spread around it.
            self._spread = SPREAD * 2
            return
        self._spread = self.hyper.spread
        covariance = _covariance(features, features, self.hyper) + np.diag(self.hyper.noise**2 + doubt**2)
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ self._residual

    def floor(self, terms: Floats) -> Floats:
        """The roofline, microseconds."""
        return np.asarray(self._roofline[0] + terms @ self._roofline[1:])

    def __call__(self, features: Floats, terms: Floats) -> tuple[Floats, Floats]:
        """Median in microseconds and sd of the logarithm, each of shape [rows]."""
        floor = self.floor(terms) * np.exp(self._offset)
        if self.hyper is None:
            return floor, np.full(len(features), self._spread)
        across = _covariance(features, self.features, self.hyper)
        variance = self.hyper.spread**2 - np.einsum("ij,jk,ik->i", across, self._inverse, across, optimize=True)
        return floor * np.exp(across @ self._weights), np.sqrt(np.maximum(variance, 0.0))

    def without(self, gone: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Logarithms of what the other points say of the points `gone` (the error left there, predicted minus
        measured), and its sd; with the roofline and the process as they are.

        One block of the leave-one-out formulas of Rasmussen & Williams 2006, section 5.4.2.
        """
        if self.hyper is None:
            return -self._residual[gone], np.full(int(gone.sum()), self._spread)
        block = np.linalg.inv(self._inverse[np.ix_(gone, gone)])
        error = -(block @ self._weights[gone])
        return error, np.sqrt(np.diag(block))

    def inside(self, features: Floats) -> NDArray[np.bool_]:
        """Whether each row lies inside the measured shapes, [rows]."""
        slack = 1e-6
        return np.asarray(((features >= self.low - slack) & (features <= self.high + slack)).all(axis=1))

    def away(self, features: Floats) -> Floats:
        """Doublings outside the measured shapes, summed over the features, [rows]."""
        outside = np.maximum(0.0, np.maximum(self.low - features, features - self.high))
        return np.asarray(outside.sum(axis=1))


def _roofline(terms: Floats, time: Floats) -> Floats:
    """The constant and the factor of each term, [1 + terms]."""
    from scipy.optimize import nnls

    columns = np.column_stack([np.ones_like(time), terms]) / time[:, None]
    scale = np.maximum(columns.max(axis=0), 1e-300)
    found, _ = nnls(columns / scale, np.ones_like(time))
    return np.asarray(found / scale)


def _covariance(first: Floats, second: Floats, hyper: Hyper) -> Floats:
    distance = _distance(first, second, np.array(hyper.length))
    return np.asarray(hyper.spread**2 * (1 + distance + distance**2 / 3) * np.exp(-distance))


def _distance(first: Floats, second: Floats, length: Floats) -> Floats:
    """sqrt(5) times the scaled distance."""
    a, b = first / length, second / length
    square = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(5 * np.maximum(square, 0.0)))


def _fit(features: Floats, residual: Floats, doubt: Floats) -> Hyper:
    """Maximum a posteriori of the marginal likelihood."""
    from scipy.optimize import minimize

    width = features.shape[1]
    start = np.log([*[LENGTH] * width, SPREAD, NOISE])
    apart = np.square(features[:, None, :] - features[None, :, :])

    def loss(theta: Floats) -> tuple[float, Floats]:
        length, spread, noise = np.exp(theta[:width]), np.exp(theta[width]), np.exp(theta[width + 1])
        scaled = apart / length**2
        distance = np.sqrt(5 * scaled.sum(-1))
        decay = np.exp(-distance)
        process = spread**2 * (1 + distance + distance**2 / 3) * decay
        covariance = process + np.diag(noise**2 + doubt**2)
        lower = np.linalg.cholesky(covariance)
        inverse = np.linalg.inv(covariance)
        weights = inverse @ residual
        value = 0.5 * residual @ weights + np.log(np.diag(lower)).sum() + 0.5 * np.square(theta - start).sum()
        slope = 0.5 * (inverse - np.outer(weights, weights))
        by_length = spread**2 * 5 / 3 * (1 + distance) * decay
        gradient = np.empty(width + 2)
        for i in range(width):
            gradient[i] = (slope * by_length * scaled[:, :, i]).sum()
        gradient[width] = 2 * (slope * process).sum()
        gradient[width + 1] = 2 * noise**2 * np.trace(slope)
        return float(value), gradient + theta - start

    bounds = [(np.log(0.2), np.log(50.0))] * width + [(np.log(0.01), np.log(3.0)), (np.log(0.003), np.log(0.5))]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
    values = np.exp(found.x).tolist()
    return Hyper(tuple(values[:width]), values[width], values[width + 1])

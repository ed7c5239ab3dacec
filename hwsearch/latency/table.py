"""A measured latency table: whole models with the times of their kernels, interpolated.

A point is one architecture and workload: the time of the whole pass, and of each kernel in it where the runtime tells.
Kernels of one name share a `Surface`; a latency is the sum of what the surfaces say of its kernels, put right by a
correction that is learned from the same points' whole times (what a pass costs beside its kernels). Kernels are timed
inside whole models, because the sum of single layers that are hot in the cache is 8 to 14 % low.

The interval is calibrated on the points themselves: each is priced by what the others say (leave-one-out, in closed
form), and the interval is stretched until it holds 90 % of them (split-conformal, Lei et al. 2018,
doi:10.1080/01621459.2017.1307116). Which points do not agree with the rest is `drift`'s to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from hwsearch.latency.cases import Case
from hwsearch.latency.interpolate import Hyper, Surface
from hwsearch.latency.kernels import Kernel, kernels_of, weights_mib
from hwsearch.latency.points import Point
from hwsearch.workload import DECODE_TOKEN, PHASES, OpTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

TICK_US = 0.5  # doubt about a node's time that the runtime's profiler leaves
FORM = 0.03  # doubt for each doubling outside the measured shapes, beside the surface's own
FALLBACK = 0.3  # doubt about a kernel that was never measured and is priced by the profile's analytic model
SESSIONS = 0.02  # sd of the logarithm by which two sessions disagree on one model
# Points that are left out have still had their say in the surfaces' lengths and rooflines: of 300 unseen models of five
# tables 87 % lay inside an interval that was stretched to hold 90 % of what was left out.
UNSEEN = 1.1
# Doubt about new tokens: 60 points were 7 to 12 % off on 40 unseen models (benchmarks/unseen.py --phase decode_token),
# where leaving points out said less.
DECODING = 0.1
Z90 = 1.6449  # standard normal quantile at 95 %: 5 % on either side
RIDGE = 1.0  # of the correction: as if one point said that there is nothing to correct


@dataclass(frozen=True, slots=True)
class Priced:
    """What a table says of an op table, each of shape [architectures] but for `rows_us`.

    Attributes:
        total_us: of the workload, microseconds.
        sd: of its logarithm.
        known: share of the time in kernels that were measured at all.
        covered: share of it inside the measured shapes.
        rows_us: microseconds of one run of each row of the op table, [rows].
    """

    total_us: Floats
    sd: Floats
    known: Floats
    covered: Floats
    rows_us: Floats


class LatencyTable:
    """Points of one target, ready to price op tables.

    Args:
        points: measured.
        tables: the op table of each point, of one architecture each.
        fused: whether the runtime fuses attention.
        hypers: of an earlier fit on the same points, by kernel.
    """

    def __init__(
        self,
        points: Sequence[Point],
        tables: Sequence[OpTable],
        fused: bool = False,
        hypers: Mapping[str, Hyper] | None = None,
    ) -> None:
        self.points, self._tables, self.fused = list(points), list(tables), fused
        found: dict[str, list[tuple[int, Kernel]]] = {}
        for owner, (point, table) in enumerate(zip(self.points, self._tables, strict=True)):
            for kernel in kernels_of(table, fused):
                if kernel.name in point.kernels:
                    found.setdefault(kernel.name, []).append((owner, kernel))
        self.surfaces: dict[str, Surface] = {}
        self._owners: dict[str, Ints] = {}
        for name, members in sorted(found.items()):
            time = np.array([self.points[owner].kernels[name] for owner, _ in members])
            nodes = np.array([self.points[owner].nodes.get(name, 1.0) for owner, _ in members])
            self.surfaces[name] = Surface(
                features=np.vstack([kernel.features[:1] for _, kernel in members]),
                terms=np.vstack([kernel.terms[:1] for _, kernel in members]),
                time=time,
                doubt=TICK_US * nodes / time,
                hyper=(hypers or {}).get(name),
            )
            self._owners[name] = np.array([owner for owner, _ in members])
        self._learn()

    @property
    def digest(self) -> str:
        """Of its points."""
        return self.digest_of(self.points)

    @staticmethod
    def digest_of(points: Sequence[Point]) -> str:
        """A hash over points, 12 hex digits."""
        return hashlib.sha256(msgspec.json.encode(list(points))).hexdigest()[:12]

    @property
    def hypers(self) -> dict[str, Hyper]:
        """What was fitted of the surfaces, by kernel."""
        return {name: surface.hyper for name, surface in self.surfaces.items() if surface.hyper}

    def price(self, table: OpTable, instead: Floats) -> Priced:
        """The architectures of `table`.

        Args:
            table: kernels.
            instead: microseconds of one run of each row, for those with a kernel that was never measured, [rows].
        """
        rows_us, known = np.zeros(len(table.m)), np.ones(len(table.m), bool)
        inside = np.zeros(len(table.m))
        doubts: list[tuple[Ints, Floats]] = []
        runs = table.runs
        for kernel in kernels_of(table, self.fused):
            surface = self.surfaces.get(kernel.name)
            if surface is None:
                known[kernel.rows] = False
                continue
            time, sd = surface(kernel.features, kernel.terms)
            rows_us[kernel.rows] += time
            inside[kernel.rows] += time * surface.inside(kernel.features)
            doubts.append((kernel.rows, time * np.hypot(sd, FORM * surface.away(kernel.features))))
        rows_us[~known] = instead[~known]
        inside[~known] = 0.0
        factor = self._corrections(table, rows_us)
        rows_us *= factor

        def by_architecture(values: Floats) -> Floats:
            return np.asarray(np.bincount(table.architecture, values * runs, table.size), np.float64)

        total, unknown = by_architecture(rows_us), by_architecture(rows_us * ~known)
        decoding = by_architecture(rows_us * (table.phase == DECODE_TOKEN))
        variance = np.square(FALLBACK * unknown) + np.square(DECODING * decoding)
        for rows, doubt in doubts:
            # Errors of one surface go together: they are added up before they are squared.
            summed = np.bincount(table.architecture[rows], doubt * (factor * runs)[rows], table.size)
            variance += np.square(summed)
        known_share = 1 - unknown / total
        return Priced(
            total_us=total,
            sd=self._whole_sd(variance / np.square(total)),
            known=known_share,
            covered=np.minimum(by_architecture(inside * factor) / total, known_share),
            rows_us=rows_us,
        )

    def _corrections(self, table: OpTable, rows_us: Floats) -> Floats:
        """The factor on each row, one for all of a pass, [rows]."""
        place = table.architecture * len(PHASES) + table.phase
        size = table.size * len(PHASES)
        total = np.bincount(place, rows_us * table.count, size)
        launches = np.where(total > 0, np.bincount(place, table.count, size), 0.0)
        decode = np.arange(size) % len(PHASES) == DECODE_TOKEN
        about = _about(launches, np.maximum(total, 1e-9), np.repeat(weights_mib(table), len(PHASES)), decode)
        return np.asarray(np.exp(about @ self._correction)[place])

    def _learn(self) -> None:
        """The correction, the scatter of whole models around it and the interval's stretch, all from leaving each
        point out."""
        measured = np.array([point.case.latency_ms * 1e3 for point in self.points])
        sums, doubts = np.zeros(len(measured)), np.zeros(len(measured))
        for name, surface in self.surfaces.items():
            owners = self._owners[name]
            for owner in np.unique(owners).tolist():
                here = owners == owner
                error, sd = surface.without(here)
                table = self._tables[owner]
                runs = sum(table.runs[k.rows].sum() for k in kernels_of(table, self.fused) if k.name == name)
                time = self.points[owner].kernels[name] * np.exp(error) * runs
                sums[owner] += time.sum()
                doubts[owner] += np.square((time * sd).sum())
        launches = np.array([float(table.runs.sum()) for table in self._tables])
        weights = np.array([float(weights_mib(table)[0]) for table in self._tables])
        decode = np.array([point.case.phase == "decode_token" for point in self.points])
        about = _about(launches, sums, weights, decode)
        residual = np.log(measured / sums)
        inverse = np.linalg.inv(about.T @ about + RIDGE * np.eye(about.shape[1]))
        self._correction = inverse @ about.T @ residual
        leverage = np.einsum("ij,jk,ik->i", about, inverse, about)
        left = (residual - about @ self._correction) / (1 - leverage)
        variance = doubts / np.square(sums)
        self.scatter = float(np.sqrt(max(np.median(np.square(left)) / 0.455 - np.median(variance), 1e-4)))
        z = np.abs(left) / np.sqrt(variance + self.scatter**2)
        rank = min(1.0, 0.9 * (1 + 1 / len(z)))
        self.stretch = max(1.0, float(np.quantile(z, rank, method="higher")) / Z90)
        self._left_out, self._left_sd = -left, self._whole_sd(variance)

    def _whole_sd(self, variance: Floats) -> Floats:
        """Of the logarithm of a time, from the surfaces' variance: with the scatter of whole models, and of a session
        that is not the table's."""
        return np.hypot(UNSEEN * self.stretch * np.sqrt(variance + self.scatter**2), SESSIONS)

    def held_out(self) -> list[tuple[Case, tuple[float, float, float]]]:
        """Each point with the interval that the others give it, (median, low, high) in milliseconds."""
        medians = np.array([point.case.latency_ms for point in self.points]) * np.exp(self._left_out)
        half = np.exp(Z90 * self._left_sd)
        return [
            (point.case, (float(median), float(median / wide), float(median * wide)))
            for point, median, wide in zip(self.points, medians, half, strict=True)
        ]


def _about(launches: Floats, total_us: Floats, weights: Floats, decode: NDArray[np.bool_]) -> Floats:
    """What the correction of a pass depends on, [passes, 4]: a constant, the share that a microsecond a kernel would
    have, how much the model's weights outgrow a mebibyte, and whether it is a new token's."""
    return np.column_stack([np.ones(len(total_us)), launches / total_us, np.log2(1 + weights), decode])

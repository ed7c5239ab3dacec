"""The analytic latency model: a roofline for each kernel, with a launch floor and a ramp that small products do not
outrun.

    kernel  = kernel_us + (compute^4 + memory^4)^(1/4)
    compute = ramp_us + flops / rate       of the arithmetic's precision; attention at its own share of the rate
    memory  = (weight bytes + activation bytes x (1 - hit + hit / cache_speedup)) / bandwidth
    hit     = cache / (cache + activation bytes)       what the kernel before left in the last-level cache
    unfused attention adds 3 launches and score_passes x scores, moved as activations are
    fused attention that is causal skips the tiles of scores above the diagonal: (context + tile) / (2 context) are left
    pass    = pass_us + the kernels

The fourth power is a soft maximum: compute and memory overlap, but not fully where they are equal. The form is that of
the roofline (Williams et al. 2009, doi:10.1145/1498765.1498785). A ramp is the same as a rate that saturates with the
work of a product; on the T4 rows, leaving a model out, that was nearer than saturation with its outputs or its tokens,
and it stays sane for the single row of a decoding step. The cache lowers the error on every runtime of T4.

Parameters are positive, so doubt is kept in their logarithms. Every time here comes with its derivatives by them: an
interval is then one quadratic form, and costs as little as the time itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwsearch.device import DeviceProfile, Target
from hwsearch.precision import PRECISIONS, Precision
from hwsearch.runtime import BY_PRECISION, SCALARS, Figure, Hull, Parameters, Runtime
from hwsearch.workload import KIND, KINDS, PREFILL, OpTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

# Queries and keys of a tile of fused attention, 64 to 128 (Dao 2023, arXiv:2307.08691, section 3.3). On Orin's rows, a
# model left out each time, skipping takes the mean error from 23.5 to 20.7 %; 64 and 128 are alike.
TILE = 128.0
UNFUSED_LAUNCHES = 3  # softmax, the second product and a transposition, beside the first product
_ATTENTION = KIND["attention"]
_IS_LINEAR = np.isin(
    np.arange(len(KINDS)), [KIND[name] for name in ("patches", "qkv", "projection", "up", "down", "head")]
)
# Doubt for each doubling outside the shapes that were seen.
GROWTH = {"m": 0.02, "k": 0.05, "n": 0.03}


@dataclass(frozen=True, slots=True)
class Kernels:
    """Times of the rows of an op table, in microseconds of one run, each of shape [rows].

    Attributes:
        total: the whole kernel.
        launch: of it, the floor.
        compute, ramp, memory, scores: of it, what goes with one over the rate, with the ramp, with one over the
            bandwidth and with the score matrix (derivatives by the logarithms, which add up to total - launch).
        cached: of it, what goes with one over the cache's speed-up.
        away: doubt about the model's form, as sd of the logarithm: it grows with the doublings outside the fit's reach.
        covered: whether it lies inside them and its precision was measured.
    """

    total: Floats
    launch: Floats
    compute: Floats
    ramp: Floats
    memory: Floats
    scores: Floats
    cached: Floats
    away: Floats
    covered: Bools


def figures_of(parameters: Parameters) -> dict[str, Figure]:
    """The parameters by flat name, "rate_tops.fp16" for one that goes by precision."""
    figures: dict[str, Figure] = {name: getattr(parameters, name) for name in SCALARS}
    for group in BY_PRECISION:
        figures.update({f"{group}.{precision}": figure for precision, figure in getattr(parameters, group).items()})
    return figures


class AnalyticModel:
    """The model of one runtime on one target, ready for op tables.

    Args:
        profile: of the device.
        target: runtime, power mode and threads.
        values: parameters by flat name, in place of the profile's (fitting tries many).
    """

    def __init__(self, profile: DeviceProfile, target: Target, values: dict[str, float] | None = None) -> None:
        runtime = profile.runtimes[target.runtime]
        mode = profile.power_modes[target.power_mode]
        self.runtime: Runtime = runtime
        if values is None:
            assert runtime.parameters is not None, "DeviceProfile.target refuses a runtime without parameters"
            values = {name: figure.value for name, figure in figures_of(runtime.parameters).items()}
        self.values = values
        self.groups = runtime.arithmetics  # in the order of the derivatives
        self.log_threads = (
            float(np.log(target.threads / runtime.threads)) if target.threads and runtime.threads else 0.0
        )
        speed_up = mode.compute.value * np.exp(self.values["thread_exponent"] * self.log_threads)
        # Rows of a precision that the runtime does not run (a float head, say) count as its first.
        group_of = [self.groups.index(g) if (g := runtime.arithmetic(p)) in self.groups else 0 for p in PRECISIONS]
        self.group_of = np.array(group_of)  # of each precision code
        self.stored_bytes = np.array([runtime.stored_bits.get(str(p), p.activation_bits) / 8 for p in PRECISIONS])
        self.rate = (
            np.array([self.values[f"rate_tops.{g}"] for g in self.groups]) * 1e6 * speed_up
        )  # operations per microsecond
        self.ramp = np.array([self.values[f"ramp_us.{g}"] for g in self.groups])
        self.share = np.array([self.values[f"attention_share.{g}"] for g in self.groups])
        self.bandwidth = self.values["bandwidth_gbs"] * 1e3 * mode.bandwidth.value  # bytes per microsecond
        self.cache = profile.cache_mib.value * 2**20
        self.hulls: dict[str, Hull] = runtime.fit.hulls if runtime.fit else {}
        self.reach = runtime.fit.reach if runtime.fit else None

    def kernels(self, table: OpTable) -> Kernels:
        """Times of every row of `table`."""
        group = self.group_of[table.precision]
        attention = table.kind == _ATTENTION
        stored = self.stored_bytes[table.precision]
        work = table.flops / (self.rate[group] * np.where(attention, self.share[group], 1.0))
        if self.runtime.fused_attention:
            causal = attention & (table.variant == 1) & (table.phase == PREFILL)
            work[causal] *= np.minimum(1.0, (table.n[causal] + TILE) / (2 * table.n[causal]))
        compute = np.where(table.flops > 0, work + self.ramp[group], 0.0)
        moved = table.elements * stored
        near, far = self._split(moved)
        memory = (table.weight_bytes + far + near) / self.bandwidth
        compute4, memory4 = np.square(np.square(compute)), np.square(np.square(memory))
        both = np.maximum(compute4 + memory4, 1e-300)
        roofline = np.sqrt(np.sqrt(both))
        compute_part = roofline * (compute4 / both)
        working = work / np.maximum(compute, 1e-300)
        launch = np.full(len(table.m), self.values["kernel_us"])
        scores, cached = (
            np.zeros(len(table.m)),
            (roofline - compute_part) * near / np.maximum(table.weight_bytes + far + near, 1e-9),
        )
        if not self.runtime.fused_attention:
            launch[attention] *= 1 + UNFUSED_LAUNCHES
            near, far = self._split(table.scores * stored)
            passes = self.values["score_passes"] / self.bandwidth
            scores, cached = (near + far) * passes, cached + near * passes
        return Kernels(
            total=launch + roofline + scores,
            launch=launch,
            compute=compute_part * working,
            ramp=compute_part * (1 - working),
            memory=roofline - compute_part,
            scores=scores,
            cached=cached,
            away=self._away(table),
            covered=self._covered(table),
        )

    def _split(self, moved: Floats) -> tuple[Floats, Floats]:
        """Bytes that come from the cache, in memory's terms, and bytes that come from memory."""
        hit = self.cache / (self.cache + moved)
        return moved * hit / self.values["cache_speedup"], moved * (1 - hit)

    def _away(self, table: OpTable) -> Floats:
        """Doubt from lying outside the shapes that the fit and its lenders have seen."""
        away = np.zeros(len(table.m))
        if self.reach is None:
            return away
        product = np.flatnonzero(_IS_LINEAR[table.kind])
        for axis, growth in GROWTH.items():
            size = getattr(table, axis)[product]
            low, high = getattr(self.reach, axis)
            octaves = np.maximum(0.0, np.maximum(np.log2(low / size), np.log2(size / high)))
            away[product] += growth * octaves
        return away

    def _covered(self, table: OpTable) -> Bools:
        """Whether a row's precision was measured, and for a product also its shape."""
        covered = np.zeros(len(table.m), bool)
        for precision, hull in self.hulls.items():
            rows = table.precision == Precision(precision).code
            inside = np.ones(len(table.m), bool)
            for axis in ("m", "k", "n"):
                low, high = getattr(hull, axis)
                inside &= (getattr(table, axis) >= low) & (getattr(table, axis) <= high)
            covered |= rows & (inside | ~_IS_LINEAR[table.kind])
        return covered

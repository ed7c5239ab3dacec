"""Latencies of whole architectures: medians, intervals, what is covered by measurements, where the time goes.

The interval is 90 % doubt about the median, not jitter. Its variance, on the logarithm, is
    noise^2     how far whole models scatter around the fit
  + g' C g      the fit's own doubt: covariance C of the parameters' logarithms, g the derivatives of the time's
  + away^2      the model's form outside the shapes that were seen, by the share of the time spent there
It is as wide as the profile's evidence is thin: a parameter that no row identifies keeps the doubt of where it was
borrowed from.

A runtime that has a measured table is priced by that (`table`), and by the model where the table has no such kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.device import DeviceProfile, Target
from hwsearch.latency.analytic import AnalyticModel, Kernels, figures_of
from hwsearch.latency.latency import ALL_COVERED, Latency
from hwsearch.latency.ratios import Ratios
from hwsearch.latency.table import Z90, LatencyTable
from hwsearch.latency.tables import table_of_target
from hwsearch.workload import KIND, KINDS, PHASES, OpTable, Workload, lower

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

AT_ONCE = 4096  # architectures that are lowered together


@dataclass(frozen=True, slots=True)
class Estimates:
    """Latencies of many architectures, each column of shape [architectures]; milliseconds of the whole workload.

    Attributes:
        median_ms, low_ms, high_ms: as of `Latency`.
        prefill_ms, decode_token_ms: medians of one pass.
        prefill_high_ms, decode_token_high_ms: upper ends of their 90 % intervals.
        covered: share of the time inside measured shapes.
        measured: share of the time that a measured table says.
        ops_ms: by kind of kernel, [architectures, len(KINDS) + 1]; the last is the overhead of the passes.
    """

    median_ms: Floats
    low_ms: Floats
    high_ms: Floats
    prefill_ms: Floats
    decode_token_ms: Floats
    prefill_high_ms: Floats
    decode_token_high_ms: Floats
    covered: Floats
    measured: Floats
    ops_ms: Floats

    def times(self, factor: Floats | float) -> Estimates:
        """The same with every time multiplied by `factor`, one or one for each architecture."""
        return Estimates(
            median_ms=self.median_ms * factor,
            low_ms=self.low_ms * factor,
            high_ms=self.high_ms * factor,
            prefill_ms=self.prefill_ms * factor,
            decode_token_ms=self.decode_token_ms * factor,
            prefill_high_ms=self.prefill_high_ms * factor,
            decode_token_high_ms=self.decode_token_high_ms * factor,
            covered=self.covered,
            measured=self.measured,
            ops_ms=self.ops_ms * np.expand_dims(factor, -1),
        )

    def __getitem__(self, index: int) -> Latency:
        covered = float(self.covered[index])
        phases = {"prefill": float(self.prefill_ms[index])}
        phases_high: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
        if self.decode_token_ms[index] > 0:
            phases["decode_token"] = float(self.decode_token_ms[index])
            high = {"prefill": self.prefill_high_ms, "decode_token": self.decode_token_high_ms}
            phases_high = {phase: float(ms[index]) for phase, ms in high.items()}
        ops = zip((*KINDS, "overhead"), self.ops_ms[index].tolist(), strict=True)
        return Latency(
            median_ms=float(self.median_ms[index]),
            low_ms=float(self.low_ms[index]),
            high_ms=float(self.high_ms[index]),
            source="table" if self.measured[index] > 0.5 else "analytic",
            extrapolated=covered < ALL_COVERED,
            covered=covered,
            phases=phases,
            phases_high=phases_high,
            ops={kind: ms for kind, ms in ops if ms > 0},
        )


def join(parts: Sequence[Estimates]) -> Estimates:
    """The estimates of many batches of architectures as one."""
    if len(parts) == 1:
        return parts[0]
    return Estimates(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Estimates)))


class Estimator:
    """Prices architectures on one target for one workload.

    Args:
        profile: of the device.
        target: runtime, power mode and threads.
        workload: what the latencies are the time of.
        learned: what was measured elsewhere over what was estimated, in logarithms.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        target: Target,
        workload: Workload,
        learned: Mapping[Architecture, float] | None = None,
    ) -> None:
        self.profile, self.target, self.workload = profile, target, workload
        self._ratios = Ratios(learned or {})

    def __call__(self, architectures: Sequence[Architecture]) -> Estimates:
        """Latencies of `architectures` on the target, put right by what was measured."""
        found = self.uncorrected(architectures)
        return found.times(self._ratios(architectures)) if self.learned else found

    def uncorrected(self, architectures: Sequence[Architecture]) -> Estimates:
        """Latencies as the profile and the table have them, whatever was learned since."""
        # A few thousand at a time stay in cache; all at once would spend most of the time on fresh memory.
        parts = [architectures[i : i + AT_ONCE] for i in range(0, max(1, len(architectures)), AT_ONCE)]
        in_float = self.profile.runtimes[self.target.runtime].int8_products
        return join([self._estimate(lower(part, self.workload, in_float)) for part in parts])

    def one(self, architecture: Architecture) -> Latency:
        """The latency of one architecture."""
        return self([architecture])[0]

    def learn(self, architectures: Sequence[Architecture], measured: Sequence[Latency]) -> None:
        """Put all later estimates right by what was measured of some."""
        before, now = self.uncorrected(architectures).median_ms, [latency.median_ms for latency in measured]
        self._ratios.learn(dict(zip(architectures, np.log(now / before).tolist(), strict=True)))

    @cached_property
    def _estimate(self) -> Callable[[OpTable], Estimates]:
        """By the table as it is when first asked, whatever is measured into it since: what was learned is of that."""
        return estimation(self.profile, self.target)

    @property
    def learned(self) -> Mapping[Architecture, float]:
        """What was measured over what was estimated, in logarithms."""
        return self._ratios.known

    @property
    def correction(self) -> float:
        """The factor that measurements have put on estimates of what they are not like; 1 without any."""
        return self._ratios.everywhere


def estimation(profile: DeviceProfile, target: Target) -> Callable[[OpTable], Estimates]:
    """What gives the latencies of all architectures of a table on a target: its measured table, or a model alone."""
    model, measured = AnalyticModel(profile, target), table_of_target(profile, target)
    return partial(estimate_with, model) if measured is None else partial(estimate_by, measured, model)


def estimate_by(measured: LatencyTable, model: AnalyticModel, table: OpTable) -> Estimates:
    """Latencies of all architectures of `table` by a measured table, and by `model` for kernels that it lacks."""
    instead = model.kernels(table).total
    priced = measured.price(table, instead)
    times, size = priced.rows_us * table.runs, table.size
    one_pass = np.bincount(table.architecture * 2 + table.phase, priced.rows_us * table.count, size * 2).reshape(
        size, 2
    )
    ops = np.bincount(table.architecture * len(KINDS) + table.kind, times, size * len(KINDS)).reshape(size, -1)
    median = priced.total_us / 1e3
    high = one_pass * _upper(priced.sd, table, lambda part: measured.price(part, instead).sd)
    return Estimates(
        median_ms=median,
        low_ms=median * np.exp(-Z90 * priced.sd),
        high_ms=median * np.exp(Z90 * priced.sd),
        prefill_ms=one_pass[:, 0] / 1e3,
        decode_token_ms=one_pass[:, 1] / 1e3,
        prefill_high_ms=high[:, 0] / 1e3,
        decode_token_high_ms=high[:, 1] / 1e3,
        covered=priced.covered,
        measured=priced.known,
        ops_ms=np.asarray(np.column_stack([ops, np.zeros(size)]) / 1e3, np.float64),
    )


def estimate_with(model: AnalyticModel, table: OpTable) -> Estimates:
    """Latencies of all architectures of `table` by a model at hand."""
    kernels = model.kernels(table)
    size, pass_us = table.size, model.values["pass_us"]
    times = kernels.total * table.runs
    median = medians_us(model, kernels, table)

    def by_architecture(values: Floats) -> Floats:
        return np.asarray(np.bincount(table.architecture, values, size), np.float64)

    overhead = pass_us * table.passes.sum(axis=1)
    one_pass = np.bincount(table.architecture * 2 + table.phase, kernels.total * table.count, size * 2).reshape(size, 2)
    phases = np.where(one_pass > 0, one_pass + pass_us, 0.0)
    sd = _log_sd(model, kernels, table, median)
    high = phases * _upper(sd, table, lambda part: _log_sd(model, kernels, part, medians_us(model, kernels, part)))
    ops = np.bincount(table.architecture * len(KINDS) + table.kind, times, size * len(KINDS)).reshape(size, -1)
    return Estimates(
        median_ms=median / 1e3,
        low_ms=median / 1e3 * np.exp(-Z90 * sd),
        high_ms=median / 1e3 * np.exp(Z90 * sd),
        prefill_ms=phases[:, 0] / 1e3,
        decode_token_ms=phases[:, 1] / 1e3,
        prefill_high_ms=high[:, 0] / 1e3,
        decode_token_high_ms=high[:, 1] / 1e3,
        covered=by_architecture(times * kernels.covered) / (median - overhead),
        measured=np.zeros(size),
        ops_ms=np.column_stack([ops, overhead]) / 1e3,
    )


def _upper(sd: Floats, table: OpTable, sd_of: Callable[[OpTable], Floats]) -> Floats:
    """How many times its median a pass of each phase takes at most, [architectures, phases]; by the workload's own `sd`
    where it runs one phase.

    Args:
        sd: of the logarithm of the whole workload's time, [architectures].
        table: its kernels.
        sd_of: the same of some of its passes.
    """
    if (table.passes > 0).all():
        each = [sd_of(replace(table, passes=table.passes * alone)) for alone in np.eye(len(PHASES))]
    else:
        each = [sd] * len(PHASES)
    return np.asarray(np.exp(Z90 * np.column_stack(each)))


def medians_us(model: AnalyticModel, kernels: Kernels, table: OpTable) -> Floats:
    """Microseconds of each architecture's workload, [architectures]."""
    work = np.bincount(table.architecture, kernels.total * table.runs, table.size)
    return np.asarray(work + model.values["pass_us"] * table.passes.sum(axis=1))


def _log_sd(model: AnalyticModel, kernels: Kernels, table: OpTable, median: Floats) -> Floats:
    """Standard deviation of the logarithm of each architecture's time, [architectures]; `median` in microseconds."""
    fit, parameters = model.runtime.fit, model.runtime.parameters
    assert parameters is not None
    gradient = log_gradient(model, kernels, table, median)
    if fit is None:
        figures = figures_of(parameters)
        order, covariance, noise = tuple(figures), np.diag([figure.sd**2 for figure in figures.values()]), 0.0
    else:
        order, covariance, noise = fit.order, np.array(fit.covariance), fit.noise
    nothing = np.zeros(table.size)  # of a precision that the runtime has no more
    g = np.column_stack([gradient.get(name, nothing) for name in order])
    away = np.bincount(table.architecture, kernels.total * table.runs * kernels.away, table.size) / median
    return np.asarray(np.sqrt(noise**2 + np.einsum("ap,pq,aq->a", g, covariance, g) + away**2))


def log_gradient(model: AnalyticModel, kernels: Kernels, table: OpTable, median: Floats) -> dict[str, Floats]:
    """Derivatives of the logarithm of each architecture's time by the logarithm of each parameter, by name,
    [architectures]."""
    size, groups, runs = table.size, model.groups, table.runs
    slot = table.architecture * len(groups) + model.group_of[table.precision]

    def by_architecture(values: Floats) -> Floats:
        return np.bincount(table.architecture, values * runs, size) / median

    def by_group(values: Floats) -> Floats:
        return np.bincount(slot, values * runs, size * len(groups)).reshape(size, -1) / median[:, None]

    scores = by_architecture(kernels.scores)
    compute = by_group(kernels.compute)
    ramp = by_group(kernels.ramp)
    attention = by_group(np.where(table.kind == KIND["attention"], kernels.compute, 0.0))
    gradient = {
        "pass_us": model.values["pass_us"] * table.passes.sum(axis=1) / median,
        "kernel_us": by_architecture(kernels.launch),
        "bandwidth_gbs": -by_architecture(kernels.memory) - scores,
        "cache_speedup": -by_architecture(kernels.cached),
        "score_passes": scores,
        "thread_exponent": -compute.sum(axis=1) * model.values["thread_exponent"] * model.log_threads,
    }
    for i, group in enumerate(groups):
        gradient[f"rate_tops.{group}"] = -compute[:, i]
        gradient[f"ramp_us.{group}"] = ramp[:, i]
        gradient[f"attention_share.{group}"] = -attention[:, i]
    return gradient

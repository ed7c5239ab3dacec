"""What is believed of a runtime's parameters before its own rows are looked at.

A root runtime takes its prior from the datasheet; others borrow from a related runtime's fit, scaled by the datasheets'
ratio where the device differs, with the doubt of the transfer added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwsearch.device import DeviceProfile
from hwsearch.errors import ProfileError
from hwsearch.latency.analytic import figures_of
from hwsearch.profiles import find_profile
from hwsearch.runtime import BY_PRECISION, SCALARS, Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FitLender = Callable[[str, tuple[str, ...]], "Belief"]

REACHED = 0.4  # share of a datasheet's arithmetic peak that transformers reach, a guess with sd 0.5
REACHED_BANDWIDTH = 0.7

# Priors of a root runtime: median and sd of the logarithm. Launch floors: a CUDA kernel takes 2-10 us from launch to
# end when it has nothing to do, and a product a few more to fill its pipelines.
ROOT = {
    "pass_us": (50.0, 1.0),
    "kernel_us": (4.0, 0.7),
    "cache_speedup": (3.0, 0.5),
    "score_passes": (5.0, 0.4),
    "thread_exponent": (0.8, 0.25),
    "ramp_us": (2.0, 1.0),
    "attention_share": (0.5, 0.5),
    "rate_tops": (REACHED, 0.5),
    "bandwidth_gbs": (REACHED_BANDWIDTH, 0.25),
}
# Doubt that a transfer adds, to another runtime on the same device and to the same runtime on another device.
# Arithmetic and memory belong to the device, launches and tiling to the runtime; a lender that differs in both adds
# both.
OTHER_RUNTIME = {
    "pass_us": 0.7,
    "kernel_us": 0.6,
    "cache_speedup": 0.2,
    "score_passes": 0.4,
    "thread_exponent": 0.2,
    "ramp_us": 0.5,
    "attention_share": 0.4,
    "rate_tops": 0.25,
    "bandwidth_gbs": 0.15,
}
OTHER_DEVICE = {
    "pass_us": 0.4,
    "kernel_us": 0.4,
    "cache_speedup": 0.3,
    "score_passes": 0.2,
    "thread_exponent": 0.2,
    "ramp_us": 0.4,
    "attention_share": 0.3,
    "rate_tops": 0.35,
    "bandwidth_gbs": 0.2,
}


@dataclass(frozen=True, slots=True)
class Belief:
    """A normal distribution of the logarithms of the parameters.

    Attributes:
        order: names.
        mean: [parameters].
        covariance: [parameters, parameters].
        sources: where each comes from.
    """

    order: tuple[str, ...]
    mean: Floats
    covariance: Floats
    sources: tuple[str, ...]

    def of(self, runtime: Runtime) -> Belief:
        """The part of it that is about the precisions that `runtime` computes in."""
        own = [
            i
            for i, entry in enumerate(self.order)
            if "." not in entry or entry.partition(".")[2] in runtime.arithmetics
        ]
        order, sources = tuple(self.order[i] for i in own), tuple(self.sources[i] for i in own)
        return Belief(order, self.mean[own], self.covariance[np.ix_(own, own)], sources)


def prior_of(
    profile: DeviceProfile,
    name: str,
    fit_lender: FitLender,
    arithmetics: tuple[str, ...] = (),
) -> Belief:
    """What is believed of a runtime's parameters before its own rows are looked at.

    Args:
        profile: of the device.
        name: of the runtime.
        fit_lender: what the rows say of another runtime on the same device, by its name and the precisions that are
            asked about.
        arithmetics: precisions to speak of beside the runtime's own.
    """
    runtime = profile.runtimes[name]
    groups = tuple(dict.fromkeys((*runtime.arithmetics, *arithmetics)))
    order = (*SCALARS, *(f"{parameter}.{group}" for parameter in BY_PRECISION for group in groups))
    root = {entry: _root(profile, entry) for entry in order}
    mean = np.log([root[entry][0] for entry in order])
    covariance = np.diag([root[entry][1] ** 2 for entry in order])
    sources = [root[entry][2] for entry in order]
    if not runtime.borrows:
        return Belief(order, mean, covariance, tuple(sources))

    # Lenders are combined as independent witnesses; what none of them knows stays with the datasheet.
    information, weighted = np.zeros_like(covariance), np.zeros_like(mean)
    known = np.zeros(len(order), bool)
    for lender in runtime.borrows:
        shared, borrowed_mean, borrowed_covariance = _borrow(profile, name, lender, fit_lender, order)
        here = [order.index(entry) for entry in shared]
        inverse = np.linalg.inv(borrowed_covariance)
        information[np.ix_(here, here)] += inverse
        weighted[here] += inverse @ borrowed_mean
        known[here] = True
    for i in np.flatnonzero(known):
        sources[i] = f"borrowed: {', '.join(runtime.borrows)}"
    found = np.ix_(known, known)
    covariance[found] = np.linalg.inv(information[found])
    mean[known] = covariance[found] @ weighted[known]
    return Belief(order, mean, covariance, tuple(sources))


def _borrow(
    profile: DeviceProfile, name: str, lender: str, fit_lender: FitLender, order: tuple[str, ...]
) -> tuple[tuple[str, ...], Floats, Floats]:
    """What the runtime `lender` ("runtime" or "device/runtime") says of parameters: their names, means and
    covariance."""
    device, _, other = lender.rpartition("/")
    if not device or device == profile.name:
        owner = profile
        belief = fit_lender(other, tuple(entry.partition(".")[2] for entry in order if entry.startswith("rate_tops.")))
    else:
        owner = find_profile(device)
        belief = stored(owner, other)
    shared = tuple(entry for entry in order if entry in belief.order)
    there = [belief.order.index(entry) for entry in shared]
    doubt = np.zeros(len(shared))
    for differs, added in ((owner is not profile, OTHER_DEVICE), (other != name, OTHER_RUNTIME)):
        doubt += [added[entry.partition(".")[0]] ** 2 if differs else 0.0 for entry in shared]
    ratios = np.log([_ratio(profile, owner, entry) for entry in shared])
    return shared, belief.mean[there] + ratios, belief.covariance[np.ix_(there, there)] + np.diag(doubt)


def _root(profile: DeviceProfile, entry: str) -> tuple[float, float, str]:
    parameter, _, group = entry.partition(".")
    value, sd = ROOT[parameter]
    if parameter not in ("rate_tops", "bandwidth_gbs"):
        return value, sd, "assumed: a typical value"
    peak = profile.peaks.get(group or parameter)
    if peak is None:
        raise ProfileError(
            f"the profile of {profile.name!r} needs peaks.{group or parameter} (a datasheet figure with its source)"
        )
    return value * peak.value, sd, f"assumed: {value:.0%} of the datasheet's peak"


def _ratio(profile: DeviceProfile, lender: DeviceProfile, entry: str) -> float:
    parameter, _, group = entry.partition(".")
    if parameter not in ("rate_tops", "bandwidth_gbs") or profile is lender:
        return 1.0
    return profile.peaks[group or parameter].value / lender.peaks[group or parameter].value


def stored(profile: DeviceProfile, name: str) -> Belief:
    """What a profile on file says of a runtime."""
    if name not in profile.runtimes:
        raise ProfileError(f"nothing to borrow: the profile of {profile.name!r} has no runtime {name!r}")
    runtime = profile.runtimes[name]
    if runtime.parameters is None:
        raise ProfileError(
            f"nothing to borrow: runtime {name!r} of {profile.name!r} has no parameters yet; fit it first"
        )
    figures = figures_of(runtime.parameters)
    order = runtime.fit.order if runtime.fit else tuple(figures)
    covariance = (
        np.array(runtime.fit.covariance) if runtime.fit else np.diag([figure.sd**2 for figure in figures.values()])
    )
    return Belief(
        order,
        np.log([figures[entry].value for entry in order]),
        covariance,
        tuple(figures[entry].source for entry in order),
    )

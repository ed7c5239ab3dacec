"""Fit a runtime's parameters on whole-model timings.

Maximum a posteriori on the logarithms: residuals of the logarithm of the time under a soft-L1 loss (published timings
have outliers), with a normal prior (`prior`) that says where a parameter comes from when the rows are silent. The
covariance of the fit goes into the profile: it is what makes an interval grow where the rows say little.

A fit is accepted by leaving whole models out, never by how it fits its own rows. No constant is keyed to a model, a row
or a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from hwsearch.device import DeviceProfile, Target
from hwsearch.latency.analytic import AnalyticModel
from hwsearch.latency.cases import Case, digest, matches, table_of
from hwsearch.latency.estimator import Estimates, estimate_with, log_gradient, medians_us
from hwsearch.latency.hulls import hulls_of, reach_of
from hwsearch.latency.prior import Belief, prior_of
from hwsearch.latency.table import LatencyTable
from hwsearch.runtime import BY_PRECISION, SCALARS, Error, Figure, Fit, Parameters, Runtime
from hwsearch.workload import OpTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NOISE = 0.07  # sd of the logarithm that published rows scatter with; counts as NOISE_ROWS rows beside the data
NOISE_ROWS = 4
CONFORMAL_ROWS = 9  # below, a 90 % quantile does not exist


def fit_device(
    profile: DeviceProfile,
    cases: Sequence[Case],
    origin: str,
    only: str | None = None,
    table: LatencyTable | None = None,
) -> DeviceProfile:
    """The profile with every runtime's parameters fitted on its rows of `cases`; a runtime without rows keeps what it
    borrows.

    Args:
        profile: facts of the device; its runtimes' parameters are not looked at.
        cases: measured latencies; rows of other devices are ignored.
        origin: what to call them in the profile.
        only: fit this runtime alone and leave the others as they are.
        table: that its rows come from; what its errors on unseen models are is then known already.
    """
    mine = [case for case in cases if matches(case, profile)]
    runtimes = {
        name: _fitted(profile, name, mine, origin, table) if only in (None, name) else runtime
        for name, runtime in profile.runtimes.items()
    }
    return replace(profile, runtimes=runtimes)


def estimate_cases(
    profile: DeviceProfile, cases: Sequence[Case], values: dict[str, float] | None = None
) -> list[tuple[float, float, float]]:
    """As `intervals_of`, by the analytic model with a profile's parameters, some of them with other `values`."""
    return intervals_of(
        profile, cases, lambda table, target: estimate_with(AnalyticModel(profile, target, values), table)
    )


def intervals_of(
    profile: DeviceProfile, cases: Sequence[Case], price: Callable[[OpTable, Target], Estimates]
) -> list[tuple[float, float, float]]:
    """(median, low, high) in milliseconds of each case, by its own runtime, power mode, threads and phase."""
    found: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * len(cases)
    for key, indices in _by_target(profile, cases).items():
        estimates = price(table_of(profile, [cases[i] for i in indices]), profile.target(*key))
        for i, *interval in zip(indices, estimates.median_ms, estimates.low_ms, estimates.high_ms, strict=True):
            found[i] = (float(interval[0]), float(interval[1]), float(interval[2]))
    return found


def _by_target(profile: DeviceProfile, cases: Sequence[Case]) -> dict[tuple[str, str, int], list[int]]:
    groups: dict[tuple[str, str, int], list[int]] = {}
    for i, case in enumerate(cases):
        threads = case.threads if profile.runtimes[case.runtime].threads else 0  # where there are none to choose
        groups.setdefault((case.runtime, profile.power_mode_of(case.power_mode), threads), []).append(i)
    return groups


def _fitted(
    profile: DeviceProfile, name: str, cases: Sequence[Case], origin: str, table: LatencyTable | None
) -> Runtime:
    belief, noise = believe(profile, name, cases)
    fresh = with_belief(profile, name, belief, noise, cases, origin)
    held_out = table.held_out() if table else leave_one_model_out(profile, cases, name)
    fit = fresh.runtimes[name].fit
    assert fit is not None
    return replace(fresh.runtimes[name], fit=judged(fit, held_out, 1.0 if table else stretch_of(held_out)))


def judged(fit: Fit, held_out: Sequence[tuple[Case, tuple[float, float, float]]], stretch: float) -> Fit:
    """The fit with what leaving models out says of it, its doubt stretched."""
    return replace(
        fit,
        noise=rounded(fit.noise * stretch),
        covariance=tuple(tuple(rounded(x * stretch**2) for x in row) for row in fit.covariance),
        stretch=rounded(stretch),
        leave_one_model_out=_errors(held_out),
    )


def with_belief(
    profile: DeviceProfile,
    name: str,
    belief: Belief,
    noise: float,
    cases: Sequence[Case],
    origin: str,
    prior: Belief | None = None,
) -> DeviceProfile:
    """The profile with a runtime's parameters as `belief` has them; `prior` is what was believed before its rows."""
    rows = [case for case in cases if case.runtime == name]
    own = hulls_of(profile, rows) if rows else {}
    fit = Fit(
        cases=f"{origin}, rows {digest(rows)}" if rows else "no rows of its own",
        rows=len(rows),
        models=tuple(sorted({case.identity for case in rows})),
        noise=noise,
        order=belief.order,
        covariance=tuple(map(tuple, belief.covariance.tolist())),
        hulls=own,
        reach=reach_of(profile, name, cases),
        row_digests=tuple(digest([case])[:8] for case in rows),
    )
    parameters = _parameters(
        belief, _identified(belief, prior or _prior(profile, name, cases), len(rows)) if rows else {}
    )
    runtime = replace(profile.runtimes[name], parameters=parameters, fit=fit)
    return replace(profile, runtimes={**profile.runtimes, name: runtime})


def stretch_of(held_out: Sequence[tuple[Case, tuple[float, float, float]]]) -> float:
    """The factor on the interval that would have put 90 % of the held-out rows inside it, 1 at least (split-conformal,
    Lei et al. 2018, doi:10.1080/01621459.2017.1307116, with rows for samples; below CONFORMAL_ROWS of them there is no
    such quantile).
    """
    if len(held_out) < CONFORMAL_ROWS:
        return 1.0
    scores = sorted(
        abs(np.log(case.latency_ms / median)) / (np.log(high / low) / 2) for case, (median, low, high) in held_out
    )
    rank = min(len(scores), int(np.ceil(0.9 * (len(scores) + 1))))
    return max(1.0, float(scores[rank - 1]))


def leave_one_model_out(
    profile: DeviceProfile, cases: Sequence[Case], name: str
) -> list[tuple[Case, tuple[float, float, float]]]:
    """Each row of runtime `name` with the interval that a fit gives it which has not seen any row of its model, on this
    device.

    Where the runtime borrows from another on the same device, that one too is fitted without the model.
    """
    found: list[tuple[Case, tuple[float, float, float]]] = []
    mine = [case for case in cases if matches(case, profile)]
    for model in sorted({case.identity for case in mine if case.runtime == name}):
        rest = [case for case in mine if case.identity != model]
        out = [case for case in mine if case.identity == model and case.runtime == name]
        belief, noise = believe(profile, name, rest)
        found += zip(out, estimate_cases(with_belief(profile, name, belief, noise, rest, ""), out), strict=True)
    return found


def believe(
    profile: DeviceProfile, name: str, cases: Sequence[Case], arithmetics: tuple[str, ...] = ()
) -> tuple[Belief, float]:
    """What the rows and the prior together say of a runtime's parameters, and the noise of its rows.

    `arithmetics` are precisions that a borrower wants to hear of although this runtime does not run them.
    """
    prior = _prior(profile, name, cases, arithmetics)
    return update(profile, name, cases, prior, NOISE)


def update(
    profile: DeviceProfile, name: str, cases: Sequence[Case], prior: Belief, usual: float
) -> tuple[Belief, float]:
    """What the rows of a runtime and a prior say together, and the noise of the rows, which is `usual` by
    default."""
    rows = [case for case in cases if case.runtime == name]
    if not rows:
        return prior, usual
    parts: list[tuple[Callable[[dict[str, float]], AnalyticModel], OpTable, Floats]] = []
    blank = replace(profile.runtimes[name], parameters=_parameters(prior.of(profile.runtimes[name]), {}), fit=None)
    stripped = replace(profile, runtimes={**profile.runtimes, name: blank})
    for key, indices in _by_target(profile, rows).items():
        table = table_of(profile, [rows[i] for i in indices])
        measured = np.log([rows[i].latency_ms for i in indices])
        target = stripped.target(*key)
        parts.append((lambda values, target=target: AnalyticModel(stripped, target, values), table, measured))  # type: ignore[misc]

    noise = usual
    belief = prior
    for _ in range(3):
        belief, residuals = _maximise(prior, parts, noise, start=belief.mean)
        robust = np.abs(_soften(residuals / noise)) * noise
        noise = float(np.sqrt((np.square(robust).sum() + NOISE_ROWS * usual**2) / (len(rows) + NOISE_ROWS)))
    return belief, noise


def _maximise(
    prior: Belief,
    parts: Sequence[tuple[Callable[[dict[str, float]], AnalyticModel], OpTable, Floats]],
    noise: float,
    start: Floats,
) -> tuple[Belief, Floats]:
    from scipy.optimize import least_squares

    whiten = np.linalg.inv(np.linalg.cholesky(prior.covariance))

    def evaluate(theta: Floats) -> tuple[Floats, Floats]:
        values = dict(zip(prior.order, np.exp(theta).tolist(), strict=True))
        errors, slopes = [], []
        for build, table, measured in parts:
            model = build(values)
            kernels = model.kernels(table)
            median = medians_us(model, kernels, table)
            gradient = log_gradient(model, kernels, table, median)
            errors.append(np.log(median / 1e3) - measured)
            slopes.append(np.column_stack([gradient.get(name, np.zeros(table.size)) for name in prior.order]))
        return np.concatenate(errors), np.concatenate(slopes)

    def residuals(theta: Floats) -> Floats:
        errors, _ = evaluate(theta)
        return np.concatenate([_soften(errors / noise), whiten @ (theta - prior.mean)])

    def jacobian(theta: Floats) -> Floats:
        errors, slopes = evaluate(theta)
        z = errors / noise
        softened = _soften(z)
        steepness = np.where(np.abs(z) > 1e-6, z / np.sqrt(1 + z * z) / np.where(softened == 0, 1, softened), 1.0)
        return np.concatenate([steepness[:, None] * slopes / noise, whiten])

    found = least_squares(residuals, start, jac=jacobian)
    errors, slopes = evaluate(found.x)
    weights = 1 / np.sqrt(1 + np.square(errors / noise))
    information = (slopes * weights[:, None]).T @ slopes / noise**2 + whiten.T @ whiten
    return Belief(prior.order, found.x, np.linalg.inv(information), prior.sources), errors


def _soften(z: Floats) -> Floats:
    """Residuals whose squares are the soft-L1 loss 2 (sqrt(1 + z^2) - 1)."""
    return np.asarray(np.sign(z) * np.sqrt(2 * (np.sqrt(1 + z * z) - 1)))


def _prior(profile: DeviceProfile, name: str, cases: Sequence[Case], arithmetics: tuple[str, ...] = ()) -> Belief:
    return prior_of(profile, name, lambda lender, wanted: believe(profile, lender, cases, wanted)[0], arithmetics)


def _identified(belief: Belief, prior: Belief, rows: int) -> dict[str, str]:
    """The source of every parameter whose doubt the rows have halved at least: the fit."""
    narrowed = np.sqrt(np.diag(belief.covariance) / np.diag(prior.covariance)) < 0.5
    return {entry: f"fit: {rows} rows" for entry, yes in zip(belief.order, narrowed, strict=True) if yes}


def _parameters(belief: Belief, sources: dict[str, str]) -> Parameters:
    figures = {
        entry: Figure(rounded(value), sources.get(entry, source), rounded(sd))
        for entry, value, source, sd in zip(
            belief.order,
            np.exp(belief.mean).tolist(),
            belief.sources,
            np.sqrt(np.diag(belief.covariance)).tolist(),
            strict=True,
        )
    }
    grouped = {p: {e.partition(".")[2]: f for e, f in figures.items() if e.startswith(p + ".")} for p in BY_PRECISION}
    return Parameters(**{entry: figures[entry] for entry in SCALARS}, **grouped)  # type: ignore[arg-type]


def _errors(held_out: Sequence[tuple[Case, tuple[float, float, float]]]) -> dict[str, Error]:
    errors: dict[str, Error] = {}
    for precision in sorted({case.label for case, _ in held_out}):
        rows = [(case, interval) for case, interval in held_out if case.label == precision]
        mape = float(np.mean([abs(median / case.latency_ms - 1) for case, (median, _, _) in rows]))
        inside = float(np.mean([low <= case.latency_ms <= high for case, (_, low, high) in rows]))
        errors[precision] = Error(len(rows), rounded(mape), rounded(inside))
    return errors


def rounded(value: float) -> float:
    """Four significant digits: more would claim more than a fit knows."""
    return float(f"{value:.4g}")

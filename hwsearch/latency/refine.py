"""One's own rows beside a fit that is there already: the fit is the prior of the rows.

Two machines of one name, or two versions of a runtime, differ first of all by one factor on every time, and beside it a
little in each parameter. So the fit is loosened by both; a handful of rows then says what the factor is, and the rest
stays as it was known. The farther the rows are from it, the less it is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from hwsearch.device import DeviceProfile
from hwsearch.errors import CasesError
from hwsearch.latency.calibrate import (
    NOISE,
    believe,
    estimate_cases,
    fit_device,
    judged,
    rounded,
    stretch_of,
    update,
    with_belief,
)
from hwsearch.latency.cases import Case, digest, matches
from hwsearch.latency.hulls import spanned
from hwsearch.latency.prior import Belief, stored
from hwsearch.runtime import Error, Fit, Hull, Runtime

ALL = 0.2  # sd of the logarithm of the factor on all times
EACH = 0.05  # and of each parameter beside it
# Of ten runtimes with published rows the farthest is at 2.4 times what was expected of it without them; another unit is
# a thousand off.
IMPLAUSIBLE = 20.0
FAR = 0.25  # of how far the rows are from the fit, for each parameter: at twice its times it is known within 20 %


def fit_or_refine(
    profile: DeviceProfile, cases: Sequence[Case], origin: str, only: str | None = None
) -> tuple[DeviceProfile, bool]:
    """The profile with its own fits refined by rows that are new to them, or fitted anew where the rows are those that
    it rests on. A runtime that had no fit gets one, and the others stay.

    A row counts once, however often it stands in a file. A file that has rows which the profile was fitted on is taken
    for all there are, and fitted from the facts alone; beside a refined fit, rows that are known are left out.

    Args:
        profile: of the device.
        cases: measured latencies; rows of other devices are ignored.
        origin: what to call them in the profile.
        only: the runtime to fit.

    Returns: the profile, and whether it was refined.

    Raises:
        CasesError: the rows of a runtime are in another unit than milliseconds.
    """
    cases = list(dict.fromkeys(cases))
    mine = [case for case in cases if matches(case, profile) and only in (None, case.runtime)]
    _check_unit(profile, mine)
    fits = {name: runtime.fit for name, runtime in profile.runtimes.items() if runtime.fit and runtime.parameters}
    if not mine or not fits:
        return fit_device(profile, cases, origin, only), False
    for name in sorted({case.runtime for case in mine} - set(fits)):
        profile = fit_device(profile, cases, origin, name)
    if not (mine := [case for case in mine if case.runtime in fits]):
        return profile, False
    fresh = [case for case in mine if _hash(case) not in fits[case.runtime].row_digests]
    if any(case not in fresh and not fits[case.runtime].refined for case in mine):
        for name in sorted({case.runtime for case in mine}):
            profile = fit_device(profile, cases, origin, name)
        return profile, False
    runtimes = dict(profile.runtimes)
    for name in dict.fromkeys(case.runtime for case in fresh):
        runtimes[name] = _refined(profile, name, [case for case in fresh if case.runtime == name], origin)
    return replace(profile, runtimes=runtimes), True


def _check_unit(profile: DeviceProfile, cases: Sequence[Case]) -> None:
    """Raise where the rows of a runtime are far from anything that its datasheet, or what it borrows from, lets expect.

    Raises:
        CasesError: they are.
    """
    for name in sorted({case.runtime for case in cases}):
        rows = [case for case in cases if case.runtime == name]
        expected = with_belief(profile, name, *believe(profile, name, []), [], "")
        medians = [median for median, _, _ in estimate_cases(expected, rows)]
        times = float(np.median([case.latency_ms / median for case, median in zip(rows, medians, strict=True)]))
        if not 1 / IMPLAUSIBLE < times < IMPLAUSIBLE:
            raise CasesError(
                f"latency_ms is in milliseconds: {name} rows of {profile.name!r} are {times:.3g} times what its "
                f"datasheet or related runtimes let expect (a factor of {IMPLAUSIBLE:g} at most)"
            )


def _refined(profile: DeviceProfile, name: str, rows: Sequence[Case], origin: str) -> Runtime:
    old = profile.runtimes[name].fit
    assert old is not None
    usual = old.noise / old.stretch if old.rows else NOISE
    known = {case: median for case, (median, _, _) in zip(rows, estimate_cases(profile, rows), strict=True)}

    def fitted_on(some: Sequence[Case]) -> DeviceProfile:
        far = float(np.median([np.log(case.latency_ms / known[case]) for case in some])) if some else 0.0
        prior = loosened(stored(profile, name), far)
        belief, noise = update(profile, name, some, prior, usual)
        return with_belief(profile, name, belief, noise, some, origin, prior)

    held_out: list[tuple[Case, tuple[float, float, float]]] = []
    for model in sorted({case.identity for case in rows}):
        out = [case for case in rows if case.identity == model]
        rest = fitted_on([case for case in rows if case.identity != model])
        held_out += zip(out, estimate_cases(rest, out), strict=True)
    runtime = fitted_on(rows).runtimes[name]
    assert runtime.fit is not None
    return replace(runtime, fit=_together(old, judged(runtime.fit, held_out, stretch_of(held_out))))


def loosened(belief: Belief, far: float) -> Belief:
    """What a fit says of another machine of the same name, whose times are `far` from it, as a logarithm."""
    # Times grow together where floors rise and rates fall.
    together = np.array(
        [1.0 if "_us" in name else -1.0 if name.startswith(("rate", "bandwidth")) else 0.0 for name in belief.order]
    )
    doubt = (ALL**2 + far**2) * np.outer(together, together) + (EACH**2 + (FAR * far) ** 2) * np.eye(len(together))
    return Belief(belief.order, belief.mean, belief.covariance + doubt, belief.sources)


def _together(old: Fit, new: Fit) -> Fit:
    """A fit and what it was refined by, as one."""

    def both(precision: str) -> Error:
        errors = [fit.leave_one_model_out[precision] for fit in (old, new) if precision in fit.leave_one_model_out]
        rows = sum(error.rows for error in errors)
        mape, coverage = (sum(e.rows * getattr(e, x) for e in errors) / rows for x in ("mape", "coverage"))
        return Error(rows, rounded(mape), rounded(coverage))

    def over(*hulls: Hull | None) -> Hull | None:
        return spanned([hull for hull in hulls if hull])

    return replace(
        new,
        cases=f"{old.cases}; {new.cases}" if old.rows else new.cases,
        rows=old.rows + new.rows,
        models=tuple(sorted({*old.models, *new.models})),
        hulls={p: hull for p in sorted({*old.hulls, *new.hulls}) if (hull := over(old.hulls.get(p), new.hulls.get(p)))},
        reach=over(old.reach, new.reach),
        leave_one_model_out={p: both(p) for p in sorted({*old.leave_one_model_out, *new.leave_one_model_out})},
        row_digests=(*old.row_digests, *new.row_digests),
        refined=True,
    )


def _hash(case: Case) -> str:
    return digest([case])[:8]

"""The shapes that measured rows span: inside them a fit interpolates, outside it says that it extrapolates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwsearch.device import DeviceProfile
from hwsearch.latency.cases import Case, table_of
from hwsearch.precision import PRECISIONS
from hwsearch.profiles import find_profile
from hwsearch.runtime import Hull
from hwsearch.workload import KIND


def hulls_of(profile: DeviceProfile, cases: Sequence[Case]) -> dict[str, Hull]:
    """The shapes that the cases' layers have, by precision."""
    table = table_of(profile, cases)
    ran = np.isin(table.kind, [KIND[kind] for kind in ("qkv", "projection", "up", "down")]) & (
        table.passes[table.architecture, table.phase] > 0
    )
    found = {}
    for precision in sorted(PRECISIONS, key=str):
        rows = ran & (table.precision == precision.code)
        if rows.any():
            m, k, n = ((float(getattr(table, x)[rows].min()), float(getattr(table, x)[rows].max())) for x in "mkn")
            found[str(precision)] = Hull(m, k, n)
    return found


def reach_of(profile: DeviceProfile, name: str, cases: Sequence[Case]) -> Hull | None:
    """The shapes that the runtime's rows, in any precision, and those of its lenders span together."""
    rows = [case for case in cases if case.runtime == name]
    hulls = list(hulls_of(profile, rows).values()) if rows else []
    for lender in profile.runtimes[name].borrows:
        device, _, other = lender.rpartition("/")
        if not device or device == profile.name:
            hulls += filter(None, [reach_of(profile, other, cases)])
        else:
            lent = find_profile(device).runtimes[other].fit
            hulls += filter(None, [lent.reach if lent else None])
    return spanned(hulls)


def spanned(hulls: Sequence[Hull]) -> Hull | None:
    """The shapes from the smallest to the largest of all; None of none."""
    if not hulls:
        return None
    m, k, n = (
        (min(getattr(h, axis)[0] for h in hulls), max(getattr(h, axis)[1] for h in hulls)) for axis in ("m", "k", "n")
    )
    return Hull(m, k, n)

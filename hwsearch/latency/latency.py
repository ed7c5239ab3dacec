"""One latency, how sure it is, and which budgets it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

ALL_COVERED = 0.999  # of the time inside measured shapes; below it a latency is called extrapolated

Source = Literal["measured", "table", "analytic"]


class Latency(msgspec.Struct, frozen=True):
    """One latency and how sure it is.

    Attributes:
        median_ms: of the whole workload.
        low_ms, high_ms: 90 % interval of the median.
        source: how it is known.
        extrapolated: whether some of the time lies outside the shapes that the profile rests on.
        covered: share of the time inside them.
        phases: milliseconds by phase, of one pass each: "prefill" (the first pass) and "decode_token" (each new token).
        phases_high: upper ends of their own 90 % intervals, where there are several and they are known.
        ops: milliseconds of the whole workload by kind of kernel, with "overhead" for what a pass costs before any
            work.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    source: Source
    extrapolated: bool
    covered: float
    phases: dict[str, float] = {}
    phases_high: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    ops: dict[str, float] = {}

    def median_of(self, phase: str = "") -> float:
        """The median of a phase, or of the whole workload, ms."""
        return self.phases.get(phase, 0.0) if phase else self.median_ms

    def at_most(self, phase: str = "") -> float:
        """The upper end of the interval of a phase, or of the whole workload, ms: of a phase whose own is not known, as
        far above its median as the whole's is."""
        if not phase:
            return self.high_ms
        return self.phases_high[phase] if self.phases_high else self.median_of(phase) * self.high_ms / self.median_ms

    def tightest(self, budget_ms: float, phases_ms: Mapping[str, float]) -> tuple[str, float]:
        """The budget that it takes most of, by the upper ends of its intervals: of which phase, empty for the whole
        workload, and how much it is, ms."""
        return max([("", budget_ms), *phases_ms.items()], key=lambda one: self.at_most(one[0]) / one[1])

    def filled(self, budget_ms: float, phases_ms: Mapping[str, float]) -> float:
        """The share of the tightest of these budgets that it takes, by the upper end of its interval."""
        phase, most = self.tightest(budget_ms, phases_ms)
        return self.at_most(phase) / most

    @property
    def certainty(self) -> str:
        """How it is known, for a person."""
        if self.source == "measured":
            return self.source
        covered = math.floor(100 * self.covered)  # nothing that lies outside is all of it
        where = f"extrapolated, {covered}% covered by" if self.extrapolated else "inside"
        return f"{self.source}, {where} measured shapes"


def of_one(phase: str) -> str:
    """Of what a budget is, as a person reads it; nothing for that of the whole workload."""
    return f" of one {phase.replace('_', ' ')}" if phase else ""

"""How wrong is a profile on measured cases?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from hwsearch.device import DeviceProfile
from hwsearch.latency.calibrate import intervals_of, leave_one_model_out
from hwsearch.latency.cases import Case, matches
from hwsearch.latency.estimator import estimation


class Scores(msgspec.Struct, frozen=True):
    """Errors over some cases; shares and errors as fractions.

    Attributes:
        n: how many.
        mape: mean of |predicted / measured - 1|.
        within_10: share with an error of at most 10 %.
        spearman: rank correlation of predicted and measured; NaN below 3 cases.
        coverage_90: share of the measured inside their 90 % interval.
        width_90: mean of (high - low) / predicted.
    """

    n: int
    mape: float
    within_10: float
    spearman: float
    coverage_90: float
    width_90: float


class Validation(msgspec.Struct, frozen=True):
    """Predicted beside measured.

    Attributes:
        rows: each case with what was predicted, (median, low, high) in milliseconds.
        skipped: cases of other devices, or of what the profile does not have, in the order of the file.
    """

    rows: tuple[tuple[Case, tuple[float, float, float]], ...]
    skipped: tuple[Case, ...]

    def scores(self) -> Scores | None:
        """Over all rows; None without any."""
        return _scores(self.rows) if self.rows else None

    def groups(self) -> dict[tuple[str, str, str], Scores]:
        """By (device, runtime, precision)."""
        keys = sorted({(case.device, case.runtime, case.label) for case, _ in self.rows})
        return {key: _scores([r for r in self.rows if (r[0].device, r[0].runtime, r[0].label) == key]) for key in keys}

    def to_json(self) -> dict[str, Any]:
        """The document that `hwsearch validate --json` prints."""
        scores = self.scores()
        overall: dict[str, Any] = msgspec.to_builtins(scores) if scores else dict.fromkeys(Scores.__struct_fields__)
        overall.pop("n")
        groups = [
            {"device": device, "runtime": runtime, "precision": precision, **msgspec.to_builtins(group)}
            for (device, runtime, precision), group in self.groups().items()
        ]
        rows = []
        for case, (median, low, high) in self.rows:
            plain = msgspec.to_builtins(case)
            measured = plain.pop("latency_ms")
            predicted = {
                "predicted_ms": median,
                "low_ms": low,
                "high_ms": high,
                "measured_ms": measured,
                "error": median / measured - 1,
            }
            rows.append({**plain, **predicted})
        return {"cases": len(self.rows), "skipped": len(self.skipped), **overall, "groups": groups, "rows": rows}


def validate(profile: DeviceProfile, cases: Sequence[Case], unseen: bool = False) -> Validation:
    """Price every case of a device as a search does, each by its own runtime, power mode, threads and phase.

    Args:
        profile: of the device.
        cases: measured latencies.
        unseen: leave one model out: each model's rows are priced by a fit of the analytic model on the others.
    """
    mine = [case for case in cases if matches(case, profile)]
    skipped = tuple(case for case in cases if not matches(case, profile))
    if not unseen:
        found = intervals_of(profile, mine, lambda table, target: estimation(profile, target)(table))
        return Validation(tuple(zip(mine, found, strict=True)), skipped)
    runtimes = sorted({case.runtime for case in mine})
    return Validation(
        tuple(row for runtime in runtimes for row in leave_one_model_out(profile, mine, runtime)), skipped
    )


def _scores(rows: Sequence[tuple[Case, tuple[float, float, float]]]) -> Scores:
    measured = np.array([case.latency_ms for case, _ in rows])
    median, low, high = np.array([interval for _, interval in rows]).T
    error = np.abs(median / measured - 1)
    return Scores(
        n=len(rows),
        mape=float(error.mean()),
        within_10=float((error <= 0.10).mean()),
        spearman=_spearman(median, measured),
        coverage_90=float(((low <= measured) & (measured <= high)).mean()),
        width_90=float(((high - low) / median).mean()),
    )


def _spearman(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    from scipy.stats import spearmanr

    return float(spearmanr(first, second)[0])

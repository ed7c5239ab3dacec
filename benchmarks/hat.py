"""Can a profile be fitted on 100 of somebody else's timings, with the bad ones among them found first?

The encoder column of HAT's Raspberry Pi file (2,000 rows) was measured on a board that was ten times too slow at first
and busy now and then. A first fit on all rows gives residuals in the order of the file; `suspects` flags rows by them;
a second fit sees `--rows` of the others, and is judged on the rest of them.

python benchmarks/hat.py [--hat FOLDER] [--rows 100] [--seed 0] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hwsearch.device import DeviceProfile
from hwsearch.errors import CasesError
from hwsearch.latency.calibrate import believe, estimate_cases, with_belief
from hwsearch.latency.cases import Case
from hwsearch.latency.drift import suspects
from hwsearch.profiles import find_profile

sys.path.insert(0, str(Path(__file__).parents[1]))  # the reader belongs to the tests

from tests.latency.hat import RASPBERRY_PI, folder, read_encoders

TWICE = np.log(2.0)  # residual of a row that is beyond doubt
APART = 8  # rows between the beyond-doubt ones of one plateau, at most


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hat", type=Path, default=folder(), help="folder of the data set")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.hat is None:
        parser.error("the HAT data set is not there: give its folder by --hat or HWSEARCH_HAT")
    try:
        cases = read_encoders(options.hat / RASPBERRY_PI)
    except CasesError as error:
        parser.error(str(error))
    facts = find_profile("raspberry-pi-4")
    measured = np.array([case.latency_ms for case in cases])
    residuals = np.log(measured / medians(fitted(facts, cases), cases))
    flagged = suspects(residuals)
    plateau = first_plateau(residuals > TWICE)
    good = np.flatnonzero(~flagged)
    errors, noises = [], []
    for repeat in range(options.repeats):
        rng = np.random.default_rng((options.seed, repeat))
        shown = rng.choice(good, options.rows, replace=False)
        rest = np.setdiff1d(good, shown)
        profile = fitted(facts, [cases[i] for i in shown])
        error = medians(profile, [cases[i] for i in rest]) / measured[rest] - 1
        fit = profile.runtimes["pytorch"].fit
        assert fit is not None
        errors.append(error)
        noises.append(fit.noise)
        say(f"{options.rows} rows: mean error {np.abs(error).mean():.1%}, median {np.median(np.abs(error)):.1%}")
    slow = residuals > TWICE
    result = {
        "rows": len(cases),
        "fitted_on": options.rows,
        "judged_on": len(good) - options.rows,
        "mape": round(float(np.mean([np.abs(e).mean() for e in errors])), 4),
        "mape_worst": round(float(max(np.abs(e).mean() for e in errors)), 4),
        "median_error": round(float(np.mean([np.median(np.abs(e)) for e in errors])), 4),
        "bias": round(float(np.mean([np.median(e) for e in errors])), 4),
        "noise": round(float(np.mean(noises)), 4),
        "share_flagged": round(float(flagged.mean()), 4),
        "plateau": {
            "first_row": plateau.start,
            "last_row": plateau.stop - 1,
            "slowdown": round(float(np.exp(np.median(residuals[plateau][slow[plateau]]))), 2),
            "rows_twice_too_slow": int(slow[plateau].sum()),
            "of_them_flagged": int((flagged & slow)[plateau].sum()),
            "rows_that_agree": int((~slow)[plateau].sum()),
            "of_them_not_flagged": int((~flagged & ~slow)[plateau].sum()),
        },
        "twice_too_slow_elsewhere": int(slow.sum() - slow[plateau].sum()),
        "of_them_flagged": int((flagged & slow).sum() - (flagged & slow)[plateau].sum()),
    }
    print(json.dumps(result))


def fitted(facts: DeviceProfile, cases: Sequence[Case]) -> DeviceProfile:
    """The profile with its PyTorch fitted on `cases`."""
    belief, noise = believe(facts, "pytorch", cases)
    return with_belief(facts, "pytorch", belief, noise, cases, "HAT")


def medians(profile: DeviceProfile, cases: Sequence[Case]) -> np.ndarray:
    """Milliseconds, [cases]."""
    return np.array([median for median, _, _ in estimate_cases(profile, cases)])


def first_plateau(slow: np.ndarray) -> slice:
    """The first rows and all after them, as long as there is a slow one in every `APART`."""
    where = np.flatnonzero(slow)
    ends = np.flatnonzero(np.diff(where) > APART)
    return slice(int(where[0]), int(where[ends[0] if len(ends) else -1]) + 1)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

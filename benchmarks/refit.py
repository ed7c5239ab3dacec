"""How wrong is a profile on what its fit has not seen? Published rows are split, one part fitted and the other judged.

The same as `hwsearch profile --from-cases PART` and `hwsearch validate --cases OTHER`, split by model, by width and by
the runtime's version.

python benchmarks/refit.py CASES.csv
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

from hwsearch.latency.calibrate import fit_device
from hwsearch.latency.cases import Case, read_cases
from hwsearch.latency.validate import validate
from hwsearch.profiles import find_profile

Test = Callable[[Case], bool]
BASE = (12, 768)
LARGE = (24, 1024)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=Path)
    cases = read_cases(parser.parse_args().cases)
    cases = [c for c in cases if c.device == "t4"]
    splits: dict[str, tuple[Test, Test]] = {}
    for precision in ("fp16", "int8"):
        splits[f"tensorrt {precision}, base fitted, large judged"] = (
            lambda c, p=precision: c.runtime == "tensorrt" and c.label == p and shape(c) == BASE,
            lambda c, p=precision: c.runtime == "tensorrt" and c.label == p and shape(c) == LARGE,
        )
    for runtime in ("tensorrt", "tensorrt-unfused", "onnxruntime"):
        splits[f"{runtime}, 768 and wider fitted, narrower judged"] = (
            lambda c: c.width >= 768,
            lambda c, r=runtime: c.runtime == r and c.width < 768,
        )
    versions = sorted({c.runtime_version for c in cases if c.runtime == "fastertransformer"})
    for first, other in permutations(versions, 2):
        splits[f"fastertransformer {first} fitted, {other} judged"] = (
            lambda c, v=first: c.runtime == "fastertransformer" and c.runtime_version == v,
            lambda c, v=other: c.runtime == "fastertransformer" and c.runtime_version == v,
        )
    found = {}
    for name, (fitted_on, judged_on) in splits.items():
        fit, judge = [c for c in cases if fitted_on(c)], [c for c in cases if judged_on(c)]
        if not fit or not judge:
            print(f"{name}: {len(fit)} and {len(judge)} rows; no split", file=sys.stderr)
            continue
        result = validate(fit_device(find_profile("t4"), fit, "a part"), judge)
        for case, (median, low, high) in result.rows:
            said = f"{median:.2f} ms ({low:.2f} to {high:.2f})"
            print(f"  {case.model} b{case.batch} s{case.sequence}: {said}, measured {case.latency_ms}", file=sys.stderr)
        scores = result.scores()
        assert scores is not None
        found[name] = {
            "fitted_on": len(fit), "judged_on": scores.n, "mape": round(scores.mape, 4),
            "coverage_90": round(scores.coverage_90, 3), "width_90": round(scores.width_90, 3),
        }  # fmt: skip
        print(f"{name}: {found[name]}", file=sys.stderr)
    print(json.dumps(found))


def shape(case: Case) -> tuple[int, int]:
    return case.layers, case.width


if __name__ == "__main__":
    main()

"""Do the chosen students hold their budget? Whole searches on this machine with the null score, at random budgets.

Every search is run twice: chosen on prediction alone, and with its finalists measured. What was chosen is then measured
in a new process. A student holds its budget where that is within it.

python benchmarks/holds.py [--searches 50] [--seed 0] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.bench import host
from hwsearch.bench.measurer import measurer_of
from hwsearch.distill.job import TaskSpec
from hwsearch.errors import NothingFits
from hwsearch.search.main_job import run_search
from hwsearch.search.null import NullProgress, NullTrainer
from hwsearch.search.plan import Wishes
from hwsearch.units import Budget
from hwsearch.workload import Workload


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", type=Path, help="of the new process: what to measure")
    options = parser.parse_args()
    profile = host.host_profile(options.threads, lambda text: print(text, file=sys.stderr))
    target = profile.target()
    if options.measure:
        measure_again(options.measure, options.threads)
        return
    rng = np.random.default_rng(options.seed)
    asked: list[dict[str, object]] = []
    for number in range(options.searches):
        workload = Workload(int(rng.integers(1, 9)), int(rng.integers(32, 129)))
        share = float(np.exp(rng.uniform(np.log(0.06), np.log(0.6))))
        for way in ("predicted", "measured"):
            ruler = measurer_of(profile, target, workload) if way == "measured" else None
            wishes = Wishes(budget=Budget(share=share), workload=workload, trials=10, seed=number)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    _, document = run_search(
                        profile, target, wishes, TaskSpec(), NullTrainer(), NullProgress(), lambda *_: None,
                        Path(folder) / "run", measurer=ruler,
                    )  # fmt: skip
                except NothingFits:
                    continue
            if document["chosen"] is not None:
                asked.append({"way": way, "budget_ms": document["budget_ms"], "workload": msgspec.to_builtins(workload),
                              "architecture": document["chosen"]["architecture"]})  # fmt: skip
        print(f"{number + 1} of {options.searches}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "asked.json"
        path.write_bytes(msgspec.json.encode(asked))
        command = [sys.executable, __file__, "--measure", str(path), "--threads", str(options.threads)]
        later = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    result: dict[str, object] = {"searches": options.searches, "threads": options.threads}
    for way in ("predicted", "measured"):
        ratios = np.array([ms / one["budget_ms"] for one, ms in zip(asked, later, strict=True) if one["way"] == way])
        result[way] = {
            "chosen": len(ratios),
            "hold": round(float((ratios <= 1).mean()), 4),
            "fill": round(float(np.median(ratios)), 4),
            "worst": round(float(ratios.max()), 4),
        }
    print(json.dumps(result))


def measure_again(path: Path, threads: int) -> None:
    profile = host.host_profile(threads)
    found = []
    for one in json.loads(path.read_text()):
        ruler = measurer_of(profile, profile.target(), Workload(**one["workload"]))
        assert ruler is not None
        found.append(ruler.measure([Architecture.from_json(one["architecture"])])[0].median_ms)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Does a short run rank students better by the average of its last weights than by the last ones?

At a constant rate weights wander about what a falling one would bring them to. Students of the table are trained as a
search trains them, from the layers that the table's had, and judged by their last weights and by averages of windows
that grow with the run: after t steps the average moves by (w + 1) / (t + w) towards the weights (polynomial decay;
Shamir and Zhang 2013, arXiv:1212.1824). Agreement is with the table's full training.

python benchmarks/averaging.py [--others 23] [--windows 4 8 16 32] [--marks 80 160 320]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from students import TABLE, facts_of, workshop

from hwsearch.architecture import Architecture
from hwsearch.files import read_json
from hwsearch.search.rank import agreement


def train(row: dict[str, Any], marks: list[int], windows: list[int]) -> dict[str, dict[str, float]]:
    """KL on *select* after so many steps, by the last weights ("last") and by averages."""
    from hwsearch.distill.averaging import Average
    from hwsearch.distill.judging import divergence
    from hwsearch.distill.proxy import Student

    task, architecture = workshop(0).task, Architecture.from_json(row["architecture"])
    student = Student(task, architecture, layers=task.layers[architecture.depth][0])
    averages = {window: Average(student.model, window) for window in windows}

    def advance(_: int) -> None:
        for average in averages.values():
            average.follow(student.step, rests=False)

    found: dict[str, dict[str, float]] = {}
    for mark in marks:
        student.train(mark, advance)
        with student.average.trained():
            found[str(mark)] = {"last": divergence(student.model, task.select)}
            for window, average in averages.items():
                with average.trained():  # the model has its last weights already: it changes to the average
                    found[str(mark)][f"window {window}"] = divergence(student.model, task.select)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--others", type=int, default=23, help="students beside those of one latency")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--marks", type=int, nargs="+", default=[80, 160, 320])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    table = read_json(TABLE)
    others = [row for row in table["students"] if not row["band"]]
    spread = np.linspace(0, len(others) - 1, options.others).round().astype(int)
    rows = [row for row in table["students"] if row["band"]] + [others[i] for i in spread]
    full = [dict(row["curve"])[table["full_steps"]] for row in rows]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        pool.submit(facts_of, 0, "cpu").result()
        jobs = [pool.submit(train, row, options.marks, options.windows) for row in rows]
        scores = []
        for number, job in enumerate(jobs, start=1):
            scores.append(job.result())
            print(f"{number} of {len(jobs)}", file=sys.stderr, flush=True)
    found = []
    for mark in map(str, options.marks):
        for name in scores[0][mark]:
            losses = [score[mark][name] for score in scores]
            inside = [(loss, best) for loss, best, row in zip(losses, full, rows, strict=True) if row["band"]]
            whole, band = agreement(losses, full), agreement(*zip(*inside, strict=True))
            ratio = [score[mark][name] / score[mark]["last"] for score in scores]
            found.append(
                {
                    "steps": int(mark),
                    "judged by": name,
                    "tau": whole.tau if whole else None,
                    "tau_low": whole.low if whole else None,
                    "tau_band": band.tau if band else None,
                    "tau_band_low": band.low if band else None,
                    "of the last weights' loss": float(np.exp(np.mean(np.log(ratio)))),
                }
            )
    print(json.dumps({"students": len(rows), "band": sum(row["band"] for row in rows), "rows": found}))


if __name__ == "__main__":
    main()

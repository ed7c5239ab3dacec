"""Is one scale for each output channel of int8 weights worth it in ONNX Runtime?

Students of three sizes are trained in float, and with dynamic int8 of eight or seven bits (seven is what an x86
processor without VNNI takes) and a scale for each matrix or each channel: held-out KL on *select* over that in float,
before training and after it.

python benchmarks/scales.py [--teacher DIR --data FILE --sequence 64] [--steps 320]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import numpy as np
from head_start import begun, student_of

from hwsearch.distill.proxy import Student
from hwsearch.precision import Precision, Scheme

SHARES = ((0.5, 0.5), (0.34, 0.67), (1.0, 0.5))  # of depth, of everything else
SCHEMES = {
    f"{bits} bits, a scale for each {weights}": Scheme("dynamic", "uint8", weights, weight_bits=bits)
    for bits in (8, 7)
    for weights in ("tensor", "channel")
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=320)
    options, workshop = begun(parser)
    whole, found = workshop.facts().architecture, dict[str, list[tuple[float, float]]]()
    for shares in SHARES:
        plain = student_of(whole, *shares)
        for name, scheme in {"float": Scheme(), **SCHEMES}.items():
            architecture = plain if name == "float" else plain.with_precision(Precision.INT8)
            student = Student(dataclasses.replace(workshop.task, scheme=scheme), architecture)
            losses = [student.score(workshop.task.select).loss]
            student.train(options.steps)
            losses.append(student.score(workshop.task.select).loss)
            found.setdefault(name, []).append((losses[0], losses[1]))
            print(f"{architecture.id} {name}: {losses[0]:.4f}, {losses[1]:.4f}", file=sys.stderr, flush=True)
    base = np.log(found["float"])
    print(
        json.dumps({
            "steps": options.steps,
            "students": len(SHARES),
            "kl_over_that_in_float": {
                name: np.exp((np.log(found[name]) - base).mean(0)).round(4).tolist() for name in SCHEMES
            },
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()

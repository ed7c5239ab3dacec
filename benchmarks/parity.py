"""Do exported graphs compute what was trained? Random students of two teachers in random precisions, on held-out text.

Half are decoders of the embedded teacher, half encoders of the classifier that `classifier.py` makes; each of random
shape, every part (a decoder's head among them) in float or quantised by chance, in one of the forms in turn, trained
for some steps, exported, and set beside the student with its fake quantisation, and in float beside the float student.
Beside float16 no graph rounds as the student does: these are told apart.

python benchmarks/parity.py [--students 24] [--steps 60]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from classifier import WORK, make

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.quantise import restore
from hwsearch.distill.workshop import Workshop
from hwsearch.export.graph import onnx_model
from hwsearch.export.onnx import texts_of, write_onnx
from hwsearch.export.parity import compare, student_whole, whole
from hwsearch.export.student import TrainedStudent
from hwsearch.precision import Precision, Scheme
from hwsearch.profiles import find_profile
from hwsearch.space import derive

EIGHT = (Precision.INT8,)
FORMS = (  # how it is quantised, the float beside, and what to
    (Scheme("dynamic", "uint8", "tensor"), Precision.FP32, EIGHT),
    (Scheme("dynamic", "uint8", "channel"), Precision.FP32, EIGHT),
    (Scheme("static", "uint8", "channel"), Precision.FP32, EIGHT),
    (Scheme("static", "int8", "channel"), Precision.FP32, EIGHT),
    (Scheme("dynamic", "uint8", "channel"), Precision.FP32, (Precision.INT8, Precision.W8A16, Precision.INT4)),
    (Scheme("static", "int8", "channel"), Precision.FP16, EIGHT),
)


Form = tuple[Scheme, Precision, tuple[Precision, ...]]


def drawn(own: Architecture, form: Form, rng: np.random.Generator) -> Architecture:
    """A random student."""
    _, beside, narrow = form
    space = derive(own, find_profile("arm-cpu").runtimes["onnxruntime"])
    while True:
        width = int(rng.choice(space.widths))
        heads = space.heads[rng.integers(len(space.heads))]
        if space.fits(width, heads):
            break
    depth, ffn = int(rng.choice(space.depths)), int(rng.choice(space.ffns))
    chosen = rng.choice([Precision.FP32, *narrow], (depth, 2))
    chosen[rng.integers(depth), rng.integers(2)] = narrow[-1]
    plan = [(Precision(a), Precision(f)) for a, f in chosen]
    head = Precision(rng.choice([Precision.FP32, *narrow])) if own.head == "lm" else Precision.FP32
    return msgspec.structs.replace(
        space.build(depth, width, heads, ffn, [(Precision.FP32,) * 2] * depth),
        layers=uniform_layers(depth, *heads, ffn, plan),
        head_precision=head,
    ).with_float(beside)


def one(workshop: Workshop, form: Form, architecture: Architecture, steps: int) -> dict[str, Any]:
    scheme, beside, _ = form
    task, objective = workshop.task, workshop.teacher.objective
    task = type(task)(**{**vars(task), "scheme": scheme})
    student = Student(task, architecture)
    student.train(steps)
    trained = TrainedStudent(task.teacher, architecture, scheme, student.model.eval())
    with tempfile.TemporaryDirectory() as folder:
        found = write_onnx(trained, workshop.tokens["select"], Path(folder) / "out", (1, 128), 1)
        plain = copy.deepcopy(trained.model)
        restore(plain)
        path = Path(folder) / "float.onnx"
        onnx.save(onnx_model(plain, objective, scheme), path)
        texts = list(texts_of(trained, workshop.tokens["select"], None))
        in_float = compare(student_whole(objective, plain), None, whole(path), objective.choices, texts, False)
    return {
        "architecture": architecture.id,
        "half": beside is Precision.FP16,
        "scheme": f"{scheme.activations} {scheme.activation_type} {scheme.weights}",
        "float_difference": in_float.difference,
        **{name: {"kl_share": p.kl / p.kl_of_rounding, "kl": p.kl, "kl_of_rounding": p.kl_of_rounding,
                  "kl_of_arithmetic": p.kl_of_arithmetic, "answers": p.answers, "disagreements": p.disagreements,
                  "margin_over_step": p.margin / p.step}
           for name, p in found.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--students", type=int, default=24)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if not (WORK / "tokenizer.json").is_file():
        make(WORK)
    specs = (TaskSpec(chunks=512), TaskSpec(teacher=str(WORK), data=str(WORK / "texts.csv"), sequence=64, chunks=512))
    workshops, rng, rows = [Workshop(spec) for spec in specs], np.random.default_rng(0), []
    for i in range(options.students):
        workshop, form = workshops[i % 2], FORMS[i // 2 % len(FORMS)]
        architecture = drawn(workshop.facts().architecture, form, rng)
        rows.append(one(workshop, form, architecture, options.steps))
        print(rows[-1], file=sys.stderr, flush=True)
    kinds = {half: [row for row in rows if row["half"] is half] for half in (False, True)}
    result = {f"beside float{16 if half else 32}": summary(found) for half, found in kinds.items() if found}
    print(json.dumps({**result, "rows": rows}))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    graphs = [row[name] for row in rows for name in ("model.onnx", "model_with_past.onnx") if name in row]
    return {
        "students": len(rows),
        "worst_float_difference": max(row["float_difference"] for row in rows),
        "worst_share_of_the_kl_of_rounding": max(graph["kl_share"] for graph in graphs),
        "median_share": float(np.median([graph["kl_share"] for graph in graphs])),
        "answers": sum(graph["answers"] for graph in graphs),
        "disagreements": sum(graph["disagreements"] for graph in graphs),
        "largest_margin_over_the_rounding_step": max(graph["margin_over_step"] for graph in graphs),
    }


if __name__ == "__main__":
    main()

"""A student as a folder that ONNX Runtime runs: `model.onnx`, for decoders `model_with_past.onnx`, a script that times
it, and how near the graphs come to the student that was trained."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import torch
from msgspec.structs import replace
from torch import Tensor

from hwsearch.distill.objectives.objective import Inputs
from hwsearch.distill.quantise import restore
from hwsearch.export.float_graph import Shape
from hwsearch.export.graph import onnx_model
from hwsearch.export.parity import (
    FLOAT_ACTIVATIONS,
    WIDE_PRODUCTS,
    Choices,
    Parity,
    Run,
    compare,
    continued,
    demand,
    of_last_bits,
    student_continued,
    student_whole,
    whole,
)
from hwsearch.export.student import TrainedStudent
from hwsearch.files import pretty, write_text
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

ANSWERS = 1024  # that are compared
BATCH = 8
MOST_BYTES = 2**31 - 2**20  # of one file: larger weights lie beside it
SCRIPT = '''\
"""Time model.onnx: python run.py [PROVIDER ...]; needs onnxruntime and numpy, and runs on the CPU by default."""
import sys, time, pathlib, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
{exact}path = str(pathlib.Path(__file__).with_name("model.onnx"))
session = onnxruntime.InferenceSession(path, options, providers=sys.argv[1:] or ["CPUExecutionProvider"])
{given}
def run(): begun = time.perf_counter(); session.run(None, given); return time.perf_counter() - begun
times = sorted([run() for _ in range(24)][3:])  # the first ones warm it up
best, middle, by = 1e3 * times[0], 1e3 * times[10], session.get_providers()[0]
print(f"{batch} x {what}: {{best:.2f}} ms at best, {{middle:.2f}} ms in the middle of {{len(times)}}, by {{by}}")
'''


TOKENS = """\
ids = np.random.default_rng(0).integers(0, {vocab}, {shape})
given = dict(input_ids=ids, attention_mask=np.ones_like(ids){types})"""
TYPES = ", token_type_ids=np.zeros_like(ids)"
PIXELS = "given = dict(pixel_values=np.random.default_rng(0).random({shape}, np.float32))"
# With VNNI nothing overflows, and wide products take twice the time.
WITHOUT_VNNI = """\
cpu = pathlib.Path("/proc/cpuinfo")
if not cpu.exists() or "vnni" not in cpu.read_text():
    """
ENTRY = 'options.add_session_config_entry("{}", "{}")  # {}\n'


def write_onnx(
    student: TrainedStudent, chunks: NDArray[np.int64], to: Path, run: Shape, threads: int, static: bool = False
) -> dict[str, Parity]:
    """Write a student as ONNX, checked.

    Args:
        student: that was trained.
        chunks: held-out text, as the objective draws it.
        to: folder; appears whole or not at all, an earlier export there is replaced.
        run: batch and sequence that the script runs, and static graphs have.
        threads: that the script gives ONNX Runtime; 0 for its own choice.
        static: shapes are fixed in `model.onnx`.

    Returns:
        How near each graph comes to the student, by file.

    Raises:
        ExportError: a graph does not compute what the student does, or the scheme cannot be written.
        RunError: the folder holds something else, or cannot be written.
    """
    with student.folder(to) as folder:
        found = write_graphs(student, chunks, folder, run if static else None)
        write_text(folder / "parity.json", pretty(found) + "\n")
        write_text(folder / "run.py", _script(student, run, threads))
    return found


def _script(student: TrainedStudent, run: Shape, threads: int) -> str:
    """What times `model.onnx`."""
    (batch, sequence), architecture = run, student.architecture
    exact = ""
    if Precision.W8A16 in architecture.parts:
        exact += ENTRY.format(*FLOAT_ACTIVATIONS, "weights alone are rounded")
    if Precision.INT8 in architecture.parts and student.scheme.weight_bits == 8:
        exact += WITHOUT_VNNI + ENTRY.format(*WIDE_PRODUCTS, "no overflow")
    if architecture.patch:
        (pixels,) = student.teacher.objective.blank(*run).values()
        given, what = PIXELS.format(shape=tuple(pixels.shape)), "image" + "s" * (batch > 1)
    else:
        types = TYPES if "token_type_ids" in student.teacher.objective.axes else ""
        given, what = TOKENS.format(vocab=architecture.vocab, shape=run, types=types), f"{sequence} tokens"
    return SCRIPT.format(threads=threads, exact=exact, given=given, batch=batch, what=what)


def write_graphs(
    student: TrainedStudent, chunks: NDArray[np.int64], folder: Path, shape: Shape | None
) -> dict[str, Parity]:
    """Write the graphs of a student, each checked against it: `model.onnx`, of a `shape` that is fixed or open, and for
    a decoder `model_with_past.onnx`."""
    half = student.architecture.embedding_precision is Precision.FP16
    plain = copy.deepcopy(student.model)
    restore(plain)
    objective, count = student.teacher.objective, _texts_compared(student, chunks)
    texts = list(texts_of(student, chunks, shape))

    def choices(logits: Tensor, inputs: Inputs) -> Tensor:
        return objective.choices(logits[:count], inputs)  # what fills a fixed batch up behind them is there already

    runs: dict[str, tuple[Callable[[PreTrainedModel], Run], Callable[[Path], Run]]] = {
        "model.onnx": (partial(student_whole, objective), whole)
    }
    if student.architecture.block == "decoder":
        runs["model_with_past.onnx"] = (student_continued, continued)
    found = {}
    for name, (own, graph) in runs.items():
        beside = Beside(own, plain if student.quantised else None, choices, texts)
        fixed = None if graph is continued else shape
        if half:
            # Beside float16 no graph rounds as the student does: that its parts are the student's is seen in float32.
            with tempfile.TemporaryDirectory(prefix="hwsearch-") as aside:
                _write(student, Path(aside) / name, False, fixed, beside, graph)
        found[name] = _write(student, folder / name, half, fixed, beside, graph)
    return found


class Beside(NamedTuple):
    """What a graph is set beside.

    Attributes:
        own: what runs a model as the graph does.
        in_float: the student with every part in float; None where it has no quantised parts.
        choices: logits of an answer.
        texts: batches of inputs.
    """

    own: Callable[[PreTrainedModel], Run]
    in_float: PreTrainedModel | None
    choices: Choices
    texts: list[Inputs]


def _write(
    student: TrainedStudent, path: Path, half: bool, shape: Shape | None, beside: Beside, graph: Callable[[Path], Run]
) -> Parity:
    """Write one graph, checked."""
    objective, trained = student.teacher.objective, student.model
    model = onnx_model(trained, objective, student.scheme, half, shape, graph is continued)
    # Where in this machine's files torch traced each node: paths, and a quarter of a small file.
    for node in model.graph.node:
        node.ClearField("metadata_props")
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)  # what is larger has no size to ask for
    onnx.save(model, path, save_as_external_data=weights > MOST_BYTES, location=f"{path.name}.data")
    own, plain, choices, texts = beside
    in_float, written = own(plain) if plain is not None else None, graph(path)
    found = compare(own(trained), in_float, written, choices, texts, half)
    if found.fault and in_float and not half:
        wide = copy.deepcopy(trained).double()
        found = replace(compare(own(wide), in_float, written, choices, texts, half), student="float64")
        if found.fault:
            found = replace(found, kl_of_arithmetic=of_last_bits(own, trained, choices, texts))
    demand(found, path.name)
    return found


def texts_of(student: TrainedStudent, chunks: NDArray[np.int64], shape: Shape | None) -> Iterator[Inputs]:
    """Batches of inputs, texts filled up to a fixed shape, and with more of the same to a fixed batch."""
    objective = student.teacher.objective
    chunks = chunks[: _texts_compared(student, chunks)]
    batch = shape[0] if shape else min(BATCH, len(chunks))
    for start in range(0, max(1, len(chunks) // batch * batch), batch):
        rows = np.resize(np.arange(start, min(start + batch, len(chunks))), batch)
        inputs = objective.inputs(torch.from_numpy(chunks[rows]))
        if shape:
            blank = objective.blank(*shape)
            inputs = {name: _filled(value, blank[name].shape) for name, value in inputs.items()}
        yield inputs


def _texts_compared(student: TrainedStudent, chunks: NDArray[np.int64]) -> int:
    """How many texts hold the answers that are compared."""
    (_, answers) = student.teacher.objective.labels(chunks[:1]).shape
    return min(len(chunks), max(1, ANSWERS // int(answers)))


def _filled(value: Tensor, shape: torch.Size) -> Tensor:
    """With zeros behind it, up to a shape that differs in the second axis alone."""
    missing = (0, 0) * (value.dim() - 2) + (0, shape[1] - value.shape[1])
    return torch.nn.functional.pad(value, missing)

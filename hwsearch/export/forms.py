"""The forms that a student is written in, and which of them a runtime takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hwsearch.architecture import Architecture
from hwsearch.distill.workers import mendable
from hwsearch.errors import GraphError, HwsearchError
from hwsearch.export.huggingface import save_huggingface, write_huggingface
from hwsearch.export.onnx import write_onnx
from hwsearch.export.parity import Parity
from hwsearch.export.student import TrainedStudent
from hwsearch.export.tensorrt import write_tensorrt
from hwsearch.precision import Precision
from hwsearch.workload import Workload

if TYPE_CHECKING:
    from hwsearch.distill.workshop import Workshop

GraphForm = Literal["onnx", "tensorrt"]


def graph_form(runtime: str, architecture: Architecture) -> GraphForm | None:
    """What a runtime runs; None where a student is a graph in no form of ours. Weights in int4 are written for ONNX
    Runtime alone."""
    if runtime.startswith("onnxruntime"):
        return "onnx"
    if runtime == "tensorrt":
        return "onnx" if Precision.INT4 in architecture.parts else "tensorrt"
    return None


def write_graph(
    student: TrainedStudent,
    workshop: Workshop,
    form: GraphForm,
    to: Path,
    workload: Workload,
    threads: int,
    static: bool = False,
) -> dict[str, Parity]:
    """Write a student as graphs; how near they come to it, by file.

    Args:
        student: that was trained.
        workshop: with the held-out text that graphs are checked on.
        form: of the graphs.
        to: folder; appears whole or not at all, an earlier export there is replaced.
        workload: that graphs are for.
        threads: that ONNX Runtime is given; 0 for its own choice.
        static: graphs are of its batch and sequence alone.

    Raises:
        ExportError: the form has no place for the student, or a graph does not compute what it does.
        RunError: the folder holds something else, or cannot be written.
    """
    chunks, shape = workshop.tokens["select"], (workload.batch, workload.sequence)
    if form == "tensorrt":
        return write_tensorrt(student, chunks, to, shape, static, workload.new_tokens)
    return write_onnx(student, chunks, to, shape, threads, static)


def deliver(
    workshop: Workshop, architecture: Architecture, state: Path, to: Path, runtime: str, workload: Workload,
    threads: int, beside: bool,
) -> dict[str, Parity]:  # fmt: skip
    """Write a student as a Transformers folder, `beside` it in a folder of its own as the graph that its runtime takes;
    where its layers differ in size, as that graph alone. For `Workers.run`.

    Raises:
        ExportError: as of `write_graph` or `write_huggingface`.
        GraphError: what kept the graph beside a Transformers folder from being written.
        RunError: the folder holds something else, or cannot be written.
    """
    student = TrainedStudent.load(workshop.teacher, workshop.spec.scheme, architecture, state)
    form = graph_form(runtime, architecture)
    if not architecture.uniform:
        return write_graph(student, workshop, form or "onnx", to, workload, threads)
    if not (beside and form):
        return write_huggingface(student, to)
    with student.folder(to) as folder:
        found = save_huggingface(student, folder)
        try:
            with mendable("writing the graphs"):
                return found | write_graph(student, workshop, form, folder / form, workload, threads)
        except HwsearchError as error:
            failure = error
    raise GraphError(f"{failure}. For Transformers it stands in {to}")

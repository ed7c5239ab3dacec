"""A student as a folder that stock Transformers loads, with what it does not know beside it: the architecture with its
precisions."""

from __future__ import annotations

import copy
from pathlib import Path

from hwsearch.distill.quantise import restore, settle
from hwsearch.errors import ExportError
from hwsearch.export.student import TrainedStudent


def write_huggingface(student: TrainedStudent, to: Path) -> None:
    """Write config.json, model.safetensors, the tokenizer, architecture.json and precision.json.

    Args:
        student: that was trained.
        to: folder; appears whole or not at all, an earlier export there is replaced.

    Raises:
        ExportError: its layers differ in shape.
        RunError: the folder holds something else, or cannot be written.
    """
    with student.folder(to) as folder:
        save_huggingface(student, folder)


def save_huggingface(student: TrainedStudent, folder: Path) -> None:
    """Save the model into a folder that is being written, weights of its quantised layers on their grids.

    Raises:
        ExportError: its layers differ in shape.
    """
    if not student.architecture.uniform:
        raise ExportError(
            "stock Transformers loads layers of one shape alone; this student's differ. Graphs take it: --format onnx"
        )
    model = copy.deepcopy(student.model)
    settle(model)  # in float it comes near to what is deployed; rounding it again changes nothing
    restore(model)
    if model.can_generate():  # where a generation ends may stand there alone
        model.generation_config = copy.deepcopy(student.teacher.model.generation_config)
    model.save_pretrained(folder)
    student.teacher.objective.save(folder, model.config)

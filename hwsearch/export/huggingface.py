"""A student as a folder that stock Transformers loads, with what it does not know beside it: the architecture with its
precisions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.architecture import Architecture
from hwsearch.distill.quantise import restore
from hwsearch.export.student import TrainedStudent

if TYPE_CHECKING:
    from hwsearch.distill.task import Workshop


def export_in_worker(workshop: Workshop, architecture: Architecture, state: Path, folder: Path) -> None:
    """`write_huggingface` with what a worker has at hand."""
    write_huggingface(TrainedStudent.load(workshop.teacher, workshop.spec.scheme, architecture, state), folder)


def write_huggingface(student: TrainedStudent, to: Path) -> None:
    """Write config.json, model.safetensors, the tokenizer, architecture.json and precision.json.

    Args:
        student: that was trained.
        to: folder; appears whole or not at all, an earlier export there is replaced.

    Raises:
        RunError: the folder holds something else, or cannot be written.
    """
    model = copy.deepcopy(student.model)
    restore(model)
    with student.folder(to) as folder:
        model.save_pretrained(folder)

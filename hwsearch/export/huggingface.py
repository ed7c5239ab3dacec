"""A student as a folder that stock Transformers loads, with what it does not know beside it: the architecture with its
precisions, and how near what is loaded comes to what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hwsearch.distill.families import longest_of
from hwsearch.distill.quantise import restore, settle
from hwsearch.errors import ExportError
from hwsearch.export.parity import Parity, compare, demand, student_whole
from hwsearch.export.student import TrainedStudent
from hwsearch.files import pretty, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DRAWN = (4, 16)  # inputs and tokens that what is loaded is checked on, fewer where it reads no more


def write_huggingface(student: TrainedStudent, to: Path) -> dict[str, Parity]:
    """Write config.json, model.safetensors, the tokenizer, architecture.json, precision.json and parity.json; how near
    what is loaded from there comes to the student, by file.

    Args:
        student: that was trained.
        to: folder; appears whole or not at all, an earlier export there is replaced.

    Raises:
        ExportError: as of `save_huggingface`.
        RunError: the folder holds something else, or cannot be written.
    """
    with student.folder(to) as folder:
        return save_huggingface(student, folder)


def save_huggingface(student: TrainedStudent, folder: Path) -> dict[str, Parity]:
    """Save the model into a folder that is being written, weights of its quantised layers on their grids, and load it
    from there again. What is loaded is set beside what was saved, on inputs drawn at random: activations are in float
    in both.

    Raises:
        ExportError: its layers differ in shape, or what is loaded computes something else.
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
    found = {"model.safetensors": _loaded(student, model, folder)}
    demand(found["model.safetensors"], "model.safetensors")
    write_text(folder / "parity.json", pretty(found) + "\n")
    return found


def _loaded(student: TrainedStudent, model: PreTrainedModel, folder: Path) -> Parity:
    """What Transformers loads from a folder beside the model that was saved there."""
    objective = student.teacher.objective
    again = type(model).from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    rng = torch.Generator().manual_seed(0)
    count, tokens = DRAWN
    shape = (count, min(tokens, longest_of(model.config) or tokens))
    drawn = objective.blank(*shape)
    if "input_ids" in drawn:
        drawn["input_ids"] = torch.randint(student.architecture.vocab, shape, generator=rng)
    else:
        drawn = {name: torch.rand(value.shape, generator=rng) for name, value in drawn.items()}
    own, its = student_whole(objective, model), student_whole(objective, again)
    return compare(own, None, its, objective.choices, [drawn], half=False)

"""A student as a folder that stock Transformers loads, with what it does not know beside it: the architecture with its
precisions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.architecture import Architecture
from hwsearch.distill.proxy import load_state
from hwsearch.distill.quantise import QuantisedLinear, quantise_layers, restore
from hwsearch.distill.student import empty_student
from hwsearch.errors import RunError
from hwsearch.files import pretty, write_text
from hwsearch.precision import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwsearch.distill.task import Workshop
    from hwsearch.distill.teacher import Teacher


def export_in_worker(workshop: Workshop, architecture: Architecture, state: Path, folder: Path) -> None:
    """`export_student` with what a worker has at hand."""
    export_student(workshop.teacher, workshop.spec.scheme, architecture, state, folder)


def export_student(teacher: Teacher, scheme: Scheme, architecture: Architecture, state: Path, folder: Path) -> None:
    """Write a trained student as a folder: config.json, model.safetensors, the tokenizer, architecture.json and
    precision.json.

    Args:
        teacher: that it was cut out of.
        scheme: by which its int8 parts were trained.
        architecture: of the student.
        state: file of its training.
        folder: appears whole or not at all; an earlier export there is replaced.

    Raises:
        RunError: the state cannot be read, the folder holds something else, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "precision.json").is_file():
        raise RunError(f"{folder} is not empty and holds no exported student; choose another --to")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; choose another --to")
    model = empty_student(teacher.model, architecture)
    quantise_layers(model, architecture, scheme)
    try:
        model.load_state_dict(load_state(state)["model"])
    except RuntimeError as error:  # names or shapes that do not fit
        raise RunError(f"{state} is of another student than {architecture.id}") from error
    plan = {"scheme": scheme, "layers": architecture.precision_text, "ranges": _ranges(model, scheme)}
    restore(model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
            temporary = Path(name) / "student"
            model.save_pretrained(temporary)
            teacher.tokenizer.save_pretrained(temporary)
            write_text(temporary / "architecture.json", pretty(architecture.to_json()) + "\n")
            write_text(temporary / "precision.json", pretty(plan) + "\n")
            if folder.exists():
                folder.replace(Path(name) / "earlier")  # it goes with the temporary folder
            temporary.replace(folder)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from error


def _ranges(model: PreTrainedModel, scheme: Scheme) -> dict[str, tuple[float, float]]:
    """Input ranges of the int8 layers that training has found for a static scheme, by module."""
    quantised = {name: module for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}
    return (
        {name: (float(m.low), float(m.high)) for name, m in quantised.items()} if scheme.activations == "static" else {}
    )

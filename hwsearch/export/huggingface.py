"""A student as a folder that stock Transformers loads, with what it does not know beside it: the architecture with its precisions."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hwsearch.distill.quantise import QuantisedLinear, restore
from hwsearch.errors import RunError
from hwsearch.files import write_text

if TYPE_CHECKING:
    from hwsearch.distill.proxy import Student


def save_student(student: Student, folder: Path) -> None:
    """Write config.json, model.safetensors, the tokenizer, architecture.json and precision.json; the folder appears whole or not at all.

    Raises:
        RunError: the folder is not empty and holds no student, or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "precision.json").is_file():
        raise RunError(f"{folder} is not empty and holds no exported student; choose another --to")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
            temporary = Path(name) / "student"
            plan = {"scheme": student.task.scheme, "ranges": _ranges(student), "layers": student.architecture.precision_text}
            restore(student.model)
            student.model.save_pretrained(temporary)
            student.task.teacher.tokenizer.save_pretrained(temporary)
            write_text(temporary / "architecture.json", _pretty(student.architecture.to_json()))
            write_text(temporary / "precision.json", _pretty(plan))
            if folder.exists():
                shutil.rmtree(folder)
            temporary.replace(folder)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from error


def _ranges(student: Student) -> dict[str, tuple[float, float]]:
    """Input ranges of the int8 layers that a static scheme has found, by module."""
    return {
        name: (float(module.low), float(module.high))
        for name, module in student.model.named_modules()
        if isinstance(module, QuantisedLinear) and student.task.scheme.activations == "static"
    }


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"

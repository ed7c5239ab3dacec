"""A trained student, as every form of export takes it, and the folder that it is written to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from hwsearch.architecture import Architecture
from hwsearch.distill.proxy import load_state
from hwsearch.distill.quantise import QuantisedLinear, quantise_parts
from hwsearch.distill.student import empty_student
from hwsearch.distill.teacher import Teacher
from hwsearch.errors import RunError
from hwsearch.files import TEMPORARY, pretty, read_json, sweep, write_text
from hwsearch.interrupt import held_back
from hwsearch.precision import Precision, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAN, ARCHITECTURE = "precision.json", "architecture.json"  # by which an exported student's folder is known


def refuse(to: Path, needed: Iterable[Path] = ()) -> None:
    """Raise unless a folder can be written: it is not there, empty, or holds an earlier export, and what it is in takes
    another.

    Args:
        to: the folder, whose place the new one takes.
        needed: what must not go with it.

    Raises:
        RunError: it cannot.
    """
    place = to.resolve()
    if place.is_mount():
        raise RunError(f"{to} is a mounted disk, whose place nothing takes; name a folder in it: --to {to / 'student'}")
    if place == Path.cwd():
        raise RunError(f"{to} is the folder that this was started in; name another --to")
    for path in needed:
        if place in (path.resolve(), *path.resolve().parents):
            raise RunError(f"{to} is, or holds, {path}, which is needed; choose another --to")
    if place.is_dir() and any(place.iterdir()) and not _is_export(place):
        raise RunError(f"{to} is not empty and holds no exported student; choose another --to")
    if place.exists() and not place.is_dir():
        raise RunError(f"{to} is a file; choose another --to")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=place.parent):
            pass
    except OSError as error:
        raise RunError(f"cannot write {to}: {error.strerror}; choose another --to") from error


def _is_export(folder: Path) -> bool:
    """Whether a folder holds an exported student: a file of the plan's name alone says little."""
    try:
        plan, architecture = (read_json(folder / name) for name in (PLAN, ARCHITECTURE))
    except RunError:
        return False
    return {"scheme", "layers"} <= plan.keys() and {"block", "layers"} <= architecture.keys()


def _take_the_place(new: Path, to: Path, earlier: Path) -> None:
    """Move a folder to where another may be, which is moved away first, and back again should that fail."""
    if to.exists():
        to.replace(earlier)
    try:
        new.replace(to)
    except OSError:
        if earlier.exists():
            earlier.replace(to)
        raise


@dataclass(frozen=True)
class TrainedStudent:
    """A student and all that exporting it takes.

    Attributes:
        teacher: that it was cut out of.
        architecture: with its precisions.
        scheme: by which its quantised parts were trained.
        model: in evaluation mode, its parts rounded by its plan.
    """

    teacher: Teacher
    architecture: Architecture
    scheme: Scheme
    model: PreTrainedModel

    @classmethod
    def load(cls, teacher: Teacher, scheme: Scheme, architecture: Architecture, state: Path) -> TrainedStudent:
        """From the file of its training.

        Raises:
            RunError: the state cannot be read, or is of another student.
        """
        trained = load_state(state)
        try:
            model = empty_student(teacher.model, architecture, trained.get("layers"))
            quantise_parts(model, architecture, scheme)
            model.load_state_dict(trained["model"])
        except RuntimeError as error:  # names or shapes that do not fit
            raise RunError(f"{state} is of another student than {architecture.id}") from error
        return cls(teacher, architecture, scheme, model.eval())

    @property
    def quantised(self) -> dict[str, QuantisedLinear]:
        """Its quantised linear layers, by module."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, QuantisedLinear)}

    @property
    def plan(self) -> dict[str, Any]:
        """What no other file of an export says: the precision of every part, and input ranges of the int8 layers that
        training has found for a static scheme, by module."""
        static = self.scheme.activations == "static"
        ranges = {
            name: (float(m.low), float(m.high)) for name, m in self.quantised.items() if m.precision is Precision.INT8
        }
        ranges = ranges if static else {}
        return {"scheme": self.scheme, "layers": self.architecture.precision_text, "ranges": ranges}

    @contextmanager
    def folder(self, to: Path) -> Iterator[Path]:
        """A folder to write an export into, with its tokenizer or image processor, architecture and precision plan in
        it; `to`, or what it links to, appears whole when the block ends, or not at all, and takes an earlier export's
        place.

        Raises:
            RunError: `to` holds something else, or cannot be written.
        """
        refuse(to)
        place = to.resolve()
        sweep(place.parent)
        try:
            with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=place.parent) as name:
                temporary = Path(name) / "student"
                temporary.mkdir()
                yield temporary
                self.teacher.processor.save_pretrained(temporary)
                write_text(temporary / ARCHITECTURE, pretty(self.architecture.to_json()) + "\n")
                write_text(temporary / PLAN, pretty(self.plan) + "\n")
                for path in filter(Path.is_file, temporary.rglob("*")):
                    path.chmod(path.stat().st_mode | 0o444)  # safetensors are their owner's alone
                with held_back():
                    refuse(to)  # somebody may have put something there meanwhile
                    _take_the_place(temporary, place, Path(name) / "earlier")  # which goes with the temporary folder
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"cannot write {to}: {reason}") from error

"""Students to export: trained for a few steps, of both families."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from hwsearch.architecture import Layer, parse_precisions
from hwsearch.distill.families import architecture_of
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.recipe import Recipe
from hwsearch.distill.workshop import Workshop
from hwsearch.export.student import TrainedStudent
from hwsearch.precision import Precision, Scheme

Make = Callable[..., tuple[TrainedStudent, Workshop]]


@pytest.fixture(scope="session")
def make_student(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_teacher: Path,
    tiny_classifier: Path,
    text_file: Path,
    labelled_file: Path,
) -> Make:
    """A function of family, scheme, precisions and float that gives a trained student."""

    def make(
        block: str, scheme: Scheme, precisions: str, beside: Precision = Precision.FP32
    ) -> tuple[TrainedStudent, Workshop]:
        torch.set_num_threads(1)
        teacher, data = (tiny_teacher, text_file) if block == "decoder" else (tiny_classifier, labelled_file)
        workshop = Workshop(
            TaskSpec(
                teacher=str(teacher),
                data=str(data),
                sequence=24,
                chunks=64,
                held_out_chunks=16,
                recipe=Recipe(batch=4),
                scheme=scheme,
            )
        )
        whole = architecture_of(workshop.teacher.model.config, Precision.FP32)
        layer = Layer(4, 2, 64, Precision.FP32, Precision.FP32) if block == "decoder" else whole.layers[0]
        plan = parse_precisions(precisions, 2)
        layers = [msgspec.structs.replace(layer, attention=a, feed_forward=f) for a, f in plan]
        sizes = {"width": 64, "tied": False} if block == "decoder" else {}
        architecture = msgspec.structs.replace(whole, layers=tuple(layers), **sizes).with_float(beside)
        student = Student(workshop.task, architecture)
        student.train(8)
        path = tmp_path_factory.mktemp("state") / "state.pt"
        student.keep(path)
        return TrainedStudent.load(workshop.teacher, scheme, architecture, path), workshop

    return make

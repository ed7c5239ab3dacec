from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill.families import architecture_of
from hwsearch.distill.importance import Importance, measure_importance
from hwsearch.distill.rotation import basis_of
from hwsearch.distill.student import StudentPlan, build_student, random_student
from hwsearch.distill.teacher import Teacher, load_teacher
from hwsearch.errors import ArchitectureError
from hwsearch.precision import Precision


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Teacher:
    return load_teacher(str(tiny_teacher))


@pytest.fixture(scope="module")
def chunks() -> torch.Tensor:
    return torch.randint(0, 320, (24, 33), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def importance(teacher: Teacher, chunks: torch.Tensor) -> Importance:
    return measure_importance(teacher.model, teacher.objective, chunks)


def shape(
    teacher: Teacher, width: int = 96, heads: int = 6, kv_heads: int = 3, ffn: int = 128, depth: int = 3
) -> Architecture:
    own = architecture_of(teacher.model.config, Precision.FP32)
    layers = uniform_layers(depth, heads, kv_heads, ffn, [(Precision.FP32, Precision.FP32)] * depth)
    return replace(own, width=width, tied=width == own.width, layers=layers)


def test_slices_are_nearer_to_the_teacher_than_fresh_weights(
    teacher: Teacher, importance: Importance, chunks: torch.Tensor
) -> None:
    def distance(student: torch.nn.Module) -> float:
        with torch.no_grad():
            p, q = (torch.log_softmax(m(chunks).logits, -1) for m in (teacher.model, student))
        return float((p.exp() * (p - q)).sum(-1).mean())

    for smaller in (shape(teacher, ffn=96), shape(teacher, heads=4, kv_heads=2), shape(teacher, width=72)):
        sliced = build_student(teacher.model, StudentPlan(smaller, (0, 1, 2)), importance)
        assert distance(sliced) < 0.85 * distance(random_student(teacher.model, smaller, 0)), smaller.id


def test_a_direction_that_the_answers_depend_on_is_kept_though_the_stream_hardly_varies_along_it() -> None:
    stream, slopes = torch.diag(torch.tensor([10.0, 3.0, 2.0, 0.1])), torch.diag(torch.tensor([0.0, 0.1, 0.0, 5.0]))
    for counted, kept in ((slopes, [0, 3]), (slopes * 0, [0, 1])):
        basis = basis_of({"norm": stream}, counted, 2, centred=False)
        assert torch.allclose(basis.abs(), torch.eye(4)[:, kept], atol=1e-6)


def test_dropped_units_are_taken_over_by_the_kept_ones(
    teacher: Teacher, importance: Importance, chunks: torch.Tensor
) -> None:
    plan = StudentPlan(shape(teacher, ffn=96), (0, 1, 2))
    student = build_student(teacher.model, plan, importance)
    kept = importance.ffn[0].topk(96).indices.sort().values
    plain = teacher.model.state_dict()["model.layers.0.mlp.down_proj.weight"][:, kept]
    solved = student.state_dict()["model.layers.0.mlp.down_proj.weight"]
    moments = importance.feed_forward[0]

    def error(weight: torch.Tensor) -> float:
        whole = teacher.model.state_dict()["model.layers.0.mlp.down_proj.weight"].clone()
        whole[:, kept] -= weight
        return float(torch.trace(whole @ moments @ whole.T))

    assert error(solved) < 0.9 * error(plain)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 104}, "width is 96 at most"),
        ({"ffn": 160}, "ffn is 128 at most"),
        ({"heads": 8, "kv_heads": 4}, "kv_heads is 3 at most"),
        ({"heads": 3, "kv_heads": 1}, "heads per key-value head is 2 at most"),
    ],
)
def test_a_student_has_no_more_than_its_teacher(
    teacher: Teacher, importance: Importance, change: dict[str, int], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        build_student(teacher.model, StudentPlan(shape(teacher, **change), (0, 1, 2)), importance)

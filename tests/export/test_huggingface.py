"""A student as a folder: whole, loadable, computing what was trained, and never in the place of something else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import Architecture, parse_precisions, uniform_layers
from hwsearch.distill.job import Recipe, TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.quantise import quantise_layers
from hwsearch.distill.task import Workshop
from hwsearch.errors import RunError
from hwsearch.export.huggingface import export_student
from hwsearch.precision import Scheme

STATIC = Scheme(activations="static", activation_type="int8", weights="channel")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, text_file: Path) -> tuple[Student, Path]:
    torch.set_num_threads(1)
    spec = TaskSpec(
        teacher=str(tiny_teacher),
        data=str(text_file),
        sequence=24,
        chunks=64,
        held_out_chunks=8,
        recipe=Recipe(batch=4),
        scheme=STATIC,
    )
    task = Workshop(spec).task
    own = task.teacher.model.config
    architecture = Architecture(
        block="decoder",
        width=64,
        head_dim=16,
        layers=uniform_layers(2, 4, 2, 64, parse_precisions("int8,fp32", 2)),
        gated_ffn=True,
        norm="rmsnorm",
        tied=False,
        vocab=own.vocab_size,
        head="lm",
    )
    student = Student(task, architecture)
    student.train(6)
    path = tmp_path_factory.mktemp("state") / "state.pt"
    student.keep(path)
    return student, path


def test_what_is_loaded_computes_what_was_trained(trained: tuple[Student, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    student, state = trained
    folder = tmp_path / "student"
    export_student(student.task.teacher, STATIC, student.architecture, state, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    plan = json.loads((folder / "precision.json").read_text())
    assert plan["layers"] == "int8,fp32"
    assert len(plan["ranges"]) == 7  # the first layer's linear parts
    assert all(low < high for low, high in plan["ranges"].values())
    assert Architecture.from_json(json.loads((folder / "architecture.json").read_text())) == student.architecture
    # With its int8 parts rounded by the plan beside it, the loaded model is the trained one.
    quantise_layers(loaded, student.architecture, STATIC)
    for name, (low, high) in plan["ranges"].items():
        module = loaded.get_submodule(name)
        module.low.fill_(low)
        module.high.fill_(high)
    tokens = torch.from_numpy(student.task.chunks[:2, :-1].astype(np.int64))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(tokens).logits, student.model.eval()(tokens).logits)


def test_an_earlier_export_is_replaced_and_anything_else_is_kept(trained: tuple[Student, Path], tmp_path: Path) -> None:
    student, state = trained
    folder = tmp_path / "student"
    arguments = (student.task.teacher, STATIC, student.architecture, state)
    export_student(*arguments, folder)
    (folder / "mine.txt").write_text("gone with the earlier export")
    export_student(*arguments, folder)
    assert not (folder / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    (tmp_path / "file").write_text("do not touch")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("do not touch")
    with pytest.raises(RunError, match="is a file; choose another --to"):
        export_student(*arguments, tmp_path / "file")
    with pytest.raises(RunError, match="holds no exported student"):
        export_student(*arguments, tmp_path / "folder")
    assert (tmp_path / "folder" / "thesis.txt").read_text() == (tmp_path / "file").read_text()


def test_a_state_of_another_student_is_refused(trained: tuple[Student, Path], tmp_path: Path) -> None:
    student, state = trained
    other = replace(student.architecture, layers=student.architecture.layers[:1])
    with pytest.raises(RunError, match="is of another student"):
        export_student(student.task.teacher, STATIC, other, state, tmp_path / "student")
    assert not (tmp_path / "student").exists()

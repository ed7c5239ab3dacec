"""A student as a folder: whole, loadable, computing what was trained, and never in the place of something else."""

import copy
import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.distill.quantise import quantise_parts, restore
from hwsearch.errors import RunError
from hwsearch.export.huggingface import write_huggingface
from hwsearch.export.student import TrainedStudent, refuse
from hwsearch.files import TEMPORARY
from hwsearch.precision import Scheme
from tests.export.conftest import Make

STATIC = Scheme("static", "int8", "channel")


@pytest.fixture(scope="module")
def student(make_student: Make) -> TrainedStudent:
    return make_student("decoder", STATIC, "int8,fp32")[0]


def test_what_is_loaded_computes_what_was_trained(student: TrainedStudent, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "student"
    write_huggingface(student, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    plan = json.loads((folder / "precision.json").read_text())
    assert plan["layers"] == "int8,fp32"
    assert len(plan["ranges"]) == 7  # the first layer's linear parts
    assert all(low < high for low, high in plan["ranges"].values())
    assert Architecture.from_json(json.loads((folder / "architecture.json").read_text())) == student.architecture
    # With its int8 parts rounded by the plan beside it, the loaded model is the trained one.
    quantise_parts(loaded, student.architecture, STATIC)
    for name, (low, high) in plan["ranges"].items():
        module = loaded.get_submodule(name)
        module.low.fill_(low)
        module.high.fill_(high)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(tokens).logits, student.model(tokens).logits)
    assert len(student.quantised) == 7  # and is still as it was


@pytest.mark.parametrize("block", ["decoder", "encoder"])
@pytest.mark.parametrize("precisions", ["w8a16", "int4"])
def test_rounded_weights_are_what_the_folder_holds(
    make_student: Make, tmp_path: Path, block: str, precisions: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if block == "decoder" else AutoModelForSequenceClassification
    student, _ = make_student(block, Scheme("dynamic", "uint8", "tensor", group=16), precisions)
    write_huggingface(student, tmp_path / "student")
    loaded = kind.from_pretrained(tmp_path / "student", local_files_only=True).eval()
    tokens = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(tokens).logits, student.model(tokens).logits)
        plain = copy.deepcopy(student.model)
        restore(plain)
        assert not torch.allclose(loaded(tokens).logits, plain(tokens).logits, atol=1e-4)


def test_an_earlier_export_is_replaced_and_anything_else_is_kept(student: TrainedStudent, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    write_huggingface(student, folder)
    (folder / "mine.txt").write_text("gone with the earlier export")
    write_huggingface(student, folder)
    assert not (folder / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    (tmp_path / "file").write_text("do not touch")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("do not touch")
    with pytest.raises(RunError, match="is a file; choose another --to"):
        write_huggingface(student, tmp_path / "file")
    with pytest.raises(RunError, match="holds no exported student"):
        write_huggingface(student, tmp_path / "folder")
    assert (tmp_path / "folder" / "thesis.txt").read_text() == (tmp_path / "file").read_text()


def test_a_link_is_written_through(student: TrainedStudent, tmp_path: Path) -> None:
    there, link = tmp_path / "disk" / "student", tmp_path / "student"
    there.parent.mkdir()
    link.symlink_to(there)
    for _ in range(2):  # to nothing yet, and to an earlier export
        write_huggingface(student, link)
        assert link.is_symlink()
        assert (there / "model.safetensors").is_file()
        assert [path.name for path in there.parent.iterdir()] == ["student"]


def test_what_is_put_there_meanwhile_is_kept(student: TrainedStudent, tmp_path: Path) -> None:
    folder = tmp_path / "student"

    def write() -> None:
        with student.folder(folder):
            folder.mkdir()
            (folder / "thesis.txt").write_text("do not touch")

    with pytest.raises(RunError, match="holds no exported student"):
        write()
    assert (folder / "thesis.txt").read_text() == "do not touch"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_mounted_disk_is_refused_at_once() -> None:
    with pytest.raises(RunError, match=r"/proc is a mounted disk.* name a folder in it: --to /proc/student"):
        refuse(Path("/proc"))


def test_an_earlier_export_stands_where_the_new_one_cannot_take_its_place(
    student: TrainedStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace = tmp_path / "student", Path.replace
    write_huggingface(student, folder)
    (folder / "mine.txt").write_text("the earlier export")

    def failing(path: Path, to: Path) -> Path:
        if path.name == "student" and path.parent.name.startswith(TEMPORARY):
            raise OSError(5, "Input/output error")
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(RunError, match="Input/output error"):
        write_huggingface(student, folder)
    assert (folder / "mine.txt").read_text() == "the earlier export"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_state_of_another_student_is_refused(student: TrainedStudent, tmp_path: Path) -> None:
    other = replace(student.architecture, layers=student.architecture.layers[:1])
    path = tmp_path / "state.pt"
    state = {"model": student.model.state_dict(), "optimizer": {}, "step": 8, "seconds": 1.0, "curve": []}
    torch.save(state, path)
    with pytest.raises(RunError, match="is of another student"):
        TrainedStudent.load(student.teacher, STATIC, other, path)

"""Checkpoints as they lie on disk: in which floats, broken ones, and code beside the weights."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from hwsearch.distill import workers
from hwsearch.distill.job import Moved, TaskSpec
from hwsearch.distill.objectives.classes import names_of
from hwsearch.distill.proxy import Student
from hwsearch.distill.teacher import load_teacher, teacher_outputs
from hwsearch.distill.workers import Workers
from hwsearch.distill.workshop import Workshop
from hwsearch.errors import RunError, TeacherError
from hwsearch.export.huggingface import write_huggingface
from hwsearch.export.student import TrainedStudent
from hwsearch.search.trainer import result_of


def changed(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))


def weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    """Another last norm, or none."""
    path, name = folder / "model.safetensors", "model.norm.weight"
    found = load_file(path)
    last = found.pop(name)
    save_file({**found, **({name: change(last).contiguous()} if change else {})}, path, metadata={"format": "pt"})


def code_beside(folder: Path) -> None:
    """Code that a checkpoint brings with it is not run."""
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "own.py").write_text("raise AssertionError('it was run')\n")


def code_of_a_tokenizer(folder: Path) -> None:
    """Nor that of a tokenizer."""
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (folder / "own.py").write_text("raise AssertionError('it was run')\n")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 100), "cannot load"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "'t5'"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}", encoding="utf-16"), "cannot load"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer in"),
        (lambda folder: changed(folder, lambda data: data[:-1000]), "not fully covered"),
        (lambda folder: weights(folder, lambda weight: weight * float("nan")), r"not finite: model\.norm\.weight$"),
        (lambda folder: weights(folder, lambda weight: weight[:-1]), r"norm\.weight of \(95,\); .* says \(96,\)"),
        (lambda folder: weights(folder, None), r"no weights for model\.norm\.weight, which"),
        (lambda folder: code_beside(folder), "'own'"),
        (lambda folder: code_of_a_tokenizer(folder), "brings code of its own; --trust-remote-code runs it"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_clear_line(
    tiny_teacher: Path, tmp_path: Path, break_it: object, says: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_teacher, folder)
    break_it(folder)  # type: ignore[operator]
    with pytest.raises(TeacherError, match=says) as error:
        load_teacher(str(folder))
    assert str(folder) in str(error.value) or says in ("'t5'", "'own'")
    assert "it was run" not in str(error.value)
    assert "\n" not in str(error.value)


OWN = """
import torch
from transformers import LlamaForCausalLM

RUN = True


class OwnForCausalLM(LlamaForCausalLM):
    def forward(self, *inputs, **named):
        found = super().forward(*inputs, **named)
        found.logits = 2 * found.logits
        return found
"""


@pytest.fixture
def own_code(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A Llama whose checkpoint brings a class of its own: logits twice as far apart."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    entries = {"auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"}, "architectures": ["OwnForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    (folder / "own.py").write_text(OWN)
    return folder


def test_code_of_a_checkpoint_runs_only_where_it_is_trusted(
    own_code: Path, tiny_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    stock = load_teacher(str(own_code))
    assert type(stock.model).__name__ == "LlamaForCausalLM"
    spec = TaskSpec(str(own_code), str(text_file), sequence=16, chunks=32, held_out_chunks=16, trust_remote_code=True)
    workshop = Workshop(spec)
    teacher = workshop.teacher
    tokens = torch.arange(16)[None]
    with torch.inference_mode():
        assert torch.equal(teacher.model(tokens).logits, 2 * stock.model(tokens).logits)
    assert teacher.digest != stock.digest
    (own_code / "own.py").write_text(OWN + "# changed\n")
    assert load_teacher(str(own_code), trusted=True).digest != teacher.digest  # other code, other answers perhaps

    # Students are of the teacher's own class, and their folder has its code.
    whole = workshop.facts().architecture
    student = Student(workshop.task, whole)
    assert type(student.model) is type(teacher.model)
    student.keep(tmp_path / "state.pt")
    write_huggingface(TrainedStudent.load(teacher, spec.scheme, whole, tmp_path / "state.pt"), tmp_path / "out")
    again = load_teacher(str(tmp_path / "out"), trusted=True)
    with torch.inference_mode():
        assert torch.allclose(again.model(tokens).logits, student.model.eval()(tokens).logits, atol=1e-5)


def test_trust_is_not_taken_over_from_a_run() -> None:
    spec = TaskSpec("there", trust_remote_code=True)
    assert not Moved().of(spec).trust_remote_code
    assert Moved(trusted=True).of(spec) == spec
    assert Moved(teacher="here").of(spec).teacher == str(Path("here").resolve())


def mapped(folder: Path) -> bool:
    """Whether a checkpoint's file is part of this process' memory."""
    return any(Path(part.path) == folder / "model.safetensors" for part in psutil.Process().memory_maps())


def test_weights_in_their_own_floats_are_mapped(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mapped"
    shutil.copytree(tiny_teacher, folder)
    other = load_teacher(str(folder), dtype="bfloat16")
    assert not mapped(folder)
    assert other.checkpoint.own_bytes() == 2 * other.model.num_parameters()
    own = load_teacher(str(folder))
    assert mapped(folder)
    assert own.checkpoint.own_bytes() == 0
    assert other.digest != own.digest
    # Without room for a copy each, processes are fewer; one there is always.
    spec = TaskSpec(str(folder), teacher_dtype="bfloat16")
    each = (2 + workers.PER_WEIGHT / 2) * other.model.num_parameters()  # a student in training beside it
    mapped_too = replace(spec, teacher_dtype="float32")
    for room, counts in ((0.0, (1, 1)), (1.9, (1, 2)), (3.9, (3, 4)), (7.5, (7, 8)), (100.0, (8, 8))):
        left = SimpleNamespace(available=room * each / workers.ROOM)
        monkeypatch.setattr(workers.psutil, "virtual_memory", lambda left=left: left)
        few = Workers(spec, 8)
        assert (few.count, Workers(mapped_too, 8).count) == counts
        assert few.few == (counts[0] < 8)


def test_a_teacher_may_answer_in_eight_bits(tiny_teacher: Path, text_file: Path) -> None:
    spec = TaskSpec(str(tiny_teacher), str(text_file), sequence=32, chunks=32, held_out_chunks=16)
    exact, eight = Workshop(spec), Workshop(replace(spec, teacher_dtype="int8"))
    assert exact.digest != eight.digest
    model = eight.teacher.at("cpu")
    assert model is not eight.teacher.model
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    assert {weight.dtype for weight in eight.teacher.model.parameters()} == {torch.float32}
    near, own = eight.task.select.outputs, exact.task.select.outputs
    assert not np.array_equal(near.probabilities, own.probabilities)
    assert float(np.mean(near.best() == own.best())) > 0.9
    # Its room is given back once it has answered.
    assert eight.teacher.at("cpu") is not model
    # Students are cut out of the weights as they are stored.
    shape = exact.facts().architecture
    ours, theirs = (Student(shop.task, shape).model.state_dict() for shop in (eight, exact))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_eight_bits_without_their_libraries_are_one_clear_line(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(str(tiny_teacher), dtype="int8")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(TeacherError, match=r"pip install 'hwsearch\[large\]'"):
        teacher.at("cpu")


def test_what_a_config_adds_to_an_answer_is_left_out(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_classifier, tmp_path / "teacher")
    config = json.loads((folder / "config.json").read_text())
    wordy = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
    wordy |= {"chunk_size_feed_forward": 4}
    (folder / "config.json").write_text(json.dumps({**config, **wordy}))
    plain, found = load_teacher(str(tiny_classifier)), load_teacher(str(folder))
    assert plain.digest == found.digest
    ids = torch.zeros((1, 8), dtype=torch.int64)
    assert set(found.model(input_ids=ids)) == {"logits"}


def test_where_a_text_is_cut_off_is_part_of_the_teacher(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_classifier, tmp_path / "teacher")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "truncation_side": "left"}))
    assert load_teacher(str(folder)).digest != load_teacher(str(tiny_classifier)).digest


def test_answers_that_are_no_numbers_are_one_clear_line(tiny_teacher: Path, tmp_path: Path) -> None:
    """Weights that are finite, in floats that what they compute is too large for."""
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    exact = load_teacher(str(folder))
    with torch.no_grad():
        for name, weight in exact.model.named_parameters():
            if "down_proj" in name:
                weight.mul_(1e4)
    exact.model.save_pretrained(folder)
    chunks = np.arange(34).reshape(2, 17)
    half = load_teacher(str(folder), dtype="float16")
    with pytest.raises(TeacherError, match=r"not finite when computed in float16; --teacher-dtype float32"):
        teacher_outputs(half, chunks, tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()
    assert len(teacher_outputs(load_teacher(str(folder)), chunks, tmp_path / "outputs").best()) == 2


def test_classes_are_called_as_pipelines_call_them(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_classifier, tmp_path / "teacher")
    config = json.loads((folder / "config.json").read_text())

    def names(**entries: object) -> dict[str, int]:
        kept = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
        (folder / "config.json").write_text(json.dumps({**kept, **entries}))
        return names_of(load_teacher(str(folder)).model.config)

    numbers = {"red": 0, "green": 1, "blue": 2}
    by_number = {str(number): name for name, number in numbers.items()}
    stale = {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert names(id2label=by_number) == numbers
    assert names(id2label=by_number, label2id=stale) == numbers
    assert names(id2label={str(n): name for name, n in stale.items()}, label2id=numbers) == numbers


def test_weights_that_are_quantised_already_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(TeacherError, match=r"is quantised already \(gptq\)"):
        load_teacher(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    found = load_file(folder / "model.safetensors")
    name = next(name for name in found if name.endswith("up_proj.weight"))
    found[name] = found[name].to(torch.int8)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"is quantised already \(I8\)"):
        load_teacher(str(folder))


def test_errors_of_any_kind_come_back_from_a_worker(tiny_teacher: Path, text_file: Path) -> None:
    """One that cannot be pickled would end the pool as if the process had been killed."""
    pool = Workers(TaskSpec(teacher=str(tiny_teacher), data=str(text_file), sequence=32), 1)
    try:
        with pytest.raises(RunError, match="the work was stopped: Unpicklable"):
            pool.run(_fails).result()
        assert pool.run(_works).result() == 1
    finally:
        pool.close()


def test_a_process_that_was_killed_between_two_jobs_is_an_answer_to_the_next(
    tiny_teacher: Path, text_file: Path
) -> None:
    pool = Workers(TaskSpec(teacher=str(tiny_teacher), data=str(text_file), sequence=32), 1)
    try:
        assert pool.run(_works).result() == 1
        for process in pool._pool._processes.values():
            process.kill()
        until = time.monotonic() + 60
        while not pool._pool._broken and time.monotonic() < until:  # type: ignore[attr-defined]
            time.sleep(0.01)
        with pytest.raises(RunError, match=r"was killed.*the same command goes on") as failure:
            result_of(pool.run(_works))
        assert isinstance(failure.value.__cause__, BrokenExecutor)  # it counts as a death
    finally:
        pool.close()


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def _fails(_: object) -> None:
    raise Unpicklable(1, 2)


def _works(_: object) -> int:
    return 1

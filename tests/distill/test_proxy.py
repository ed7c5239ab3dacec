"""Short runs on a small real teacher: what a score is made of, and that going on equals never having stopped."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import Architecture, parse_precisions, uniform_layers
from hwsearch.distill import families as families_module
from hwsearch.distill import workers as workers_module
from hwsearch.distill.job import DType, Job, TaskSpec
from hwsearch.distill.judging import divergence, evaluate
from hwsearch.distill.objectives.outputs import TopK
from hwsearch.distill.proxy import Student, load_state
from hwsearch.distill.recipe import Recipe
from hwsearch.distill.teacher import load_teacher
from hwsearch.distill.workers import gone_on_from
from hwsearch.distill.workshop import Workshop
from hwsearch.errors import DataError, RunError
from hwsearch.precision import Precision, Scheme
from tests.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def workshop(tiny_teacher: Path, text_file: Path) -> Workshop:
    torch.set_num_threads(1)
    return Workshop(small_task(tiny_teacher, text_file))


def small_task(teacher: Path, text: Path) -> TaskSpec:
    return TaskSpec(
        teacher=str(teacher),
        data=str(text),
        sequence=24,
        chunks=300,
        held_out_chunks=40,
        recipe=Recipe(batch=4),
    )


def student_shape(workshop: Workshop, plan: str = "fp32", depth: int = 2) -> Architecture:
    own = workshop.facts().architecture
    return replace(own, width=64, tied=False, layers=uniform_layers(depth, 4, 2, 64, parse_precisions(plan, depth)))


def test_facts_grow_complete(workshop: Workshop) -> None:
    early = workshop.facts()
    assert early.blocks == 2
    for block in range(early.blocks):
        workshop.compute_block(block)
    complete = workshop.finish()
    assert complete.digest == early.digest
    assert sorted(complete.layers) == [1, 2, 3]
    assert complete.layers[3] == (0, 1, 2)
    assert len(complete.sensitivities[Precision.INT8]) == 7
    assert all(value > 0 for value in complete.sensitivities[Precision.INT8])
    assert 0 <= complete.quality <= 1


def test_a_second_workshop_finds_everything_on_disk(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop.finish()
    again = Workshop(workshop.spec)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the teacher was run again")

    monkeypatch.setattr(again.teacher.model, "forward", forbidden)
    assert again.finish() == workshop.finish()


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"?" * 99])
def test_a_damaged_cache_is_made_again(workshop: Workshop, damage: Callable[[bytes], bytes]) -> None:
    complete = workshop.finish()
    folders = (workshop.folder, *(workshop.folder.parent.parent / name for name in ("outputs", "statistics")))
    files = sorted(path for folder in folders for path in folder.iterdir())
    assert {path.suffix for path in files} == {".npz", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        path.unlink()  # not in place: the workshop has it mapped
        path.write_bytes(damage(content))
    again = Workshop(workshop.spec)
    assert again.finish() == complete
    assert sorted(path for folder in folders for path in folder.iterdir()) == files


def test_searches_for_other_devices_share_what_the_teacher_said(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.finish()
    other = Workshop(replace(workshop.spec, scheme=Scheme(activations="dynamic", activation_type="uint8")))
    assert other.folder != workshop.folder
    monkeypatch.setattr(other.teacher.model, "forward", lambda *_, **__: pytest.fail("the teacher was run again"))
    for block in range(workshop.facts().blocks):
        other.compute_block(block)
    for name in ("layers", "importance"):  # the sensitivities are of the scheme
        other.compute_statistics(name)
    assert other.subject != workshop.subject
    assert Workshop(replace(workshop.spec, recipe=replace(workshop.spec.recipe, seed=7))).subject == workshop.subject


def test_another_tokenizer_is_another_task(workshop: Workshop, tiny_teacher: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    path = tmp_path / "teacher" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    path.write_text(json.dumps(content))
    other = Workshop(replace(workshop.spec, teacher=str(tmp_path / "teacher")))
    assert other.digest != workshop.digest


@pytest.mark.parametrize("changed", ["pooling", "padding"])
def test_what_stands_beside_weights_and_tokenizer_makes_another_teacher(
    tmp_path: Path, text_file: Path, changed: str
) -> None:
    folder = save_checkpoint(tmp_path / "teacher", "bert embeds", text_file)
    before = load_teacher(str(folder)).digest
    if changed == "pooling":
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    else:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["pad_token"] = config["sep_token"] = config.get("eos_token") or "<end>"
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_teacher(str(folder)).digest != before


def test_rows_that_do_not_fit_at_once_are_judged_one_after_the_other(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = workshop.task
    model = Student(task, student_shape(workshop)).model
    together, answers = evaluate(model, task.select)
    monkeypatch.setattr(families_module, "VALUES", 2**14)
    apart, same = evaluate(model, task.select)
    assert apart == pytest.approx(together, rel=1e-4)
    assert (same == answers).mean() > 0.99


@pytest.mark.parametrize("texts", [1, 3])
def test_texts_are_judged_as_the_runtime_sees_them(tiny_teacher: Path, text_file: Path, texts: int) -> None:
    """Where ranges are of a whole batch, how many texts are in one changes what is computed."""
    scheme = Scheme("dynamic", "uint8", "channel")
    own = Workshop(replace(small_task(tiny_teacher, text_file), scheme=scheme, together=texts))
    held_out = own.task.select
    assert held_out.together == texts
    model = Student(own.task, student_shape(own, "int8,int8")).model
    found, _ = evaluate(model, held_out)
    alone, at_once = [], dataclasses.replace(held_out, together=0)
    for rows in np.split(np.arange(len(held_out.chunks)), range(texts, len(held_out.chunks), texts)):
        outputs = TopK(**{name: array[rows] for name, array in held_out.outputs.arrays().items()})
        part = dataclasses.replace(at_once, chunks=held_out.chunks[rows], outputs=outputs)
        alone.append(evaluate(model, part)[0])
    otherwise = np.abs(evaluate(model, at_once)[0] - found).max()
    assert np.abs(np.concatenate(alone) - found).max() < otherwise / 10


def test_what_stops_a_preparation_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def finish(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers_module, "_workshop", Full)
    with pytest.raises(RunError, match=r"preparing the task was stopped: OSError: .* No space left on device; once"):
        workers_module._ask("finish")


def test_the_teacher_itself_has_no_loss(workshop: Workshop) -> None:
    own = workshop.facts().architecture
    score = Student(workshop.task, own).score(workshop.task.select)
    assert score.loss == pytest.approx(0.0, abs=1e-3)  # its outputs are kept in half precision
    assert score.retention == 1.0
    assert score.retention_low == score.retention_high == 1.0


@pytest.mark.parametrize("plan", ["fp32", "int8/fp32*2"])
def test_training_lowers_the_loss_and_going_on_equals_never_having_stopped(
    workshop: Workshop, plan: str, tmp_path: Path
) -> None:
    task, shape = workshop.task, student_shape(workshop, plan)
    whole = Student(task, shape)
    before = whole.score(task.select).loss
    whole.train(30, cool_from=20, end=30)
    after = whole.score(task.select)
    assert after.loss < 0.8 * before

    first = Student(task, shape)
    first.train(17, cool_from=20, end=30)
    first.keep(tmp_path / "state.pt")
    second = Student(task, shape, kept=load_state(tmp_path / "state.pt"))
    second.train(30, cool_from=20, end=30)
    assert second.score(task.select).loss == after.loss
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_teacher_in_half_precision_has_students_in_float32(workshop: Workshop, dtype: DType) -> None:
    half = Workshop(replace(workshop.spec, teacher_dtype=dtype))
    assert half.digest != workshop.digest

    def size(shop: Workshop) -> int:
        return sum(weight.nbytes for weight in shop.teacher.model.parameters())

    assert size(half) * 2 == size(workshop)
    student = Student(half.task, student_shape(half, "int8"))
    assert {parameter.dtype for parameter in student.model.parameters()} == {torch.float32}
    before, _ = student.evaluate(half.task.select)
    student.train(12)
    after, _ = student.evaluate(half.task.select)
    assert after.sum() < before.sum()
    # What it says, and what quantising its parts loses, is about what it is in float32.
    apart = divergence(workshop.teacher.model, half.task.select)
    assert 0 <= apart < 0.02
    lost, exact = (shop.task.sensitivities[Precision.INT8] for shop in (half, workshop))
    assert np.corrcoef(lost, exact)[0, 1] > 0.9


@pytest.mark.parametrize("plan", ["int8", "w8a16", "int4"])
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_students_in_low_precision_learn_with_products_in_bfloat16(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, plan: str, activations: Literal["static", "dynamic"]
) -> None:
    """As on a GPU."""
    halved = "hwsearch.distill.objectives.next_token.products"
    monkeypatch.setattr(halved, lambda _: torch.autocast("cpu", torch.bfloat16, enabled=torch.is_grad_enabled()))
    task = replace(workshop.spec, scheme=Scheme(activations, "int8", "channel"))
    student = Student(Workshop(task).task, student_shape(workshop, plan))
    before = student.score(student.task.select).loss
    student.train(20)
    assert student.finite
    assert student.score(student.task.select).loss < before


def test_all_students_see_the_same_data_in_the_same_order(workshop: Workshop) -> None:
    one, other = (Student(workshop.task, student_shape(workshop, depth=depth)) for depth in (1, 2))
    seen = []
    for student in (one, other):
        rows = []
        for step in range(80):  # more than one pass over the data
            student.step = step
            rows.append(student._rows())
        seen.append(np.concatenate(rows))
    assert np.array_equal(*seen)
    assert len(set(seen[0][:300].tolist())) == 300  # each chunk once before any comes again


def test_a_state_of_something_else_is_not_gone_on_from(workshop: Workshop, tmp_path: Path) -> None:
    task, shape, path = workshop.task, student_shape(workshop), tmp_path / "state.pt"
    student = Student(task, shape)
    student.train(5)
    student.keep(path)
    job = Job(path=str(path), architecture=shape, steps=5)
    found = gone_on_from(job, task)
    assert found is not None
    assert found["step"] == 5
    assert gone_on_from(replace(job, steps=4, further=True), task) is not None
    elsewhere = replace(job, path=str(tmp_path / "none.pt"), start=str(path))
    assert gone_on_from(elsewhere, task) is not None
    for other in (replace(job, steps=4), replace(job, order=1), replace(job, rate=0.5)):
        assert gone_on_from(other, task) is None, other
    another = Workshop(replace(workshop.spec, recipe=Recipe(batch=4, seed=1))).task
    assert gone_on_from(job, another) is None
    path.write_bytes(path.read_bytes()[:1000])  # cut off
    assert gone_on_from(job, task) is None
    assert gone_on_from(elsewhere, task) is None


def test_a_damaged_state_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"model": {}, "optimizer": {}, "step": 3, "seconds": 0.0, "curve": []}, path)
    whole = path.read_bytes()
    assert load_state(path)["step"] == 3
    rng = np.random.default_rng(0)
    flipped = [bytearray(whole) for _ in range(200)]
    for content in flipped:
        content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    torch.save({"step": 3}, path)
    for content in (b"", b"PK\x03\x04 cut off", whole[:-40], path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(RunError, match="delete it to train it anew"):
            load_state(path)
    for content in flipped:
        path.write_bytes(content)
        with contextlib.suppress(RunError):
            load_state(path)


def test_a_pickle_from_outside_is_not_run(tmp_path: Path) -> None:
    import os

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model": Evil()}, tmp_path / "state.pt")
    with pytest.raises(RunError):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_a_sequence_longer_than_the_teacher_reads_is_refused(workshop: Workshop) -> None:
    with pytest.raises(DataError, match="at most 128 tokens"):
        Workshop(replace(workshop.spec, sequence=129))

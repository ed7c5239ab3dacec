"""Students of every family train quantised, and run as graphs."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from hwsearch.architecture import parse_precisions
from hwsearch.distill import student as student_module
from hwsearch.distill.families import architecture_of, image_at
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.judging import divergence
from hwsearch.distill.proxy import Student
from hwsearch.distill.recipe import Recipe
from hwsearch.distill.teacher import load_teacher
from hwsearch.distill.workshop import Workshop
from hwsearch.export.huggingface import write_huggingface
from hwsearch.export.onnx import write_graphs
from hwsearch.export.parity import session
from hwsearch.export.student import TrainedStudent
from hwsearch.precision import Precision, Scheme
from tests.checkpoints import CHECKPOINTS, save_checkpoint

SCHEME = Scheme(activations="dynamic", activation_type="uint8")
KINDS = (  # llama and bert's classifier stand in the other tests
    "gpt2", "qwen3", "qwen2", "roberta", "distilbert", "modernbert", "bert tags", "bert masks", "bert embeds",
    "roberta masks", "distilbert masks", "distilbert embeds", "modernbert tags", "modernbert masks",
    "modernbert embeds", "vit",
)  # fmt: skip
UNEVEN = ("gpt2", "qwen3", "distilbert", "modernbert", "vit")


@pytest.mark.parametrize(("name", "uneven"), [*((name, False) for name in KINDS), *((name, True) for name in UNEVEN)])
def test_a_student_of_every_family_runs_as_a_graph(
    name: str,
    uneven: bool,
    tmp_path: Path,
    text_file: Path,
    labelled_file: Path,
    tagged_file: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(student_module, "refit", lambda *_: None)  # a few steps are to teach something
    folder = save_checkpoint(tmp_path, name, text_file)
    task = CHECKPOINTS[name][0]
    columns, data = {}, text_file
    if task == "token-classification":
        columns, data = {"text_column": "tokens", "label_column": "tags"}, tagged_file
    elif task in ("text-classification", "sentence-similarity"):
        data = labelled_file
    elif task == "image-classification":
        data = image_folder
    recipe = Recipe(batch=4)
    seen = image_at(folder)
    sizes = {"sequence": seen.tokens if seen else 24, "chunks": 64, "held_out_chunks": 16}
    spec = TaskSpec(str(folder), str(data), recipe=recipe, scheme=SCHEME, **sizes, **columns)
    workshop = Workshop(spec)
    whole = architecture_of(workshop.teacher.model.config, Precision.FP32)
    layers = [
        msgspec.structs.replace(whole.layers[0], attention=a, feed_forward=f, ffn=64)
        for a, f in parse_precisions("int8,fp32/int8", 2)
    ]
    if uneven:
        kv_heads = whole.layers[0].kv_heads // 2 or 1
        heads = kv_heads * (whole.layers[0].heads // whole.layers[0].kv_heads)
        layers[1] = msgspec.structs.replace(layers[1], heads=heads, kv_heads=kv_heads, ffn=32)
    head = Precision.INT8 if whole.head == "lm" else Precision.FP32
    architecture = msgspec.structs.replace(whole, layers=tuple(layers), head_precision=head)
    student = Student(workshop.task, architecture)
    before = divergence(student.model, workshop.task.select)
    student.train(12)
    assert divergence(student.model, workshop.task.select) < before
    path = tmp_path / "state.pt"
    student.keep(path)
    trained = TrainedStudent.load(workshop.teacher, SCHEME, architecture, path)
    found = write_graphs(trained, workshop.task.select.chunks, tmp_path, None)  # a failed parity is an error
    assert set(found) == {"model.onnx"} | ({"model_with_past.onnx"} if whole.block == "decoder" else set())
    if whole.block == "decoder":
        check_filled_up(tmp_path)


@pytest.mark.parametrize("shape", [None, (8, 24)])
def test_what_fills_a_text_up_is_not_compared(shape: tuple[int, int] | None, tmp_path: Path, text_file: Path) -> None:
    """Farther from a text than half a window it sees nothing, and what it says is chance in float16."""
    torch.set_num_threads(1)
    teacher = load_teacher(str(save_checkpoint(tmp_path / "teacher", "modernbert tags", text_file)))
    architecture = architecture_of(teacher.model.config, Precision.FP16)
    student = TrainedStudent(teacher, architecture, SCHEME, teacher.model)
    lengths = [24, *range(5, 12)]
    ids = np.random.default_rng(0).integers(2, 300, (8, 24))
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = teacher.objective.padding  # type: ignore[attr-defined]
    found = write_graphs(student, np.column_stack([ids, np.zeros_like(ids)]), tmp_path, shape)["model.onnx"]
    assert found.answers == sum(lengths)
    assert found.difference < 0.01
    given = {"input_ids": ids, "attention_mask": (ids != teacher.objective.padding).astype(np.int64)}  # type: ignore[attr-defined]
    (said,) = session(tmp_path / "model.onnx").run(None, given)
    with torch.inference_mode():
        wanted = teacher.model(**{name: torch.from_numpy(value) for name, value in given.items()}).logits.numpy()
    away = np.abs(said - wanted).max(-1) / np.abs(wanted).max()
    there = given["attention_mask"].astype(bool)
    assert away[there].max() < 0.01 < 0.1 < away[~there].max()


@pytest.mark.parametrize(("name", "entry"), [("bert", "max_position_embeddings"), ("gpt2", "n_positions")])
def test_a_student_of_few_positions_is_exported(
    name: str, entry: str, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    task, entries = CHECKPOINTS[name]
    monkeypatch.setitem(CHECKPOINTS, name, (task, {**entries, entry: 12}))
    teacher = load_teacher(str(save_checkpoint(tmp_path / "teacher", name, text_file)))
    architecture = architecture_of(teacher.model.config, Precision.FP32)
    student = TrainedStudent(teacher, architecture, SCHEME, teacher.model)
    write_huggingface(student, tmp_path / "student")
    chunks = np.random.default_rng(0).integers(2, 300, (8, 11))
    for graph in write_graphs(student, chunks, tmp_path, None).values():
        assert graph.difference < 1e-5


def check_filled_up(folder: Path) -> None:
    """A text that is filled up at its beginning is continued as without, in two steps as in one, by both graphs."""
    past_too, alone = (session(folder / name) for name in ("model_with_past.onnx", "model.onnx"))
    caches = {i.name: [1 if isinstance(d, str) else d for d in i.shape] for i in past_too.get_inputs() if "." in i.name}
    ids = np.arange(3, 11)[None]

    def run(given: Any, mask: Any, past: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        logits, *present = past_too.run(None, {"input_ids": given, "attention_mask": mask, **past})
        return logits[0, -1], dict(zip(caches, present, strict=True))

    nothing = {name: np.zeros([1, shape[1], 0, shape[3]], np.float32) for name, shape in caches.items()}
    plain, _ = run(ids, np.ones_like(ids), nothing)
    filled, mask = np.pad(ids, ((0, 0), (3, 0))), np.pad(np.ones_like(ids), ((0, 0), (3, 0)))
    _, past = run(filled[:, :-1], mask[:, :-1], nothing)
    last, _ = run(filled[:, -1:], mask, past)
    # int8 activations get their ranges from all that is there, what fills up included.
    assert np.corrcoef(plain, last)[0, 1] > 0.98
    (whole,) = alone.run(None, {"input_ids": filled, "attention_mask": mask})
    assert np.corrcoef(plain, whole[0, -1])[0, 1] > 0.98

"""A classifier that reads two texts at once."""

import csv
import shutil
import string
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import parse_precisions, uniform_layers
from hwsearch.bench.onnxruntime import prepare_graph
from hwsearch.distill.families import architecture_of
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.recipe import Recipe
from hwsearch.distill.rows import BESIDE, labelled_texts
from hwsearch.distill.workshop import Workshop
from hwsearch.errors import DataError
from hwsearch.export.onnx import write_onnx
from hwsearch.export.student import TrainedStudent
from hwsearch.precision import Precision, Scheme
from hwsearch.workload import Workload

SCHEME = Scheme()


def test_a_sequence_leaves_room_for_text(spec: TaskSpec) -> None:
    with pytest.raises(DataError, match="3 tokens of its own beside a pair of texts: 4 leave it no room"):
        Workshop(replace(spec, sequence=4))


@pytest.fixture(scope="module")
def spec(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    """A BERT with a tokenizer of its kind, and a file of pairs, some of them long."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("pairs") / "teacher"
    shutil.copytree(tiny_classifier, folder)
    letters = string.ascii_lowercase + string.digits + "<>"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    for file in folder.glob("tokenizer*"):
        file.unlink()
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    path = folder.parent / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label"])
        for i in range(400):
            writer.writerow(
                [f"def one{i * i % 97}" * (1 + i % 4), f"return [SEP] {i}", ("red", "green", "blue")[i % 3]]
            )
    return TaskSpec(
        str(folder),
        str(path),
        sequence=24,
        chunks=60,
        held_out_chunks=10,
        recipe=Recipe(batch=2),
        scheme=SCHEME,
        text_column="first,second",
    )


def test_both_texts_are_read_as_the_tokenizer_joins_them(spec: TaskSpec) -> None:
    workshop = Workshop(spec)
    objective, tokenizer = workshop.teacher.objective, workshop.teacher.processor
    with Path(spec.data).open(newline="") as file:
        rows = [(row["first"], row["second"]) for row in csv.DictReader(file)]
    first, second = zip(*rows, strict=True)
    asked = {"padding": "max_length", "truncation": True, "max_length": 24, "split_special_tokens": True}
    known = tokenizer(list(first), list(second), return_tensors="pt", **asked)
    every = {tuple(ids): types for ids, types in zip(known["input_ids"].tolist(), known["token_type_ids"], strict=True)}
    inputs = objective.inputs(torch.from_numpy(workshop.tokens["select"]))
    assert list(inputs) == list(objective.axes) == ["input_ids", "attention_mask", "token_type_ids"]
    missing = 24 - inputs["input_ids"].shape[1]
    padded = np.pad(inputs["input_ids"].numpy(), ((0, 0), (0, missing)), constant_values=tokenizer.pad_token_id)
    seen = 0
    for ids, there, types in zip(padded.tolist(), inputs["attention_mask"], inputs["token_type_ids"], strict=True):
        length = int(there.sum())
        assert types[:length].tolist() == every[tuple(ids)][:length].tolist()
        assert types[length:].sum() == 0
        seen += int(types.sum())
    assert seen > 40


def test_a_student_of_pairs_is_trained_and_exported(spec: TaskSpec, tmp_path: Path) -> None:
    workshop = Workshop(spec)
    own = architecture_of(workshop.teacher.model.config, Precision.FP32)
    narrow = uniform_layers(2, 5, 5, 96, parse_precisions("int8", 2))
    architecture = replace(own, width=80, layers=narrow)
    student = Student(workshop.task, architecture)
    before = student.score(workshop.task.select).loss
    student.train(240, cool_from=80, end=240)
    assert student.score(workshop.task.select).loss < before
    student.keep(tmp_path / "state.pt")
    trained = TrainedStudent.load(workshop.teacher, SCHEME, architecture, tmp_path / "state.pt")
    write_onnx(trained, workshop.task.select.chunks, tmp_path / "out", (2, 24), 1)  # a failed parity is an error
    assert "token_type_ids" in (tmp_path / "out" / "run.py").read_text()
    (said,) = prepare_graph(tmp_path / "out" / "model.onnx", Workload(2, 24), own.vocab, 1)()  # type: ignore[misc]
    assert said.shape == (2, 3)


def test_what_is_held_out_is_so_with_all_that_it_is_paired_with(tmp_path: Path) -> None:
    def written(name: str, rows: Iterable[tuple[int, int]]) -> Path:
        cells = "".join(f"first {i},second {k},red\n" for i, k in rows)
        (tmp_path / name).write_text(f"first,second,label\n{cells}")
        return tmp_path / name

    data = written("train.csv", ((i, k) for i in range(300) for k in range(2)))
    held_out = written("test.csv", ((i, 2) for i in range(200)))
    corpus = labelled_texts(data, held_out, "first,second", "label", {"red": 0}, pairs=True)
    assert {text.split(BESIDE)[0] for text in corpus.texts["train"]} == {f"first {i}" for i in range(200, 300)}
    assert "without 400 rows that are held out" in corpus.name


def test_a_missing_column_of_a_pair_is_named(spec: TaskSpec) -> None:
    with pytest.raises(DataError, match="has no column 'third'"):
        Workshop(replace(spec, text_column="first,third"))
    with pytest.raises(DataError, match="names one column, or the two of a pair; got 'first,second,third'"):
        Workshop(replace(spec, text_column="first,second,third"))

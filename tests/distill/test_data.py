from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hwsearch.distill.data import (
    SPLITS,
    draw_chunks,
    module_of,
    split_of,
    standard_library,
    text_files,
)
from hwsearch.distill.objectives.next_token import NextToken
from hwsearch.errors import DataError


def test_modules_keep_their_split_whatever_python() -> None:
    """The embedded teacher was trained by this assignment: it must never change."""
    known = {
        "ast": "select",
        "contextlib": "select",
        "logging": "report",
        "imaplib": "report",
        "json": "train",
        "asyncio": "train",
    }
    assert {name: split_of(name) for name in known} == known


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("json/decoder.py", "json"),
        ("test/test_json/test_decode.py", "json"),
        ("_pydatetime.py", "pydatetime"),
        ("test/test_ast.py", "ast"),
        ("idlelib/idle_test/test_run.py", "idlelib"),
        ("test/support/__init__.py", "support"),
    ],
)
def test_a_test_belongs_to_what_it_tests(path: str, module: str) -> None:
    assert module_of(Path(path)) == module


def test_the_standard_library_is_split_without_overlap() -> None:
    corpus = standard_library()
    texts = {split: set(corpus.texts[split]) for split in SPLITS}
    assert sum(len(text) for text in corpus.texts["train"]) > 5_000_000
    assert not texts["select"] & texts["report"]
    assert corpus.digest == standard_library().digest


def test_a_python_without_source_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("pass\n")
    with pytest.raises(DataError, match="--data FILE"):
        standard_library(tmp_path)


def test_a_text_file_is_split_by_blocks(text_file: Path, tmp_path: Path) -> None:
    corpus = text_files(text_file)
    sizes = {split: sum(map(len, corpus.texts[split])) for split in SPLITS}
    assert sum(sizes.values()) == len(text_file.read_text())
    assert 0.03 < sizes["select"] / sum(sizes.values()) < 0.08
    with pytest.raises(DataError, match="--data and --eval are both"):
        text_files(text_file, text_file)
    one_line = tmp_path / "one-line"
    one_line.write_text(text_file.read_text().replace("\n", " "))
    assert len(text_files(one_line).texts["train"]) > 10
    held_out = tmp_path / "held-out"
    held_out.write_text(corpus.texts["train"][3])
    with pytest.raises(DataError, match="report"):
        text_files(text_file, held_out)
    held_out.write_text("".join(corpus.texts["train"][3:9]))
    apart = text_files(text_file, held_out)
    assert not set(apart.texts["train"]) & set(apart.texts["select"])


def test_a_passage_that_is_held_out_is_not_trained_on(text_file: Path, tmp_path: Path) -> None:
    """Wherever it begins; lines that texts have in common by chance stay."""
    lines = text_file.read_text().splitlines(keepends=True)
    first, last = len(lines) // 3, 2 * len(lines) // 3
    held_out = tmp_path / "held-out"
    held_out.write_text("".join(["import os\n", "\n", *lines[first:last]]))
    apart = text_files(text_file, held_out)
    assert "lines that are held out" in apart.name
    left = "".join(apart.texts["train"])
    assert "".join(lines[first + 3 : first + 13]) not in left
    assert "".join(lines[last - 20 : last - 10]) not in left
    assert len(left) > 0.9 * sum(map(len, [*lines[:first], *lines[last:]]))
    held_out.write_text("return None\n" + "nothing of that kind stands there, whatever number it has\n" * 200)
    assert "".join(text_files(text_file, held_out).texts["train"]) == "".join(lines)


def test_what_is_repeated_stands_on_one_side(tmp_path: Path) -> None:
    lines = [
        f"line {i} of a text whose lines are all their own, and long enough to be known again: {i * i}\n" * 3
        for i in range(1000)
    ]
    path = tmp_path / "twice.txt"
    path.write_text("".join(lines + lines[100:]))
    corpus = text_files(path)
    aside = "".join([*corpus.texts["select"], *corpus.texts["report"]])
    assert "without" in corpus.name
    assert not [line for line in lines if line in aside and line in "".join(corpus.texts["train"])]


def test_a_long_line_that_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    """Lines that are longer than a block."""
    lines = [" ".join(f"word{i * k % 9973}" for k in range(1, 700)) + "\n" for i in range(1, 121)]
    path, held_out = tmp_path / "long.txt", tmp_path / "held-out.txt"
    path.write_text("".join(lines + lines))
    corpus = text_files(path)
    train = "".join(corpus.texts["train"])
    for block in (*corpus.texts["select"], *corpus.texts["report"]):
        assert block.strip()[:300] not in train
    path.write_text("".join(lines))
    held_out.write_text("".join(lines[::4]))
    train = "".join(text_files(path, held_out).texts["train"])
    assert [line in train for line in lines] == [i % 4 != 0 for i in range(len(lines))]


def test_a_row_that_is_held_out_is_not_trained_on_however_short(tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": [f"a row of number {i}" for i in range(4000)]})
    rows.to_csv(tmp_path / "data.csv", index=False)
    rows[::3].to_csv(tmp_path / "eval.csv", index=False)
    corpus = text_files(tmp_path / "data.csv", tmp_path / "eval.csv")
    assert "".join(corpus.texts["train"]).splitlines() == [row for i, row in enumerate(rows["text"]) if i % 3]
    assert corpus.name == "data.csv without 1334 lines that are held out"


def test_a_text_begins_as_its_tokenizer_begins_it(tiny_teacher: Path, text_file: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    texts = text_files(text_file).texts["train"]
    plain = NextToken(tokenizer).draw(texts, None, 4, 16, 0)
    assert NextToken(tokenizer).first == []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    begun = NextToken(tokenizer)
    rows = begun.draw(texts, None, 4, 16, 0)
    assert begun.first == [0]
    assert rows.shape == plain.shape
    assert (rows[:, 0] == 0).all()
    with pytest.raises(DataError, match="no room"):
        begun.draw(texts, None, 4, 1, 0)


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    for name, content, says in (
        ("a", b"", "no text"),
        ("b", b"\xff\xfe\x00", "UTF-8"),
        ("c", b"short\n", "too little"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=says):
            text_files(tmp_path / name)
    with pytest.raises(DataError, match="cannot read"):
        text_files(tmp_path / "none")


def test_chunks_share_one_token_and_come_back_the_same(tiny_teacher: Path, text_file: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    texts = text_files(text_file).texts["train"]
    evenly = draw_chunks(texts, tokenizer, 10**6, 16, None)
    assert evenly.shape[1] == 17
    assert (evenly[:-1, -1] == evenly[1:, 0]).all()
    drawn = draw_chunks(texts, tokenizer, 20, 16, seed=3)
    assert drawn.shape == (20, 17)
    assert np.array_equal(drawn, draw_chunks(texts, tokenizer, 20, 16, seed=3))
    assert not np.array_equal(drawn, draw_chunks(texts, tokenizer, 20, 16, seed=4))
    with pytest.raises(DataError, match="fills no chunk"):
        draw_chunks(("x",), tokenizer, 20, 16, None)


@pytest.mark.parametrize("form", ["csv", "jsonl", "JSONL"])
def test_a_language_model_reads_the_texts_of_rows(text_file: Path, tmp_path: Path, form: str) -> None:
    pieces = [piece.strip() for piece in text_file.read_text().split("\n\n\n") if piece.strip()]
    table, path, plain = (
        pd.DataFrame({"said": pieces, "number": range(len(pieces))}),
        tmp_path / f"texts.{form}",
        tmp_path / "a.txt",
    )
    if form == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    plain.write_bytes(b"\xef\xbb\xbf" + "".join(f"{piece}\n" for piece in pieces).encode())
    assert text_files(path, column="said").texts == text_files(plain).texts
    with pytest.raises(DataError, match=r"has no column 'text' \(have: said, number\)"):
        text_files(path)

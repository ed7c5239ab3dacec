from pathlib import Path

import pytest

from hwsearch.distill.data import SPLITS
from hwsearch.distill.labelled import labelled_texts
from hwsearch.errors import DataError

NAMES = {"red": 0, "green": 1, "blue": 2}


def test_labelled_texts_are_split_by_what_they_say(labelled_file: Path, tmp_path: Path) -> None:
    corpus = labelled_texts(labelled_file, None, "text", "label", NAMES)
    assert corpus.labels is not None
    assert sum(len(corpus.texts[split]) for split in SPLITS) == 600
    assert {len(corpus.texts[split]) - len(corpus.labels[split]) for split in SPLITS} == {0}
    assert 0.05 < len(corpus.texts["report"]) / 600 < 0.16
    twice = tmp_path / "twice.csv"
    lines = labelled_file.read_text().splitlines(keepends=True)
    twice.write_text("".join([*lines, *lines[1:]]))
    splits = [set(labelled_texts(twice, None, "text", "label", NAMES).texts[split]) for split in SPLITS]
    assert not splits[0] & splits[1] | splits[1] & splits[2] | splits[0] & splits[2]
    apart = labelled_texts(labelled_file, labelled_file, "text", "label", NAMES)
    assert len(apart.texts["train"]) == 600
    assert len(apart.texts["select"]) + len(apart.texts["report"]) == 600
    assert corpus.digest != labelled_texts(labelled_file, None, "text", "nothing", NAMES).digest


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_labelled_texts_come_in_several_forms(labelled_file: Path, tmp_path: Path, form: str) -> None:
    import pandas as pd

    table, path = pd.read_csv(labelled_file), tmp_path / f"texts.{form}"
    table["label"] = [NAMES[name] for name in table["label"]]  # by number
    if form == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, sep="\t", index=False)
    same, other = (labelled_texts(p, None, "text", "label", NAMES) for p in (labelled_file, path))
    assert same.digest == other.digest


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"words,label\nx,red\n", "has no column 'text' .have: words, label.; name it with --text-column"),
        ("a.csv", b"text,label\n" + b"some words,red\n" * 3, "at least 20 are needed"),
        (
            "a.csv",
            b"text,label\nsome words,pink\n",
            "row 1: the teacher knows no class 'pink' .knows: red, green, blue",
        ),
        ("a.csv", b"text,label\nsome words,7\n", "no class '7'"),
        ("a.csv", "text,label\ncaf\u00e9,red\n".encode("latin-1"), "is no csv file in UTF-8"),
        ("a.csv", b"", "is no csv file"),
        ("a.jsonl", b"{not json", "is no jsonl file"),
        ("a.parquet", b"PAR1", "is no parquet file|pip install pyarrow"),
        ("a.txt", b"some words", "labelled texts come as .csv"),
    ],
)
def test_a_broken_table_is_one_clear_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        labelled_texts(tmp_path / name, None, "text", "label", NAMES)
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        labelled_texts(tmp_path / "none.csv", None, "text", "label", NAMES)

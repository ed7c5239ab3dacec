import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hwsearch.distill.data import SPLITS
from hwsearch.distill.rows import BESIDE, UNLABELLED, class_of, labelled_texts, sentences, tagged_texts
from hwsearch.distill.table import class_names, table
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
    with pytest.raises(DataError, match="--data and --eval are both"):
        labelled_texts(labelled_file, labelled_file, "text", "label", NAMES)
    held_out = tmp_path / "held-out.csv"
    held_out.write_text("".join(lines[:201]))  # the column's names and 200 rows
    apart = labelled_texts(labelled_file, held_out, "text", "label", NAMES)
    assert apart.name == "texts.csv without 200 rows that are held out"
    assert len(apart.texts["train"]) == 400
    assert len(apart.texts["select"]) + len(apart.texts["report"]) == 200
    alone = tmp_path / "alone.csv"
    pd.read_csv(labelled_file)[["text"]].to_csv(alone, index=False)
    assert corpus.digest != labelled_texts(alone, None, "text", "label", NAMES).digest
    with pytest.raises(DataError, match=r"has no column 'nothing'.*--label-column"):
        labelled_texts(labelled_file, None, "text", "nothing", NAMES)


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_labelled_texts_come_in_several_forms(labelled_file: Path, tmp_path: Path, form: str) -> None:
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
        ("a.csv", b"text,label\n" + b"some words,red\n" * 3, "which takes 20 or more"),
        (
            "a.csv",
            b"text,label\nsome words,pink\n",
            "row 1: the teacher knows no class 'pink' .knows: red, green, blue",
        ),
        ("a.csv", b"text,label\nsome words,7\n", "no class '7'"),
        ("a.csv", "text,label\ncaf\u00e9,red\n".encode("latin-1"), "is no csv file in UTF-8"),
        ("a.csv", b"", "is no csv file"),
        ("a.jsonl", b"{not json", "is no jsonl file"),
        ("a.parquet", b"PAR1", "is no parquet file"),
        ("a.txt", b"some words", "rows for the train split"),
        ("a.md", b"some words", "texts come as .csv, .tsv, .jsonl, .parquet, .txt, or as a folder"),
    ],
)
def test_a_broken_table_is_one_clear_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        labelled_texts(tmp_path / name, None, "text", "label", NAMES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "label", "number"),
    [
        (NAMES, "green", 1),
        (NAMES, 1, 1),
        (NAMES, 1.0, 1),
        (NAMES, "1", 1),
        (NAMES, None, UNLABELLED),
        (NAMES, float("nan"), UNLABELLED),
        (NAMES, "", UNLABELLED),
        ({"None": 0, "nan": 1}, "None", 0),
        ({"None": 0, "nan": 1}, "nan", 1),
        ({"1": 0, "2": 1, "3": 2}, 1, 0),
        ({"1": 0, "2": 1, "3": 2}, 3.0, 2),
        ({"0": 0, "1": 1}, 0, 0),
        ({"1": 0, "2": 1, "3": 2}, 0, None),
        (NAMES, "\u00b2", None),
        (NAMES, "--1", None),
        (NAMES, -1, None),
        (NAMES, "9" * 5000, None),
    ],
)
def test_a_class_goes_by_its_name_or_its_number(names: dict[str, int], label: object, number: int | None) -> None:
    if number is not None:
        assert class_of(label, names, Path("x.csv"), 1) == number
        return
    with pytest.raises(DataError, match="the teacher knows no class"):
        class_of(label, names, Path("x.csv"), 1)


def test_cells_are_taken_as_they_are_written(tmp_path: Path) -> None:
    """A label "01" is no number, and neither is a text of digits."""
    path = tmp_path / "codes.csv"
    path.write_text("text,label\n" + "".join(f"{i},{('1.1', '1.10', '01', 'true')[i % 4]}\n" for i in range(400)))
    corpus = labelled_texts(path, None, "text", "label", {"1.1": 0, "1.10": 1, "01": 2, "true": 3})
    assert corpus.labels is not None
    found = {
        text: label for split in SPLITS for text, label in zip(corpus.texts[split], corpus.labels[split], strict=True)
    }
    assert found == {str(i): i % 4 for i in range(400)}


def test_a_row_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "commas.csv"
    path.write_text("text,label\nHello, world,1\ngood morning,0\nbye,1\n")
    with pytest.raises(DataError, match=r"commas\.csv is no csv file"):
        list(table(path, "text", "label"))


def test_a_quotation_mark_in_a_tsv_is_a_character_like_others(tmp_path: Path) -> None:
    plain, written = tmp_path / "plain.tsv", tmp_path / "written.tsv"
    texts = [('"Open', "she said", 'so "it" is', 'closed"', '"all of it"')[i % 5] + f" {i}" for i in range(400)]
    plain.write_text("text\tlabel\n" + "".join(f"{text}\tred\n" for text in texts))
    pd.DataFrame({"text": texts, "label": "red"}).to_csv(written, sep="\t", index=False)
    for path in (plain, written):
        corpus = labelled_texts(path, None, "text", "label", NAMES)
        assert sorted(text for split in SPLITS for text in corpus.texts[split]) == sorted(texts)
    pd.DataFrame({"text": [f"{text}\tand\nmore" for text in texts], "label": "red"}).to_csv(
        written, sep="\t", index=False
    )
    assert '"all of it" 4\tand\nmore' in {
        text for found in labelled_texts(written, None, "text", "label", NAMES).texts.values() for text in found
    }


def test_a_long_cell_leaves_a_tsv_quoted(tmp_path: Path) -> None:
    path, limit = tmp_path / "long.tsv", csv.field_size_limit()
    texts = [f"one {i}\nand more" for i in range(400)] + ["long " * 40_000 + "end"]
    pd.DataFrame({"text": texts, "label": "red"}).to_csv(path, sep="\t", index=False)
    corpus = labelled_texts(path, None, "text", "label", NAMES)
    assert sorted(text for split in SPLITS for text in corpus.texts[split]) == sorted(texts)
    assert csv.field_size_limit() == limit


def test_labels_with_gaps_are_read_from_what_pandas_has_written(tmp_path: Path) -> None:
    path = tmp_path / "gaps.parquet"
    pytest.importorskip("pyarrow")
    labels = pd.array([i % 3 if i % 4 else None for i in range(400)], dtype="Int64")
    pd.DataFrame({"text": [f"text {i}" for i in range(400)], "label": labels}).to_parquet(path)
    corpus = labelled_texts(path, None, "text", "label", NAMES)
    assert corpus.labels is not None
    assert sum(corpus.labels[split].count(UNLABELLED) for split in SPLITS) == 100


def test_pairs_of_one_first_text_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,label,near\n" + "".join(f"premise {i // 3},{i} follows,red,0.5\n" for i in range(900)))
    for corpus in (
        labelled_texts(path, None, "a,b", "label", NAMES, pairs=True),
        sentences(path, None, "a,b", "near"),
    ):
        first = [{text.split(BESIDE)[0] for text in corpus.texts[split]} for split in SPLITS]
        assert not first[0] & first[1] | first[1] & first[2] | first[0] & first[2]


def test_a_table_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        labelled_texts(tmp_path / "none.csv", None, "text", "label", NAMES)


def test_texts_may_stand_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"a text of number {i}\n\n" for i in range(400)))
    for corpus in (sentences(path, None, "text", "label"), labelled_texts(path, None, "text", "label", NAMES)):
        assert corpus.labels is not None
        assert sum(len(corpus.texts[split]) for split in SPLITS) == 400
        assert {label for split in SPLITS for label in corpus.labels[split]} == {UNLABELLED}
    path.write_text("".join(f"form\x0cfeed, separator\u2028 and next line\x85 {i}\r\n" for i in range(400)))
    whole = sentences(path, None, "text", "label").texts
    assert {text for split in SPLITS for text in whole[split]} == {
        f"form\x0cfeed, separator\u2028 and next line\x85 {i}" for i in range(400)
    }


def test_columns_may_have_numbers_for_names(tmp_path: Path) -> None:
    path = tmp_path / "numbered.jsonl"
    path.write_text("".join(json.dumps({"1": f"a text of number {i}", "2": "red"}) + "\n" for i in range(400)))
    assert set(labelled_texts(path, None, "1", "2", NAMES).labels["report"]) == {NAMES["red"]}  # type: ignore[index]


def test_words_have_a_class_each(tagged_file: Path, tmp_path: Path) -> None:
    corpus = tagged_texts(tagged_file, None, "tokens", "tags", NAMES)
    assert corpus.labels is not None
    for split in SPLITS:
        for text, tags in zip(corpus.texts[split], corpus.labels[split], strict=True):
            assert [NAMES[("red", "green", "blue")[len(word) % 3]] for word in text.split(" ")] == list(tags)
    some = tmp_path / "some.jsonl"
    some.write_text(tagged_file.read_text() + '{"tokens": ["x", "y"]}\n')
    few = tagged_texts(some, None, "tokens", "tags", NAMES)
    assert few.labels is not None
    assert [few.labels[s][few.texts[s].index("x y")] for s in SPLITS if "x y" in few.texts[s]] == [(UNLABELLED,) * 2]
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"tokens": ["a", "b"], "tags": ["red"]}\n')
    with pytest.raises(DataError, match="row 1: 2 words and 1 classes; a word has one each"):
        tagged_texts(broken, None, "tokens", "tags", NAMES)


def test_a_folder_that_datasets_has_saved_is_read(labelled_file: Path, tmp_path: Path) -> None:
    import json

    import pyarrow as pa

    table = pa.Table.from_pandas(pd.read_csv(labelled_file))
    (tmp_path / "train").mkdir()
    for i, part in enumerate((table[:200], table[200:])):
        path = str(tmp_path / "train" / f"{i}.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, part.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": "0.arrow"}, {"filename": "1.arrow"}]}
    (tmp_path / "train" / "state.json").write_text(json.dumps(state))
    found = labelled_texts(tmp_path / "train", None, "text", "label", NAMES)
    assert found.digest == labelled_texts(labelled_file, None, "text", "label", NAMES).digest
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(DataError, match=r"holds several splits \(train, test\); name one"):
        labelled_texts(tmp_path, None, "text", "label", NAMES)
    with pytest.raises(DataError, match="is no folder that datasets has saved"):
        labelled_texts(tmp_path.parent, None, "text", "label", NAMES)


def test_numbers_that_a_file_has_names_for_go_by_these(tmp_path: Path) -> None:
    """`datasets`' ClassLabel: the number of a class there need not be the teacher's."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    written = pa.table({"text": [f"text {i}" for i in range(400)], "label": [i % 3 for i in range(400)]})

    def labels(names: list[str]) -> dict[str, int]:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        kept = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        path = tmp_path / "labelled.parquet"
        pq.write_table(written.replace_schema_metadata(kept), path)
        corpus = labelled_texts(path, None, "text", "label", NAMES)
        assert corpus.labels is not None
        pairs = [pair for s in SPLITS for pair in zip(corpus.texts[s], corpus.labels[s], strict=True)]
        return dict(pairs)

    numbers = {f"text {i}": i % 3 for i in range(400)}
    assert labels(["Blue", "red", "green"]) == {text: (2, 0, 1)[number] for text, number in numbers.items()}
    assert labels(["0", "1", "2"]) == numbers  # names that the teacher does not know
    with pytest.raises(DataError, match="the teacher knows no class 'pink'"):
        labels(["red", "pink", "green"])


@pytest.mark.parametrize("of_words", [lambda f: [f], lambda f: {"feature": f, "_type": "Sequence"}])
def test_names_of_what_words_are_come_in_two_forms(of_words: Callable[[Any], Any], tmp_path: Path) -> None:
    feature = of_words({"names": ["O", "B-LOC"], "_type": "ClassLabel"})
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": {"tags": feature}}))
    assert class_names(tmp_path, "tags") == ["O", "B-LOC"]


def test_what_is_trained_on_needs_no_labels_beside_what_is_held_out(labelled_file: Path, tmp_path: Path) -> None:
    rows, data, held_out = pd.read_csv(labelled_file), tmp_path / "data.csv", tmp_path / "eval.csv"
    rows.iloc[:400][["text"]].to_csv(data, index=False)
    rows.iloc[400:].rename(columns={"label": "colour"}).to_csv(held_out, index=False)
    corpus = labelled_texts(data, held_out, "text", "colour", NAMES)
    assert corpus.labels is not None
    assert set(corpus.labels["train"]) == {UNLABELLED}
    assert UNLABELLED not in corpus.labels["report"]
    assert "has no labels" not in corpus.name
    with pytest.raises(DataError, match="has no column 'hue'"):
        labelled_texts(data, held_out, "text", "hue", NAMES)
    assert "has no labels" in labelled_texts(data, None, "text", "label", NAMES).name


def test_a_byte_order_mark_is_no_text(labelled_file: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(labelled_file)
    plain, marked = tmp_path / "plain.jsonl", tmp_path / "marked.jsonl"
    rows.to_json(plain, orient="records", lines=True)
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    same, other = (labelled_texts(path, None, "text", "label", NAMES) for path in (plain, marked))
    assert same.digest == other.digest

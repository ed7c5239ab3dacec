"""Texts of one's own, a row each: what classifiers, taggers and sentence encoders are distilled on.

They come as CSV, TSV, JSONL or Parquet, as a folder that `datasets` has saved, or as plain text with one on each line.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwsearch.distill.data import SPLITS, Corpus, Split, refuse_same, share_of
from hwsearch.distill.table import table
from hwsearch.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

HELD_OUT_SHARE = 0.1  # of the rows, for select and for report each
FEWEST = 20  # rows of a split
UNLABELLED = -1  # answer that nobody has given: the teacher's own counts
NO_ANSWER = -100  # where nothing is asked; losses of PyTorch leave it out
GAPS = ("", "nan", "None", "<NA>")  # what a label that nobody has given reads as
BESIDE = "\x1f"  # between the two texts of a pair; Unicode's unit separator
SCORE = 10**6  # what 1 of a pair's score is kept as
NO_SCORE = -(2**63)  # of a pair that nobody has judged, and of a text that is none of one
AT_ONCE = 2048  # texts that go to a tokenizer together: what it gives back takes a hundred times their room


def labelled_texts(
    data: Path,
    held_out: Path | None,
    text_column: str,
    label_column: str,
    names: Mapping[str, int],
    pairs: bool = False,
) -> Corpus:
    """Texts with a class each; where a row or the whole file has none, it is the teacher's own.

    Rows are drawn to the splits by a hash of their text, so that the same text is never in two, pairs by their first
    one; with a second file its rows go to *select* and *report* in the same way.

    Args:
        data: the file.
        held_out: another one, for what is held out.
        text_column, label_column: names of the columns; a file without the label's column has no labels.
        names: the teacher's classes, by name; their numbers are known too.
        pairs: two columns, as "first,second", are pairs of texts, joined by `BESIDE`.

    Raises:
        DataError: a file that cannot be read, lacks the column of text, holds a class that the teacher does not know,
            or too few rows.
    """
    read = _reader(data, held_out, text_column, label_column, names)

    def rows(path: Path) -> Iterable[tuple[str, int]]:
        for row, (given, label) in enumerate(read(path, pairs=pairs), start=1):
            if text := _joined(given):
                yield text, class_of(label, names, path, row)

    return split_rows(data, held_out, rows)


def tagged_texts(
    data: Path, held_out: Path | None, text_column: str, label_column: str, names: Mapping[str, int]
) -> Corpus:
    """Texts with a class for each of their words, which a single space parts; arguments and errors as of
    `labelled_texts`. A row holds a list of words and one of classes, or a text alone."""
    read = _reader(data, held_out, text_column, label_column, names)

    def rows(path: Path) -> Iterable[tuple[str, tuple[int, ...]]]:
        for row, (text, label) in enumerate(read(path), start=1):
            words = [re.sub(r"\s+", "_", str(word)) or "_" for word in _as_list(text)]
            tags = _as_list(label) or [None] * len(words)
            if len(words) != len(tags):
                raise DataError(f"{path}, row {row}: {len(words)} words and {len(tags)} classes; a word has one each")
            if words:
                yield " ".join(words), tuple(class_of(tag, names, path, row) for tag in tags)

    return split_rows(data, held_out, rows)


def sentences(data: Path, held_out: Path | None, text_column: str, label_column: str) -> Corpus:
    """Texts that are near each other or not: those of one label are, where there are labels. Two columns, as
    "first,second", are pairs of texts, joined by `BESIDE`, whose label says how near, in `SCORE`ths; arguments and
    errors as of `labelled_texts`."""
    numbers: dict[str, int] = {}
    read = _reader(data, held_out, text_column, label_column)

    def rows(path: Path) -> Iterable[tuple[str, int]]:
        for row, (text, label) in enumerate(read(path, pairs=True), start=1):
            if not (joined := _joined(text)):
                continue
            single = isinstance(text, str)
            if str(label) in GAPS:
                number = UNLABELLED if single else NO_SCORE
            elif single:
                number = numbers.setdefault(str(label), len(numbers))
            else:
                number = _score(label, path, row)
            yield joined, number

    return split_rows(data, held_out, rows)


def _reader(
    data: Path, held_out: Path | None, text_column: str, label_column: str, names: Iterable[str] = ()
) -> Callable[..., Iterable[tuple[Any, Any]]]:
    """`table` of one of two files; what is trained on needs no labels where something else is held out."""

    def read(path: Path, pairs: bool = False) -> Iterable[tuple[Any, Any]]:
        return table(path, text_column, label_column, pairs, names, unlabelled=bool(held_out) and path == data)

    return read


def _joined(given: Any) -> str:
    """A text, or the texts of a pair with `BESIDE` between them; nothing where one of them is missing."""
    texts = given if isinstance(given, tuple) else (given,)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return ""
    return BESIDE.join(text.replace(BESIDE, " ") for text in texts)


def _score(label: Any, path: Path, row: int) -> int:
    try:
        return round(SCORE * float(label))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}, row {row}: the label of a pair is a number, which says how near its texts are; got "
            f"{str(label)[:40]!r}"
        ) from error


def draw_texts(
    texts: Sequence[str],
    labels: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    sequence: int,
    seed: int | None,
) -> NDArray[np.int64]:
    """Up to `count` texts, or pairs of them, as token ids, cut at `sequence` and padded to it, with their class in the
    last column, [texts, sequence + 1].

    Args:
        texts: to draw from.
        labels: their classes.
        tokenizer: of the teacher.
        count: how many at most.
        sequence: tokens at most.
        seed: of the draw; None takes them evenly.
    """
    drawn = places(len(texts), count, seed)
    tokenizer = copy.deepcopy(tokenizer)  # it would keep the length in what a student's folder gets
    filled = _filled(tokenizer, sequence, pair=any(BESIDE in texts[place] for place in drawn))
    rows = np.empty((len(drawn), sequence + 1), np.int64)
    rows[:, -1] = np.asarray(labels, np.int64)[drawn]
    for first in range(0, len(drawn), AT_ONCE):
        some = zip(*(texts[place].split(BESIDE) for place in drawn[first : first + AT_ONCE]), strict=True)
        rows[first : first + AT_ONCE, :-1] = tokenizer(*map(list, some), **filled)["input_ids"]
    return rows


def draw_tagged(
    texts: Sequence[str],
    labels: Sequence[tuple[int, ...]],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    sequence: int,
    seed: int | None,
) -> NDArray[np.int64]:
    """The same of texts whose words have a class each, which stands at the word's first token, [texts, 2 x sequence]:
    token ids, then classes."""
    drawn = places(len(texts), count, seed)
    tokenizer = copy.deepcopy(tokenizer)  # it would keep the length in what a student's folder gets
    filled = _filled(tokenizer, sequence, pair=False)
    rows = np.full((len(drawn), 2 * sequence), NO_ANSWER, np.int64)
    for first in range(0, len(drawn), AT_ONCE):
        some = drawn[first : first + AT_ONCE]
        encoded = tokenizer([texts[place] for place in some], return_offsets_mapping=True, **filled)
        rows[first : first + AT_ONCE, :sequence] = encoded["input_ids"]
        for row, place in enumerate(some):
            before, words = None, _words(texts[place])
            for position, (start, end) in enumerate(encoded["offset_mapping"][row]):
                word = words[end - 1] if end > start else None
                if word is not None and word != before:
                    rows[first + row, sequence + position] = labels[place][word]
                before = word
    return rows


def _words(text: str) -> list[int]:
    """Which word each character belongs to, words between single spaces; a space to the one before."""
    found, word = [], 0
    for letter in text:
        found.append(word)
        word += letter == " "
    return found


def _filled(tokenizer: PreTrainedTokenizerBase, sequence: int, pair: bool) -> dict[str, Any]:
    """How a tokenizer is asked for rows of one length; what reads like one of its own tokens is text all the same."""
    own = tokenizer.num_special_tokens_to_add(pair)
    if sequence < own + 1 + pair:
        raise DataError(
            f"the teacher's tokenizer puts {own} tokens of its own beside a {'pair of texts' if pair else 'text'}: "
            f"{sequence} leave it no room; give a longer --sequence"
        )
    return {
        "split_special_tokens": True,
        "truncation": True,
        "max_length": sequence,
        "padding": "max_length",
        "padding_side": "right",
        "verbose": False,
    }


def places(available: int, count: int, seed: int | None) -> NDArray[np.int64]:
    """Up to `count` of as many rows as there are: drawn with a seed, else evenly."""
    if seed is None:
        return np.linspace(0, available - 1, min(count, available)).astype(np.int64)
    return np.random.default_rng(seed).permutation(available)[:count]


def split_rows(data: Path, held_out: Path | None, rows: Callable[[Path], Iterable[tuple[str, Any]]]) -> Corpus:
    """Rows by split, in the order of the files; a hash of what is read says which split. Rows to train on whose
    (first) texts are held out as well are left out.

    Raises:
        DataError: too few of them, or one file for both.
    """
    refuse_same(data, held_out)
    texts: dict[Split, list[str]] = {split: [] for split in SPLITS}
    labels: dict[Split, list[Any]] = {split: [] for split in SPLITS}

    def put(split: Split, text: str, label: Any) -> None:
        texts[split].append(text)
        labels[split].append(label)

    for text, label in rows(held_out) if held_out else ():
        put("select" if _place(text) < 0.5 else "report", text, label)
    aside, left_out = {_first(text) for found in texts.values() for text in found}, 0
    part = 0.0 if held_out else HELD_OUT_SHARE
    for text, label in rows(data):
        share = _place(text)
        if _first(text) in aside:
            left_out += 1
        else:
            put("select" if share < part else "report" if share < 2 * part else "train", text, label)
    for split, found in texts.items():
        if len(found) < FEWEST:
            source, way_out = (held_out, "") if held_out and split != "train" else (data, ", or others: --eval FILE")
            raise DataError(
                f"{source} has {len(found)} rows for the {split} split, which takes {FEWEST} or more: give more"
                f"{way_out}"
            )
    name = f"{data.name} without {left_out} rows that are held out" if left_out else data.name
    if all(np.all(np.asarray(label) == UNLABELLED) for label in (*labels["select"], *labels["report"])):
        name += " (what is held out has no labels: the teacher's own answers count as right)"
    return Corpus(
        name,
        {split: tuple(found) for split, found in texts.items()},
        {split: tuple(found) for split, found in labels.items()},
    )


def _first(text: str) -> str:
    """The text, or the first of a pair: all that it is paired with goes with it."""
    return text.split(BESIDE)[0]


def _place(text: str) -> float:
    """Where a row goes."""
    return share_of(_first(text))


def class_of(label: Any, names: Mapping[str, int], path: Path, row: int) -> int:
    """The number of a class that is given by name or number; UNLABELLED where none is given. Where names are numbers
    themselves, other than their own, labels are names."""
    given = str(label) if str(label) in names else str(label).removesuffix(".0")  # as a column with gaps has 1
    if given in names:
        return names[given]
    if given in GAPS:
        return UNLABELLED
    numbers = {str(number): number for number in names.values()}
    if given in numbers and not any(name in numbers for name in names):
        return numbers[given]
    known = sorted(names, key=names.__getitem__)
    raise DataError(
        f"{path}, row {row}: the teacher knows no class {given[:40]!r} (knows: {', '.join(known[:8])}"
        f"{', ...' if len(known) > 8 else ''}); another column: --label-column"
    )


def _as_list(cell: Any) -> list[Any]:
    """A cell of words: a list, or a text whose words spaces part."""
    if isinstance(cell, str):
        return cell.split()
    return list(cell) if isinstance(cell, (list, tuple, np.ndarray)) else []

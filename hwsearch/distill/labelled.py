"""Texts with a class each, a row each of a table: what classifiers are distilled on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwsearch.distill.data import SPLITS, Corpus, Split, share_of
from hwsearch.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

HELD_OUT_SHARE = 0.1  # of the rows, for select and for report each
FEWEST = 20  # rows of a split
UNLABELLED = -1  # class of a text that has none


def labelled_texts(
    data: Path, held_out: Path | None, text_column: str, label_column: str, names: Mapping[str, int]
) -> Corpus:
    """Texts with a class each, a row each of a CSV, TSV, JSONL or Parquet file; without labels the teacher's own.

    Rows are drawn to the splits by a hash of their text, so that the same text is never in two; with a second file its
    rows go to *select* and *report* in the same way.

    Args:
        data: the file.
        held_out: another one, for what is held out.
        text_column, label_column: names of the columns; a file without the label's column has no labels.
        names: the teacher's classes, by name; their numbers are known too.

    Raises:
        DataError: a file that cannot be read, lacks the column of text, holds a class that the teacher does not know,
            or too few rows.
    """
    texts: dict[Split, list[str]] = {split: [] for split in SPLITS}
    labels: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for path, aside in ((data, False), (held_out, True)):
        if path is None:
            continue
        for text, label in _rows(path, text_column, label_column, names):
            share = share_of(text)
            if aside:
                split: Split = "select" if share < 0.5 else "report"
            elif held_out is not None:
                split = "train"
            else:
                split = "select" if share < HELD_OUT_SHARE else "report" if share < 2 * HELD_OUT_SHARE else "train"
            texts[split].append(text)
            labels[split].append(label)
    for split, found in texts.items():
        if len(found) < FEWEST:
            raise DataError(
                f"{data}: {len(found)} texts for the {split} split; at least {FEWEST} are needed there: give more "
                "rows, or a file of its own: --eval FILE"
            )
    return Corpus(
        data.name,
        {split: tuple(found) for split, found in texts.items()},
        {split: tuple(found) for split, found in labels.items()},
    )


def _rows(path: Path, text_column: str, label_column: str, names: Mapping[str, int]) -> list[tuple[str, int]]:
    """(text, class) of each row that has a text."""
    import pandas as pd

    readers = {
        ".csv": lambda: pd.read_csv(path, encoding="utf-8", keep_default_na=False),
        ".tsv": lambda: pd.read_csv(path, encoding="utf-8", keep_default_na=False, sep="\t"),
        ".jsonl": lambda: pd.read_json(path, lines=True, encoding="utf-8"),
        ".parquet": lambda: pd.read_parquet(path),
    }
    if path.suffix not in readers:
        raise DataError(f"labelled texts come as {', '.join(readers)}; got {path.name}")
    try:
        table = readers[path.suffix]()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ImportError as error:
        raise DataError(f"{path}: Parquet files are read by pyarrow: pip install pyarrow") from error
    except Exception as error:  # pandas and its engines raise their own kinds for what is no such file
        reason = next(iter(str(error).splitlines()), "")
        raise DataError(f"{path} is no {path.suffix[1:]} file in UTF-8: {type(error).__name__}: {reason}") from error
    if text_column not in table:
        raise DataError(
            f"{path} has no column {text_column!r} (have: {', '.join(map(str, table))}); name it with --text-column"
        )
    numbers = set(names.values())
    found: list[tuple[str, int]] = []
    given = table[label_column] if label_column in table else [None] * len(table)
    for row, (text, label) in enumerate(zip(table[text_column], given, strict=True), start=1):
        if not isinstance(text, str) or not text.strip():
            continue
        if label is None or str(label) == "":
            found.append((text, UNLABELLED))
            continue
        number = names.get(str(label), label)
        if not str(number).lstrip("-").isdigit() or int(number) not in numbers:
            known = sorted(names, key=names.__getitem__)
            raise DataError(
                f"{path}, row {row}: the teacher knows no class {str(label)[:40]!r} (knows: {', '.join(known[:8])}"
                f"{', ...' if len(known) > 8 else ''}); another column: --label-column"
            )
        found.append((text, int(number)))
    return found


def draw_texts(
    texts: tuple[str, ...],
    labels: tuple[int, ...],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    sequence: int,
    seed: int | None,
) -> NDArray[np.int64]:
    """Up to `count` texts as token ids, cut at `sequence` and padded to it, with their class in the last column,
    [texts, sequence + 1].

    Args:
        texts: to draw from.
        labels: their classes.
        tokenizer: of the teacher.
        count: how many at most.
        sequence: tokens at most.
        seed: of the draw; None takes them evenly.
    """
    if seed is None:
        places = np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)
    else:
        places = np.random.default_rng(seed).permutation(len(texts))[:count]
    encoded = tokenizer(
        [texts[place] for place in places],
        truncation=True,
        max_length=sequence,
        padding="max_length",
        padding_side="right",
        verbose=False,
    )["input_ids"]
    return np.column_stack([np.asarray(encoded, np.int64), np.asarray(labels, np.int64)[places]])

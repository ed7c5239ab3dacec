"""Text to distil on, in three splits.

Candidates train on *train*, are compared on *select*, and *report* is touched once, after the choice; a student chosen
on the text that it is judged on looks better than it is. The split goes by document group (a module of the standard
library together with the test that is named after it, a block of a text file), never by chunk, because neighbouring
chunks share their names.

The built-in corpus is the source code of the running Python's standard library: every machine that runs hwsearch has
it. Membership of a split is a hash of the module's name, so that it does not move with the Python version and the
embedded teacher has never seen *select* or *report*.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hwsearch.distill.table import ROWS, table
from hwsearch.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "select", "report"]
SPLITS: tuple[Split, ...] = ("train", "select", "report")
BLOCK_CHARACTERS = 4000  # of a text file: neighbouring chunks share their names, blocks far less
PASSAGE = 200  # characters that two texts have in common by no chance
CHARACTERS_A_TOKEN = 6  # generous: enough text is read, or all of it
PLENTY = 32  # times as much text as chunks are drawn from evenly; of more, some documents are left out evenly
AT_ONCE = 256  # documents that go to a tokenizer together: what it gives back takes a hundred times their room
HELD_OUT_SHARE = 0.05  # of the groups, for select and for report each


@dataclass(frozen=True)
class Corpus:
    """Texts by split.

    Attributes:
        name: what a person calls it.
        texts: the documents of each split, in a fixed order.
        labels: what is to be said of each text, a class or one for each word; None for plain text.
    """

    name: str
    texts: Mapping[Split, tuple[str, ...]]
    labels: Mapping[Split, tuple[Any, ...]] | None = None

    @property
    def digest(self) -> str:
        """A hash of every text and its split, 16 hex digits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for text in self.texts[split]:
                digest.update(f"{split}:{len(text)}:".encode())
                digest.update(text.encode())
            if self.labels is not None:
                digest.update(repr(self.labels[split]).encode())
        return digest.hexdigest()[:16]


def split_of(group: str) -> Split:
    """The split that a group of documents belongs to: a function of its name alone."""
    share = share_of(group)
    if share < HELD_OUT_SHARE:
        return "select"
    return "report" if share < 2 * HELD_OUT_SHARE else "train"


def share_of(name: str) -> float:
    """A number from 0 to 1 that follows from a name alone."""
    return int.from_bytes(hashlib.sha256(f"hwsearch{name}".encode()).digest()[:4], "big") / 2**32


def module_of(relative: Path) -> str:
    """The top-level module that a file of the standard library belongs to; a test belongs to what it tests."""
    parts = list(relative.with_suffix("").parts)
    while len(parts) > 1 and parts[0] in ("test", "tests"):
        parts = parts[1:]
    return parts[0].lstrip("_").removeprefix("test_")


def standard_library(root: Path | None = None) -> Corpus:
    """The Python source of the standard library, split by module.

    Raises:
        DataError: this Python comes without its library's source.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    texts: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if {"site-packages", "dist-packages"} & set(relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # the test package holds files that are wrong on purpose
        if text.strip():
            texts[split_of(module_of(relative))].append(text)
    if sum(len(text) for text in texts["train"]) < 1_000_000 or not texts["select"] or not texts["report"]:
        raise DataError(
            f"the built-in corpus is the source code of Python's standard library, and {root} holds too little of it. "
            "Use a Python that was installed with its .py files, or give a text file of your own: --data FILE"
        )
    return Corpus("python standard library", {split: tuple(found) for split, found in texts.items()})


def text_files(data: Path, held_out: Path | None = None, column: str = "text") -> Corpus:
    """Text of one's own: split by blocks of lines, or with a second file for what is held out.

    Args:
        data: plain text, or a table with a text in each row.
        held_out: another one.
        column: of the texts.

    Raises:
        DataError: a file that cannot be read, is not UTF-8 text, has no such column, or is too short to be split.
    """
    refuse_same(data, held_out)
    given, repeated = _texts(data, column), 0
    if held_out is None:
        # Every tenth block is held out, from all over the file.
        blocks = _in_blocks(given)
        aside, own = blocks[9::10], [block for i, block in enumerate(blocks) if i % 10 != 9]
    else:
        judged_by = _texts(held_out, column)
        known = frozenset(judged_by)
        others = [text for text in given if text.isspace() or text not in known]  # however short they are
        aside, own, repeated = _in_blocks(judged_by), _in_blocks(others), len(given) - len(others)
    train, shared = _without(own, aside)
    left_out = repeated + shared
    texts: dict[Split, list[str]] = {"train": train, "select": aside[::2], "report": aside[1::2]}
    for split, found in texts.items():
        if not found:
            raise DataError(
                f"{data}: too little text for a {split} split; at least {20 * BLOCK_CHARACTERS // 1000} kB are needed, "
                "or a file of its own: --eval FILE"
            )
    name = f"{data.name} without {left_out} lines that are held out" if left_out else data.name
    return Corpus(name, {split: tuple(found) for split, found in texts.items()})


def refuse_same(data: Path, held_out: Path | None) -> None:
    """Refuse to judge students by what they are trained on.

    Raises:
        DataError: both are one.
    """
    if held_out is not None and data.resolve() == held_out.resolve():
        raise DataError(f"--data and --eval are both {data}; give another --eval, or none: a part is held out then")


def _without(blocks: Sequence[str], held_out: Sequence[str]) -> tuple[list[str], int]:
    """Blocks of a text without what stands in those of another one too, and how many lines that are: all of a passage
    of `PASSAGE` characters or more, which shorter lines have in common by chance."""
    known = {passage for _, _, passage in _passages(_lines(held_out))}
    lines = _lines(blocks)
    shared: set[int] = set()
    for first, last, passage in _passages(lines):
        if passage in known:
            shared.update(range(first, last))
    return _in_blocks(line for i, line in enumerate(lines) if i not in shared), len(shared)


def _passages(lines: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """From each line that is not blank on, as many lines as have `PASSAGE` characters that are no blanks at their
    ends: the first, the one behind the last, and a hash of what stands there."""
    bare = [line.strip() for line in lines]
    last = size = 0
    for first, line in enumerate(bare):
        while size < PASSAGE and last < len(bare):
            size += len(bare[last])
            last += 1
        if size < PASSAGE:
            return
        if line:
            yield first, last, hash("\n".join(filter(None, bare[first:last])))
        size -= len(line)


def _lines(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in text.splitlines(keepends=True)]


def _texts(path: Path, column: str) -> list[str]:
    """The texts of a table, each closed by a line's end, or all of a file of plain text.

    Raises:
        DataError: it cannot be read, is not UTF-8, or holds no text.
    """
    try:
        if path.is_dir() or path.suffix.lower() in ROWS:
            texts = [f"{text}\n" for text, _ in table(path, column, None) if isinstance(text, str)]
        else:
            texts = [path.read_text(encoding="utf-8-sig")]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 (byte {error.start}); convert it first") from error
    if not any(text.strip() for text in texts):
        raise DataError(f"{path} holds no text")
    return texts


def _in_blocks(texts: Iterable[str]) -> list[str]:
    """Texts, one below the other, in blocks of whole lines, longer lines cut. A piece that is cut off ends its block:
    the lines of blocks are what they were made of."""
    blocks: list[str] = []
    size = BLOCK_CHARACTERS
    lines = _lines(texts)
    for piece in (line[i : i + BLOCK_CHARACTERS] for line in lines for i in range(0, len(line), BLOCK_CHARACTERS)):
        if size >= BLOCK_CHARACTERS:
            blocks.append("")
            size = 0
        blocks[-1] += piece
        size += len(piece)
    return blocks


def draw_chunks(
    texts: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, count: int, sequence: int, seed: int | None
) -> NDArray[np.int64]:
    """Up to `count` chunks of `sequence` + 1 tokens, [chunks, sequence + 1]: neighbours share one token, the label of
    one and the input of the next.

    Args:
        texts: documents to draw from.
        tokenizer: of the teacher.
        count: how many at most.
        sequence: tokens of an input.
        seed: of the order in which documents are taken until there are enough; None takes chunks evenly from all of
            them.

    Raises:
        DataError: the texts do not fill a single chunk.
    """
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(texts))
        wanted, taken = count * (sequence + 1) * CHARACTERS_A_TOKEN, 0
        chosen = []
        for i in order:
            chosen.append(texts[i])
            taken += len(texts[i])
            if taken >= wanted:
                break
        texts = tuple(chosen)
    elif (spare := sum(map(len, texts)) // (PLENTY * count * (sequence + 1) * CHARACTERS_A_TOKEN)) > 1:
        texts = texts[::spare]
    stream = token_stream(texts, tokenizer)
    total = (len(stream) - 1) // sequence
    if total < 1:
        raise DataError(
            f"the text fills no chunk of {sequence} tokens ({len(stream)} tokens in all); "
            "give more text or a shorter --sequence"
        )
    if seed is None:
        places = np.linspace(0, total - 1, min(count, total)).astype(int)
    else:
        places = np.random.default_rng(seed).permutation(total)[:count]
    return np.stack([stream[place * sequence : place * sequence + sequence + 1] for place in places])


def token_stream(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """All documents as one stream of token ids, each closed by the end-of-text token. Shape [tokens]."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise DataError("the tokenizer has no end-of-text token, which separates documents; set eos_token")
    every, streams = list(texts), []
    for first in range(0, len(every), AT_ONCE):
        some = every[first : first + AT_ONCE]
        # What reads like one of the tokenizer's own tokens is text all the same.
        encoded = tokenizer(some, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        streams += [np.asarray([*ids, end], dtype=np.int64) for ids in encoded]
    return np.concatenate(streams)

"""Text to distil on, in three splits.

Candidates train on *train*, are compared on *select*, and *report* is touched once, after the choice; a student chosen on
the text that it is judged on looks better than it is. The split goes by document group (a module of the standard library
together with its tests, a block of a text file), never by chunk, because neighbouring chunks share their names.

The built-in corpus is the source code of the running Python's standard library: every machine that runs hwsearch has it.
Membership of a split is a hash of the module's name, so that it does not move with the Python version and the
embedded teacher has never seen *select* or *report*.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hwsearch.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "select", "report"]
SPLITS: tuple[Split, ...] = ("train", "select", "report")
HELD_OUT_SHARE = 0.05  # of the groups, for select and for report each


@dataclass(frozen=True)
class Corpus:
    """Texts by split.

    Attributes:
        name: what a person calls it.
        texts: the documents of each split, in a fixed order.
    """

    name: str
    texts: Mapping[Split, tuple[str, ...]]

    @property
    def digest(self) -> str:
        """A hash of every text and its split, 16 hex digits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for text in self.texts[split]:
                digest.update(f"{split}:{len(text)}:".encode())
                digest.update(text.encode())
        return digest.hexdigest()[:16]


def split_of(group: str) -> Split:
    """The split that a group of documents belongs to: a function of its name alone."""
    share = int.from_bytes(hashlib.sha256(f"hwsearch{group}".encode()).digest()[:4], "big") / 2**32
    if share < HELD_OUT_SHARE:
        return "select"
    return "report" if share < 2 * HELD_OUT_SHARE else "train"


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


def token_stream(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """All documents as one stream of token ids, each closed by the end-of-text token. Shape [tokens]."""
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError("the tokenizer has no end-of-text token, which separates documents; set eos_token")
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.asarray([*ids, end], dtype=np.int64) for ids in encoded])

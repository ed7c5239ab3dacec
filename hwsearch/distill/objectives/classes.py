"""A classifier gives each text a class. Rows are token ids, filled up at their end, and the class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hwsearch.distill.data import Corpus
from hwsearch.distill.objectives.objective import Axes, Inputs, Plain, products, text_inputs
from hwsearch.distill.rows import draw_texts, labelled_texts
from hwsearch.errors import DataError, TeacherError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hwsearch.distill.job import TaskSpec


class Padded(Plain):
    """Texts of their own, shorter and longer ones.

    The rate, 1.7e-4 with the recipe's, is the best of 0.8, 1.7, 2.8 and 4.2e-4 after 100 to 400 steps, for students of
    2 x 96 and of 4 x 64 in int8 of the teacher that `benchmarks/classifier.py` makes.

    Args:
        tokenizer: of the teacher.
    """

    answers = 1  # columns behind the token ids

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.padding = tokenizer, int(tokenizer.pad_token_id)

    def inputs(self, chunks: Tensor) -> Inputs:
        """No more than the longest text has."""
        ids = self.ids(chunks)
        there = ids != self.padding
        longest = max(1, int(there.sum(1).max()))
        return text_inputs(ids[:, :longest], there[:, :longest].long())

    def lengths(self, chunks: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Tokens that fill nothing up."""
        found: NDArray[np.int64] = (self.ids(chunks) != self.padding).sum(1)
        return found

    def ids(self, chunks: Any) -> Any:
        """Token ids alone."""
        return chunks[:, :-1]


class Classes(Padded):
    """A class for the whole text.

    Args:
        tokenizer: of the teacher.
        names: its classes, by name.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, names: Mapping[str, int]) -> None:
        super().__init__(tokenizer)
        self.names = names

    def read(self, spec: TaskSpec) -> Corpus:
        """Rows with a class each."""
        return labelled_texts(*files_of(spec, "a classifier"), spec.text_column, spec.label_column, self.names)

    def draw(self, texts: Any, labels: Any, count: int, sequence: int, seed: int | None) -> NDArray[Any]:
        """Each text a row."""
        return draw_texts(texts, labels, self.tokenizer, count, sequence, seed)

    def labels(self, chunks: Any) -> Any:
        """The class of each text."""
        return chunks[:, -1:]

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of each text."""
        with products(chunks):
            return self.answer(model, self.inputs(chunks)).float().unsqueeze(1)


class Pairs(Classes):
    """A class for a pair of texts, which stand one behind the other."""

    def read(self, spec: TaskSpec) -> Corpus:
        """Rows of two texts with a class each."""
        files = files_of(spec, "a classifier")
        return labelled_texts(*files, spec.text_column, spec.label_column, self.names, pairs=True)


class TypedPairs(Pairs):
    """The same, where a model is told which of the two texts a token is of."""

    axes: ClassVar[Mapping[str, Axes]] = {**Plain.axes, "token_type_ids": ("batch", "sequence")}

    def inputs(self, chunks: Tensor) -> Inputs:
        """What stands behind the first separator is of the second text."""
        found = super().inputs(chunks)
        ends = (found["input_ids"] == self.tokenizer.sep_token_id).long()
        return self._typed(found, (ends.cumsum(1) > ends) & found["attention_mask"].bool())

    def blank(self, batch: int, sequence: int) -> Inputs:
        """All of it of the first text."""
        found = super().blank(batch, sequence)
        return self._typed(found, torch.zeros_like(found["input_ids"]))

    def _typed(self, inputs: Inputs, second: Tensor) -> Inputs:
        return {**inputs, "token_type_ids": second.long()}


def names_of(config: PretrainedConfig) -> dict[str, int]:
    """A checkpoint's classes, by name.

    Raises:
        TeacherError: their numbers are not 0 to the number of classes - 1.
    """
    count = int(config.num_labels or 0)
    own = {str(name): number for number, name in (config.id2label or {}).items()}
    # What pipelines say is id2label's; Transformers makes one up where a checkpoint has none.
    made_up = set(own) == {f"LABEL_{number}" for number in range(count)}
    given = (config.label2id or own) if made_up or len(own) != count else own
    if not all(str(number).isascii() and str(number).isdigit() and int(number) < count for number in given.values()):
        raise TeacherError(f"label2id of the checkpoint's config.json gives each class a number from 0 to {count - 1}")
    return {str(name): int(number) for name, number in given.items()}


def files_of(spec: TaskSpec, what: str) -> tuple[Path, Path | None]:
    """The files that a spec names.

    Raises:
        DataError: it names none.
    """
    if not spec.data:
        raise DataError(f"{what} is distilled on texts of its own: --data FILE.csv with a column of text")
    return Path(spec.data), Path(spec.held_out) if spec.held_out else None

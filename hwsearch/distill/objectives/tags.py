"""A tagger gives each word a class, at its first token. Rows are token ids, and as many classes behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hwsearch.distill.data import Corpus
from hwsearch.distill.objectives.classes import Classes, files_of
from hwsearch.distill.objectives.objective import Inputs, products
from hwsearch.distill.rows import NO_ANSWER, draw_tagged, tagged_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hwsearch.distill.job import TaskSpec


ENTITY = re.compile(r"([BIELSU])-(.+)")  # begins, goes on, ends (two letters), stands alone (two letters)


class Tags(Classes):
    """A class for every word."""

    def read(self, spec: TaskSpec) -> Corpus:
        """Rows of words with a class each."""
        return tagged_texts(*files_of(spec, "a tagger"), spec.text_column, spec.label_column, self.names)

    def draw(self, texts: Any, labels: Any, count: int, sequence: int, seed: int | None) -> NDArray[Any]:
        """Each text a row."""
        return draw_tagged(texts, labels, self.tokenizer, count, sequence, seed)

    def ids(self, chunks: Any) -> Any:
        """The first half."""
        return chunks[:, : chunks.shape[1] // 2]

    def labels(self, chunks: Any) -> Any:
        """The second half."""
        return chunks[:, chunks.shape[1] // 2 :]

    def choices(self, answer: Tensor, inputs: Inputs) -> Tensor:
        """Of every token: what fills a text up is asked nothing."""
        return answer[inputs["attention_mask"][: len(answer)].bool()]

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of every token; 0 where nothing is asked, for which nothing is lost."""
        inputs = self.inputs(chunks)
        with products(chunks):
            found = self.answer(model, inputs).float()
        missing = self.ids(chunks).shape[1] - found.shape[1]
        asked = (self.labels(chunks) != NO_ANSWER).unsqueeze(-1)
        whole: Tensor = torch.nn.functional.pad(found, (0, 0, 0, missing)) * asked
        return whole

    @property
    def has_entities(self) -> bool:
        """Whether classes say where entities begin and go on."""
        return any(ENTITY.fullmatch(name) for name in self.names)

    def entity_f1(self, labels: NDArray[np.int64], best: NDArray[np.int64]) -> float:
        """F1 of whole entities: both ends and the type are right. seqeval has it, and had no release since 2020.

        Args:
            labels: classes of words, [texts, tokens]; `NO_ANSWER` where none is.
            best: what was said.
        """
        names = {number: name for name, number in self.names.items()}
        right = found = there = 0
        for truth, said in zip(labels, best, strict=True):
            asked = truth != NO_ANSWER
            own, others = (entities([names.get(int(n), "") for n in row[asked]]) for row in (truth, said))
            right, found, there = right + len(own & others), found + len(others), there + len(own)
        return 2 * right / max(1, found + there)

    def loss(self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
        """Over the words."""
        asked = (self.labels(chunks) != NO_ANSWER).sum().clamp_min(1)
        loss: Tensor = self.judge(model, chunks, indices, probabilities)[0].sum() / asked
        return loss


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first word, word behind the last, type) of every entity, as CoNLL's own script reads tags: one begins where that
    is said, and where another type goes on."""
    found = set[tuple[int, int, str]]()
    begun: tuple[int, str] | None = None
    for place, tag in enumerate([*tags, ""]):
        match = ENTITY.fullmatch(tag)
        way, kind = match.groups() if match else ("", "")
        if begun and (kind != begun[1] or way in ("B", "S", "U")):
            found.add((begun[0], place, begun[1]))
            begun = None
        if kind:
            begun = begun or (place, kind)
            if way in ("E", "L", "S", "U"):
                found.add((begun[0], place + 1, kind))
                begun = None
    return found

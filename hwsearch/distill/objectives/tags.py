"""A tagger gives each word a class, at its first token. Rows are token ids, and as many classes behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hwsearch.distill.data import Corpus
from hwsearch.distill.objectives.classes import Classes, files_of
from hwsearch.distill.objectives.objective import products
from hwsearch.distill.rows import NO_ANSWER, draw_tagged, tagged_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hwsearch.distill.job import TaskSpec


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

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of every token; 0 where nothing is asked, for which nothing is lost."""
        inputs = self.inputs(chunks)
        with products(chunks):
            found = self.answer(model, inputs).float()
        missing = self.ids(chunks).shape[1] - found.shape[1]
        asked = (self.labels(chunks) != NO_ANSWER).unsqueeze(-1)
        whole: Tensor = torch.nn.functional.pad(found, (0, 0, 0, missing)) * asked
        return whole

    def loss(self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
        """Over the words."""
        asked = (self.labels(chunks) != NO_ANSWER).sum().clamp_min(1)
        loss: Tensor = self.judge(model, chunks, indices, probabilities)[0].sum() / asked
        return loss

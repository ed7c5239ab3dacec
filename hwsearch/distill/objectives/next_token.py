"""A language model continues its text. Rows are [tokens + 1]: the labels are the inputs, one further."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from hwsearch.distill.data import Corpus, draw_chunks, standard_library, text_files
from hwsearch.distill.losses import head_kl, positionwise_kl
from hwsearch.distill.objectives.objective import Inputs, Plain, products, text_inputs
from hwsearch.distill.quantise import QuantisedLinear
from hwsearch.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwsearch.distill.job import TaskSpec


class NextToken(Plain):
    """Every position is asked for the next token.

    Args:
        tokenizer: of the teacher.

    Attributes:
        first: what every text begins with (Llama's and Mistral's `<s>`): what is deployed reads it.
    """

    inputs_a_chunk, rate = 1, 1.0

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.first = tokenizer, first_tokens(tokenizer)

    def read(self, spec: TaskSpec) -> Corpus:
        """Plain text; the standard library by default."""
        return read_text(spec)

    def draw(self, texts: Any, labels: Any, count: int, sequence: int, seed: int | None) -> NDArray[Any]:  # noqa: ARG002
        """Neighbouring chunks share a token; each begins as the tokenizer begins a text."""
        if (inside := sequence - len(self.first)) < 1:
            raise DataError(f"--sequence {sequence} leaves no room behind the tokens that a text begins with")
        chunks = draw_chunks(texts, self.tokenizer, count, inside, seed)
        return np.column_stack([np.tile(np.asarray(self.first, np.int64), (len(chunks), 1)), chunks])

    def labels(self, chunks: Any) -> Any:
        """The next tokens."""
        return chunks[:, 1:]

    def inputs(self, chunks: Tensor) -> Inputs:
        """Every position is read."""
        return text_inputs(chunks[:, :-1])

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of every next token."""
        logits: Tensor = model(input_ids=chunks[:, :-1], use_cache=False).logits
        return logits

    def loss(self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
        """Fused with the head."""
        hidden, weight = self._last(model, chunks)
        return head_kl(hidden.float(), weight, indices, probabilities)

    def judge(
        self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Some positions at a time."""
        hidden, weight = self._last(model, chunks)
        return positionwise_kl(hidden, weight, indices, probabilities)

    def _last(self, model: PreTrainedModel, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden states, [positions, width], and the head's weights."""
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        with products(chunks):
            hidden = model.base_model(input_ids=chunks[:, :-1], use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1)
        return head.rounded(hidden) if isinstance(head, QuantisedLinear) else (hidden, head.weight)


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer puts before a text by itself."""
    text = "a"
    whole = list(tokenizer(text)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return whole[: next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)]


def read_text(spec: TaskSpec) -> Corpus:
    """Plain text, or texts in rows; of the standard library where a spec names none.

    Raises:
        DataError: it cannot be read, or is too short.
    """
    if not spec.data:
        if spec.held_out:
            raise DataError("--eval is the held-out part of --data; give both")
        return standard_library()
    return text_files(Path(spec.data), Path(spec.held_out) if spec.held_out else None, spec.text_column)

"""A masked language model fills in what is hidden. Rows are token ids, and as many behind them: what was hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from hwsearch.distill.data import Corpus, draw_chunks
from hwsearch.distill.objectives.next_token import read_text
from hwsearch.distill.objectives.objective import Inputs, Plain, products, text_inputs
from hwsearch.distill.rows import NO_ANSWER
from hwsearch.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwsearch.distill.job import TaskSpec

HIDDEN = 0.15  # of the tokens: Devlin et al. 2019 (BERT, arXiv:1810.04805)


class MaskedToken(Plain):
    """As many tokens of each row are hidden, in places that stay the same: the teacher has been asked once.

    Args:
        tokenizer: of the teacher.
    """

    inputs_a_chunk = 1

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.mask = int(tokenizer.mask_token_id)

    def read(self, spec: TaskSpec) -> Corpus:
        """Plain text; the standard library by default."""
        return read_text(spec)

    def draw(self, texts: Any, labels: Any, count: int, sequence: int, seed: int | None) -> NDArray[Any]:  # noqa: ARG002
        """Chunks of running text between the tokens that the teacher begins and ends a text with."""
        before, after = ([int(i)] if i is not None else [] for i in self._ends())
        inside = sequence - len(before) - len(after)
        if inside < 2:
            raise DataError(f"--sequence {sequence} leaves no room between the tokens that a text begins and ends with")
        tokens = draw_chunks(texts, self.tokenizer, count, inside, seed)[:, :-1]
        rng, hidden = np.random.default_rng(seed or 0), max(1, round(HIDDEN * inside))
        places = np.sort(rng.random(tokens.shape).argsort(1)[:, :hidden], 1)
        truth = np.full_like(tokens, NO_ANSWER)
        np.put_along_axis(truth, places, np.take_along_axis(tokens, places, 1), 1)
        np.put_along_axis(tokens, places, self.mask, 1)
        first, last = (np.tile(np.asarray(end, np.int64), (len(tokens), 1)) for end in (before, after))
        nothing = (np.full_like(end, NO_ANSWER) for end in (first, last))
        return np.column_stack([first, tokens, last, next(nothing), truth, next(nothing)])

    def labels(self, chunks: Any) -> Any:
        """What was hidden, as many tokens in every row."""
        behind = chunks[:, chunks.shape[1] // 2 :]
        return behind[behind != NO_ANSWER].reshape(len(chunks), -1)

    def inputs(self, chunks: Tensor) -> Inputs:
        """Every position is read."""
        return text_inputs(chunks[:, : chunks.shape[1] // 2])

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of the hidden tokens: what stands on top of the layers is run on these alone."""
        inputs = self.inputs(chunks)
        asked = chunks[:, chunks.shape[1] // 2 :] != NO_ANSWER

        def few(module: Any, given: Any, found: Any) -> Any:  # noqa: ARG001
            found["last_hidden_state"] = found.last_hidden_state[asked].unflatten(0, (len(chunks), -1))
            return found

        handle = model.base_model.register_forward_hook(few)
        try:
            with products(chunks):
                return self.answer(model, inputs)
        finally:
            handle.remove()

    def _ends(self) -> tuple[int | None, int | None]:
        tokenizer = self.tokenizer
        return tokenizer.cls_token_id, tokenizer.sep_token_id

"""What a student is to do: which numbers go in, what the teacher says of them, and how far a student is from that.

The rows of a text's token ids are [tokens + 1]: the last column holds labels alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from hwsearch.distill.families import head_of
from hwsearch.distill.losses import head_kl, kl, positionwise_kl
from hwsearch.distill.quantise import QuantisedLinear
from hwsearch.errors import TeacherError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Objective(Protocol):
    """One kind of task.

    Attributes:
        inputs_a_chunk: short inputs that count as one chunk of a language model's text: of a batch, a data set.
        rate: learning rate over the recipe's.
    """

    inputs_a_chunk: int
    rate: float

    def classes(self, config: PretrainedConfig) -> int:
        """How many an answer is chosen from."""
        ...

    def labels(self, chunks: Any) -> Any:
        """What is to be said of each row of token ids, [rows, answers]; `UNLABELLED` where that is not known."""
        ...

    def inputs(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, [rows, tokens] each, int64."""
        ...

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """What a model says, [rows, answers, classes]."""
        ...

    def loss(self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
        """Mean KL to the teacher's `probabilities` of the classes `indices`, [rows x answers, k]; differentiable."""
        ...

    def judge(
        self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """KL to the teacher and the most likely class of each answer, [rows x answers] each."""
        ...


class NextToken:
    """A language model continues its text."""

    inputs_a_chunk, rate = 1, 1.0

    def classes(self, config: PretrainedConfig) -> int:
        """The vocabulary."""
        return int(config.vocab_size)

    def labels(self, chunks: Any) -> Any:
        """The next tokens."""
        return chunks[:, 1:]

    def inputs(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Every position is read."""
        return chunks[:, :-1], torch.ones_like(chunks[:, :-1])

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
        with _products(chunks):
            hidden = model.base_model(input_ids=chunks[:, :-1], use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1)
        return head.rounded(hidden) if isinstance(head, QuantisedLinear) else (hidden, head.weight)


class Classes:
    """A classifier gives each text a class; texts are padded at their end.

    The rate, 1.7e-4 with the recipe's, is the best of 0.8, 1.7, 2.8 and 4.2e-4 after 100 to 400 steps, for students of
    2 x 96 and of 4 x 64 in int8 of the teacher that `benchmarks/classifier.py` makes.

    Args:
        padding: the token that fills up.
    """

    inputs_a_chunk, rate = 4, 0.06

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def classes(self, config: PretrainedConfig) -> int:
        """The labels."""
        return len(config.id2label or ())

    def labels(self, chunks: Any) -> Any:
        """The class of each text."""
        return chunks[:, -1:]

    def inputs(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """No more than the longest text has."""
        there = chunks[:, :-1] != self.padding
        longest = int(there.sum(1).max())
        return chunks[:, :longest], there[:, :longest].long()

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of each text."""
        ids, mask = self.inputs(chunks)
        with _products(chunks):
            logits = model(input_ids=ids, attention_mask=mask).logits
        each: Tensor = logits.float().unsqueeze(1)
        return each

    def loss(self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
        """Over all classes."""
        return self.judge(model, chunks, indices, probabilities)[0].mean()

    def judge(
        self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Over all classes."""
        q = torch.softmax(self.logits(model, chunks).flatten(0, 1), -1)
        if indices.shape[1] == q.shape[1]:  # nothing is left over but what rounding has left
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return kl(q, indices, probabilities), q.argmax(-1)


def objective_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Objective:
    """What a checkpoint was made for.

    Raises:
        TeacherError: for nothing that is supported, or texts cannot be filled up.
    """
    if head_of(config) == "lm":
        return NextToken()
    if tokenizer.pad_token_id is None:
        raise TeacherError("the tokenizer has no padding token, which fills up short texts; set pad_token")
    return Classes(int(tokenizer.pad_token_id))


def _products(like: Tensor) -> torch.autocast:
    """Products in bfloat16 on a GPU, while a student trains; a processor has no faster ones."""
    enabled = like.device.type != "cpu" and torch.is_grad_enabled()
    return torch.autocast(like.device.type, torch.bfloat16, enabled=enabled)

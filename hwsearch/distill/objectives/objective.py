"""What an objective is: which numbers go in, what the teacher says of them, and how far a student is from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from hwsearch.distill.losses import kl
from hwsearch.distill.objectives.outputs import Outputs, TopK
from hwsearch.distill.rows import NO_ANSWER

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from hwsearch.distill.data import Corpus
    from hwsearch.distill.job import TaskSpec


# Of a model, by name: token ids, attention mask and the like, [rows, tokens] each, int64; of images their pixels,
# [rows, channels, height, width], float32.
Inputs = dict[str, Tensor]
Axes = tuple[Literal["batch", "sequence"], ...]  # the first of an input


class Objective(Protocol):
    """One kind of task. Rows of `chunks` are token ids, [rows, tokens], with what is to be said behind them.

    Attributes:
        inputs_a_chunk: short inputs that count as one chunk of a language model's text: of a batch, a data set.
        rate: learning rate over the recipe's.
        output: what a graph's output is called.
        axes: of a graph's inputs that a workload gives their size, by name.
        outputs: how a teacher's answers are kept.
    """

    inputs_a_chunk: int
    rate: float
    output: str
    axes: ClassVar[Mapping[str, Axes]]
    outputs: ClassVar[type[Outputs]]

    def read(self, spec: TaskSpec) -> Corpus:
        """The text that a spec names.

        Raises:
            DataError: it cannot be read, or is not of this kind.
        """
        ...

    def draw(self, texts: Any, labels: Any, count: int, sequence: int, seed: int | None) -> NDArray[Any]:
        """Up to `count` rows of chunks.

        Args:
            texts, labels: of one split.
            count: how many at most.
            sequence: tokens of an input.
            seed: of the draw; None takes them evenly.
        """
        ...

    def labels(self, chunks: Any) -> Any:
        """What is to be said of each row, [rows, answers]; `UNLABELLED` where that is not known, `NO_ANSWER` where
        nothing is asked."""
        ...

    def hits(
        self, chunks: NDArray[np.int64], labels: NDArray[np.int64], best: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which answers of a held-out set are right, and which are judged, [rows, answers] each.

        Args:
            chunks: of the whole set.
            labels: what is to be said.
            best: what was said.
        """
        ...

    def inputs(self, chunks: Tensor) -> Inputs:
        """What a model is given of some rows."""
        ...

    def blank(self, batch: int, sequence: int) -> Inputs:
        """Inputs of a shape that say nothing."""
        ...

    def lengths(self, chunks: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Tokens of each row, [rows]; None where all rows have as many."""
        ...

    def answer(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """What a model gives of its inputs, as a graph of it does."""
        ...

    def choices(self, answer: Tensor, inputs: Inputs) -> Tensor:
        """Logits of what such an answer to `inputs` chooses from, [answers, classes]."""
        ...

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """What a model says, [rows, answers, classes]."""
        ...

    def said(self, model: PreTrainedModel, chunks: Tensor) -> Outputs:
        """What a teacher says, to be kept."""
        ...

    def loss(self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
        """Mean KL to the teacher's `probabilities` of the classes `indices`, [rows x answers, k]; differentiable."""
        ...

    def judge(
        self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """KL to the teacher and the most likely class of each answer, [rows x answers] each."""
        ...

    def save(self, folder: Path, config: PretrainedConfig) -> None:
        """Write what a student's folder needs beside the model."""
        ...


class Plain:
    """What most objectives have in common: the logits are the answer, and every answer counts."""

    inputs_a_chunk, rate, output = 4, 0.06, "logits"
    axes: ClassVar[Mapping[str, Axes]] = dict.fromkeys(("input_ids", "attention_mask"), ("batch", "sequence"))
    outputs: ClassVar[type[Outputs]] = TopK

    def lengths(self, chunks: NDArray[np.int64]) -> NDArray[np.int64] | None:  # noqa: ARG002
        """Every row is full."""
        return None

    def hits(
        self,
        chunks: NDArray[np.int64],  # noqa: ARG002
        labels: NDArray[np.int64],
        best: NDArray[np.int64],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """What is the same, wherever something is asked."""
        return best == labels, labels != NO_ANSWER

    def blank(self, batch: int, sequence: int) -> Inputs:
        """The first token again and again."""
        return text_inputs(torch.zeros((batch, sequence), dtype=torch.int64))

    def answer(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """The model's logits."""
        logits: Tensor = model(**inputs).logits
        return logits

    def choices(self, answer: Tensor, inputs: Inputs) -> Tensor:  # noqa: ARG002
        """The answer itself."""
        return answer.reshape(-1, answer.shape[-1])

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of each input."""
        raise NotImplementedError

    def said(self, model: PreTrainedModel, chunks: Tensor) -> Outputs:
        """The likeliest classes."""
        return TopK.of(self.logits(model, chunks))

    def loss(self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
        """Over all answers."""
        return self.judge(model, chunks, indices, probabilities)[0].mean()

    def judge(
        self, model: PreTrainedModel, chunks: Tensor, indices: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Over all classes."""
        q = torch.softmax(self.logits(model, chunks).flatten(0, 1).float(), -1)
        return kl(q, indices, probabilities), q.argmax(-1)

    def save(self, folder: Path, config: PretrainedConfig) -> None:
        """Nothing."""


def text_inputs(ids: Tensor, mask: Tensor | None = None) -> Inputs:
    """Of token ids, all of them there by default."""
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}


def products(like: Tensor) -> torch.autocast:
    """All products in bfloat16 on a GPU, while a student trains. On a processor that has AMX a step of the embedded
    teacher's students takes 1.2 to 1.3 times as long so (`benchmarks/steps.py`); `distill.products` takes some alone.
    """
    enabled = like.device.type != "cpu" and torch.is_grad_enabled()
    return torch.autocast(like.device.type, torch.bfloat16, enabled=enabled)

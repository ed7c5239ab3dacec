"""What a teacher has said of some chunks, as it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOP_K = 32
JUDGED = 128  # rows that are judged together, at most
TEMPERATURE = 0.05  # of cosines, as in Gao et al. 2021 (SimCSE, arXiv:2104.08821)
NEVER = -1e4  # logit of a text beside itself


class Outputs(ABC):
    """A record of arrays whose first axis are rows of chunks."""

    @classmethod
    def join(cls, parts: Iterable[Self], count: int) -> Self:
        """The outputs on many blocks of chunks, `count` chunks in all, as one; a block is held no longer than it takes
        to copy it."""
        whole: dict[str, Any] = {}
        place = 0
        for part in parts:
            arrays = part.arrays()
            whole = whole or {name: np.empty((count, *array.shape[1:]), array.dtype) for name, array in arrays.items()}
            rows = len(next(iter(arrays.values())))
            for name, array in arrays.items():
                whole[name][place : place + rows] = array
            place += rows
        assert place == count
        return cls(**whole)

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file that `arrays` were written to."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return cls(**{entry.name: stored[entry.name] for entry in fields(cls)})  # type: ignore[arg-type]

    def arrays(self) -> dict[str, Any]:
        """All of the record's, by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]

    def some(self, rows: NDArray[np.int64]) -> Self:
        """Those on some of the chunks."""
        return type(self)(**{name: array[rows] for name, array in self.arrays().items()})

    @abstractmethod
    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Indices and probabilities of what the teacher says of some chunks, [chunks x answers, k], int64 and
        float32."""

    @abstractmethod
    def best(self) -> NDArray[np.int64]:
        """The teacher's answers, [chunks, answers], chunks being judged as `judged_together` has them."""


@dataclass(frozen=True)
class TopK(Outputs):
    """The likeliest classes; the rest counts as one mass (`losses.py`).

    Attributes:
        indices: the k most likely classes of each answer (next tokens of a language model), [chunks, answers, k].
        probabilities: of them, [chunks, answers, k], float16.
    """

    indices: NDArray[np.integer[Any]]
    probabilities: NDArray[np.float16]

    @classmethod
    def of(cls, logits: Tensor) -> TopK:
        """Of logits, [chunks, answers, classes]."""
        classes = logits.shape[-1]
        top = torch.softmax(logits.float(), -1).topk(min(TOP_K, classes))
        indices: Any = top.indices.cpu().numpy().astype(np.uint16 if classes <= 2**16 else np.int32)
        return cls(indices, top.values.cpu().numpy().astype(np.float16))

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """As they are kept."""
        k = self.indices.shape[-1]
        indices = torch.from_numpy(self.indices[rows].reshape(-1, k).astype(np.int64))
        return indices, torch.from_numpy(self.probabilities[rows].reshape(-1, k).astype(np.float32))

    def best(self) -> NDArray[np.int64]:
        """The first class of each."""
        return self.indices[:, :, 0].astype(np.int64)


@dataclass(frozen=True)
class Vectors(Outputs):
    """Embeddings, of unit length: what is said of a text is how near it lies to those of its batch.

    Attributes:
        vectors: [chunks, channels], float16.
    """

    vectors: NDArray[np.float16]

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Over the batch itself."""
        near = nearness(torch.from_numpy(self.vectors[rows].astype(np.float32)))
        return torch.arange(len(rows)).expand(len(rows), -1), near.softmax(-1)

    def best(self) -> NDArray[np.int64]:
        """The nearest of those that are judged together."""
        every = torch.from_numpy(self.vectors.astype(np.float32))
        groups = judged_together(len(every))
        return torch.cat([nearness(every[rows]).argmax(-1) for rows in groups]).unsqueeze(1).numpy()


def judged_together(count: int) -> list[NDArray[np.int64]]:
    """Rows in groups of about one size, no more than `JUDGED` in each: an embedding is set beside those of its
    group."""
    return np.array_split(np.arange(count), max(1, -(-count // JUDGED)))


def nearness(vectors: Tensor) -> Tensor:
    """Logits of which other text a text is nearest to, [texts, texts], of vectors of unit length, [texts, channels]."""
    near = vectors @ vectors.T / TEMPERATURE
    return near.masked_fill(torch.eye(len(near), dtype=torch.bool, device=near.device), NEVER)

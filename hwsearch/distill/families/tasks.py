"""What a checkpoint may have been made for, by the names that Transformers' pipelines have for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from hwsearch.architecture import Head

TaskName = Literal[
    "text-generation",
    "fill-mask",
    "text-classification",
    "token-classification",
    "sentence-similarity",
    "image-classification",
]


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
        head: what stands on top of such a model.
        auto_class: of Transformers, that loads it.
        metric: what quality is.
    """

    head: Head
    auto_class: str
    metric: str


TASKS: Mapping[TaskName, Kind] = {
    "text-generation": Kind("lm", "AutoModelForCausalLM", "next-token accuracy"),
    "fill-mask": Kind("lm", "AutoModelForMaskedLM", "masked-token accuracy"),
    "text-classification": Kind("classify", "AutoModelForSequenceClassification", "accuracy"),
    "token-classification": Kind("span", "AutoModelForTokenClassification", "accuracy of a word's tag"),
    "sentence-similarity": Kind("none", "AutoModel", "accuracy of the nearest of up to 128 texts"),
    "image-classification": Kind("classify", "AutoModelForImageClassification", "accuracy"),
}
assert set(TASKS) == set(get_args(TaskName))

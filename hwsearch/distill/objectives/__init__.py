"""What teachers are made for, one kind a file: `tasks.TASKS` has their names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from hwsearch.distill.families import image_of, task_of
from hwsearch.distill.families.tasks import TASKS
from hwsearch.distill.objectives.classes import Classes, Pairs, TypedPairs, names_of
from hwsearch.distill.objectives.image_classes import ImageClasses
from hwsearch.distill.objectives.masked_token import MaskedToken
from hwsearch.distill.objectives.neighbours import Neighbours, pooling_entries, pooling_of, settings_of
from hwsearch.distill.objectives.next_token import NextToken
from hwsearch.distill.objectives.objective import Objective
from hwsearch.distill.objectives.tags import Tags
from hwsearch.errors import TeacherError

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedTokenizerBase

    Processor = PreTrainedTokenizerBase | BaseImageProcessor


def objective_of(config: PretrainedConfig, processor: Processor, folder: Path, pairs: bool = False) -> Objective:
    """What a checkpoint was made for.

    Args:
        config: of the checkpoint.
        processor: the tokenizer of one that reads text, the image processor of one that sees images.
        folder: that it lies in.
        pairs: of texts are what a classifier reads.

    Raises:
        TeacherError: nothing that is supported, or its tokenizer lacks a token that this needs.
    """
    task, tokenizer = task_of(config), cast("PreTrainedTokenizerBase", processor)
    if TASKS[task].head in ("classify", "span"):
        kind = getattr(config, "problem_type", None) or ""
        if int(config.num_labels or 0) < 2 or kind in ("regression", "multi_label_classification"):
            what = kind.replace("_", " ") or "regression (one class)"
            raise TeacherError(f"a classifier that is a teacher chooses one of several classes; this one is for {what}")
    if (image := image_of(config.to_dict())) is not None:
        return ImageClasses(cast("BaseImageProcessor", processor), names_of(config), image)
    if task == "text-generation":
        return NextToken(tokenizer)
    if task == "fill-mask":
        if tokenizer.mask_token_id is None:
            raise TeacherError("the tokenizer has no token that hides another; set mask_token")
        return MaskedToken(tokenizer)
    if tokenizer.pad_token_id is None:
        raise TeacherError("the tokenizer has no padding token, which fills up short texts; set pad_token")
    if task == "sentence-similarity":
        return Neighbours(tokenizer, pooling_of(folder), settings_of(folder), pooling_entries(folder))
    if task == "token-classification":
        if not tokenizer.is_fast:
            raise TeacherError("the tokenizer does not say which word a token is of; save a fast one beside the model")
        return Tags(tokenizer, names_of(config))
    if not pairs:
        return Classes(tokenizer, names_of(config))
    typed = "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1
    return (TypedPairs if typed and tokenizer.sep_token_id is not None else Pairs)(tokenizer, names_of(config))

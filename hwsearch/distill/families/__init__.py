"""Model families, as data: which axis of which weight is width, head, key-value head, feed-forward unit or vocabulary.

Everything that cuts a student out of a teacher goes through this table; a family that shares Llama's layout is one more
name in it. Students are stock configurations of the teacher's own class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hwsearch.architecture import Architecture, Layer
from hwsearch.distill.families.bert import BERT
from hwsearch.distill.families.distilbert import DISTILBERT
from hwsearch.distill.families.family import Family, Top
from hwsearch.distill.families.gpt2 import GPT2
from hwsearch.distill.families.llama import LLAMA
from hwsearch.distill.families.modernbert import MODERNBERT
from hwsearch.distill.families.roberta import ROBERTA
from hwsearch.distill.families.tasks import TASKS, TaskName
from hwsearch.distill.families.vit import DEIT, VIT
from hwsearch.errors import TeacherError
from hwsearch.files import read_json
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Image(NamedTuple):
    """What an image classifier sees.

    Attributes:
        shape: channels, height and width of an image.
        tokens: that it is read as.
        patch: values of a patch, each of which is one token.
    """

    shape: tuple[int, int, int]
    tokens: int
    patch: int


FAMILIES = (LLAMA, GPT2, BERT, ROBERTA, DISTILBERT, MODERNBERT, VIT, DEIT)
BATCH = 32  # rows of a pass, fewer where these are long or there is much to choose from
VALUES = 2**26  # of the widest tensor of a pass: 256 MiB in float32


def family_of(config: PretrainedConfig) -> Family:
    """The family of a Transformers configuration, with what its class has on top.

    Raises:
        TeacherError: none that is supported.
    """
    return _under(_family(config), _top(config))


def task_of(config: PretrainedConfig) -> TaskName:
    """What a checkpoint was made for; a configuration that does not say is of the family's first kind.

    Raises:
        TeacherError: nothing that is supported.
    """
    return _top(config).task


def tasks_of(config: PretrainedConfig) -> tuple[TaskName, ...]:
    """What checkpoints of this type may have been made for."""
    return tuple(top.task for top in _family(config).tops.values())


def check_type(model_type: object) -> Family:
    """The family of a configuration's `model_type`.

    Raises:
        TeacherError: none that is supported.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise TeacherError(f"teachers are checkpoints of the types {known}; this one is a {model_type!r}")


def _family(config: PretrainedConfig) -> Family:
    return check_type(config.model_type)


def _top(config: PretrainedConfig) -> Top:
    tops = _family(config).tops
    names = list(getattr(config, "architectures", None) or tops)
    for end, top in tops.items():
        if any(name.endswith(end) for name in names):
            return top
    kinds = ", ".join(f"...{end}" for end in tops)
    raise TeacherError(f"teachers of the type {config.model_type} are {kinds}; this checkpoint is a {names[0]}")


@cache
def _under(family: Family, top: Top) -> Family:
    return family.under(top)


def head_dim_of(config: PretrainedConfig) -> int:
    """Channels of a head; older configurations leave it to width / heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def attention_of(config: PretrainedConfig) -> str:
    """How attention is computed. Padding that sees nothing, as an encoder's window leaves it, is given something else
    by fused attention than by a graph, and has a part in the ranges of activations: there it is computed plainly."""
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return "eager" if windows and family_of(config).block == "encoder" else "sdpa"


def longest_of(config: PretrainedConfig) -> int | None:
    """Tokens that a checkpoint reads at most, where that is limited."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    return int(limit) - (int(config.pad_token_id or 0) + 1 if family_of(config).positions_behind_padding else 0)


def image_of(entries: Mapping[str, Any]) -> Image | None:
    """What a checkpoint sees, by the entries of its configuration; None where it reads text."""
    family = next((f for f in FAMILIES if entries.get("model_type") in f.model_types), None)
    if family is None or not family.before_patches:
        return None

    def sides(size: int | Sequence[int]) -> tuple[int, int]:
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    (height, width), patch = sides(entries.get("image_size", 224)), sides(entries.get("patch_size", 16))
    channels = int(entries.get("num_channels", 3))
    tokens = (height // patch[0]) * (width // patch[1]) + family.before_patches
    return Image((channels, height, width), tokens, channels * patch[0] * patch[1])


def image_at(folder: Path) -> Image | None:
    """What the checkpoint in a folder sees; None where it reads text, or there is none."""
    return image_of(read_json(folder / "config.json")) if (folder / "config.json").is_file() else None


def rows_at_once(config: PretrainedConfig, columns: int, most: int = BATCH, backward: bool = False) -> int:
    """Rows of so many tokens, or images, that a model takes in one pass: as many as keep the widest tensor, logits, a
    feed-forward part's or what plain attention looks at, within `VALUES`, and no more than `most`. Where gradients are
    to pass `backward`, what all layers look at is kept."""
    sizes, image = architecture_of(config, Precision.FP32), image_of(config.to_dict())
    widest = max(sizes.layers[0].ffn, sizes.width, sizes.vocab if sizes.head == "lm" else 0)
    if attention_of(config) == "eager":
        widest = max(widest, sizes.layers[0].heads * columns * (sizes.depth if backward else 1))
    return max(1, min(most, VALUES // ((image.tokens if image else columns) * widest)))


def architecture_of(config: PretrainedConfig, precision: Precision) -> Architecture:
    """The architecture of a checkpoint with every part in one float precision."""
    family = family_of(config)
    sizes = {entry: getattr(config, name) for entry, name in family.entries.items()}
    heads, ffn = int(sizes["heads"]), int(sizes["ffn"] or 4 * sizes["width"])  # as GPT-2 reads a missing one
    head, image = TASKS[task_of(config)].head, image_of(config.to_dict())
    layer = Layer(heads, int(getattr(config, "num_key_value_heads", None) or heads), ffn, precision, precision)
    return Architecture(
        block=family.block,
        width=int(sizes["width"]),
        head_dim=head_dim_of(config),
        layers=(layer,) * int(sizes["depth"]),
        gated_ffn=family.gated_ffn,
        norm=family.norm,
        tied=bool(getattr(config, "tie_word_embeddings", False)) and head == "lm",
        vocab=0 if image else int(config.vocab_size),
        patch=image.patch if image else 0,
        head=head,
        head_precision=precision,
        embedding_precision=precision,
        kv_precision=precision,
    )


def config_of(
    architecture: Architecture, teacher: PretrainedConfig, layers: Sequence[int] | None = None
) -> PretrainedConfig:
    """The stock configuration of a student: the teacher's with the student's sizes. Where layers attend in several
    ways, each does as the teacher's behind it; without `layers` they follow the family's own pattern."""
    first, family = architecture.layers[0], family_of(teacher)
    entries = teacher.to_dict()
    sizes = {"width": architecture.width, "depth": architecture.depth, "heads": first.heads, "ffn": first.ffn}
    entries |= {name: sizes[entry] for entry, name in family.entries.items()}
    if architecture.head == "lm":
        entries["tie_word_embeddings"] = architecture.tied
    if family.own_head_dim:
        entries.update(num_key_value_heads=first.kv_heads, head_dim=architecture.head_dim)
    if layers is not None and entries.get("layer_types"):
        entries["layer_types"] = [entries["layer_types"][layer] for layer in layers]
    elif architecture.depth != getattr(teacher, family.entries["depth"]):
        entries.pop("layer_types", None)
    return type(teacher).from_dict(entries)

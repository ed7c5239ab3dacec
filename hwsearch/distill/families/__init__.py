"""Model families, as data: which axis of which weight is width, head, key-value head, feed-forward unit or vocabulary.

Everything that cuts a student out of a teacher goes through this table; a family that shares Llama's layout is one more
name in it. Students are stock configurations of the teacher's own class.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from hwsearch.architecture import Architecture, Layer
from hwsearch.distill.families.bert import BERT
from hwsearch.distill.families.distilbert import DISTILBERT
from hwsearch.distill.families.family import Family, Top
from hwsearch.distill.families.gpt2 import GPT2
from hwsearch.distill.families.llama import LLAMA
from hwsearch.distill.families.modernbert import MODERNBERT
from hwsearch.distill.families.roberta import ROBERTA
from hwsearch.distill.families.tasks import TASKS, TaskName
from hwsearch.errors import TeacherError
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES = (LLAMA, GPT2, BERT, ROBERTA, DISTILBERT, MODERNBERT)


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


def _family(config: PretrainedConfig) -> Family:
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise TeacherError(f"teachers are checkpoints of the types {known}; this one is a {config.model_type!r}")


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
    return None if limit is None else int(limit) - family_of(config).first_position


def architecture_of(config: PretrainedConfig, precision: Precision) -> Architecture:
    """The architecture of a checkpoint with every part in one float precision."""
    family = family_of(config)
    sizes = {entry: getattr(config, name) for entry, name in family.entries.items()}
    heads, ffn = int(sizes["heads"]), int(sizes["ffn"] or 4 * sizes["width"])  # as GPT-2 reads a missing one
    head = TASKS[task_of(config)].head
    layer = Layer(heads, int(getattr(config, "num_key_value_heads", None) or heads), ffn, precision, precision)
    return Architecture(
        block=family.block,
        width=int(sizes["width"]),
        head_dim=head_dim_of(config),
        layers=(layer,) * int(sizes["depth"]),
        gated_ffn=family.gated_ffn,
        norm=family.norm,
        tied=bool(config.tie_word_embeddings) and head == "lm",
        vocab=int(config.vocab_size),
        head=head,
        head_precision=precision,
        embedding_precision=precision,
        kv_precision=precision,
    )


def config_of(architecture: Architecture, teacher: PretrainedConfig) -> PretrainedConfig:
    """The stock configuration of a student: the teacher's with the student's sizes."""
    first, family = architecture.layers[0], family_of(teacher)
    entries = teacher.to_dict()
    sizes = {"width": architecture.width, "depth": architecture.depth, "heads": first.heads, "ffn": first.ffn}
    entries |= {name: sizes[entry] for entry, name in family.entries.items()}
    if architecture.head == "lm":
        entries["tie_word_embeddings"] = architecture.tied
    if family.own_head_dim:
        entries.update(num_key_value_heads=first.kv_heads, head_dim=architecture.head_dim)
    if architecture.depth != getattr(teacher, family.entries["depth"]):
        entries.pop("layer_types", None)  # of the teacher's layers, one by one: fewer follow the family's own pattern
    return type(teacher).from_dict(entries)

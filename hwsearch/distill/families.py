"""Model families, as data: which axis of which weight is width, head, key-value head, feed-forward unit or vocabulary.

Everything that cuts a student out of a teacher goes through this table; a family that shares Llama's layout is one more
name in it. Students are stock configurations of the teacher's own class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hwsearch.architecture import Architecture, Layer, Norm
from hwsearch.errors import TeacherError
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Axis = Literal["vocab", "width", "head", "kv_head", "ffn"]


@dataclass(frozen=True)
class Family:
    """One layout of weights.

    Attributes:
        model_types: `model_type` of the Transformers configurations that have it.
        norm: which normalisation it uses.
        gated_ffn: whether a third matrix gates the feed-forward part.
        shared: axes of the weights outside the layers, by name.
        layer: axes of the weights of a layer, by name behind "model.layers.N.".
    """

    model_types: tuple[str, ...]
    norm: Norm
    gated_ffn: bool
    shared: Mapping[str, tuple[Axis, ...]]
    layer: Mapping[str, tuple[Axis, ...]]
    prefix: str = "model.layers."

    def axes(self, name: str) -> tuple[int | None, tuple[Axis, ...]]:
        """The layer that a weight belongs to (None outside the layers) and what its axes are.

        Raises:
            TeacherError: the family has no such weight.
        """
        if name in self.shared:
            return None, self.shared[name]
        if name.startswith(self.prefix):
            number, _, rest = name.removeprefix(self.prefix).partition(".")
            if number.isdigit() and rest in self.layer:
                return int(number), self.layer[rest]
        raise TeacherError(f"a {self.model_types[0]} checkpoint has no weight {name!r}; is it of another family?")


LLAMA = Family(
    model_types=("llama", "qwen2", "mistral"),
    norm="rmsnorm",
    gated_ffn=True,
    shared={
        "model.embed_tokens.weight": ("vocab", "width"),
        "model.norm.weight": ("width",),
        "lm_head.weight": ("vocab", "width"),
    },
    layer={
        "input_layernorm.weight": ("width",),
        "self_attn.q_proj.weight": ("head", "width"),
        "self_attn.q_proj.bias": ("head",),
        "self_attn.k_proj.weight": ("kv_head", "width"),
        "self_attn.k_proj.bias": ("kv_head",),
        "self_attn.v_proj.weight": ("kv_head", "width"),
        "self_attn.v_proj.bias": ("kv_head",),
        "self_attn.o_proj.weight": ("width", "head"),
        "self_attn.o_proj.bias": ("width",),
        "post_attention_layernorm.weight": ("width",),
        "mlp.gate_proj.weight": ("ffn", "width"),
        "mlp.up_proj.weight": ("ffn", "width"),
        "mlp.down_proj.weight": ("width", "ffn"),
    },
)
FAMILIES = (LLAMA,)
ATTENTION_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD_LINEARS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def family_of(config: PretrainedConfig) -> Family:
    """The family of a Transformers configuration.

    Raises:
        TeacherError: none that is supported.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise TeacherError(
        f"teachers are causal language models of the types {known}; this checkpoint is a {config.model_type!r}"
    )


def head_dim_of(config: PretrainedConfig) -> int:
    """Channels of a head; older configurations leave it to width / heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def architecture_of(config: PretrainedConfig, precision: Precision) -> Architecture:
    """The architecture of a checkpoint with every part in one float precision."""
    family = family_of(config)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    layer = Layer(int(config.num_attention_heads), kv_heads, int(config.intermediate_size), precision, precision)
    return Architecture(
        block="decoder",
        width=int(config.hidden_size),
        head_dim=head_dim_of(config),
        layers=(layer,) * int(config.num_hidden_layers),
        gated_ffn=family.gated_ffn,
        norm=family.norm,
        tied=bool(config.tie_word_embeddings),
        vocab=int(config.vocab_size),
        head="lm",
        head_precision=precision,
        embedding_precision=precision,
        kv_precision=precision,
    )


def config_of(architecture: Architecture, teacher: PretrainedConfig) -> PretrainedConfig:
    """The stock configuration of a student: the teacher's with the student's sizes."""
    first = architecture.layers[0]
    entries = teacher.to_dict()
    entries.update(
        hidden_size=architecture.width,
        num_hidden_layers=architecture.depth,
        num_attention_heads=first.heads,
        num_key_value_heads=first.kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=first.ffn,
        tie_word_embeddings=architecture.tied,
    )
    for name in ("layer_types", "max_window_layers", "sliding_window"):
        entries.pop(name, None)  # describe the teacher's layers one by one
    return type(teacher).from_dict(entries)

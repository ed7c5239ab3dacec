"""Model families, as data: which axis of which weight is width, head, key-value head, feed-forward unit or vocabulary.

Everything that cuts a student out of a teacher goes through this table; a family that shares Llama's layout is one more
name in it. Students are stock configurations of the teacher's own class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hwsearch.architecture import Architecture, Block, Head, Layer, Norm
from hwsearch.errors import TeacherError
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

Axis = Literal["vocab", "width", "head", "kv_head", "ffn", "pooled", "whole"]


@dataclass(frozen=True)
class Family:
    """One layout of weights. Names are of modules and weights as `named_parameters` has them.

    Attributes:
        model_types: `model_type` of the Transformers configurations that have it.
        tasks: ends of the class names in a configuration's `architectures`, with the head that such a class has.
        block: what attends to what.
        norm: which normalisation it uses.
        gated_ffn: whether a third matrix gates the feed-forward part.
        rotates: whether a rotation of the residual stream can be folded into the weights: norms that know no direction,
            before the parts and not after them. Else a narrower student keeps the most important channels.
        own_head_dim: whether configurations state the size of a head; else the heads share the width among them.
        layers: the module that holds the layers.
        attention, feed_forward: linear layers of a part, by name in a layer; the last of them writes to the stream.
        reads: beginning of the names of weights that read the residual stream (or what a classifier pools of it), and
            the module whose input it is that they read: a norm, where they read through one. In a layer, or outside.
        shared: axes of the weights outside the layers, by name.
        layer: axes of the weights of a layer, by name in it.
    """

    model_types: tuple[str, ...]
    tasks: Mapping[str, Head]
    block: Block
    norm: Norm
    gated_ffn: bool
    rotates: bool
    own_head_dim: bool
    layers: str
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    reads: Mapping[str, str]
    shared: Mapping[str, tuple[Axis, ...]]
    layer: Mapping[str, tuple[Axis, ...]]

    def axes(self, name: str) -> tuple[int | None, tuple[Axis, ...]]:
        """The layer that a weight belongs to (None outside the layers) and what its axes are.

        Raises:
            TeacherError: the family has no such weight.
        """
        layer, rest = self.place(name)
        known = self.shared if layer is None else self.layer
        if rest not in known:
            raise TeacherError(f"a {self.model_types[0]} checkpoint has no weight {name!r}; is it of another family?")
        return layer, known[rest]

    def place(self, name: str) -> tuple[int | None, str]:
        """The layer that a weight belongs to, and its name there; None and its whole name outside the layers."""
        number, _, rest = name.removeprefix(f"{self.layers}.").partition(".")
        return (int(number), rest) if name.startswith(self.layers) and number.isdigit() else (None, name)

    def named(self, layer: int | None, name: str) -> str:
        """The whole name of what is called `name` in a layer."""
        return name if layer is None else f"{self.layers}.{layer}.{name}"

    def read_by(self, name: str) -> str | None:
        """The module whose input a weight reads, where that is the residual stream or what is pooled of it."""
        layer, rest = self.place(name)
        found = next((module for start, module in self.reads.items() if rest.startswith(start)), None)
        return None if found is None else self.named(layer, found)

    def layers_of(self, model: PreTrainedModel) -> list[nn.Module]:
        """The layers of a model."""
        return list(model.get_submodule(self.layers).children())


LLAMA = Family(
    model_types=("llama", "qwen2", "mistral"),
    tasks={"ForCausalLM": "lm"},
    block="decoder",
    norm="rmsnorm",
    gated_ffn=True,
    rotates=True,
    own_head_dim=True,
    layers="model.layers",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    feed_forward=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    reads={
        "self_attn.q_proj": "input_layernorm",
        "self_attn.k_proj": "input_layernorm",
        "self_attn.v_proj": "input_layernorm",
        "mlp.gate_proj": "post_attention_layernorm",
        "mlp.up_proj": "post_attention_layernorm",
        "lm_head": "model.norm",
    },
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
BERT = Family(
    model_types=("bert",),
    tasks={"ForSequenceClassification": "classify"},
    block="encoder",
    norm="layernorm",
    gated_ffn=False,
    rotates=False,
    own_head_dim=False,
    layers="bert.encoder.layer",
    attention=("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    feed_forward=("intermediate.dense", "output.dense"),
    reads={
        "attention.self": "attention.self.query",
        "intermediate": "intermediate.dense",
        "bert.pooler": "bert.pooler.dense",
        "classifier": "classifier",
    },
    shared={
        "bert.embeddings.word_embeddings.weight": ("vocab", "width"),
        "bert.embeddings.position_embeddings.weight": ("whole", "width"),
        "bert.embeddings.token_type_embeddings.weight": ("whole", "width"),
        "bert.embeddings.LayerNorm.weight": ("width",),
        "bert.embeddings.LayerNorm.bias": ("width",),
        "bert.pooler.dense.weight": ("pooled", "width"),
        "bert.pooler.dense.bias": ("pooled",),
        "classifier.weight": ("whole", "pooled"),
        "classifier.bias": ("whole",),
    },
    layer={
        "attention.self.query.weight": ("head", "width"),
        "attention.self.query.bias": ("head",),
        "attention.self.key.weight": ("head", "width"),
        "attention.self.key.bias": ("head",),
        "attention.self.value.weight": ("head", "width"),
        "attention.self.value.bias": ("head",),
        "attention.output.dense.weight": ("width", "head"),
        "attention.output.dense.bias": ("width",),
        "attention.output.LayerNorm.weight": ("width",),
        "attention.output.LayerNorm.bias": ("width",),
        "intermediate.dense.weight": ("ffn", "width"),
        "intermediate.dense.bias": ("ffn",),
        "output.dense.weight": ("width", "ffn"),
        "output.dense.bias": ("width",),
        "output.LayerNorm.weight": ("width",),
        "output.LayerNorm.bias": ("width",),
    },
)
FAMILIES = (LLAMA, BERT)


def family_of(config: PretrainedConfig) -> Family:
    """The family of a Transformers configuration.

    Raises:
        TeacherError: none that is supported.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise TeacherError(f"teachers are checkpoints of the types {known}; this one is a {config.model_type!r}")


def head_of(config: PretrainedConfig) -> Head:
    """What stands on top of a checkpoint; a configuration that does not say is of the family's first kind.

    Raises:
        TeacherError: nothing that is supported.
    """
    tasks = family_of(config).tasks
    names = list(getattr(config, "architectures", None) or tasks)
    for end, head in tasks.items():
        if any(name.endswith(end) for name in names):
            return head
    kinds = ", ".join(f"...{end}" for end in tasks)
    raise TeacherError(f"teachers of the type {config.model_type} are {kinds}; this checkpoint is a {names[0]}")


def head_dim_of(config: PretrainedConfig) -> int:
    """Channels of a head; older configurations leave it to width / heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def architecture_of(config: PretrainedConfig, precision: Precision) -> Architecture:
    """The architecture of a checkpoint with every part in one float precision."""
    family = family_of(config)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    layer = Layer(int(config.num_attention_heads), kv_heads, int(config.intermediate_size), precision, precision)
    return Architecture(
        block=family.block,
        width=int(config.hidden_size),
        head_dim=head_dim_of(config),
        layers=(layer,) * int(config.num_hidden_layers),
        gated_ffn=family.gated_ffn,
        norm=family.norm,
        tied=bool(config.tie_word_embeddings) and head_of(config) == "lm",
        vocab=int(config.vocab_size),
        head=head_of(config),
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
        intermediate_size=first.ffn,
    )
    if architecture.head == "lm":
        entries["tie_word_embeddings"] = architecture.tied
    if family_of(teacher).own_head_dim:
        entries.update(num_key_value_heads=first.kv_heads, head_dim=architecture.head_dim)
    for name in ("layer_types", "max_window_layers", "sliding_window"):
        entries.pop(name, None)  # describe the teacher's layers one by one
    return type(teacher).from_dict(entries)

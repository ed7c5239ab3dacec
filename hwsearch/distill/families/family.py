"""What a family of models is: one layout of weights, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from hwsearch.architecture import Block, Norm
from hwsearch.distill.families.tasks import TaskName
from hwsearch.errors import TeacherError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Axis = Literal["vocab", "width", "head", "kv_head", "qkv", "ffn", "gate_up", "pooled", "whole"]
Entry = Literal["width", "depth", "heads", "ffn"]
ENTRIES: Mapping[Entry, str] = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
}


@dataclass(frozen=True, eq=False)
class Top:
    """What a class of models has on top of its layers.

    Attributes:
        task: that it is for.
        shared: axes of the weights there, by name.
        reads: as of `Family`, of these weights.
    """

    task: TaskName
    shared: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Family:
    """One layout of weights. Names are of modules and weights as `named_parameters` has them.

    Attributes:
        model_types: `model_type` of the Transformers configurations that have it.
        base: the module that holds all but the top; classes without a top are this module itself.
        tops: ends of the class names in a configuration's `architectures`, with what such a class has on top.
        block: what attends to what.
        norm: which normalisation it uses.
        gated_ffn: whether a third matrix gates the feed-forward part.
        rotates: whether a narrower student's residual stream is the teacher's, rotated: all norms stand before the
            parts, or all `behind` them. Else it keeps the most important channels.
        own_head_dim: whether configurations state the size of a head; else the heads share the width among them.
        layers: the module that holds the layers.
        attention, feed_forward: linear layers of a part, by name in a layer; the last of them writes to the stream.
        reads: beginning of the names of weights that read the residual stream (or what a classifier pools of it), and
            the module whose input it is that they read: a norm, where they read through one. In a layer, or outside.
        shared: axes of the weights outside the layers, by name.
        layer: axes of the weights of a layer, by name in it. "qkv" and "gate_up" hold the channels of query, key and
            value, or of gate and value, one after another; "pooled" channels are what a top makes of the stream, the
            stream's own where it shares the embedding's weights.
        behind: norms behind the embeddings (outside the layers), attention and the feed-forward part (in a layer);
            none where norms stand before the parts.
        transposed: whether the matrices of a layer have the input first.
        entries: names of a configuration's sizes.
        positions_behind_padding: whether the first position's embedding stands behind that of the padding's number.
        before_patches: positions that stand before an image's patches; 0 for families that read text.
    """

    model_types: tuple[str, ...]
    base: str
    tops: Mapping[str, Top]
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
    behind: tuple[str, ...] = ()
    transposed: bool = False
    entries: Mapping[Entry, str] = field(default_factory=lambda: ENTRIES)
    positions_behind_padding: bool = False
    before_patches: int = 0

    def under(self, top: Top) -> Family:
        """The family's models that have this on top."""
        family = replace(self, shared={**self.shared, **top.shared}, reads={**self.reads, **top.reads})
        if top.task != "sentence-similarity":
            return family

        def bare(name: str) -> str:
            return name.removeprefix(f"{self.base}.")

        shared = {bare(name): axes for name, axes in family.shared.items()}
        reads = {bare(start): bare(module) for start, module in family.reads.items()}
        behind = tuple(bare(name) for name in self.behind)
        return replace(family, layers=bare(self.layers), shared=shared, reads=reads, behind=behind)

    @property
    def centres(self) -> bool:
        """Whether norms before the parts leave the mean of the stream out."""
        return self.norm == "layernorm" and not self.behind

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

    def input_axis(self, name: str) -> int:
        """Which axis of a matrix its input is."""
        return 0 if self.transposed and self.place(name)[0] is not None else 1

    def read_by(self, name: str) -> str | None:
        """The module whose input a weight reads, where that is the residual stream or what is pooled of it."""
        layer, rest = self.place(name)
        found = next((module for start, module in self.reads.items() if rest.startswith(start)), None)
        return None if found is None else self.named(layer, found)

    def norms_behind(self, depth: int) -> tuple[str, ...]:
        """The norms behind the embeddings and behind every part of a model, as they come."""
        first, *others = self.behind
        return (first, *(self.named(layer, name) for layer in range(depth) for name in others))

    def layers_of(self, model: PreTrainedModel) -> list[nn.Module]:
        """The layers of a model."""
        return list(model.get_submodule(self.layers).children())

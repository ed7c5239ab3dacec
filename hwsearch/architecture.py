"""What a transformer looks like to the rest of the house: a small frozen value, hashable, with a short text id.

An architecture says nothing about weights, teachers or devices. Everything that prices, builds, stores or prints a
network takes one of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from hwsearch.errors import ArchitectureError
from hwsearch.precision import Precision

MOST_LAYERS, LARGEST = 1000, 2**24  # beyond which a number is a slip of the hand
Block = Literal["encoder", "decoder"]
Head = Literal["none", "classify", "span", "lm"]
Norm = Literal["layernorm", "rmsnorm"]


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One transformer layer.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads; divides `heads`.
        ffn: inner size of the feed-forward part.
        attention: precision of the four projections of the attention part.
        feed_forward: precision of the feed-forward part's matrices.
    """

    heads: int
    kv_heads: int
    ffn: int
    attention: Precision
    feed_forward: Precision

    @property
    def shape(self) -> tuple[int, int, int]:
        """What the layer is without its precision: (heads, kv_heads, ffn)."""
        return (self.heads, self.kv_heads, self.ffn)


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transformer's shape and the precision of each of its parts.

    Attributes:
        block: "encoder" (every token sees every token) or "decoder" (causal).
        width: channels of the residual stream.
        head_dim: channels of one head.
        layers: first to last.
        gated_ffn: whether the feed-forward part has a third matrix that gates the first (SwiGLU, GeGLU).
        norm: which normalisation stands before or after each part.
        tied: whether the output head shares the embedding's weights.
        vocab: rows of the embedding; 0 where the network reads no token ids.
        patch: values of an image's patch, each of which is a token; 0 where the network reads no images.
        head: what stands on top: nothing, a pooled classifier, start and end of a span, or a language model's logits.
        head_precision, embedding_precision, kv_precision: of the head's matrix, the embedding table and the cached keys
            and values.
    """

    block: Block
    width: int
    head_dim: int
    layers: tuple[Layer, ...]
    gated_ffn: bool = False
    norm: Norm = "layernorm"
    tied: bool = True
    vocab: int = 0
    head: Head = "none"
    head_precision: Precision = Precision.FP32
    embedding_precision: Precision = Precision.FP32
    kv_precision: Precision = Precision.FP32
    patch: int = 0

    def __post_init__(self) -> None:
        if not self.layers or min(self.width, self.head_dim) < 1:
            raise ArchitectureError(
                f"an architecture has at least one layer and positive sizes; got {len(self.layers)} layers, "
                f"width {self.width}, head_dim {self.head_dim}"
            )
        if self.patch < 0 or (self.patch and (self.vocab or self.block == "decoder")):
            raise ArchitectureError(
                f"a network of images is an encoder without a vocabulary; got patch {self.patch}, vocab {self.vocab}, "
                f"block {self.block}"
            )
        if self.vocab < 0 or (self.head == "lm" and self.vocab < 1):
            raise ArchitectureError(
                f"a language model's head needs a vocabulary; got vocab {self.vocab} with head {self.head!r}"
            )
        sizes = [self.width, self.vocab, self.patch, *(size for layer in self.layers for size in layer.shape)]
        if len(self.layers) > MOST_LAYERS or max(*sizes, self.head_dim) > LARGEST:
            raise ArchitectureError(
                f"an architecture has at most {MOST_LAYERS} layers and sizes of at most {LARGEST:,}; "
                f"got {len(self.layers)} layers and a size of {max(*sizes, self.head_dim):,}"
            )
        for layer in self.layers:
            if min(layer.shape) < 1 or layer.heads % layer.kv_heads:
                raise ArchitectureError(
                    "a layer has positive sizes and kv_heads that divide heads; "
                    f"got heads {layer.heads}, kv_heads {layer.kv_heads}, ffn {layer.ffn}"
                )

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return len(self.layers)

    @property
    def parts(self) -> tuple[Precision, ...]:
        """Precisions of attention and feed-forward of each layer in turn, and of a language model's head."""
        own = tuple(p for layer in self.layers for p in (layer.attention, layer.feed_forward))
        return (*own, self.head_precision) if self.head == "lm" else own

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same shape, which stock Transformers needs; precision may differ."""
        return all(layer.shape == self.layers[0].shape for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights in all: matrices, norms, embedding and head (a tied head counts once). Biases are left out."""
        total = (self.vocab + self.patch) * self.width
        norm = self.width * (2 if self.norm == "layernorm" else 1)
        for layer in self.layers:
            total += (2 * layer.heads + 2 * layer.kv_heads) * self.head_dim * self.width
            total += (3 if self.gated_ffn else 2) * self.width * layer.ffn + 2 * norm
        if self.head == "lm":
            total += norm + (0 if self.tied else self.vocab * self.width)
        elif self.head == "classify":
            total += self.width * self.width + 2 * self.width
        elif self.head == "span":
            total += 2 * self.width
        return total

    @property
    def size_mib(self) -> float:
        """Size of the stored weights in MiB, every part in its precision."""
        bits = (self.vocab + self.patch) * self.width * self.embedding_precision.weight_bits
        for layer in self.layers:
            attention = (2 * layer.heads + 2 * layer.kv_heads) * self.head_dim * self.width
            feed_forward = (3 if self.gated_ffn else 2) * self.width * layer.ffn
            bits += attention * layer.attention.weight_bits + feed_forward * layer.feed_forward.weight_bits
        if self.head == "lm" and not (self.tied and self.head_precision.is_float):  # a rounded one stands beside
            bits += self.vocab * self.width * self.head_precision.weight_bits
        elif self.head == "classify":
            bits += self.width * self.width * self.head_precision.weight_bits
        return bits / 8 / 2**20

    @property
    def id(self) -> str:
        """A short text that names it, as in "decoder-4x128-h4.2-f320-int8*3,fp16-3c9e": depth x width, heads and
        key-value heads, feed-forward size, precisions, and four hex digits of a hash over everything.
        """
        first = self.layers[0]
        heads = f"h{first.heads}" if first.heads == first.kv_heads else f"h{first.heads}.{first.kv_heads}"
        shape = f"{heads}-f{first.ffn}" if self.uniform else "mixed"
        return f"{self.block}-{self.depth}x{self.width}-{shape}-{self.precision_text}-{self.digest[:4]}"

    @property
    def digest(self) -> str:
        """A hash over everything, 12 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self._plain)).hexdigest()[:12]

    @property
    def precision_text(self) -> str:
        """Precisions of the layers in runs, as in "int8*2,int8/fp16,fp16*3" (attention/feed-forward where they
        differ), and of the head where it is quantised, as in "int8*6,head.int8"."""
        names = (
            str(layer.attention) if layer.attention is layer.feed_forward else f"{layer.attention}/{layer.feed_forward}"
            for layer in self.layers
        )
        runs = [(name, sum(1 for _ in run)) for name, run in groupby(names)]
        texts = [name if count == 1 else f"{name}*{count}" for name, count in runs]
        return ",".join(texts if self.head_precision.is_float else [*texts, f"head.{self.head_precision}"])

    def with_precision(self, precision: Precision) -> Architecture:
        """The same shape with every layer in one precision."""
        return replace(
            self, layers=tuple(replace(layer, attention=precision, feed_forward=precision) for layer in self.layers)
        )

    def in_float(self, precision: Precision) -> Architecture:
        """The same shape with every part in one float: layers, head, embedding and cached keys and values."""
        return replace(
            self.with_precision(precision),
            head_precision=precision,
            embedding_precision=precision,
            kv_precision=precision,
        )

    def with_float(self, precision: Precision) -> Architecture:
        """The same student with every float part in this float; quantised layers stay quantised."""

        def part(own: Precision) -> Precision:
            return precision if own.is_float else own

        layers = tuple(
            replace(layer, attention=part(layer.attention), feed_forward=part(layer.feed_forward))
            for layer in self.layers
        )
        return replace(self.in_float(precision), layers=layers, head_precision=part(self.head_precision))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back, with the derived id, depth and parameters beside them for
        people."""
        return {"id": self.id, "depth": self.depth, "parameters": self.parameters, **self._plain}

    @property
    def _plain(self) -> dict[str, Any]:
        """Plain values, a patch only where there is one: what reads text is called what it always was."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain if self.patch else {name: value for name, value in plain.items() if name != "patch"}

    @classmethod
    def from_json(cls, data: object) -> Architecture:
        """Read what `to_json` wrote; derived entries are ignored.

        Raises:
            ArchitectureError: an entry is missing, unknown or of a wrong type, or the shape is impossible.
        """
        if isinstance(data, dict):
            data = {name: value for name, value in data.items() if name not in ("id", "depth", "parameters")}
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ArchitectureError(f"not an architecture: {error}") from error


def parse_precisions(text: str, depth: int) -> tuple[tuple[Precision, Precision], ...]:
    """Read "int8*6,fp16*2" or "int8/fp16*8" as (attention, feed_forward) of each layer; a lone name means every layer.

    Raises:
        ArchitectureError: an unknown name, or not `depth` layers.
    """
    if depth > MOST_LAYERS:
        raise ArchitectureError(f"an architecture has at most {MOST_LAYERS} layers; got {depth}")
    plan: list[tuple[Precision, Precision]] = []
    parts = text.split(",")
    for part in parts:
        name, _, count = part.strip().partition("*")
        attention, _, feed_forward = name.partition("/")
        try:
            pair = (Precision(attention), Precision(feed_forward or attention))
            repeat = min(int(count), depth + 1) if count else (depth if len(parts) == 1 else 1)
            if repeat < 1:
                raise ValueError
        except ValueError:
            raise ArchitectureError(
                f"a precision is one of {', '.join(map(str, Precision))}, with *N for N layers, as in int8*6,fp16*2; "
                f"got {part.strip()!r}"
            ) from None
        plan += [pair] * repeat
    if len(plan) != depth:
        raise ArchitectureError(f"{text!r} gives the precision of {len(plan)} layers; the architecture has {depth}")
    return tuple(plan)


def uniform_layers(
    depth: int, heads: int, kv_heads: int, ffn: int, plan: Sequence[tuple[Precision, Precision]]
) -> tuple[Layer, ...]:
    """`depth` layers of one shape with the precisions of `plan`."""
    return tuple(Layer(heads, kv_heads, ffn, attention, feed_forward) for attention, feed_forward in plan[:depth])

"""What a latency is the time of, and the kernels that it takes.

`lower` turns architectures into one table of fused kernels, as a runtime runs them after its own graph optimisation: bias, activation, residual
and rotary embedding ride on their neighbours; query, key and value are one product. The table says how much work there is and nothing about how fast it
goes: whether attention is fused, how wide an activation is stored and what a launch costs belong to the device's profile. Estimators take
an `OpTable` and nothing else, so there is one path for one architecture and for 100,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

KINDS = ("embedding", "qkv", "attention", "projection", "up", "down", "norm", "head", "cast")
KIND = {name: code for code, name in enumerate(KINDS)}
PHASES = ("prefill", "decode_token")


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a latency is the time of.

    Attributes:
        batch: sequences at once.
        sequence: tokens of one input (the prompt, for generation).
        new_tokens: tokens generated after it, each from the cached keys and values; 0 is one forward pass over the input.
        repeat: how many of these in a row the time covers.
    """

    batch: int = 1
    sequence: int = 128
    new_tokens: int = 0
    repeat: int = 1

    def __post_init__(self) -> None:
        if min(self.batch, self.sequence, self.repeat) < 1 or self.new_tokens < 0:
            raise ValueError(f"batch, sequence and repeat are at least 1 and new_tokens at least 0; got {self}")

    @property
    def tokens(self) -> int:
        """Tokens that it reads and writes in all."""
        return self.batch * (self.sequence + self.new_tokens) * self.repeat

    def __str__(self) -> str:
        text = f"batch {self.batch} x {self.sequence} tokens"
        if self.new_tokens:
            text += f", {self.new_tokens} new tokens"
        return text if self.repeat == 1 else f"{self.repeat} x ({text})"


@dataclass(frozen=True, slots=True)
class OpTable:
    """Distinct kernels of one or many architectures, a column an attribute, each of shape [rows].

    Attributes:
        size: number of architectures.
        passes: how often the workload runs each phase, [size, len(PHASES)].
        architecture: index of the architecture, 0 to size - 1.
        phase: index into `PHASES`.
        kind: index into `KINDS`.
        m, k, n: the matrix product [m, k] x [k, n]; for attention m is the query tokens, k the channels of all heads, n the context; for
            embedding, norm and cast m is the tokens, n the channels, k is 0.
        precision: `Precision.code` of the part that the kernel belongs to.
        count: how often the kernel runs in one pass of its phase.
        flops: multiply-adds times two, of one run.
        weight_bytes: weights that one run reads (for attention: cached keys and values).
        elements: activation elements that one run reads and writes, attention's scores left out.
        scores: elements of the attention matrix (batch x heads x queries x context); 0 elsewhere. A runtime that does not fuse attention
            moves these through memory.
    """

    size: int
    passes: Floats
    architecture: Ints
    phase: Ints
    kind: Ints
    m: Floats
    k: Floats
    n: Floats
    precision: Ints
    count: Floats
    flops: Floats
    weight_bytes: Floats
    elements: Floats
    scores: Floats

    @property
    def runs(self) -> Floats:
        """How often the workload runs each kernel, [rows]."""
        return self.count * self.passes[self.architecture, self.phase]

    @property
    def bytes(self) -> Floats:
        """Bytes moved in one run when activations are stored in their own precision and attention is fused."""
        return self.weight_bytes + self.elements * _ACTIVATION_BYTES[self.precision]


def concatenate(tables: Sequence[OpTable]) -> OpTable:
    """One table of the architectures of many, which may have been lowered for different workloads."""
    starts = np.cumsum([0, *(table.size for table in tables)])
    columns = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in ("phase", "kind", "m", "k", "n", "precision", "count", "flops", "weight_bytes", "elements", "scores")
    }
    return OpTable(
        size=int(starts[-1]),
        passes=np.concatenate([table.passes for table in tables]),
        architecture=np.concatenate([table.architecture + start for table, start in zip(tables, starts[:-1], strict=True)]),
        **columns,
    )


_WEIGHT_BYTES = np.array([precision.weight_bits / 8 for precision in PRECISIONS])
_ACTIVATION_BYTES = np.array([precision.activation_bits / 8 for precision in PRECISIONS])


def lower(architectures: Sequence[Architecture], workload: Workload) -> OpTable:
    """The kernels that `workload` takes on each of `architectures`."""
    size = len(architectures)

    def each(name: str) -> Ints:
        return np.fromiter((getattr(architecture, name) for architecture in architectures), np.int64, size)

    width, head_dim, vocab = each("width"), each("head_dim"), each("vocab")
    gated = each("gated_ffn")
    head = np.fromiter((_HEADS[a.head] for a in architectures), np.int64, size)
    codes = {
        name: np.fromiter((getattr(a, name).code for a in architectures), np.int64, size)
        for name in ("head_precision", "embedding_precision", "kv_precision")
    }

    depth = np.fromiter((len(a.layers) for a in architectures), np.int64, size)
    layers = list(chain.from_iterable(a.layers for a in architectures))
    total = len(layers)
    heads, kv_heads, ffn = (np.fromiter(map(attrgetter(name), layers), np.int64, total) for name in ("heads", "kv_heads", "ffn"))
    attention, feed_forward = (
        np.fromiter((part.code for part in map(attrgetter(name), layers)), np.int64, total) for name in ("attention", "feed_forward")
    )
    everyone = np.arange(size)
    owner = np.repeat(everyone, depth)
    changes = _precision_changes(attention, feed_forward, depth)
    # The two parts of a layer are counted apart: few architectures have more than one or two kinds of either.
    a_owner, (heads, kv_heads, attention), a_count = _distinct(owner, heads, kv_heads, attention)
    f_owner, (ffn, feed_forward), f_count = _distinct(owner, ffn, feed_forward)
    a_width, f_width, f_gate = width[a_owner], width[f_owner], gated[f_owner]
    queries, keys = heads * head_dim[a_owner], kv_heads * head_dim[a_owner]

    blocks: list[tuple[NDArray[np.generic] | float, ...]] = []
    for phase in range(2 if workload.new_tokens else 1):
        tokens = float(workload.batch * workload.sequence) if phase == 0 else float(workload.batch)
        context = float(workload.sequence) if phase == 0 else workload.sequence + (workload.new_tokens + 1) / 2
        # With a generation to follow only the last position's logits are wanted; a lone forward pass gives all of them.
        outputs = tokens if not workload.new_tokens else float(workload.batch)

        def add(
            kind: str, index: Ints, times: Floats | float, precision: Ints, *, k: Ints | float, n: Ints | float, weights: Floats | Ints | float,
            elements: Floats | Ints | float, m: float = tokens, scores: Floats | float = 0.0, flops: Floats | None = None, stage: int = phase,
        ) -> None:  # fmt: skip
            product = 2.0 * m * k * n if flops is None else flops
            blocks.append((index, stage, KIND[kind], m, k, n, precision, times, product, weights, elements, scores))

        add("embedding", everyone[vocab > 0], 1.0, codes["embedding_precision"][vocab > 0], k=0, n=width[vocab > 0], weights=0.0,
            elements=2 * tokens * width[vocab > 0])  # fmt: skip
        add("qkv", a_owner, a_count, attention, k=a_width, n=queries + 2 * keys, elements=tokens * (a_width + queries + 2 * keys),
            weights=a_width * (queries + 2 * keys) * _WEIGHT_BYTES[attention])  # fmt: skip
        # In prefill keys and values come from the product before; in decoding they come from the cache.
        cached = 2.0 * workload.batch * context * keys * _WEIGHT_BYTES[codes["kv_precision"][a_owner]] if phase else 0.0
        add("attention", a_owner, a_count, attention, k=queries, n=context, weights=cached, flops=4.0 * tokens * context * queries,
            elements=tokens * (2 * queries + 2 * keys), scores=tokens * context * heads)  # fmt: skip
        add("projection", a_owner, a_count, attention, k=queries, n=a_width, weights=a_width * queries * _WEIGHT_BYTES[attention],
            elements=tokens * (queries + a_width))  # fmt: skip
        # A gate makes the product twice as wide; the elementwise product behind it reads both halves and writes one.
        add("up", f_owner, f_count, feed_forward, k=f_width, n=ffn * (1 + f_gate), elements=tokens * (f_width + ffn * (1 + 4 * f_gate)),
            weights=f_width * ffn * (1 + f_gate) * _WEIGHT_BYTES[feed_forward])  # fmt: skip
        add("down", f_owner, f_count, feed_forward, k=ffn, n=f_width, weights=f_width * ffn * _WEIGHT_BYTES[feed_forward],
            elements=tokens * (ffn + f_width))  # fmt: skip
        # One behind each part, fused with the residual: reads the branch and the stream, writes the stream and its normalised copy.
        add("norm", a_owner, a_count, attention, k=0, n=a_width, weights=0.0, elements=4 * tokens * a_width)
        add("norm", f_owner, f_count, feed_forward, k=0, n=f_width, weights=0.0, elements=4 * tokens * f_width)
        for name, code in _HEADS.items():
            index = everyone[head == code]
            if name == "none" or not len(index):
                continue
            columns_out = {"lm": vocab[index], "classify": width[index], "span": np.full(len(index), 2)}[name]
            rows = {"lm": outputs, "classify": float(workload.batch), "span": tokens}[name]
            precision = codes["head_precision"][index]
            add("head", index, 1.0, precision, m=rows, k=width[index], n=columns_out, elements=rows * (width[index] + columns_out),
                weights=width[index] * columns_out * _WEIGHT_BYTES[precision])  # fmt: skip
        index = everyone[changes > 0]
        add("cast", index, changes[index].astype(float), np.full(len(index), Precision.INT8.code), k=0, n=width[index], weights=0.0,
            elements=2 * tokens * width[index])  # fmt: skip

    lengths = [len(np.atleast_1d(block[0])) for block in blocks]

    def column(position: int, kind: type[np.generic]) -> NDArray[np.generic]:
        return np.concatenate([np.broadcast_to(np.asarray(b[position], kind), (n,)) for b, n in zip(blocks, lengths, strict=True)])

    ints = (0, 1, 2, 6)
    passes = np.tile([workload.repeat, workload.repeat * workload.new_tokens], (size, 1)).astype(np.float64)
    return OpTable(size, passes, *(column(i, np.int64 if i in ints else np.float64) for i in range(12)))  # type: ignore[arg-type]


_HEADS = {"none": 0, "classify": 1, "span": 2, "lm": 3}


def _precision_changes(attention: Ints, feed_forward: Ints, depth: Ints) -> Ints:
    """How often each architecture's activations change between float and int8, from the embedding to the head."""
    quantised = np.array([precision is Precision.INT8 for precision in PRECISIONS])
    first, second = quantised[attention], quantised[feed_forward]
    starts = np.cumsum(depth) - depth
    before = np.empty_like(first)
    before[1:] = second[:-1]
    before[starts] = False
    within = (first != second).astype(np.int64) + (first != before)
    return np.add.reduceat(within, starts) + second[starts + depth - 1]


def _distinct(owner: Ints, *columns: Ints) -> tuple[Ints, tuple[Ints, ...], Floats]:
    """Equal rows of one architecture, counted: owners, columns and counts, each of shape [rows]."""
    packed = owner
    for column in columns:
        packed = packed * (int(column.max()) + 1) + column
    _, index, count = np.unique(packed, return_index=True, return_counts=True)
    return owner[index], tuple(column[index] for column in columns), count.astype(np.float64)

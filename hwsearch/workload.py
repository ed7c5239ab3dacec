"""What a latency is the time of, and the kernels that it takes.

`lower` turns architectures into one table of fused kernels, as a runtime runs them after its own graph optimisation:
bias, activation, residual and rotary embedding ride on their neighbours; query, key and value are one product. The
table says how much work there is and nothing about how fast it goes: whether attention is fused, how wide an activation
is stored and what a launch costs belong to the device's profile. Estimators take an `OpTable` and nothing else, so
there is one path for one architecture and for 100,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import numpy as np

from hwsearch.architecture import LARGEST, Architecture
from hwsearch.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

KINDS = ("embedding", "patches", "qkv", "attention", "projection", "up", "down", "norm", "last_norm", "head", "cast")
KIND = {name: code for code, name in enumerate(KINDS)}
Phase = Literal["prefill", "decode_token"]
PHASES: tuple[Phase, ...] = get_args(Phase)
PREFILL, DECODE_TOKEN = range(2)


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a latency is the time of.

    Attributes:
        batch: sequences at once.
        sequence: tokens of one input (the prompt, for generation).
        new_tokens: tokens generated after it, each from the cached keys and values; 0 is one forward pass over the
            input.
        repeat: how many of these in a row the time covers.
    """

    batch: int = 1
    sequence: int = 128
    new_tokens: int = 0
    repeat: int = 1

    def __post_init__(self) -> None:
        if min(self.batch, self.sequence, self.repeat) < 1 or self.new_tokens < 0:
            raise ValueError(f"batch, sequence and repeat are at least 1 and new_tokens at least 0; got {self}")
        if max(self.batch, self.sequence, self.repeat, self.new_tokens) > LARGEST:
            raise ValueError(f"batch, sequence, repeat and new_tokens are {LARGEST:,} at most; got {self}")

    @property
    def tokens(self) -> int:
        """Tokens that it reads and writes in all."""
        return self.batch * (self.sequence + self.new_tokens) * self.repeat

    @property
    def context(self) -> float:
        """Tokens that a new token sees, itself included, on average over the new tokens."""
        return self.sequence + (self.new_tokens + 1) / 2

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
        m, k, n: the matrix product [m, k] x [k, n]; for attention m is the query tokens, k the channels of all heads, n
            the context; for embedding, norm and cast m is the tokens, n the channels, k is 0.
        variant: 1 for attention that is causal with rotary embedding, a root-mean-square norm, a gated feed-forward and
            a head that classifies; else 0.
        precision: `Precision.code` of the part that the kernel belongs to.
        count: how often the kernel runs in one pass of its phase.
        flops: multiply-adds times two, of one run.
        weight_bytes: weights that one run reads (for attention: cached keys and values).
        elements: activation elements that one run reads and writes, attention's scores left out.
        scores: elements of the attention matrix (batch x heads x queries x context); 0 elsewhere. A runtime that does
            not fuse attention moves these through memory.
    """

    size: int
    passes: Floats
    architecture: Ints
    phase: Ints
    kind: Ints
    m: Floats
    k: Floats
    n: Floats
    variant: Ints
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
        each: Floats = _ACTIVATION_BYTES[self.precision]
        return self.weight_bytes + self.elements * each


def concatenate(tables: Sequence[OpTable]) -> OpTable:
    """One table of the architectures of many, which may have been lowered for different workloads."""
    starts = np.cumsum([0, *(table.size for table in tables)])
    columns = {name: np.concatenate([getattr(table, name) for table in tables]) for name in COLUMNS}
    owners = [table.architecture + start for table, start in zip(tables, starts[:-1], strict=True)]
    columns["architecture"] = np.concatenate(owners)
    return OpTable(int(starts[-1]), np.concatenate([table.passes for table in tables]), **columns)


COLUMNS = tuple(field.name for field in fields(OpTable) if field.name not in ("size", "passes"))
_DTYPES = {
    name: np.int64 if name in ("architecture", "phase", "kind", "variant", "precision") else np.float64
    for name in COLUMNS
}
_WEIGHT_BYTES = np.array([precision.weight_bits / 8 for precision in PRECISIONS])
_ACTIVATION_BYTES = np.array([precision.activation_bits / 8 for precision in PRECISIONS])


def lower(architectures: Sequence[Architecture], workload: Workload, float_products: bool = False) -> OpTable:
    """The kernels that `workload` takes on each of `architectures`; with `float_products` the two products inside an
    int8 part's attention are in the float beside it."""
    parts = _read(architectures)
    if float_products:
        int8 = parts.a_precision == Precision.INT8.code
        parts = replace(parts, products=np.where(int8, parts.embedding_precision[parts.a_owner], parts.products))
    rows = _Rows()
    batch, sequence = float(workload.batch), float(workload.sequence)
    # With a generation to follow, only the last position's logits are wanted; a lone forward pass gives all of them.
    outputs = batch if workload.new_tokens else batch * sequence
    _add_pass(rows, parts, PREFILL, tokens=batch * sequence, context=sequence, outputs=outputs, batch=batch)
    if workload.new_tokens:
        _add_pass(rows, parts, DECODE_TOKEN, tokens=batch, context=workload.context, outputs=batch, batch=batch)
    passes = np.tile([workload.repeat, workload.repeat * workload.new_tokens], (len(architectures), 1))
    return rows.table(len(architectures), passes.astype(np.float64))


@dataclass(frozen=True, slots=True)
class _Parts:
    """Columns of many architectures, [architectures] each, and of their layers' parts, equal ones counted, [parts]."""

    width: Ints
    vocab: Ints
    patch: Ints
    head: Ints
    head_precision: Ints
    embedding_precision: Ints
    kv_precision: Ints
    changes: Ints  # of precision along the network
    a_owner: Ints  # attention parts: the architecture, how many, precision, channels
    a_count: Floats
    a_precision: Ints
    products: Ints  # precision of the two products inside
    heads: Ints
    queries: Ints
    keys: Ints
    f_owner: Ints  # feed-forward parts
    f_count: Floats
    f_precision: Ints
    ffn: Ints
    decoder: Ints  # 1 for a decoder
    rms: Ints  # 1 for a root-mean-square norm
    last_norm: NDArray[np.bool_]  # whether a norm of its own comes before the head
    gate: Ints  # 1 where a third matrix gates the first


def _read(architectures: Sequence[Architecture]) -> _Parts:
    size = len(architectures)

    def each(values: Iterable[int], count: int = size) -> Ints:
        return np.fromiter(values, np.int64, count)

    depth = each(len(a.layers) for a in architectures)
    layers = list(chain.from_iterable(a.layers for a in architectures))
    owner = np.repeat(np.arange(size), depth)
    heads, kv_heads, ffn = (each(map(attrgetter(name), layers), len(layers)) for name in ("heads", "kv_heads", "ffn"))
    attention = each((layer.attention.code for layer in layers), len(layers))
    feed_forward = each((layer.feed_forward.code for layer in layers), len(layers))
    head_dim, gated = each(a.head_dim for a in architectures), each(a.gated_ffn for a in architectures)
    # The two parts of a layer are counted apart: few architectures have more than one or two kinds of either.
    a_owner, (heads, kv_heads, a_precision), a_count = _distinct(owner, heads, kv_heads, attention)
    f_owner, (ffn, f_precision), f_count = _distinct(owner, ffn, feed_forward)
    return _Parts(
        width=each(a.width for a in architectures),
        vocab=each(a.vocab for a in architectures),
        patch=each(a.patch for a in architectures),
        head=each(_HEADS[a.head] for a in architectures),
        head_precision=each(a.head_precision.code for a in architectures),
        embedding_precision=each(a.embedding_precision.code for a in architectures),
        kv_precision=each(a.kv_precision.code for a in architectures),
        changes=_precision_changes(attention, feed_forward, depth),
        a_owner=a_owner,
        a_count=a_count,
        a_precision=a_precision,
        products=a_precision,
        heads=heads,
        queries=heads * head_dim[a_owner],
        keys=kv_heads * head_dim[a_owner],
        f_owner=f_owner,
        f_count=f_count,
        f_precision=f_precision,
        ffn=ffn,
        decoder=each(a.block == "decoder" for a in architectures),
        rms=each(a.norm == "rmsnorm" for a in architectures),
        last_norm=np.fromiter((a.norm == "rmsnorm" or a.head != "none" for a in architectures), bool, size),
        gate=gated[f_owner],
    )


class _Rows:
    """Rows of an op table in the making, in blocks of equal kind."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}

    def add(self, architecture: Ints, **columns: Any) -> None:
        """A row for each of `architecture`; what is not given is 0, `flops` those of the matrix product."""
        columns = {"count": 1.0, "k": 0.0, "weight_bytes": 0.0, "scores": 0.0, "variant": 0, **columns}
        columns.setdefault("flops", 2.0 * columns["m"] * columns["k"] * columns["n"])
        columns["architecture"] = architecture
        for name, blocks in self._blocks.items():
            blocks.append(np.broadcast_to(np.asarray(columns[name], _DTYPES[name]), len(architecture)))

    def table(self, size: int, passes: Floats) -> OpTable:
        """The finished table."""
        return OpTable(size, passes, **{name: np.concatenate(blocks) for name, blocks in self._blocks.items()})


def _add_pass(rows: _Rows, p: _Parts, phase: int, tokens: float, context: float, outputs: float, batch: float) -> None:
    """The kernels of one pass: `tokens` go through it and see `context` each; the head gives `outputs` rows."""
    everyone = np.arange(len(p.width))
    embedded = everyone[p.vocab > 0]
    rows.add(
        embedded, phase=phase, kind=KIND["embedding"], m=tokens, n=p.width[embedded],
        precision=p.embedding_precision[embedded], elements=2 * tokens * p.width[embedded],
    )  # fmt: skip

    seen = everyone[p.patch > 0]
    k, n, precision = p.patch[seen], p.width[seen], p.embedding_precision[seen]
    rows.add(
        seen, phase=phase, kind=KIND["patches"], m=tokens, k=k, n=n, precision=precision,
        weight_bytes=k * n * _WEIGHT_BYTES[precision], elements=tokens * (k + n),
    )  # fmt: skip

    a: dict[str, Any] = {"phase": phase, "m": tokens, "precision": p.a_precision, "count": p.a_count}
    width, bytes_each, joined = p.width[p.a_owner], _WEIGHT_BYTES[p.a_precision], p.queries + 2 * p.keys
    rows.add(
        p.a_owner, kind=KIND["qkv"], k=width, n=joined, weight_bytes=width * joined * bytes_each,
        elements=tokens * (width + joined), **a,
    )  # fmt: skip
    # In prefill keys and values come from the product before; in decoding they come from the cache.
    cached = 2.0 * batch * context * p.keys * _WEIGHT_BYTES[p.kv_precision[p.a_owner]]
    rows.add(
        p.a_owner, kind=KIND["attention"], k=p.queries, n=context, flops=4.0 * tokens * context * p.queries,
        weight_bytes=cached if phase == DECODE_TOKEN else 0.0, elements=tokens * (2 * p.queries + 2 * p.keys),
        scores=tokens * context * p.heads, variant=p.decoder[p.a_owner], **{**a, "precision": p.products},
    )  # fmt: skip
    rows.add(
        p.a_owner, kind=KIND["projection"], k=p.queries, n=width, weight_bytes=width * p.queries * bytes_each,
        elements=tokens * (p.queries + width), **a,
    )  # fmt: skip
    # A norm behind each part, fused with the residual: reads the branch and the stream, writes the stream and its copy.
    rows.add(p.a_owner, kind=KIND["norm"], n=width, elements=4 * tokens * width, variant=p.rms[p.a_owner], **a)

    f: dict[str, Any] = {"phase": phase, "m": tokens, "precision": p.f_precision, "count": p.f_count}
    f["variant"] = p.gate
    width, bytes_each, up = p.width[p.f_owner], _WEIGHT_BYTES[p.f_precision], p.ffn * (1 + p.gate)
    # The elementwise product behind a gate reads both halves and writes one.
    rows.add(
        p.f_owner, kind=KIND["up"], k=width, n=up, weight_bytes=width * up * bytes_each,
        elements=tokens * (width + p.ffn * (1 + 4 * p.gate)), **f,
    )  # fmt: skip
    rows.add(
        p.f_owner, kind=KIND["down"], k=p.ffn, n=width, weight_bytes=width * p.ffn * bytes_each,
        elements=tokens * (p.ffn + width), **f,
    )  # fmt: skip
    rows.add(p.f_owner, kind=KIND["norm"], n=width, elements=4 * tokens * width, **{**f, "variant": p.rms[p.f_owner]})

    last = everyone[p.last_norm]
    rows.add(
        last, phase=phase, kind=KIND["last_norm"], m=tokens, n=p.width[last], precision=p.head_precision[last],
        variant=p.rms[last], elements=2 * tokens * p.width[last],
    )  # fmt: skip
    for head, (m, columns) in {
        "classify": (batch, p.width),
        "span": (tokens, np.full_like(p.width, 2)),
        "lm": (outputs, p.vocab),
    }.items():
        index = everyone[p.head == _HEADS[head]]
        k, n, precision = p.width[index], columns[index], p.head_precision[index]
        rows.add(
            index, phase=phase, kind=KIND["head"], m=m, k=k, n=n, precision=precision,
            weight_bytes=k * n * _WEIGHT_BYTES[precision], elements=m * (k + n), variant=int(head == "classify"),
        )  # fmt: skip
    changed = everyone[p.changes > 0]
    rows.add(
        changed, phase=phase, kind=KIND["cast"], m=tokens, n=p.width[changed], precision=Precision.INT8.code,
        count=p.changes[changed], elements=2 * tokens * p.width[changed],
    )  # fmt: skip


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
    changes: Ints = np.add.reduceat(within, starts) + second[starts + depth - 1]
    return changes


def _distinct(owner: Ints, *columns: Ints) -> tuple[Ints, tuple[Ints, ...], Floats]:
    """Equal rows of one architecture, counted: owners, columns and counts, each of shape [rows]."""
    packed = owner
    for column in columns:
        packed = packed * (int(column.max()) + 1) + column
    _, index, count = np.unique(packed, return_index=True, return_counts=True)
    return owner[index], tuple(column[index] for column in columns), count.astype(np.float64)

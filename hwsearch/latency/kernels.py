"""The rows of an op table as the kernels that a runtime is seen to run, each with what its time depends on.

A row of the table is a kernel here, but for attention, which is four: `layout` (heads split, rotated, transposed and
joined again, and put behind those that are cached), `scores`, `softmax` and `values`; or two where the runtime fuses
it: `layout` and `attention`. Kernels of one name, precision, variant and phase share a surface; a name is as "up/int8",
"softmax+" (a decoder's), "up+/int8" (a gated one) or "layout+/decode" (of a new token).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.precision import PRECISIONS
from hwsearch.workload import DECODE_TOKEN, KIND, PREFILL, OpTable, Phase

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

PRODUCTS = ("patches", "qkv", "projection", "up", "down", "head")
ATTENTION = ("layout", "scores", "softmax", "values", "attention")
DECODE = "/decode"  # behind the name of a kernel of a new token's pass
FLOAT = 4.0  # bytes of an activation between kernels
# ONNX Runtime's CPU kernels work on 16 floats at a time, on x86 and on ARM alike, and take another path for what is
# left over: measured, 113 keys take a quarter longer than 112 in the softmax, and 15 % in the scores.
TILE = 16
# Half of what a kernel moves comes from beyond a core's cache where that and what surrounds it are as large as this;
# what it costs is fitted. Measured on four tables with 60 unseen models each: 1 to 4 MiB are alike (mean error 2.8 % in
# place of 3.2 % without it), 8 and 32 are worse.
FAR_MIB = 2.0


@dataclass(frozen=True, slots=True)
class Kernel:
    """Rows of an op table that run one kernel.

    Attributes:
        name: as above.
        rows: indices into the table.
        features: log2 of what the time depends on, [rows, features].
        terms: operations of one run, bytes, those of them that come from beyond the cache, and those that are written
            there across the ends of its lines, [rows, 4].
    """

    name: str
    rows: Ints
    features: Floats
    terms: Floats


def kernels_of(table: OpTable, fused: bool) -> Iterator[Kernel]:
    """Every kernel of `table`, rows of equal name together; changes of precision, which are part of the products that
    quantise, are left out. `fused`: whether the runtime fuses attention."""
    surroundings = _surroundings(table)
    codes = (table.phase * 2 + table.variant) * len(PRECISIONS) + table.precision
    for kind, code in KIND.items():
        if kind == "cast":
            continue
        here = np.flatnonzero(table.kind == code)
        grouped = codes[here] if kind in PRODUCTS else codes[here] // len(PRECISIONS) * len(PRECISIONS)
        for group in np.unique(grouped).tolist():
            rows = here[grouped == group]
            variant, phase = group // len(PRECISIONS) % 2, group // len(PRECISIONS) // 2
            suffix = "+" * variant + (f"/{PRECISIONS[group % len(PRECISIONS)]}" if kind in PRODUCTS else "")
            suffix += DECODE if phase == DECODE_TOKEN else ""
            if kind == "attention":
                yield from _attention(table, rows, suffix, surroundings, fused)
            else:  # patches are one more product that something is added to
                name = "projection" if kind == "patches" else kind
                yield _plain(table, rows, name, suffix, surroundings)


def weights_mib(table: OpTable) -> Floats:
    """Mebibytes of each architecture's weights, [architectures]."""
    first = table.phase == PREFILL
    return np.bincount(table.architecture, table.weight_bytes * table.count * first, table.size) / 2**20


def _surroundings(table: OpTable) -> tuple[Floats, Floats]:
    """What a kernel finds around it, by row: 1 + the mebibytes of the whole model's weights, and in the pass of a new
    token of its cached keys and values, which pass through the cache between two runs of it; and how many layers there
    are. Measured: a product of a model that outgrows the cache takes a seventh longer, with a second layer tensors are
    moved a third slower, and with a language model's head in few layers up to a fifth."""
    products = (table.phase == PREFILL) & (table.kind == KIND["qkv"])
    layers = np.bincount(table.architecture, table.count * products, table.size).astype(np.float64)
    decode = table.phase == DECODE_TOKEN
    kept = table.weight_bytes * table.count * (decode & (table.kind == KIND["attention"])) / 2**20
    cached = np.bincount(table.architecture, kept, table.size)
    around = weights_mib(table)[table.architecture] + np.where(decode, cached[table.architecture], 0.0)
    return 1 + around, layers[table.architecture]


def _plain(table: OpTable, rows: Ints, kind: str, suffix: str, surroundings: tuple[Floats, Floats]) -> Kernel:
    m, k, n = table.m[rows], table.k[rows], table.n[rows]
    moved = table.weight_bytes[rows] + FLOAT * table.elements[rows]
    work = table.flops[rows] * _padded(n) / n
    if kind not in PRODUCTS:
        return Kernel(kind + suffix, rows, np.log2(np.column_stack([m, n])), _terms(work, moved, surroundings, rows))
    # Rows of an odd length begin anywhere in a line of the cache. Measured: 288 x 64 by 64 x 9663 takes six times as
    # long as by 64 x 4000, and by 64 x 16000 a tenth longer than that.
    apart = TILE / np.gcd(n.astype(np.int64), int(TILE))
    split = np.where(apart > 1, FLOAT * m * n, 0.0)
    sizes = np.column_stack([m, k, n, surroundings[0][rows], apart])
    return Kernel(kind + suffix, rows, np.log2(sizes), _terms(work, moved, surroundings, rows, split))


def _attention(
    table: OpTable, rows: Ints, suffix: str, surroundings: tuple[Floats, Floats], fused: bool
) -> Iterator[Kernel]:
    """Its kernels; batch and heads follow from the columns of the row."""
    decode = suffix.endswith(DECODE)
    tokens, queries, context, scores = table.m[rows], table.k[rows], table.n[rows], table.scores[rows]
    heads = scores / (tokens * context)
    keys = table.elements[rows] / tokens / 2 - queries
    each = tokens if decode else tokens / context  # sequences in the batch
    length = tokens / each
    stacked, channels = each * heads, queries / heads
    product = table.flops[rows] / 2
    moved = FLOAT * (scores + tokens * queries + each * context * keys)
    padded = _padded(context)
    tail = padded - context
    ragged = 2.0 * (tail > 0)
    around = [np.log2(surroundings[0][rows])] if decode else []
    by_head = np.column_stack(
        [np.log2(stacked), np.log2((1 if decode else length) * padded), np.log2(channels), ragged, *around]
    )
    # One head needs no transposition, and as many keys as queries no repetition.
    lone, grouped, single = 2.0 * (heads < 1.5), 2.0 * (keys < queries), 2.0 * (surroundings[1][rows] < 1.5)
    sizes = [tokens, queries, keys, channels, surroundings[1][rows], *([context] if decode else [])]
    layout = np.column_stack([np.log2(np.column_stack(sizes)), lone, grouped, single, *around])
    shares = np.column_stack([np.log2(stacked * length), np.log2(padded), ragged, ragged * (1 - tail / TILE)])
    left_over = np.where(tail > 0, TILE - tail, 0.0) * stacked * length
    # Short rows cost as rows, long ones as bytes; keys that are repeated for a group of queries are moved once more.
    again = np.where(keys < queries, queries, 0.0)
    moved_rows = tokens * (queries + keys + again) / channels
    moved_bytes = FLOAT * 2 * tokens * (queries + keys + again)
    if decode:  # what is cached is copied to where one more has room
        moved_bytes += FLOAT * 2 * each * context * (2 * keys + again)
    yield Kernel("layout" + suffix, rows, layout, _terms(moved_rows, moved_bytes, surroundings, rows))
    if fused:
        about = np.column_stack([np.log2(np.column_stack([stacked, length, context, channels])), grouped, *around])
        reads = FLOAT * (2 * tokens * queries + 2 * each * context * keys)
        yield Kernel("attention" + suffix, rows, about, _terms(2 * product, reads, surroundings, rows))
        return
    yield Kernel("scores" + suffix, rows, by_head, _terms(product * padded / context, moved, surroundings, rows))
    passed = FLOAT * scores * padded / context
    yield Kernel("softmax" + suffix, rows, shares, _terms(left_over, passed, surroundings, rows))
    yield Kernel("values" + suffix, rows, by_head, _terms(product, moved, surroundings, rows))


def _terms(
    work: Floats, moved: Floats, surroundings: tuple[Floats, Floats], rows: Ints, split: Floats | float = 0.0
) -> Floats:
    """As `Kernel` has them. Bytes come from beyond the cache by how many there are, and how much else passes through it
    between two runs; those that are written, `split`, go there by how many they are."""
    around = surroundings[0][rows] - 1 + moved / 2**20
    far = moved * around / (around + FAR_MIB)
    written = np.broadcast_to(split, moved.shape)
    return np.column_stack([work, moved, far, written * written / (written + FAR_MIB * 2**20)])


def _padded(size: Floats) -> Floats:
    """Sizes rounded up to whole tiles."""
    return np.asarray(np.ceil(size / TILE) * TILE)


def kernel_name(architecture: Architecture, part: str, phase: Phase = "prefill") -> str:
    """The kernel that a part of a network ("3.up", "head") belongs to, named as `kernels_of` does."""
    layer, _, kind = part.rpartition(".")
    decoder = architecture.block == "decoder"
    gated = architecture.gated_ffn
    variant = {
        "norm": architecture.norm == "rmsnorm",
        "last_norm": architecture.norm == "rmsnorm",
        "up": gated,
        "down": gated,
        "head": architecture.head == "classify",
    }
    name = kind + "+" * variant.get(kind, decoder and kind in ATTENTION)
    if kind == "head":
        name += f"/{architecture.head_precision}"
    elif kind in PRODUCTS:
        found = architecture.layers[int(layer)]
        name += f"/{found.attention if kind in ('qkv', 'projection') else found.feed_forward}"
    return name + DECODE * (phase == "decode_token")

"""Which models a latency table is measured on: random ones inside ranges of shapes, as deep as the time allows."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.latency.cases import Case
from hwsearch.precision import Precision
from hwsearch.runtime import Runtime
from hwsearch.workload import DECODE_TOKEN, PREFILL, Phase, Workload, lower

GROUPED = 0.5  # of the decoders may have fewer key-value heads than heads
CANDIDATES = 256  # that a batch is drawn from
PASS_MS = 120.0  # a point's pass is made as long as this by its depth, at most
LONGEST_MS = 250.0  # of a pass of one layer
GFLOPS = 40.0  # of a thread, to guess a pass by before anything was measured


class Ranges(msgspec.Struct, frozen=True):
    """Shapes that a table is to cover, each as (smallest, largest)."""

    depth: tuple[int, int] = (1, 12)
    width: tuple[int, int] = (64, 512)
    sequence: tuple[int, int] = (16, 256)
    batch: tuple[int, int] = (1, 8)
    vocab: tuple[int, int] = (1000, 16000)
    head_dims: tuple[int, ...] = (16, 32, 64, 128)


def draw(
    rng: np.random.Generator, ranges: Ranges, precisions: Sequence[Precision], phase: Phase = "prefill"
) -> tuple[Architecture, Workload]:
    """A random model and workload inside `ranges`, parts of its layers in different precisions; a decoder and one new
    token where that is to be timed."""
    depth = int(rng.integers(ranges.depth[0], ranges.depth[1] + 1))
    width = _between(rng, ranges.width, 32)
    head_dim = int(rng.choice(ranges.head_dims))
    heads = max(1, round(width * rng.uniform(0.5, 1.0) / head_dim))
    decoder = bool(rng.integers(2)) or phase == "decode_token"
    grouped = decoder and rng.uniform() < GROUPED
    kv_heads = int(rng.choice([n for n in range(1, heads + 1) if heads % n == 0])) if grouped else heads
    ffn = max(32, round(width * rng.uniform(1.0, 4.0) / 32) * 32)
    share = rng.choice([rng.uniform(), 0.0, 1.0], p=[0.6, 0.2, 0.2])

    def some() -> Precision:
        return precisions[-1] if rng.uniform() < share else precisions[0]

    plan = tuple((some(), some()) for _ in range(depth))
    head = str(rng.choice(["none", "lm" if decoder else "classify"]))
    # Sizes that are no multiple of a vector take other paths through a kernel: of vocabularies and lengths half are.
    vocab = _between(rng, ranges.vocab, int(rng.choice([1, 16])), log=True) if head == "lm" else 0
    architecture = Architecture(
        block="decoder" if decoder else "encoder",
        width=width,
        head_dim=head_dim,
        layers=uniform_layers(depth, heads, kv_heads, ffn, plan),
        gated_ffn=decoder,
        norm="rmsnorm" if decoder else "layernorm",
        vocab=vocab,
        head=head,  # type: ignore[arg-type]
        head_precision=precisions[0],
        embedding_precision=precisions[0],
        kv_precision=precisions[0],
    )
    step = int(rng.choice([1, 16]))
    batch, sequence = _between(rng, ranges.batch, 1, log=True), _between(rng, ranges.sequence, step)
    return architecture, Workload(batch, sequence, new_tokens=int(phase == "decode_token"))


def candidates_of(
    rng: np.random.Generator,
    ranges: Ranges,
    precisions: Sequence[Precision],
    gflops: float,
    phase: Phase = "prefill",
    size: int = CANDIDATES,
) -> list[tuple[Architecture, Workload]]:
    """Models to choose points from; `gflops` as for `affordable`."""
    drawn = [draw(rng, ranges, precisions, phase) for _ in range(size)]
    return [affordable(architecture, workload, gflops) for architecture, workload in drawn]


def first_points(
    ranges: Ranges, precisions: Sequence[Precision], size: int, seed: int, gflops: float, phase: Phase = "prefill"
) -> list[tuple[Architecture, Workload]]:
    """The points to begin with, as many decoders as encoders where both run the phase."""
    rng = np.random.default_rng((seed, 0))
    candidates = candidates_of(rng, ranges, precisions, gflops, phase, max(CANDIDATES, 4 * size))
    candidates.sort(key=lambda candidate: candidate[0].block)
    return [*candidates[: size // 2], *candidates[-(size - size // 2) :]]


def affordable(architecture: Architecture, workload: Workload, gflops: float) -> tuple[Architecture, Workload]:
    """The model with as many layers as a pass of `PASS_MS` has at a rate of `gflops`, and fewer sequences where one
    layer takes too long."""

    def guess(workload: Workload) -> float:
        table = lower([replace(architecture, layers=architecture.layers[:1])], workload)
        timed = table.phase == (DECODE_TOKEN if workload.new_tokens else PREFILL)
        return float((table.flops * table.count * timed).sum() / 1e6 / gflops)

    each = guess(workload)
    while each > LONGEST_MS and workload.batch > 1:
        workload = replace(workload, batch=workload.batch // 2)
        each = guess(workload)
    # One layer alone is another thing than one of many: two where it can be.
    depth = max(1, min(2, int(LONGEST_MS / each)), min(architecture.depth, int(PASS_MS / each)))
    return replace(architecture, layers=architecture.layers[:depth]), workload


def _between(rng: np.random.Generator, ends: tuple[int, int], step: int, log: bool = False) -> int:
    """A multiple of `step` (or an end) between the two, uniform, or uniform in the logarithm. The ends are not drawn
    more often: small ends make short passes, which say little about others. Of eight tables the four with 15 % at the
    ends were 3.2 % off on 360 unseen models, the others 2.8 %."""
    low, high = ends
    value = 2 ** rng.uniform(np.log2(low), np.log2(high + 0.999)) if log else rng.uniform(low, high + step)
    return int(np.clip(int(value) // step * step, low, high))


def reference_model(precisions: Sequence[Precision]) -> tuple[Architecture, Workload]:
    """A small encoder, half in the first of `precisions` and half in the last: arithmetic, memory and launches in
    one."""
    names = [precisions[0], precisions[-1]]
    layers = uniform_layers(2, 4, 4, 1024, tuple((precision, precision) for precision in names))
    return Architecture("encoder", 256, 64, layers, False, "layernorm", kv_precision=names[0]), Workload(1, 64)


def case_of(
    device: str,
    name: str,
    runtime: Runtime,
    architecture: Architecture,
    workload: Workload,
    model: str,
    phase: Phase = "prefill",
) -> Case:
    """A case that is still to be timed."""
    first = architecture.layers[0]
    return Case(
        device=device,
        runtime=name,
        runtime_version=runtime.version,
        threads=runtime.threads,
        block=architecture.block,
        model=model,
        layers=architecture.depth,
        width=architecture.width,
        heads=first.heads,
        kv_heads=first.kv_heads,
        head_dim=architecture.head_dim,
        ffn=first.ffn,
        gated_ffn=1 if architecture.gated_ffn else 0,
        vocab=architecture.vocab,
        head=architecture.head,
        batch=workload.batch,
        sequence=workload.sequence,
        new_tokens=workload.new_tokens,
        phase=phase if workload.new_tokens else "total",
        precision=architecture.precision_text,
        latency_ms=1.0,
        statistic="low tenth",
        source="hwsearch profile",
    )

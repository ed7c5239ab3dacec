"""Measuring a latency table: which models to time next, timing them, and keeping what was timed.

Points are whole models drawn from ranges of shapes, in batches that take turns, half encoders and half decoders. The
first batch is spread at random; of the later ones each point is drawn from many candidates in proportion to the doubt
that the table so far has about them, so that it is measured where the estimate is least sure. The table is written
after every batch, so that a session that ends early goes on from there.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.bench import onnxruntime
from hwsearch.bench.timing import Reference, Samples, drift_of, quiet_of, take_turns
from hwsearch.device import Runtime
from hwsearch.errors import CasesError
from hwsearch.latency.cases import Case
from hwsearch.latency.kernels import kernel_name, kernels_of
from hwsearch.latency.table import LatencyTable, Point, read_points, write_table
from hwsearch.precision import Precision
from hwsearch.workload import Workload, concatenate, lower

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BATCH = 20  # points that take turns
CANDIDATES = 256  # that a batch is drawn from
AGAIN = 0.5  # of its share of the time, for a point that is measured again
ROUNDS_AGAIN = 6
LOWEST = 0.4  # share of a kernel's passes, the quickest ones, whose mean stands for it
NODE_US = (0.0, 4.0)  # what ONNX Runtime's profiler can add to a node
PASS_MS = 60.0  # a point's pass is made as long as this by its depth, at most
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


class Raw(msgspec.Struct, frozen=True):
    """What was timed of one point.

    Attributes:
        samples: of whole passes.
        kernels: microseconds of all runs of a kernel in a pass, by name, [passes].
        nodes: of the runtime's graph, by kernel.
        reference: milliseconds of the reference model about each pass, [passes].
    """

    samples: Samples
    kernels: dict[str, list[float]]
    nodes: dict[str, int]
    reference: list[float]


def draw(rng: np.random.Generator, ranges: Ranges, precisions: Sequence[Precision]) -> tuple[Architecture, Workload]:
    """A random model and workload inside `ranges`, parts of its layers in different precisions."""
    depth = int(rng.integers(ranges.depth[0], ranges.depth[1] + 1))
    width = _between(rng, ranges.width, 32)
    head_dim = int(rng.choice(ranges.head_dims))
    heads = max(1, round(width * rng.uniform(0.5, 1.0) / head_dim))
    decoder = bool(rng.integers(2))
    kv_heads = int(rng.choice([n for n in range(1, heads + 1) if heads % n == 0])) if decoder else heads
    ffn = max(32, round(width * rng.uniform(1.0, 4.0) / 32) * 32)
    share = rng.choice([rng.uniform(), 0.0, 1.0], p=[0.6, 0.2, 0.2])

    def some() -> Precision:
        return precisions[-1] if rng.uniform() < share else precisions[0]

    plan = tuple((some(), some()) for _ in range(depth))
    head = str(rng.choice(["none", "lm" if decoder else "classify"]))
    vocab = round(2 ** rng.uniform(*np.log2(ranges.vocab))) if head == "lm" else 0
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
    # Lengths that are no multiple of a vector take other paths through a kernel: they are half of the points.
    step = int(rng.choice([1, 16]))
    workload = Workload(_between(rng, ranges.batch, 1, log=True), _between(rng, ranges.sequence, step))
    return architecture, workload


def first_points(
    ranges: Ranges, precisions: Sequence[Precision], size: int, seed: int, gflops: float
) -> list[tuple[Architecture, Workload]]:
    """The points to begin with, as many decoders as encoders; `gflops` as for `affordable`."""
    rng = np.random.default_rng((seed, 0))
    candidates = [affordable(*draw(rng, ranges, precisions), gflops) for _ in range(max(CANDIDATES, 4 * size))]
    candidates.sort(key=lambda candidate: candidate[0].block)
    return [*candidates[: size // 2], *candidates[-(size - size // 2) :]]


def affordable(architecture: Architecture, workload: Workload, gflops: float) -> tuple[Architecture, Workload]:
    """The model with as many layers as a pass of `PASS_MS` has at a rate of `gflops`, and fewer sequences where one
    layer takes too long."""

    def guess(workload: Workload) -> float:
        table = lower([replace(architecture, layers=architecture.layers[:1])], workload)
        return float((table.flops * table.runs).sum() / 1e6 / gflops)

    each = guess(workload)
    while each > LONGEST_MS and workload.batch > 1:
        workload = replace(workload, batch=workload.batch // 2)
        each = guess(workload)
    # One layer alone is another thing than one of many: two where it can be.
    depth = max(1, min(2, int(LONGEST_MS / each)), min(architecture.depth, int(PASS_MS / each)))
    return replace(architecture, layers=architecture.layers[:depth]), workload


def _between(rng: np.random.Generator, ends: tuple[int, int], step: int, log: bool = False) -> int:
    """A multiple of `step` (or an end) between the two, uniform, or uniform in the logarithm."""
    low, high = ends
    value = 2 ** rng.uniform(np.log2(low), np.log2(high + 0.999)) if log else rng.uniform(low, high + step)
    return int(np.clip(int(value) // step * step, low, high))


class Measuring:
    """A table in the making.

    Args:
        folder: where it is kept; one that was begun there goes on.
        runtime: with its threads and precisions.
        device, name: of the device and the runtime, for the cases.
        ranges: that it is to cover.
        facts: for `measured.toml`.
        seed: of the choice of points.
        run: of the reference model, this machine's by default.
        fresh: leave what is there alone until it is written over.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        device: str,
        name: str,
        ranges: Ranges,
        facts: Mapping[str, Any],
        seed: int = 0,
        run: Callable[[], object] | None = None,
        fresh: bool = False,
    ) -> None:
        self.folder, self.runtime, self.device, self.name = folder, runtime, device, name
        self.ranges, self.facts, self.seed = ranges, facts, seed
        self.raw: list[Raw] = []
        self.cases: list[Case] = []
        if not fresh:
            self._resume()
        self._run = run or reference_run(runtime)
        self.reference = self.reference_of(self.raw)

    def reference_of(self, raw: Sequence[Raw]) -> Reference:
        """The reference model, with what earlier sessions saw of it."""
        return Reference(self._run, known=[spell for one in raw for spell in one.reference[::5]])

    def _resume(self) -> None:
        """Go on from what is there.

        Raises:
            CasesError: it is damaged.
        """
        if not (self.folder / "cases.csv").is_file():
            return
        try:
            raw = msgspec.json.decode((self.folder / "samples.json").read_bytes(), type=dict[str, Raw])
            for point in read_points(self.folder):
                self.raw.append(raw[point.case.model])
                self.cases.append(point.case)
        except (OSError, msgspec.MsgspecError, KeyError) as error:
            raise CasesError(f"{self.folder / 'samples.json'} is damaged: {error}") from error

    def measure(self, points: int, seconds: float, progress: Callable[[float], None] = lambda _: None) -> list[Point]:
        """Measure until there are `points`, or `seconds` are over; what was measured is kept after every batch.

        Args:
            progress: told how many there are, parts of them included.
        """
        started = time.monotonic()
        spare = 0.0  # seconds that the last batch took beside its timing
        while len(self.cases) < points:
            size = min(BATCH, points - len(self.cases))
            left = seconds - (time.monotonic() - started)
            share = left * size / (points - len(self.cases)) - spare
            if self.cases and left < 2 * spare:
                break
            begun = time.monotonic()
            timed = self._batch(size, max(share, 1.0), progress)
            spare = time.monotonic() - begun - timed
        return self.points()

    def _batch(self, size: int, seconds: float, progress: Callable[[float], None]) -> float:
        """Time `size` more points for about `seconds`; returns the seconds that the timing itself took."""
        chosen = self._choose(size)
        threads, before = self.runtime.threads, len(self.cases)
        runs, profiles = dict[str, Callable[[], object]](), dict[str, onnxruntime.KernelProfile]()
        for architecture, workload in chosen:
            name = f"{architecture.id} {workload}"
            runs[name] = onnxruntime.prepare(architecture, workload, threads)
            profiles[name] = onnxruntime.KernelProfile(architecture, workload, threads)
            progress(before + 0.3 * len(runs))
        begun = time.monotonic()
        looks = {name: profile.run for name, profile in profiles.items()}
        samples = take_turns(
            runs,
            seconds,
            lambda share: progress(before + size * (0.3 + 0.6 * share)),
            reference=self.reference,
            beside=looks,
        )
        # Those that were caught in a slow spell, or do not agree with themselves, have another turn.
        if again := {name: run for name, run in runs.items() if samples[name].disturbed(self.reference.usual)}:
            more = take_turns(
                again, seconds * AGAIN * len(again) / size, reference=self.reference, enough=ROUNDS_AGAIN, beside=looks
            )
            samples |= {name: samples[name] + found for name, found in more.items()}
        progress(before + size)
        timed = time.monotonic() - begun
        for (architecture, workload), (name, found) in zip(chosen, samples.items(), strict=True):
            profile = profiles[name]
            nodes = profile.finish()
            kernels: dict[str, list[int]] = defaultdict(list)
            for index, part in enumerate(profile.parts):
                kernels[kernel_name(architecture, part)].append(index)
            self.raw.append(
                Raw(
                    samples=found,
                    kernels={kernel: nodes[:, indices].sum(axis=1).tolist() for kernel, indices in kernels.items()},
                    nodes={kernel: len(indices) for kernel, indices in kernels.items()},
                    reference=list(self.reference.at(profile.when)),
                )
            )
            self.cases.append(case_of(self.device, self.name, self.runtime, architecture, workload, name))
        self.write()
        return timed

    def _choose(self, size: int) -> list[tuple[Architecture, Workload]]:
        gflops = GFLOPS * max(1, self.runtime.threads)
        if not self.cases:
            return first_points(self.ranges, self.runtime.precisions, size, self.seed, gflops)
        rng = np.random.default_rng((self.seed, len(self.cases)))
        candidates = [affordable(*draw(rng, self.ranges, self.runtime.precisions), gflops) for _ in range(CANDIDATES)]
        ops = concatenate([lower([architecture], workload) for architecture, workload in candidates])
        sds = self.table().price(ops, np.zeros(len(ops.m))).sd
        picked: list[int] = []
        for block, count in (("encoder", size // 2), ("decoder", size - size // 2)):
            here = np.array([i for i, (architecture, _) in enumerate(candidates) if architecture.block == block])
            weight = sds[here]
            picked += rng.choice(here, count, replace=False, p=weight / weight.sum()).tolist()
        return [candidates[i] for i in picked]

    def points(self) -> list[Point]:
        """What was measured so far."""
        usual = self.reference.usual
        whole = np.array([raw.samples.low_ms(usual) for raw in self.raw]) * 1e3
        sums = [_kernel_sums(raw, usual) for raw in self.raw]
        # What the profiler adds to a node shows in the points that have the least to do between two nodes.
        nodes = np.array([sum(raw.nodes.values()) for raw in self.raw])
        excess = (np.array([sum(found.values()) for found in sums]) - whole) / nodes
        shortest = np.argsort(whole / nodes)[: max(1, len(nodes) // 4)]
        added = float(np.clip(np.median(excess[shortest]), *NODE_US))
        points = []
        for case, raw, found, total in zip(self.cases, self.raw, sums, whole.tolist(), strict=True):
            table = lower([case.architecture(self.runtime)], case.workload)
            counts = {kernel.name: float(table.count[kernel.rows].sum()) for kernel in kernels_of(table)}
            kernels = {
                name: max(time - added * raw.nodes[name], 0.15 * time) / counts[name]
                for name, time in found.items()
                if name in counts
            }
            each = {name: raw.nodes[name] / counts[name] for name in kernels}
            points.append(Point(replace(case, latency_ms=float(f"{total / 1e3:.5g}")), kernels, each))
        return points

    def table(self) -> LatencyTable:
        """The table so far."""
        points = self.points()
        return LatencyTable(points, [lower([p.case.architecture(self.runtime)], p.case.workload) for p in points])

    def write(self) -> None:
        """Keep what was measured."""
        raw = {case.model: raw for case, raw in zip(self.cases, self.raw, strict=True)}
        facts = {**self.facts, "points": len(self.cases), "reference_ms": float(f"{self.reference.usual:.4g}")}
        write_table(self.folder, self.points(), facts, raw)


def _kernel_sums(raw: Raw, usual: float) -> dict[str, float]:
    """Microseconds of all runs of each kernel in a pass at the machine's usual speed."""
    drift = drift_of(raw.reference, usual)
    quiet = quiet_of(drift)
    keep = max(2, round(LOWEST * quiet.sum()))
    return {name: float(np.sort((np.array(times) / drift)[quiet])[:keep].mean()) for name, times in raw.kernels.items()}


def reference_model(precisions: Sequence[Precision]) -> tuple[Architecture, Workload]:
    """A small encoder, half in the first of `precisions` and half in the last: arithmetic, memory and launches in
    one."""
    names = [precisions[0], precisions[-1]]
    layers = uniform_layers(2, 4, 4, 1024, tuple((precision, precision) for precision in names))
    return Architecture("encoder", 256, 64, layers, False, "layernorm", kv_precision=names[0]), Workload(1, 64)


def reference_run(runtime: Runtime) -> Callable[[], object]:
    """One pass of the reference model."""
    return onnxruntime.prepare(*reference_model(runtime.precisions), runtime.threads)


def case_of(
    device: str, name: str, runtime: Runtime, architecture: Architecture, workload: Workload, model: str
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
        precision=architecture.precision_text,
        latency_ms=1.0,
        statistic="low tenth",
        source="hwsearch profile",
    )

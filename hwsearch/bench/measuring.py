"""Measuring a latency table on this machine: timing points, and keeping what was timed.

Points are whole models in batches that take turns. The first batch is spread at random, half encoders and half
decoders; the later ones have more of the kind that the table so far is more wrong on, each point drawn from many
candidates in proportion to the doubt about them, so that it is measured where the estimate is least sure. Points that
do not agree with the rest are measured again at the end. The table is written after every batch, so that a session that
ends early goes on from there.
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

from hwsearch.architecture import Architecture
from hwsearch.bench.local import PartTimes, local
from hwsearch.bench.points import GFLOPS, Ranges, candidates_of, case_of, first_points, reference_model
from hwsearch.bench.timing import Reference, Samples, take_turns
from hwsearch.errors import CasesError
from hwsearch.latency.cases import Case
from hwsearch.latency.drift import suspect_points
from hwsearch.latency.kernels import kernel_name, kernels_of
from hwsearch.latency.points import MARK, Point, read_points, reconciled, write_table
from hwsearch.latency.table import LatencyTable
from hwsearch.latency.tables import measured_facts
from hwsearch.runtime import Runtime
from hwsearch.workload import OpTable, Phase, Workload, concatenate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BATCH = 20  # points that take turns
AGAIN = 0.5  # of its share of the time, for a point that is measured again
ROUNDS_AGAIN = 6
LAST_LOOK = 0.07  # share of the time that is kept for points that do not agree with the rest
AGAIN_SECONDS = 3.0  # for each of them, at most
SHARES = (0.25, 0.75)  # of the points after the first that are encoders, at least and at most
LOWEST = 0.4  # share of a kernel's passes, the quickest ones, whose mean stands for it
LEAST_US = 0.25  # of a node, which the profiler may give as none
NODE_US = (0.0, 4.0)  # what ONNX Runtime's profiler can add to a node
OF_ONE_TABLE = ("processor", "cores", "threads", "runtime")  # facts that all points of a table share


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


class Measuring:
    """A table in the making.

    Args:
        folder: where it is kept; one that was begun there goes on.
        runtime: with its threads and precisions.
        device, name: of the device and the runtime, for the cases.
        ranges: that it is to cover.
        facts: for the table's `MARK`.
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
        self._fresh = fresh
        if not fresh:
            self._resume()
        self._run = run or reference_run(runtime, name)
        self.reference = self.reference_of(self.raw)

    def reference_of(self, raw: Sequence[Raw]) -> Reference:
        """The reference model, with what earlier sessions saw of it."""
        return Reference(self._run, known=[spell for one in raw for spell in one.reference[::5]])

    def _resume(self) -> None:
        """Go on from what is there.

        Raises:
            CasesError: it is damaged, or of another machine, runtime or number of threads.
        """
        if not (self.folder / MARK).is_file():
            return
        before = measured_facts(self.folder)
        for what in OF_ONE_TABLE:
            if what in before and before[what] != self.facts.get(what, before[what]):
                raise CasesError(
                    f"{self.folder} was measured with {what} {before[what]}, this is {self.facts[what]}: measure it "
                    "anew with --fresh, or under another name with --device"
                )
        try:
            raw = msgspec.json.decode((self.folder / "samples.json").read_bytes(), type=dict[str, Raw])
            for point in read_points(self.folder):
                self.raw.append(raw[point.case.model])
                self.cases.append(point.case)
        except (OSError, ValueError, KeyError) as error:
            raise CasesError(f"{self.folder / 'samples.json'} is damaged: {error}") from error

    def count(self, phase: Phase = "prefill") -> int:
        """Points of a phase that are measured."""
        return sum(case.measured_phase == phase for case in self.cases)

    def measure(
        self,
        points: int,
        seconds: float,
        progress: Callable[[float], None] = lambda _: None,
        phase: Phase = "prefill",
    ) -> list[Point]:
        """Measure until there are `points` of a phase, or `seconds` are over; what was measured is kept after every
        batch. The points that do not agree with the rest then have another turn.

        Args:
            progress: told how many there are, parts of them included.
        """
        started, known = time.monotonic(), len(self.cases)
        spare = 0.0  # seconds that the last batch took beside its timing

        def left() -> float:
            return seconds * (1 - LAST_LOOK) - (time.monotonic() - started)

        while (count := self.count(phase)) < points:
            size = min(BATCH, points - count)
            share = left() * size / (points - count) - spare
            if count and left() < 2 * spare:
                break
            begun = time.monotonic()
            timed = self._batch(size, max(share, 1.0), phase, progress)
            spare = time.monotonic() - begun - timed
        if len(self.cases) > known:
            self._look_again(seconds - (time.monotonic() - started))
        return self.points()

    def _batch(self, size: int, seconds: float, phase: Phase, progress: Callable[[float], None]) -> float:
        """Time `size` more points for about `seconds`; returns the seconds that the timing itself took."""
        before = self.count(phase)
        target = self.device, self.name, self.runtime
        chosen = self._choose(size, phase)
        cases = [case_of(*target, *point, f"{point[0].id} {point[1]}", phase) for point in chosen]
        raw, timed = self._time(cases, seconds, lambda share: progress(before + size * share))
        self.raw += raw
        self.cases += cases
        self.write()
        return timed

    def _time(
        self, cases: Sequence[Case], seconds: float, progress: Callable[[float], None] = lambda _: None
    ) -> tuple[list[Raw], float]:
        """What was timed of each, in about `seconds` of timing; and the seconds that it took."""
        bench, threads, names = local(self.name), self.runtime.threads, [case.model for case in cases]
        runs, profiles = dict[str, Callable[[], object]](), dict[str, PartTimes]()
        for case in cases:
            what = case.architecture(self.runtime), case.workload, threads, case.measured_phase
            profiles[case.model] = bench.PartProfile(*what)
            runs[case.model] = profiles[case.model].whole
            progress(0.3 * len(runs) / len(cases))
        begun = time.monotonic()
        looks = {name: profile.run for name, profile in profiles.items()}
        samples = take_turns(
            runs, seconds, lambda share: progress(0.3 + 0.6 * share), reference=self.reference, beside=looks
        )
        # Those that were caught in a slow spell, or do not agree with themselves, have another turn.
        if again := {name: run for name, run in runs.items() if samples[name].disturbed(self.reference.usual)}:
            share = seconds * AGAIN * len(again) / len(cases)
            more = take_turns(again, share, reference=self.reference, enough=ROUNDS_AGAIN, beside=looks)
            samples |= {name: samples[name] + found for name, found in more.items()}
        progress(1.0)
        timed = time.monotonic() - begun
        return [self._raw(case, samples[name], profiles[name]) for case, name in zip(cases, names, strict=True)], timed

    def _raw(self, case: Case, samples: Samples, profile: PartTimes) -> Raw:
        times, architecture, phase = profile.finish(), case.architecture(self.runtime), case.measured_phase
        kernels: dict[str, list[int]] = defaultdict(list)
        for index, part in enumerate(profile.parts):
            kernels[kernel_name(architecture, part, phase)].append(index)
        return Raw(
            samples=samples,
            kernels={kernel: times[:, indices].sum(axis=1).tolist() for kernel, indices in kernels.items()},
            nodes={kernel: len(indices) for kernel, indices in kernels.items()},
            reference=list(self.reference.at(profile.when)),
        )

    def _look_again(self, seconds: float) -> None:
        """Time the points that do not agree with the rest once more; the quicker time counts, since a disturbed machine
        is slower and not faster."""
        points = self.points()
        flagged = np.flatnonzero(suspect_points(points, self._ops(), self.runtime.fused_attention)).tolist()
        again = flagged[:BATCH]
        if not again or seconds <= 0:
            return
        raw, _ = self._time([self.cases[i] for i in again], min(seconds, len(again) * AGAIN_SECONDS))
        usual = self.reference.usual
        for i, fresh in zip(again, raw, strict=True):
            if fresh.samples.low_ms(usual) < self.raw[i].samples.low_ms(usual):
                self.raw[i] = fresh
        self.write()

    def _choose(self, size: int, phase: Phase) -> list[tuple[Architecture, Workload]]:
        gflops = GFLOPS * max(1, self.runtime.threads)
        if not self.count(phase):
            return first_points(self.ranges, self.runtime.precisions, size, self.seed, gflops, phase)
        rng = np.random.default_rng((self.seed, len(self.cases)))
        candidates = candidates_of(rng, self.ranges, self.runtime.precisions, gflops, phase)
        target = self.device, self.name, self.runtime
        ops = concatenate([case_of(*target, *candidate, "", phase).ops(self.runtime) for candidate in candidates])
        table = self.table()
        sds = table.price(ops, np.zeros(len(ops.m))).sd
        picked: list[int] = []
        encoders = 0 if phase == "decode_token" else round(size * _share_of_encoders(table))
        for block, count in (("encoder", encoders), ("decoder", size - encoders)):
            here = np.array([i for i, (a, _) in enumerate(candidates) if a.block == block], np.int64)
            weight = sds[here] / max(sds[here].sum(), 1e-12)
            picked += rng.choice(here, count, replace=False, p=weight).tolist() if count else []
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
            table, fused = case.ops(self.runtime), self.runtime.fused_attention
            counts = {kernel.name: float(table.count[kernel.rows].sum()) for kernel in kernels_of(table, fused)}
            kernels = {
                name: max(time - added * raw.nodes[name], 0.15 * time, LEAST_US * raw.nodes[name]) / counts[name]
                for name, time in found.items()
                if name in counts
            }
            each = {name: raw.nodes[name] / counts[name] for name in kernels}
            points.append(Point(replace(case, latency_ms=float(f"{total / 1e3:.5g}")), kernels, each))
        return points

    def table(self) -> LatencyTable:
        """The table so far."""
        ops, fused = self._ops(), self.runtime.fused_attention
        return LatencyTable(reconciled(self.points(), ops, fused), ops, fused)

    def _ops(self) -> list[OpTable]:
        return [case.ops(self.runtime) for case in self.cases]

    def write(self) -> None:
        """Keep what was measured."""
        raw = {case.model: raw for case, raw in zip(self.cases, self.raw, strict=True)}
        facts = {**self.facts, "points": len(self.cases), "reference_ms": float(f"{self.reference.usual:.4g}")}
        if self._fresh:  # no file of the table before is read beside those of this one
            (self.folder / MARK).unlink(missing_ok=True)
            self._fresh = False
        write_table(self.folder, self.points(), facts, raw)


def _kernel_sums(raw: Raw, usual: float) -> dict[str, float]:
    """Microseconds of all runs of each kernel in a pass at the machine's usual pace."""
    pace = _quickest(raw.reference) / usual if raw.reference else 1.0
    return {name: _quickest(times) / pace for name, times in raw.kernels.items()}


def _quickest(times: Sequence[float]) -> float:
    """The mean of the `LOWEST` share of them."""
    return float(np.sort(times)[: max(2, round(LOWEST * len(times)))].mean())


def _share_of_encoders(table: LatencyTable) -> float:
    """Of the next points: by how wrong the table is on either kind of model when one is left out."""
    wrong: dict[str, list[float]] = {"encoder": [], "decoder": []}
    for case, (median, _, _) in table.held_out():
        if case.measured_phase == "prefill":
            wrong[case.block].append(abs(float(np.log(median / case.latency_ms))))
    one, other = (float(np.mean(errors)) if errors else 0.0 for errors in wrong.values())
    return float(np.clip(one / (one + other), *SHARES)) if one + other else 0.5


def reference_run(runtime: Runtime, name: str) -> Callable[[], object]:
    """One pass of the reference model in a runtime of this machine."""
    return local(name).prepare(*reference_model(runtime.precisions), runtime.threads)

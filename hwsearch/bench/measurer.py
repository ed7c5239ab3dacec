"""Measuring students on this machine: what a search's finalists are chosen on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.bench.local import LOCAL, local
from hwsearch.bench.machine import this_machine
from hwsearch.bench.measuring import reference_run
from hwsearch.bench.onnxruntime import prepare_graph
from hwsearch.bench.timing import Reference, Samples, take_turns
from hwsearch.device import DeviceProfile, Target
from hwsearch.errors import CasesError
from hwsearch.latency.latency import Latency
from hwsearch.latency.table import SESSIONS, Z90
from hwsearch.latency.tables import folder_of, measured_facts
from hwsearch.workload import PHASES, Phase, Workload

Runs = Mapping[str, Callable[[], object]]  # one pass each, by name
SECONDS = 3.0  # for a pass of a student
APART = 0.05  # logarithm by which halves of a session disagree before another is tried
SESSIONS_AT_MOST = 3


class HostMeasurer:
    """Measures whole models on this machine.

    Args:
        profile, target: that stand for this machine.
        workload: what a latency is the time of.

    Attributes:
        subject: a hash of the machine, the runtime and the table that was measured there, and of the workload.

    Raises:
        CasesError: the target has no table of this machine.
    """

    def __init__(self, profile: DeviceProfile, target: Target, workload: Workload) -> None:
        self._name, self._threads, self._workload = target.runtime, target.threads, workload
        runtime = profile.runtimes[target.runtime]
        facts = measured_facts(folder_of(runtime.table))
        self.subject = hashlib.sha256(repr((sorted(facts.items()), target, workload)).encode()).hexdigest()[:12]
        self._usual = float(facts["reference_ms"])
        self._reference = Reference(reference_run(replace(runtime, threads=target.threads), target.runtime))
        self._phases: tuple[Phase, ...] = PHASES if workload.new_tokens else ("prefill",)

    def measure(
        self, architectures: Sequence[Architecture], progress: Callable[[float], None] = lambda _: None
    ) -> list[Latency]:
        """Latencies of a pass of each phase, in turn, as often as the workload has it; the 90 % interval is how far
        sessions disagree."""
        runs = {
            f"{i} {phase}": local(self._name).prepare(architecture, self._workload, self._threads, phase)
            for i, architecture in enumerate(architectures)
            for phase in self._phases
        }
        found = self._samples(runs, progress)
        return [
            self._latency({phase: found[f"{i} {phase}"] for phase in self._phases}) for i in range(len(architectures))
        ]

    def measure_graph(self, path: Path, vocab: int) -> Latency:
        """The latency of an exported graph, for ONNX Runtime; of a generation's it is the one with cached keys and
        values."""
        runs = {phase: prepare_graph(path, self._workload, vocab, self._threads, phase) for phase in self._phases}
        found = self._samples({str(phase): run for phase, run in runs.items()}, lambda _: None)
        return self._latency({phase: found[str(phase)] for phase in self._phases})

    def _samples(self, runs: Runs, progress: Callable[[float], None]) -> dict[str, Samples]:
        def session(some: Runs) -> dict[str, Samples]:
            return take_turns(some, SECONDS * len(some), progress, reference=self._reference, enough=12)

        return agreeing(runs, session, self._apart)

    def _apart(self, samples: Samples) -> float:
        """How far the halves disagree, as a logarithm."""
        first, second = (samples.part(half).low_ms(self._usual) for half in (0, 1))
        return abs(float(np.log(first / second)))

    def _latency(self, samples: dict[Phase, Samples]) -> Latency:
        phases = {phase: found.low_ms(self._usual) for phase, found in samples.items()}
        counts = {"prefill": 1, "decode_token": self._workload.new_tokens}
        ms = self._workload.repeat * sum(counts[phase] * one for phase, one in phases.items())
        apart = max(map(self._apart, samples.values()))
        wide = float(np.exp(Z90 * np.hypot(SESSIONS, apart / 2)))
        return Latency(
            median_ms=ms,
            low_ms=ms / wide,
            high_ms=ms * wide,
            source="measured",
            extrapolated=False,
            covered=1.0,
            phases={str(phase): one for phase, one in phases.items()},
        )


def agreeing(
    runs: Runs, session: Callable[[Runs], dict[str, Samples]], apart: Callable[[Samples], float]
) -> dict[str, Samples]:
    """Samples of all `runs`. Those whose halves disagree, as something else kept the machine busy, are taken again;
    the session that agrees with itself best is kept.

    Args:
        runs: by name.
        session: takes samples of some of them.
        apart: how far the halves of samples disagree, as a logarithm.
    """
    found = session(runs)
    for _ in range(SESSIONS_AT_MOST - 1):
        unsure = {name: run for name, run in runs.items() if apart(found[name]) > APART}
        if not unsure:
            break
        found |= {name: min(found[name], samples, key=apart) for name, samples in session(unsure).items()}
    return found


def measurer_of(profile: DeviceProfile, target: Target, workload: Workload) -> HostMeasurer | None:
    """Who measures students on a target: None unless its table is here and was measured on this very machine, with the
    runtime that is installed."""
    runtime = profile.runtimes[target.runtime]
    if not runtime.table or target.runtime not in LOCAL:
        return None
    try:
        there = measured_facts(folder_of(runtime.table))
    except CasesError:  # a run that was moved from another machine
        return None
    here = msgspec.structs.asdict(this_machine(target.threads, target.runtime))
    if any(there.get(name) != value for name, value in here.items()):
        return None
    return HostMeasurer(profile, target, workload)

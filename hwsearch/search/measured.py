"""Students that are run on the target: what was estimated is put right by what they take, and finalists that overshoot
are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec
import platformdirs
import psutil
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.device import DeviceProfile, Target
from hwsearch.distill.workers import mendable
from hwsearch.files import pretty, read_as, read_or_drop, write_text
from hwsearch.latency.estimator import Estimator
from hwsearch.latency.latency import Latency, of_one
from hwsearch.precision import Precision
from hwsearch.search.baselines import HandMade, hand_made_as_run
from hwsearch.search.plan import Plan
from hwsearch.search.proposer import Given, Proposer
from hwsearch.search.result import Result
from hwsearch.search.run import Run
from hwsearch.search.trainer import Progress
from hwsearch.units import format_ms
from hwsearch.workload import Workload

LARGEST_MIB = 1536.0  # of weights of what is measured: a graph holds 2 GiB
COPIES = 5  # of weights in memory while a graph is made and run
FAR_OFF = 1.25  # factor either way by which estimates may be off before it is said


class Measurer(Protocol):
    """Who can run a student on the target: its runtime is at hand.

    Attributes:
        subject: what it measures, by a hash: machine, runtime and workload; empty where nothing of it is to be kept.
    """

    subject: str

    def measure(self, architectures: Sequence[Architecture], progress: Callable[[float], None]) -> list[Latency]: ...


def measured_teacher(
    profile: DeviceProfile,
    target: Target,
    workload: Workload,
    teacher: Architecture,
    measurer: Measurer,
    progress: Progress,
) -> dict[Precision, Latency]:
    """The teacher's latencies as measured, by the float precisions that the runtime runs: what a share of them is a
    share of. Kept for what `measurer` measures, so that the same command has the same budget again; none of a teacher
    with more weights than a graph or the memory that is left holds."""
    forms = {p: teacher.in_float(p) for p in profile.runtimes[target.runtime].precisions if p.is_float}
    names = "".join(form.digest for form in forms.values())
    path = platformdirs.user_cache_path("hwsearch") / "teachers" / f"{measurer.subject}-{names}.json"
    found = read_or_drop(path, lambda path: read_as(path, dict[Precision, Latency])) if measurer.subject else None
    if found is not None:
        return found
    room = _room_mib()
    forms = {p: form for p, form in forms.items() if _weights_mib(form) <= room}
    if not forms:
        return {}
    progress.stage("measuring the teacher", 1.0)
    with mendable("measuring the teacher"):
        latencies = measurer.measure([*forms.values()], progress.at)
    price = Estimator(profile, target, workload)
    found = {p: _shared_out(ms, price.one(forms[p])) for p, ms in zip(forms, latencies, strict=True)}
    if measurer.subject:
        write_text(path, pretty(found))
    return found


class Known(msgspec.Struct, frozen=True):
    """What is known of a trial's latency at the end of a search.

    Attributes:
        latency: measured or estimated.
        predicted: of one that is measured: as it was estimated.
    """

    latency: Latency
    predicted: Latency | None = None

    def of(self, result: Result) -> Result:
        """The trial with that."""
        return replace(result, latency=self.latency, predicted=self.predicted)


class Measurements:
    """What was measured in a run; kept in its `measured.json`, so that nothing is measured twice.

    Args:
        plan: whose prices are put right.
        run: where it is kept.
        measurer: of the target.
        progress: who is told.
    """

    def __init__(self, plan: Plan, run: Run, measurer: Measurer, progress: Progress) -> None:
        self.plan, self.run, self.measurer, self.progress = plan, run, measurer, progress
        self._told: set[int | None] = set()  # that they overshoot
        self._asked: set[str] = set()  # digests of what was wanted as measured, by this process

    def __call__(self, results: Sequence[Result]) -> list[Result]:
        """The same with measured latencies, estimated ones of what has more weights than a graph or the memory that is
        left holds; what was measured before, in this run or the one that it takes up, is not measured again."""
        path, room = self.run.path("measured.json"), _room_mib()
        known = read_as(path, dict[str, Latency], "students are then measured anew") if path.is_file() else {}
        fresh = [a for a in (r.architecture for r in results) if a.digest not in known and _weights_mib(a) <= room]
        for architectures in _batches(fresh, room):
            self.progress.stage("measuring students", 1.0)
            with mendable("measuring students"):
                found = self.measurer.measure(architectures, self.progress.at)
            known |= {a.digest: latency for a, latency in zip(architectures, found, strict=True)}
            write_text(path, pretty(known))
        ran = [result.architecture for result in results if result.architecture.digest in known]
        predicted = dict[Architecture, Latency]()
        if ran:
            self._asked |= {architecture.digest for architecture in ran}
            self.plan.price.learn(ran, [known[architecture.digest] for architecture in ran])
            estimates = self.plan.price.uncorrected(ran)
            predicted = {architecture: estimates[i] for i, architecture in enumerate(ran)}
        return [
            replace(r, latency=_shared_out(known[r.architecture.digest], one), predicted=one)
            if (one := predicted.get(r.architecture))
            else replace(r, latency=self.plan.price.one(r.architecture))
            for r in results
        ]

    def correct_prices(self, proposer: Proposer) -> None:
        """Measure the corners of the space before any student is trained, so that what is trained fits.

        Raises:
            NothingFits: at the corrected prices.
        """
        corners = [proposer(Given(settings), ()) for settings in proposer.corners()]
        self([self.plan.priced(proposal) for proposal in dict.fromkeys(corners) if proposal is not None])
        self.plan.price_teacher()  # or what is measured would be set beside what is not
        proposer.infeasible.clear()  # at the prices before
        factor = self.plan.price.correction
        if max(factor, 1 / factor) > FAR_OFF:
            target = self.plan.target
            self.progress.say(
                f"students take {factor:.2f} of what was estimated: this machine is not as it was when its table was "
                f"measured. Measure it anew: hwsearch profile --device {target.device} --runtime {target.runtime} "
                f"--threads {target.threads} --fresh"
            )
        self.plan.check()

    def holding(self, ranked: Sequence[Result], count: int) -> tuple[list[Result], list[Result]]:
        """The first `count` of `ranked` that hold the budget when they are measured, and those before them that do
        not."""
        holding, overshot, waiting = list[Result](), list[Result](), list(ranked)
        while waiting and len(holding) < count:
            size = count - len(holding)
            batch, waiting = waiting[:size], waiting[size:]
            for result in self(batch):
                inside = self.plan.holds(result.latency)
                (holding if inside else overshot).append(result)
                if not inside and result.trial not in self._told:
                    self._told.add(result.trial)
                    phase, budget_ms = self.plan.tightest(result.latency)
                    ms, most = result.latency.median_of(phase), result.latency.at_most(phase)
                    estimated = result.predicted.median_of(phase) if result.predicted else 0.0
                    self.progress.say(
                        f"trial {result.trial} takes {format_ms(ms)} (90 % interval to {format_ms(most)}), over the "
                        f"budget{of_one(phase)} of {format_ms(budget_ms)}; before anything was measured it was "
                        f"estimated at {format_ms(estimated)}"
                    )
        return holding, overshot

    def by_hand(self, latency_ms: float) -> tuple[list[HandMade], dict[str, str]]:
        """Students made by hand that take as long as `latency_ms` when they are run; and why one is missing, by
        name."""

        def measure(architectures: Sequence[Architecture]) -> list[Latency]:
            return [result.latency for result in self([self.plan.priced(a) for a in architectures])]

        return hand_made_as_run(self.plan.space, self.plan.price, measure, latency_ms, self.plan.keeps_limits)

    def repriced(self, results: Sequence[Result]) -> list[Result]:
        """Trials with their latencies as they are known now, which the run's `prices.json` keeps. What a killed run has
        measured after this is not known yet, or the run that takes it up would choose other students made by hand."""
        measured = self([r for r in results if r.architecture.digest in self._asked])
        known = {m.trial: Known(m.latency, m.predicted) for m in measured}
        # What was measured has changed the prices of all that was not.
        now = {r.trial: known.get(r.trial) or Known(self.plan.price.one(r.architecture)) for r in results}
        write_text(self.run.path("prices.json"), pretty({str(trial): one for trial, one in now.items()}))
        return [now[r.trial].of(r) for r in results]


def _weights_mib(architecture: Architecture) -> float:
    """Of what is timed, which has a head of its own."""
    return replace(architecture, tied=False).size_mib


def _room_mib() -> float:
    """For weights of what is measured at once."""
    free: int = psutil.virtual_memory().available
    return min(LARGEST_MIB, free / 2**20 / COPIES)


def _batches(architectures: Sequence[Architecture], room: float) -> Iterator[list[Architecture]]:
    """As many at once as there is room for."""
    batch = list[Architecture]()
    for architecture in architectures:
        if batch and sum(map(_weights_mib, (*batch, architecture))) > room:
            yield batch
            batch = []
        batch.append(architecture)
    if batch:
        yield batch


def _shared_out(measured: Latency, predicted: Latency) -> Latency:
    """A measured latency with its time shared out over kinds of kernel as the estimate had it."""
    scale = measured.median_ms / predicted.median_ms
    return replace(measured, ops={kind: ms * scale for kind, ms in predicted.ops.items()})

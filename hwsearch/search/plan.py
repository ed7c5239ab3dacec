"""What a person asks for, and everything about it that the price alone decides: the teacher's latency, the budget in
milliseconds, the space, and whether anything fits at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.device import DeviceProfile, Target
from hwsearch.distill.job import COOL, Facts
from hwsearch.errors import ArchitectureError, NothingFits, ProfileError
from hwsearch.latency.estimator import Estimator
from hwsearch.latency.latency import Latency
from hwsearch.precision import Precision
from hwsearch.runtime import Runtime
from hwsearch.search.proposer import Proposer
from hwsearch.search.result import Result, memory_mib
from hwsearch.space import SearchSpace, derive
from hwsearch.units import Budget, format_ms
from hwsearch.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

OPEN = 1.04  # what measuring a student leaves open: upper end of its interval over the median
ROOM = 4.0  # smallest students that a budget holds, where there is to be a choice
ROUNDED = 1.005  # a time that is shown in three digits is no less than what it is
MOST_AT_ONCE = 64  # sequences
STEPS = 160  # of a short run
SHORT = 0.15  # of a long run's steps: where a short run's score becomes informative
RUNGS = (SHORT, 0.35)  # of a long run's steps; only finalists are trained on from the last


def full_of(steps: int) -> int:
    """Steps of the training that a short run is `SHORT` of: rounded down, for it has no less than its share."""
    return int(steps / SHORT + 1e-9)


class Wishes(msgspec.Struct, frozen=True):
    """What a person asks for.

    Attributes:
        budget: a time or a share of the teacher's.
        workload: what it is the time of.
        depths, widths, heads, ffns, precisions: choices in place of the derived ones.
        trials: students to try.
        steps: of a short run.
        full_steps: of a finalist's training; by default so many that the short run is 15 % of it.
        seed: of the search.
        space: whether precisions are solved at a rate of exchange or chosen one by one by Optuna.
        uneven: whether layers may differ in heads and feed-forward size.
        minutes: after which no trial is begun or taken to its next rung.
        min_quality: least retention of the teacher's accuracy; the fastest that has it is chosen.
        max_size_mib, max_memory_mib: limits of the stored weights, and of weights with activations and cached keys and
            values.
        budget_ttft, budget_tpot: of the first token (one prefill) and of each one after it, beside `budget`.
    """

    budget: Budget
    workload: Workload
    depths: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    ffns: tuple[int, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    trials: int = 16
    steps: int = STEPS
    full_steps: int | None = None
    seed: int = 0
    minutes: float | None = None
    space: Literal["macro", "per-layer"] = "macro"
    uneven: bool = False
    min_quality: float | None = None
    max_size_mib: float | None = None
    max_memory_mib: float | None = None
    budget_ttft: Budget | None = None
    budget_tpot: Budget | None = None

    @property
    def long_steps(self) -> int:
        """Steps of a finalist."""
        return self.full_steps or full_of(self.steps)

    @property
    def cool_from(self) -> int:
        """Step of a finalist from which on the rate falls."""
        return max(round(COOL * self.long_steps), self.rungs[-1])

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps at which trials are compared, rising; the best of each go on to the next."""
        return (self.steps, *(s for s in (int(share * self.long_steps) for share in RUNGS[1:]) if s > self.steps))


def runs_graphs(runtime: str) -> bool:
    """Whether a runtime takes graphs, and with them layers of different sizes."""
    return runtime.startswith(("onnxruntime", "tensorrt"))


class Plan:
    """Everything about a search that the price alone decides.

    Args:
        wishes: of the person.
        profile: of the device.
        target: on it.
        teacher: its architecture.
        measures: whether finalists are measured: then an estimate need not be sure, and only what measuring itself
            leaves open is kept free of the budget.
        learned: what was measured elsewhere over what was estimated, in logarithms.
        measured: of the teacher's latencies those that were measured, by float precision.

    Attributes:
        teacher_latency: in the fastest uniform float precision that the runtime runs, `teacher_precision`.
        teacher_latency_fp32: in fp32; None where the runtime does not run it.
        budget_ms: resolved.
        phases_ms: budgets of single phases, by their name.
        space: of students.
    """

    def __init__(
        self,
        wishes: Wishes,
        profile: DeviceProfile,
        target: Target,
        teacher: Architecture,
        measures: bool = False,
        learned: Mapping[Architecture, float] | None = None,
        measured: Mapping[Precision, Latency] | None = None,
    ) -> None:
        if teacher.block == "encoder" and wishes.workload.new_tokens:
            raise ArchitectureError("an encoder writes no text: leave --new-tokens out")
        self.wishes, self.profile, self.target, self.teacher = wishes, profile, target, teacher
        self.measures, self.rate = measures, 1.0
        self.price = Estimator(profile, target, wishes.workload, learned)
        self.runtime: Runtime = profile.runtimes[target.runtime]
        floats = [p for p in self.runtime.precisions if p.is_float]
        if wishes.uneven and not runs_graphs(target.runtime):
            raise ProfileError(
                f"layers of different sizes run as graphs, on onnxruntime and tensorrt; this is {target.runtime}. "
                "Leave --uneven out, or choose another --runtime"
            )
        self._floats, self._measured = floats, dict(measured or {})
        self.price_teacher()
        self.budget_ms = wishes.budget.resolve(self.teacher_latency.median_ms)
        phases = {"prefill": wishes.budget_ttft, "decode_token": wishes.budget_tpot}
        self.phases_ms = {
            phase: budget.resolve(self.teacher_latency.phases[phase]) for phase, budget in phases.items() if budget
        }
        self.space: SearchSpace = derive(
            teacher, self.runtime, wishes.depths, wishes.widths, wishes.heads, wishes.ffns, wishes.precisions
        )

    def price_teacher(self) -> None:
        """The teacher's latency, where it was not measured at the prices as they are now; the budget stays."""
        priced = {p: self._measured.get(p) or self.price.one(self.teacher.in_float(p)) for p in self._floats}
        self.teacher_precision = min(self._floats, key=lambda p: priced[p].median_ms)
        self.teacher_latency: Latency = priced[self.teacher_precision]
        self.teacher_latency_fp32: Latency | None = priced.get(Precision.FP32)

    @property
    def resolved(self) -> Wishes:
        """The wishes with every budget in milliseconds: what is a share of depends on what was measured."""
        phases = {phase: Budget(ms=ms) for phase, ms in self.phases_ms.items()}
        return replace(
            self.wishes,
            budget=Budget(ms=self.budget_ms),
            budget_ttft=phases.get("prefill"),
            budget_tpot=phases.get("decode_token"),
        )

    @property
    def teacher_fits(self) -> bool:
        """Whether the budget is no constraint."""
        teacher = self.teacher.in_float(self.teacher_precision)
        return self.holds(self.teacher_latency) and self.admits(teacher)

    def strain(self, architectures: Sequence[Architecture]) -> Floats:
        """The share of the tightest budget that each latency takes at most, [architectures]: the upper end of its
        interval, or where finalists are measured the median and what measuring leaves open."""
        found = self.price(architectures)
        if self.measures:
            most = {"prefill": found.prefill_ms * OPEN, "decode_token": found.decode_token_ms * OPEN}
            whole = found.median_ms * OPEN
        else:
            most = {"prefill": found.prefill_high_ms, "decode_token": found.decode_token_high_ms}
            whole = found.high_ms
        return np.asarray(np.max([whole / self.budget_ms, *(most[p] / ms for p, ms in self.phases_ms.items())], axis=0))

    def _at_most(self, latency: Latency, phase: str = "") -> float:
        """What a student may turn out to take of a phase, or of the whole workload, ms, as `strain` has it."""
        return OPEN * latency.median_of(phase) if self.measures else latency.at_most(phase)

    def filled(self, latency: Latency) -> float:
        """The share of the tightest budget that a latency takes, by the upper end of its interval."""
        return latency.filled(self.budget_ms, self.phases_ms)

    def tightest(self, latency: Latency) -> tuple[str, float]:
        """The budget that a latency takes most of, as `Latency.tightest` has it."""
        return latency.tightest(self.budget_ms, self.phases_ms)

    def holds(self, latency: Latency) -> bool:
        """Whether a latency lies inside every budget."""
        return self.filled(latency) <= 1.0

    def admits(self, architecture: Architecture) -> bool:
        """Whether an architecture meets the limits beside the latency."""
        wishes = self.wishes
        memory = memory_mib(architecture, wishes.workload)
        limit = min(wishes.max_memory_mib or float("inf"), self.profile.memory_mib.value)
        return architecture.size_mib <= (wishes.max_size_mib or float("inf")) and memory <= limit

    def keeps_limits(self, architecture: Architecture) -> bool:
        """Whether an architecture meets all that is asked beside the latency of the whole: the budgets of single
        phases too."""
        phases = self.price.one(architecture).phases if self.phases_ms else {}
        return self.admits(architecture) and all(phases[phase] <= ms for phase, ms in self.phases_ms.items())

    def priced(self, architecture: Architecture, trial: int | None = None) -> Result:
        """An architecture with its price and no score yet."""
        return Result(
            trial=trial,
            architecture=architecture,
            latency=self.price.one(architecture),
            size_mib=architecture.size_mib,
            memory_mib=memory_mib(architecture, self.wishes.workload),
        )

    def proposer(self, facts: Facts) -> Proposer:
        """Of students inside the budget and the limits; `facts` of the task, complete."""
        return Proposer(
            self.space,
            lambda options: self.price(options).median_ms,
            self.strain,
            facts.sensitivities,
            facts.layers,
            self.admits,
            self.wishes.space == "per-layer",
            facts.importance if self.wishes.uneven else None,
        )

    def check(self) -> None:
        """Raise unless something fits.

        Raises:
            NothingFits: with the nearest miss.
        """
        lightest, smallest = self.space.lightest, self.space.smallest
        if any(strain <= 1.0 and self.admits(a) for a, strain in zip(lightest, self.strain(lightest), strict=True)):
            return
        # The fastest precision by time: int8 is sometimes slower than float.
        nearest = self.priced(smallest[int(self.strain(smallest).argmin())])
        for phase, option in (("prefill", "--budget-ttft"), ("decode_token", "--budget-tpot")):
            latency = nearest.latency
            at_most = self._at_most(latency, phase)
            if at_most > self.phases_ms.get(phase, np.inf):
                raise NothingFits(
                    f"nothing fits {format_ms(self.phases_ms[phase])} for one {phase.replace('_', ' ')} on "
                    f"{self.target}: the smallest student, {nearest.architecture.id}, takes up to "
                    f"{format_ms(at_most * ROUNDED)}. Raise {option} to that",
                    nearest,
                )
        if (at_most := self._at_most(nearest.latency)) > self.budget_ms:
            low, high = format_ms(nearest.latency.low_ms), format_ms(nearest.latency.high_ms)
            raise NothingFits(
                f"nothing fits {format_ms(self.budget_ms)} on {self.target}: the smallest student, "
                f"{nearest.architecture.id}, takes {format_ms(nearest.latency.median_ms)} "
                f"(90 % interval {low} to {high}). Raise --budget to {format_ms(at_most * ROUNDED)}",
                nearest,
            )
        if not self.admits(nearest.architecture):
            limits = {"--max-size-mib": self.wishes.max_size_mib, "--max-memory-mib": self.wishes.max_memory_mib}
            given = [f"{option} is {limit:g}" for option, limit in limits.items() if limit]
            raise NothingFits(
                "nothing meets the limits of size and memory: the smallest student, "
                f"{nearest.architecture.id}, has {nearest.size_mib:.2f} MiB of weights and needs "
                f"{nearest.memory_mib:.2f} MiB to run; "
                f"{', '.join([*given, f'the device has {self.profile.memory_mib.value:.0f} MiB'])}",
                nearest,
            )


def with_room(
    wishes: Wishes, profile: DeviceProfile, target: Target, teacher: Architecture, measures: bool = False
) -> Wishes:
    """The wishes with as many sequences at once as leave a choice, where nothing fits a share of the teacher's latency:
    one short text at a time is mostly the launching of kernels on an accelerator, which no student does without. As
    they are where something fits, or nothing does with more sequences either."""
    if wishes.budget.share is None or _fits(Plan(wishes, profile, target, teacher, measures), 1.0):
        return wishes
    batch = wishes.workload.batch
    while (batch := 2 * batch) <= MOST_AT_ONCE:
        wider = replace(wishes, workload=replace(wishes.workload, batch=batch))
        if _fits(Plan(wider, profile, target, teacher, measures), ROOM):
            return wider
    return wishes


def _fits(plan: Plan, times: float) -> bool:
    """Whether the budget holds the smallest student so many times."""
    return bool(plan.strain(plan.space.smallest).min() <= 1 / times)

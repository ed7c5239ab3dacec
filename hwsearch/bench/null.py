"""A runtime that runs nothing: its clock advances by what the op table says. The bench's null member: statistics are
tested on it without a machine's noise.
"""

from __future__ import annotations

from collections.abc import Callable

from hwsearch.architecture import Architecture
from hwsearch.device import DeviceProfile, Target
from hwsearch.latency.estimator import Estimator
from hwsearch.workload import Workload


class NullRuntime:
    """Runs take as long as `profile` says, exactly.

    Args:
        profile, target: of the device that it pretends to be.
    """

    def __init__(self, profile: DeviceProfile, target: Target) -> None:
        self.profile, self.target = profile, target
        self.now = 0.0

    def clock(self) -> float:
        """Seconds that the runs so far have taken."""
        return self.now

    def prepare(
        self, architecture: Architecture, workload: Workload, slowdown: Callable[[], float] = lambda: 1.0
    ) -> Callable[[], None]:
        """A function that runs one pass; `slowdown` is asked for a factor at every run."""
        milliseconds = Estimator(self.profile, self.target, workload).one(architecture).median_ms

        def run() -> None:
            self.now += milliseconds / 1e3 * slowdown()

        return run

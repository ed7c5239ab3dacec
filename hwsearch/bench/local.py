"""Runtimes of this machine that are timed here, whole and part by part: what each has to offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from hwsearch.architecture import Architecture
from hwsearch.bench import onnxruntime, torch
from hwsearch.errors import ProfileError
from hwsearch.runtime import Runtime
from hwsearch.workload import Phase, Workload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PartTimes(Protocol):
    """One architecture that tells what each of its parts takes."""

    @property
    def whole(self) -> Callable[[], object]:
        """Runs a pass without looking into it."""

    @property
    def parts(self) -> Sequence[str]:
        """Of each piece of it that is timed, as "3.qkv" or "head"."""

    @property
    def when(self) -> Sequence[float]:
        """The clock at the end of every pass that counts."""

    def run(self, warm: bool, passes: int) -> None:
        """A pass to warm up where it is wanted, and `passes` more that count."""

    def finish(self) -> NDArray[np.float64]:
        """Microseconds of every piece in every pass that counts, [passes, pieces]; once, at the end."""


class Local(Protocol):
    """A runtime of this machine; a module is one."""

    @property
    def FACTS(self) -> Runtime:  # noqa: N802
        """What holds for it on any processor."""

    @property
    def PartProfile(self) -> Callable[[Architecture, Workload, int, Phase], PartTimes]:  # noqa: N802
        """Looks into one pass of a phase."""

    def version(self) -> str:
        """Of the runtime that is installed."""

    def prepare(
        self, architecture: Architecture, workload: Workload, threads: int, phase: Phase = "prefill"
    ) -> Callable[[], object]:
        """A function that runs one pass of a phase, with weights of its own."""


LOCAL: dict[str, Local] = {"onnxruntime": onnxruntime, "pytorch": torch}


def local(name: str) -> Local:
    """The runtime of a name.

    Raises:
        ProfileError: it is not one that is timed in this process.
    """
    if name not in LOCAL:
        raise ProfileError(
            f"this machine is measured with {' or '.join(LOCAL)}; got {name!r}. For another runtime time a few models "
            "with its own tools and fit them: hwsearch profile --device D --runtime R --from-cases CASES.csv"
        )
    return LOCAL[name]

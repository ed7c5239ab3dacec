"""The machine that hwsearch runs on: what identifies it, and what is known of it before any model is timed."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import msgspec
import numpy as np
import platformdirs
from msgspec.structs import replace

from hwsearch.bench.board import machine as board
from hwsearch.bench.local import local
from hwsearch.device import DeviceProfile, PowerMode
from hwsearch.errors import ProfileError
from hwsearch.runtime import Figure, Runtime

FORM = 2  # of the tables in the cache
FIRST = "onnxruntime"  # of the runtimes, where none is named


class Machine(msgspec.Struct, frozen=True):
    """What a measurement on this machine is a measurement of.

    Attributes:
        processor: its model.
        cores: that this process may use.
        threads: that the runtime uses.
        runtime: version of what the models ran in.
    """

    processor: str
    cores: int
    threads: int
    runtime: str

    @property
    def key(self) -> str:
        """12 hex digits of it and of the form that tables are kept in."""
        return hashlib.sha256(msgspec.json.encode([FORM, self])).hexdigest()[:12]


def this_machine(threads: int | None = None, runtime: str = FIRST) -> Machine:
    """The machine that this process runs on, with one of its runtimes.

    Raises:
        ProfileError: it has fewer cores than threads are asked for.
    """
    cores = board.cores()
    if threads and threads > cores:
        raise ProfileError(f"this machine has {cores} cores; got {threads} threads")
    return Machine(board.processor(), cores, threads or cores, local(runtime).version())


def check_here(profile: DeviceProfile, kit: bool = False) -> None:
    """Raise unless this machine can be the device of a profile.

    Args:
        profile: of the device.
        kit: whether a kit is run here, as for an accelerator; else it is this machine's processor that is timed.

    Raises:
        ProfileError: it is another machine, as far as the profile tells.
    """
    away = (
        f"Measure it there: hwsearch profile --device {profile.name} --ssh USER@HOST, or --kit DIR; "
        "or give this machine a name of its own"
    )
    here = platform.machine()
    if profile.machine and profile.machine != here:
        raise ProfileError(f"{profile.name} is {profile.machine}, and this machine {here}. {away}")
    if kit:
        return
    if profile.cores is None:
        raise ProfileError(f"the processor of this machine is not {profile.name}. {away}")
    if (cores := board.cores()) != profile.cores.value:
        raise ProfileError(f"{profile.name} has {profile.cores.value:.0f} cores, and this machine {cores}. {away}")


def host_folder(machine: Machine, name: str = FIRST) -> Path:
    """Where this machine's table of a runtime is kept."""
    return platformdirs.user_cache_path("hwsearch") / "latency_tables" / "host" / name / machine.key


def facts(machine: Machine, device: str = "host", name: str = FIRST) -> DeviceProfile:
    """What is known of this machine before any model was timed: peaks from a matrix product and a copy."""
    fp32, bandwidth = _peaks()
    mode = PowerMode(Figure(1.0, "reference"), Figure(1.0, "reference"))
    measured = "measured on this machine"
    peaks = {
        "fp32": Figure(fp32, measured),
        "int8": Figure(2 * fp32, "assumed: twice fp32"),
        "bandwidth_gbs": Figure(bandwidth, measured),
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    return DeviceProfile(
        name=device,
        title=f"{machine.processor}, {machine.cores} cores",
        board_at_hand=True,
        cache_mib=Figure(_cache_mib(), "sysfs, or assumed: 2 MiB"),
        memory_mib=Figure(memory, "sysconf"),
        peaks=peaks,
        power_modes={"default": mode},
        runtimes={name: runtime_of(machine, name)},
        cores=Figure(machine.cores, "what this process may use"),
        machine=platform.machine(),
        note="Measured on the machine itself.",
    )


def runtime_of(machine: Machine, name: str = FIRST) -> Runtime:
    """A runtime on this machine, with its table."""
    table, known = str(host_folder(machine, name)), local(name).FACTS
    scheme = known.scheme.saturating() if board.saturates() else known.scheme
    return replace(known, version=machine.runtime, threads=machine.threads, table=table, scheme=scheme)


def _peaks() -> tuple[float, float]:
    """fp32 rate of a large product in 1e12 operations/s, and the bandwidth of a copy in GB/s."""
    import time

    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    big = np.zeros(2**25, np.float32)
    product, copy = [], []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        product.append(time.perf_counter() - start)
        start = time.perf_counter()
        big.copy()
        copy.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(product) / 1e12, 2 * big.nbytes / min(copy) / 1e9


def _cache_mib() -> float:
    """The last-level cache's size, 32 MiB at most: of a larger one, which many cores share, a process has a part."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="utf-8").strip()
        sizes.append(float(text.rstrip("KM")) / (1024 if text.endswith("K") else 1))
    return min(max(sizes, default=2.0), 32.0)

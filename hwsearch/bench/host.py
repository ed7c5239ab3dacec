"""The machine that hwsearch runs on, as a device: a small latency table is measured on first use, and remembered.

A profile is fitted on the table's whole models as on any other cases; latencies come from the table itself. It is kept
with what identifies the machine, so that another machine, runtime version or number of threads measures anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import platformdirs
from msgspec.structs import replace

from hwsearch import __version__
from hwsearch.architecture import Architecture
from hwsearch.bench import onnxruntime
from hwsearch.bench.board import run as board
from hwsearch.bench.points import Measuring, Ranges, reference_run
from hwsearch.bench.timing import Reference, take_turns
from hwsearch.device import DeviceProfile, Figure, PowerMode, Runtime, Target
from hwsearch.errors import CasesError
from hwsearch.files import read_or_drop, write_text
from hwsearch.latency.calibrate import fit_device
from hwsearch.latency.estimator import Latency
from hwsearch.latency.table import Z90
from hwsearch.latency.tables import folder_of, measured_facts
from hwsearch.precision import Precision, Scheme
from hwsearch.profiles import check_name, load_profile, own_tables, profile_files, user_folder, write_profile
from hwsearch.workload import Workload

FORM = 2  # of the tables in the cache
POINTS = 32  # of a table that is measured on first use
SECONDS = 50.0  # that they may take
CPU = Runtime(  # what holds for ONNX Runtime's CPU provider on any processor
    version="",
    precisions=(Precision.FP32, Precision.INT8),
    fused_attention=False,
    scheme=Scheme(activations="dynamic", activation_type="uint8", weights="tensor"),
    stored_bits={"int8": 32},
)
MEASURING_SECONDS = 3.0  # for a student that is run on this machine
SESSIONS = 0.02  # sd of the logarithm by which two sessions disagree on one model
RANGES = Ranges(batch=(1, 64))  # the embedded teacher's job has 64 sequences at once


class Machine(msgspec.Struct, frozen=True):
    """What a measurement on this machine is a measurement of.

    Attributes:
        processor: its model.
        cores: that this process may use.
        threads: that the runtime uses.
        runtime: version of ONNX Runtime.
    """

    processor: str
    cores: int
    threads: int
    runtime: str

    @property
    def key(self) -> str:
        """12 hex digits of it and of the form that tables are kept in."""
        return hashlib.sha256(msgspec.json.encode([FORM, self])).hexdigest()[:12]


def this_machine(threads: int | None = None) -> Machine:
    """The machine that this process runs on."""
    cores = board.cores()
    return Machine(board.processor(), cores, threads or cores, onnxruntime.version())


def host_profile(
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
) -> DeviceProfile:
    """The profile of this machine, measured now unless it was before.

    Args:
        threads: of the runtime; all cores by default.
        say: told what happens.
        progress: told the share of the measurement that is done.

    Raises:
        CasesError: the remembered table is damaged.
    """
    machine = this_machine(threads)
    folder = host_folder(machine)
    kept = folder / f"profile-{__version__}.json"  # another version fits otherwise
    table = folder / "cases.csv"
    known = read_or_drop(kept, lambda path: msgspec.json.decode(path.read_bytes(), type=DeviceProfile))
    if known is not None and table.is_file() and kept.stat().st_mtime_ns >= table.stat().st_mtime_ns:
        return known
    try:
        measuring = host_measuring(machine, RANGES)
        if len(measuring.cases) < POINTS:
            say(
                f"host: measuring {machine.processor}, {machine.threads} threads, ONNX Runtime {machine.runtime}; "
                f"about {SECONDS + 10:.0f} s, once. `hwsearch profile --device host` measures more"
            )
            measuring.measure(POINTS, SECONDS, lambda done: progress(done / POINTS))
    except CasesError as error:
        raise CasesError(f"{error}. Delete {folder} to measure again") from error
    profile = fitted(facts(machine), measuring)
    write_text(kept, msgspec.json.encode(profile).decode())
    return profile


def measure_device(
    machine: Machine,
    device: str,
    ranges: Ranges,
    points: int,
    seconds: float,
    to: Path | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[DeviceProfile, Path]:
    """Measure this machine as a device of some name, or go on with what is there.

    A device that has a profile keeps its facts; a new one gets this machine's.

    Args:
        machine: this one.
        device: its name, "host" for what `--device host` uses.
        ranges: shapes to cover.
        points, seconds: of the table, at most.
        to: folder for the table and the profile, by default that of one's own.
        progress: told how many points are done.

    Returns: the profile and the folder of its table.

    Raises:
        CasesError: a table that is there is damaged.
        ProfileError: the name cannot be a device's.
    """
    check_name(device)
    if device == "host" and to is None:
        measuring = host_measuring(machine, ranges)
        measuring.measure(points, seconds, progress)
        return host_profile(machine.threads), measuring.folder
    name = f"{device}/onnxruntime"
    folder = (to.resolve() if to else own_tables()) / name
    measuring = host_measuring(machine, ranges, folder, device)
    measuring.measure(points, seconds, progress)
    known = facts(machine, device)
    if device != "host" and (shipped := next((path for path in profile_files() if path.stem == device), None)):
        old = load_profile(shipped)
        known = replace(old, runtimes={**old.runtimes, **known.runtimes}, board_at_hand=True)
    own = replace(known.runtimes["onnxruntime"], table=str(folder) if to else name)
    profile = fitted(replace(known, runtimes={**known.runtimes, "onnxruntime": own}), measuring)
    write_profile(profile, (to or user_folder()) / f"{device}.toml")
    return profile, folder


def fitted(known: DeviceProfile, measuring: Measuring) -> DeviceProfile:
    """The profile with the runtime of a measured table fitted on it."""
    table = measuring.table()
    cases = [point.case for point in table.points]
    return fit_device(known, cases, "measured on the device", measuring.name, table)


def host_folder(machine: Machine) -> Path:
    """Where this machine's table is kept."""
    return platformdirs.user_cache_path("hwsearch") / "latency_tables" / "host" / "onnxruntime" / machine.key


def host_measuring(machine: Machine, ranges: Ranges, folder: Path | None = None, device: str = "host") -> Measuring:
    """The table of this machine in the making.

    Raises:
        CasesError: what is there is damaged.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"kind": "measured", "date": date, **msgspec.structs.asdict(machine)}
    return Measuring(folder or host_folder(machine), runtime_of(machine), device, "onnxruntime", ranges, about)


def facts(machine: Machine, device: str = "host") -> DeviceProfile:
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
        cache_mib=Figure(_cache_mib(), "sysfs, or assumed: 2 MiB a core"),
        memory_mib=Figure(memory, "sysconf"),
        peaks=peaks,
        power_modes={"default": mode},
        runtimes={"onnxruntime": runtime_of(machine)},
        cores=Figure(machine.cores, "what this process may use"),
        note="Measured on the machine itself.",
    )


def runtime_of(machine: Machine) -> Runtime:
    """ONNX Runtime's CPU provider on this machine, with its table."""
    return replace(CPU, version=machine.runtime, threads=machine.threads, table=str(host_folder(machine)))


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
    """The last-level cache's size; a share of a shared one as large as all L2 together counts where it is larger than
    32 MiB."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="utf-8").strip()
        sizes.append(float(text.rstrip("KM")) / (1024 if text.endswith("K") else 1))
    return min(max(sizes, default=2.0), 32.0)


class HostMeasurer:
    """Measures whole models on this machine.

    Args:
        profile, target: that stand for this machine.
        workload: what a latency is the time of.

    Raises:
        CasesError: the target has no table of this machine.
    """

    def __init__(self, profile: DeviceProfile, target: Target, workload: Workload) -> None:
        self._threads, self._workload = target.threads, workload
        runtime = profile.runtimes[target.runtime]
        self._usual = float(measured_facts(folder_of(runtime.table))["reference_ms"])
        self._reference = Reference(reference_run(replace(runtime, threads=target.threads)))

    def measure(
        self, architectures: Sequence[Architecture], progress: Callable[[float], None] = lambda _: None
    ) -> list[Latency]:
        """Latencies of one forward pass each, in turn, and as often as the workload repeats it; the 90 % interval is
        how far sessions disagree."""
        once = replace(self._workload, repeat=1)
        runs = {str(i): onnxruntime.prepare(a, once, self._threads) for i, a in enumerate(architectures)}
        seconds = MEASURING_SECONDS * len(runs)
        found = take_turns(runs, seconds, progress, reference=self._reference, enough=12)
        latencies = []
        for samples in found.values():
            halves = [samples.part(0), samples.part(1)]
            apart = abs(float(np.log(halves[0].low_ms(self._usual) / halves[1].low_ms(self._usual))))
            wide = float(np.exp(Z90 * np.hypot(SESSIONS, apart / 2)))
            ms = samples.low_ms(self._usual) * self._workload.repeat
            latencies.append(
                Latency(
                    median_ms=ms,
                    low_ms=ms / wide,
                    high_ms=ms * wide,
                    source="measured",
                    extrapolated=False,
                    covered=1.0,
                    phases={"prefill": ms / self._workload.repeat},
                )
            )
        return latencies


def measurer_of(profile: DeviceProfile, target: Target, workload: Workload) -> HostMeasurer | None:
    """Who measures students on a target: None unless its table was measured on this very machine, with the runtime that
    is installed, and the workload is one forward pass."""
    runtime = profile.runtimes[target.runtime]
    if not runtime.table or workload.new_tokens or target.runtime != "onnxruntime":
        return None
    there = measured_facts(folder_of(runtime.table))
    here = msgspec.structs.asdict(this_machine(target.threads))
    if any(there.get(name) != value for name, value in here.items()):
        return None
    return HostMeasurer(profile, target, workload)

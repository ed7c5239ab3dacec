"""The machine that hwsearch runs on, as a device: small latency tables are measured on first use, and remembered.

There is one for each runtime that is timed here, and a new token of a generation is measured when it is first asked
about. A profile is fitted on a table's whole models as on any other cases; latencies come from the table itself. It is
kept with what identifies the machine, so that another machine, runtime version or number of threads measures anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import platformdirs
from msgspec.structs import replace

from hwsearch import __version__
from hwsearch.bench.board import machine as board
from hwsearch.bench.local import LOCAL, local
from hwsearch.bench.measuring import Measuring
from hwsearch.bench.points import Ranges
from hwsearch.device import DeviceProfile, Figure, PowerMode, Runtime
from hwsearch.errors import CasesError, ProfileError
from hwsearch.files import read_or_drop, write_text
from hwsearch.latency.calibrate import fit_device
from hwsearch.profiles import check_name, file_named, load_profile, own_tables, user_folder, write_profile
from hwsearch.workload import Phase

FORM = 2  # of the tables in the cache
POINTS = 32  # of a table that is measured on first use
SECONDS = 50.0  # that they may take
DECODE_POINTS = 40  # of new tokens, when they are first asked about
DECODE_SECONDS = 60.0
FIRST = "onnxruntime"  # of the runtimes, where none is named
RANGES = Ranges(batch=(1, 64))  # the embedded teacher's job has 64 sequences at once


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
    """The machine that this process runs on, with one of its runtimes."""
    cores = board.cores()
    return Machine(board.processor(), cores, threads or cores, local(runtime).version())


def host_profile(
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
    runtime: str | None = None,
    generates: bool = False,
) -> DeviceProfile:
    """The profile of this machine: the runtimes that were measured on it, and one that is measured now unless it was
    before.

    Args:
        threads: of the runtimes; all cores by default.
        say: told what happens.
        progress: told the share of the measurement that is done.
        runtime: that there must be.
        generates: whether new tokens of a generation must have been measured in it.

    Raises:
        CasesError: the remembered table is damaged.
        ProfileError: the runtime is not one that is timed here.
    """
    wanted = runtime or FIRST
    local(wanted)
    found = {}
    for name in LOCAL:
        there = (host_folder(this_machine(threads, name), name) / "cases.csv").is_file()
        if name == wanted or there:
            found[name] = _measured(threads, name, generates and name == wanted, say, progress)
    # The machine's facts are those of the runtime that is asked for: others may be measured while a run goes on.
    return replace(found[wanted], runtimes={n: r for own in found.values() for n, r in own.runtimes.items()})


def _measured(
    threads: int | None, name: str, generates: bool, say: Callable[[str], None], progress: Callable[[float], None]
) -> DeviceProfile:
    """This machine with one runtime."""
    machine = this_machine(threads, name)
    folder = host_folder(machine, name)
    kept = folder / f"profile-{__version__}.json"  # another version fits otherwise
    table = folder / "cases.csv"
    known = read_or_drop(kept, lambda path: msgspec.json.decode(path.read_bytes(), type=DeviceProfile))
    fresh = known is not None and table.is_file() and kept.stat().st_mtime_ns >= table.stat().st_mtime_ns
    if known is not None and known.runtimes[name].scheme != runtime_of(machine, name).scheme:
        fresh = False  # fitted before the scheme was as it is
    if known is not None and fresh and not generates:
        return known
    try:
        measuring = host_measuring(machine, RANGES, name=name)
        asked: list[tuple[Phase, int, float]] = [("prefill", POINTS, SECONDS)]
        asked += [("decode_token", DECODE_POINTS, DECODE_SECONDS)] if generates else []
        missing = [one for one in asked if measuring.count(one[0]) < one[1]]
        for phase, points, seconds in missing:
            say(
                f"host: measuring {machine.processor}, {machine.threads} threads, {name} {machine.runtime}"
                f"{', new tokens of a generation' if phase == 'decode_token' else ''}; about {seconds + 10:.0f} s, "
                "once. `hwsearch profile --device host` measures more"
            )
            measuring.measure(points, seconds, lambda done, points=points: progress(done / points), phase)  # type: ignore[misc]
    except CasesError as error:
        raise CasesError(f"{error}. Delete {folder} to measure again") from error
    if known is not None and fresh and not missing:
        return known
    profile = msgspec.json.encode(fitted(facts(machine, name=name), measuring))
    write_text(kept, profile.decode())
    return msgspec.json.decode(profile, type=DeviceProfile)  # as it is from then on: a run knows it by its hash


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


def measure_device(
    machine: Machine,
    device: str,
    ranges: Ranges,
    points: int,
    seconds: float,
    to: Path | None = None,
    progress: Callable[[float], None] = lambda _: None,
    name: str = FIRST,
    phase: Phase = "prefill",
    fresh: bool = False,
) -> tuple[DeviceProfile, Path]:
    """Measure this machine as a device of some name, or go on with what is there unless it is to be `fresh`.

    A device that has a profile keeps its facts; a new one gets this machine's.

    Args:
        machine: this one.
        device: its name, "host" for what `--device host` uses.
        ranges: shapes to cover.
        points, seconds: of the table, at most.
        to: folder for the table and the profile, by default that of one's own.
        progress: told how many points are done.
        name: of the runtime.
        phase: that the points are of.
        fresh: leave what is there alone until it is written over.

    Returns: the profile and the folder of its table.

    Raises:
        CasesError: a table that is there is damaged.
        ProfileError: the name cannot be a device's, or is that of one which this machine is not.
    """
    check_name(device)
    old = load_profile(path) if (path := file_named(device)) else None
    if old is not None:
        check_here(old)
    if device == "host" and to is None:
        measuring = host_measuring(machine, ranges, name=name, fresh=fresh)
        measuring.measure(points, seconds, progress, phase)
        return host_profile(machine.threads, runtime=name), measuring.folder
    table = f"{device}/{name}"
    folder = (to.resolve() if to else own_tables()) / table
    measuring = host_measuring(machine, ranges, folder, device, name, fresh)
    measuring.measure(points, seconds, progress, phase)
    known = facts(machine, device, name)
    if device != "host" and old is not None:
        known = replace(old, runtimes={**old.runtimes, **known.runtimes}, board_at_hand=True)
    own = replace(known.runtimes[name], table=str(folder) if to else table)
    profile = fitted(replace(known, runtimes={**known.runtimes, name: own}), measuring)
    write_profile(profile, (to or user_folder()) / f"{device}.toml")
    return profile, folder


def fitted(known: DeviceProfile, measuring: Measuring) -> DeviceProfile:
    """The profile with the runtime of a measured table fitted on it."""
    table = measuring.table()
    cases = [point.case for point in table.points]
    return fit_device(known, cases, "measured on the device", measuring.name, table)


def host_folder(machine: Machine, name: str = FIRST) -> Path:
    """Where this machine's table of a runtime is kept."""
    return platformdirs.user_cache_path("hwsearch") / "latency_tables" / "host" / name / machine.key


def host_measuring(
    machine: Machine,
    ranges: Ranges,
    folder: Path | None = None,
    device: str = "host",
    name: str = FIRST,
    fresh: bool = False,
) -> Measuring:
    """The table of this machine in the making; `fresh` to begin anew.

    Raises:
        CasesError: what is there is damaged.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"kind": "measured", "date": date, **msgspec.structs.asdict(machine)}
    place = folder or host_folder(machine, name)
    return Measuring(place, runtime_of(machine, name), device, name, ranges, about, fresh=fresh)


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
        cache_mib=Figure(_cache_mib(), "sysfs, or assumed: 2 MiB a core"),
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
    scheme = known.scheme
    if scheme.activations == "dynamic" and board.saturates():
        scheme = dataclasses.replace(scheme, weight_bits=7)
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
    """The last-level cache's size; a share of a shared one as large as all L2 together counts where it is larger than
    32 MiB."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="utf-8").strip()
        sizes.append(float(text.rstrip("KM")) / (1024 if text.endswith("K") else 1))
    return min(max(sizes, default=2.0), 32.0)

"""The machine that hwsearch runs on, as a device: small latency tables are measured on first use, and remembered.

There is one for each runtime that is timed here, and a new token of a generation is measured when it is first asked
about. A profile is fitted on a table's whole models as on any other cases; latencies come from the table itself. It is
kept with what identifies the machine, so that another machine, runtime version or number of threads measures anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import platformdirs
from filelock import FileLock, Timeout
from msgspec.structs import replace

from hwsearch import __version__
from hwsearch.bench.local import LOCAL, local
from hwsearch.bench.machine import FIRST, Machine, check_here, facts, host_folder, runtime_of, this_machine
from hwsearch.bench.measuring import Measuring
from hwsearch.bench.points import Ranges
from hwsearch.device import DeviceProfile
from hwsearch.errors import CasesError
from hwsearch.files import read_or_drop, write_text
from hwsearch.latency.calibrate import fit_device
from hwsearch.latency.points import MARK
from hwsearch.profiles import check_name, known_profile, own_tables, user_folder, write_profile
from hwsearch.runtime import MEASURED
from hwsearch.workload import Phase

POINTS = 32  # of a table that is measured on first use
SECONDS = 50.0  # that they may take
DECODE_POINTS = 40  # of new tokens, when they are first asked about
DECODE_SECONDS = 60.0
RANGES = Ranges(batch=(1, 64))  # the embedded teacher's job has 64 sequences at once


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
        there = (host_folder(this_machine(threads, name), name) / MARK).is_file()
        if name == wanted or there:
            found[name] = _measured(threads, name, generates and name == wanted, say, progress)
    # The machine's facts are those of the runtime that is asked for: others may be measured while a run goes on.
    return replace(found[wanted], runtimes={n: r for own in found.values() for n, r in own.runtimes.items()})


@contextmanager
def alone(say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """No other hwsearch times this machine in the meantime: both would say that it is slower than it is."""
    path = platformdirs.user_cache_path("hwsearch") / "latency_tables" / ".measuring"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        say("another hwsearch is measuring this machine; this one waits for it")
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()


def _measured(
    threads: int | None, name: str, generates: bool, say: Callable[[str], None], progress: Callable[[float], None]
) -> DeviceProfile:
    """This machine with one runtime."""
    machine = this_machine(threads, name)
    known = _remembered(machine, name)
    if known is not None and not generates:
        return known
    with alone(say):
        return _measured_now(machine, name, generates, say, progress)


def _remembered(machine: Machine, name: str) -> DeviceProfile | None:
    """This machine with a runtime as it was measured before; None where it was not, or its table has grown since."""
    folder = host_folder(machine, name)
    kept, table = folder / f"profile-{__version__}.json", folder / MARK  # another version fits otherwise
    known = read_or_drop(kept, lambda path: msgspec.json.decode(path.read_bytes(), type=DeviceProfile))
    if known is None or not table.is_file() or kept.stat().st_mtime_ns < table.stat().st_mtime_ns:
        return None
    return known if known.runtimes[name].scheme == runtime_of(machine, name).scheme else None


def _measured_now(
    machine: Machine, name: str, generates: bool, say: Callable[[str], None], progress: Callable[[float], None]
) -> DeviceProfile:
    """This machine with one runtime, what is missing of its table measured."""
    folder, known = host_folder(machine, name), _remembered(machine, name)
    if known is not None and not generates:
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
    if known is not None and not missing:
        return known
    profile = msgspec.json.encode(fitted(facts(machine, name=name), measuring))
    write_text(folder / f"profile-{__version__}.json", profile.decode())
    return msgspec.json.decode(profile, type=DeviceProfile)  # as it is from then on: a run knows it by its hash


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
    say: Callable[[str], None] = lambda _: None,
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
        say: told what it waits for.

    Returns: the profile and its file; of `host` among one's own, which has none, the folder of its table.

    Raises:
        CasesError: a table that is there is damaged.
        ProfileError: the name cannot be a device's, or is that of one which this machine is not.
    """
    check_name(device)
    if (old := known_profile(device, to)) is not None:
        check_here(old)
    if device == "host" and to is None:
        with alone(say):
            measuring = host_measuring(machine, ranges, name=name, fresh=fresh)
            measuring.measure(points, seconds, progress, phase)
        return host_profile(machine.threads, say, lambda share: progress(share * points), name), measuring.folder
    table = f"{device}/{name}"
    folder = (to.resolve() if to else own_tables()) / table
    file = (to or user_folder()) / f"{device}.toml"
    with alone(say):
        measuring = host_measuring(machine, ranges, folder, device, name, fresh)
        measuring.measure(points, seconds, progress, phase)
        known = facts(machine, device, name)
        own = replace(known.runtimes[name], table=str(folder) if to else table)
        old = known_profile(device, to)  # another runtime may have been measured while this one waited
        known = old.with_measured(name, own) if old else replace(known, runtimes={name: own})
        profile = fitted(known, measuring)
        write_profile(profile, file)
    return profile, file


def fitted(known: DeviceProfile, measuring: Measuring) -> DeviceProfile:
    """The profile with the runtime of a measured table fitted on it."""
    table = measuring.table()
    cases = [point.case for point in table.points]
    return fit_device(known, cases, MEASURED, measuring.name, table)


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

"""What is known of a device, and how it is known.

A profile is a TOML file: facts of the device with their sources, and its runtimes. Profiles are per runtime, never per
device alone: runtimes on one board differ by 8 to 50 %.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from hwsearch.errors import ProfileError
from hwsearch.runtime import Figure, Runtime


class PowerMode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the default mode's speed a power mode leaves.

    Attributes:
        compute: factor on every arithmetic rate.
        bandwidth: factor on memory bandwidth.
        aliases: other names that measured cases use.
    """

    compute: Figure
    bandwidth: Figure
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for factor in (self.compute.value, self.bandwidth.value):
            if not 1e-3 <= factor <= 1e3:
                raise ValueError(f"factors of a power mode lie between 0.001 and 1000; got {factor:g}")


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device: facts with their sources, and its runtimes.

    Attributes:
        name: as on the command line and in measured cases.
        title: for people.
        board_at_hand: whether some of its runtimes were measured on the device itself.
        aliases: other names.
        cache_mib: last-level cache that the processors share.
        memory_mib: what a model and its activations can use at most.
        cores: that a runtime's threads run on; None for a device without threads to choose.
        machine: the computer that it is or is soldered into, as `platform.machine()` has it; empty where that is open.
        peaks: datasheet rates in 1e12 operations/s by precision, and "bandwidth_gbs".
        power_modes: by name; the first is the default.
        runtimes: by name; the first is the default.
        note: what a reader should know.
    """

    name: str
    title: str
    board_at_hand: bool
    cache_mib: Figure
    memory_mib: Figure
    peaks: dict[str, Figure]
    power_modes: dict[str, PowerMode]
    runtimes: dict[str, Runtime]
    aliases: tuple[str, ...] = ()
    cores: Figure | None = None
    machine: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not self.runtimes or not self.power_modes:
            raise ValueError("a profile needs at least one runtime and one power mode")
        for name in self.runtimes:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"a runtime's name has letters, digits, '-', '_' and '.'; got {name!r}")
            self._check_lenders(name, ())

    def _check_lenders(self, name: str, borrowers: tuple[str, ...]) -> None:
        """Raise unless runtimes borrow from others that are there, without going round in circles."""
        if name not in self.runtimes:
            raise ValueError(f"runtime {borrowers[-1]!r} borrows from {name!r}, which the profile does not have")
        if name in borrowers:
            raise ValueError(f"runtimes borrow in a circle: {' from '.join([*borrowers, name])}")
        for lender in self.runtimes[name].borrows:
            device, _, other = lender.rpartition("/")
            if device in ("", self.name):
                self._check_lenders(other, (*borrowers, name))

    def with_measured(self, name: str, runtime: Runtime) -> DeviceProfile:
        """With a runtime that was measured on the device itself: what was said of it before that holds no more."""
        runtimes = {**self.runtimes, name: replace(runtime, note="")}
        own = [other for other, found in runtimes.items() if other == name or found.measured]
        note = f"Measured on the device: {', '.join(own)}."
        return replace(self, runtimes=runtimes, board_at_hand=True, note=note)

    def target(self, runtime: str | None = None, power_mode: str | None = None, threads: int | None = None) -> Target:
        """What a latency is a latency of; the profile's first runtime and power mode unless named.

        Raises:
            ProfileError: the profile has no such runtime or power mode.
        """
        name = runtime or next(iter(self.runtimes))
        mode = power_mode or next(iter(self.power_modes))
        remedy = f"hwsearch profile --device {self.name} --runtime {name} --from-cases CASES.csv"
        if name not in self.runtimes:
            raise ProfileError(
                f"no runtime {name!r} in the profile of {self.name!r} (have: {', '.join(self.runtimes)}). "
                f"Add its facts to the profile and fit it on measured latencies: {remedy}"
            )
        if mode not in self.power_modes:
            raise ProfileError(
                f"no power mode {mode!r} in the profile of {self.name!r} (have: {', '.join(self.power_modes)})"
            )
        if self.runtimes[name].parameters is None:
            raise ProfileError(
                f"the profile of {self.name!r} has no parameters for runtime {name!r} yet. "
                f"Fit them on measured latencies: {remedy}"
            )
        found = self.runtimes[name]
        if threads and not found.threads:
            raise ProfileError(f"{name} on {self.name!r} has no threads to choose; leave --threads out")
        if threads and self.cores and threads > self.cores.value:
            raise ProfileError(f"{self.name!r} has {self.cores.value:.0f} cores; got {threads} threads")
        return Target(self.name, mode, name, found.version, threads or found.threads)

    def power_mode_of(self, text: str) -> str:
        """As `named_power_mode`; the default where the text names none."""
        return self.named_power_mode(text) or next(iter(self.power_modes))

    def named_power_mode(self, text: str) -> str | None:
        """The power mode that a case's free text names ("MaxN (NVIDIA MaxP setting)")."""
        words = _words(text)
        named = [
            (len(_words(known)), name)
            for name, mode in self.power_modes.items()
            for known in (name, *mode.aliases)
            if _words(known) <= words
        ]
        # "MAXN SUPER" is more than "MAXN"; of equals the first.
        return max(named, key=lambda found: found[0])[1] if named else None


def _words(text: str) -> set[str]:
    plain = re.sub(r"(\d) +w\b", r"\1w", re.sub(r"[(),_]", " ", text.lower()))  # "30 W" is 30W
    return set(plain.split())


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a latency is a latency of.

    Attributes:
        device, power_mode, runtime, version: names as in the profile.
        threads: 0 where there is nothing to choose.
    """

    device: str
    power_mode: str
    runtime: str
    version: str
    threads: int

    def __str__(self) -> str:
        parts = [self.device, f"{self.runtime} {self.version}".strip()]
        if self.power_mode != "default":
            parts.append(self.power_mode)
        if self.threads:
            parts.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        return ", ".join(parts)

"""Finding a device by what a person typed; "host" is measured on first use. And what of its cases a profile lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hwsearch.cli.output import note

if TYPE_CHECKING:
    from hwsearch.device import DeviceProfile
    from hwsearch.latency.cases import Case

HOST = "host"
device_option = click.option(
    "--device", required=True, help="Name, alias or TOML file of a device; 'hwsearch devices' lists them."
)


def find(
    device: str, threads: int | None = None, runtime: str | None = None, new_tokens: int | None = None
) -> DeviceProfile:
    """The profile of a device by name, alias or path; this machine's for "host", with what is asked about measured."""
    from hwsearch.profiles import find_profile

    if device.lower() != HOST:
        return find_profile(device)
    from hwsearch.bench.host import host_profile
    from hwsearch.cli.progress import Progress

    with Progress() as progress:
        progress.stage("measuring this machine", 1.0)
        return host_profile(threads, progress.say, progress.at, runtime, bool(new_tokens))


def note_modes(profile: DeviceProfile, cases: Sequence[Case]) -> None:
    """Say which rows state a power mode that the profile does not have: they count as the default's."""
    stated = [case.power_mode for case in cases if case.power_mode and not profile.named_power_mode(case.power_mode)]
    if stated:
        names = ", ".join(map(repr, sorted(set(stated))))
        note(f"{len(stated)} rows state no power mode of the profile, taken as {profile.power_mode_of('')}: {names}")

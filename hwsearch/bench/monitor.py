"""What this machine's clocks, power and temperature were while something ran, as a board says it in a kit's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hwsearch.bench.board import monitor, sensors

WATCH_SECONDS = 1.0


class Readings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was read while one model ran back to back.

    Attributes:
        samples: readings.
        seconds: from the first to the last.
        values: smallest, middle and largest of each, the unit in its name: "clock_mhz.gpu", "power_w.VDD_IN",
            "temperature_c.cpu-thermal".
        throttled: why the board was slower than it could be; empty where it was not.
        power_w: mean power of the board; None where it does not tell.
        energy_mj: millijoules of one pass; None likewise.
    """

    samples: int
    seconds: float
    values: dict[str, tuple[float, float, float]]
    throttled: tuple[str, ...] = ()
    power_w: float | None = None
    energy_mj: float | None = None

    @property
    def clocks(self) -> dict[str, float]:
        """Median clocks in MHz, to compare later ones with."""
        return monitor.clocks_of({"values": self.values})


def watch(
    run: Callable[[], object],
    seconds: float = WATCH_SECONDS,
    first: Mapping[str, float] | None = None,
    root: Path = Path("/"),
) -> Readings:
    """Run something back to back for about `seconds` and read this machine meanwhile.

    Args:
        run: one pass, done when it returns.
        first: clocks of the first that was watched, to tell throttling by.
        root: under which `sys` and `proc` are.
    """
    sources = sensors.sources(root)
    try:
        found = monitor.watch(monitor.Monitor(sources), monitor.repeat(run), seconds, first or {})
    finally:
        for source in sources:
            source.close()
    return msgspec.convert(found, Readings)


def facts_of(readings: Sequence[Readings]) -> dict[str, Any]:
    """Readings of many models in few words, for `measured.toml`: "clocks_mhz", "power_w" and "temperature_c" by name as
    [smallest, middle, largest], and "throttled", how many models were."""
    facts: dict[str, Any] = {}
    for label, prefix in (
        ("clocks_mhz", sensors.CLOCK),
        ("power_w", sensors.POWER),
        ("temperature_c", sensors.TEMPERATURE),
    ):
        names = sorted({name for one in readings for name in one.values if name.startswith(prefix)})
        table = {}
        for name in names:
            low, middle, high = np.array([one.values[name] for one in readings if name in one.values]).T
            table[name[len(prefix) :]] = [float(low.min()), float(np.median(middle)), float(high.max())]
        if table:
            facts[label] = table
    throttled = sum(bool(one.throttled) for one in readings)
    return {**facts, "throttled": throttled} if readings else facts

"""Clocks, power, temperature and throttling while a model runs, by what `sensors` read."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .sensors import CLOCK, PERIOD, whole_power

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SETTLE = 0.5  # share of a stretch before power is averaged: sensors average over their own window
FALL = 0.05  # share by which a clock falls under the first reading until that is called throttling


class Monitor:
    """Readings in a thread.

    Args:
        read_from: sources; a later one overrides an earlier one.
        clock: in seconds.
    """

    def __init__(self, read_from: list[Any], clock: Callable[[], float] = time.perf_counter) -> None:
        self._sources, self._clock = read_from, clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._readings: list[tuple[float, dict[str, float]]] = []
        self._throttled: set[str] = set()

    def start(self) -> None:
        """Begin."""
        self._readings, self._throttled = [], set()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            self.take()
            if self._stop.wait(PERIOD):
                break

    def take(self) -> None:
        """One reading."""
        found: dict[str, float] = {}
        for source in self._sources:
            found.update(source.read())
            self._throttled.update(source.throttled())
        self._readings.append((self._clock(), found))

    def stop(self, first: Mapping[str, float], last_seconds: float = float("inf")) -> dict[str, Any]:
        """End, and say what was read.

        Args:
            first: clocks by name, as "clock_mhz.gpu", to which these are compared.
            last_seconds: readings that are older than this at the end are left out.

        Returns: "samples"; "seconds"; "values", for each name (minimum, median, maximum); "throttled", reasons;
            "power_w", the board's mean, None where it is not known.
        """
        self._stop.set()
        if self._thread:
            self._thread.join()
        end = self._clock()
        kept = [(when, found) for when, found in self._readings if end - when <= last_seconds] or self._readings[-1:]
        names = sorted({name for _, found in kept for name in found})
        values = {}
        for name in names:
            series = [found[name] for _, found in kept if name in found]
            values[name] = [float(f"{point:.6g}") for point in (min(series), float(np.median(series)), max(series))]
        begun = kept[0][0] if kept else end
        settled = [found for when, found in kept if when - begun >= SETTLE * (end - begun)] or [kept[-1][1]]
        watts = [power for power in map(whole_power, settled) if power is not None]
        slower = [
            f"{name[len(CLOCK) :]} clock fell from {first[name]:.0f} to {values[name][1]:.0f} MHz"
            for name in names
            if name in first and values[name][1] < (1 - FALL) * first[name]
        ]
        return {
            "samples": len(kept),
            "seconds": float(f"{end - begun:.6g}"),
            "values": values,
            "throttled": sorted(self._throttled) + slower,
            "power_w": float(f"{np.mean(watts):.6g}") if watts else None,
        }

    def close(self) -> None:
        """Let the sources go."""
        for source in self._sources:
            source.close()


def clocks_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Median clocks, to which later stretches are compared."""
    return {name: values[1] for name, values in summary["values"].items() if name.startswith(CLOCK)}


def watch(
    monitor: Monitor, stretch: Callable[[float], tuple[int, float]], seconds: float, first: Mapping[str, float]
) -> dict[str, Any]:
    """Run something back to back for `seconds` and say what the board did meanwhile.

    Args:
        stretch: runs so many seconds and returns how many passes that were and the seconds that they took; of a process
            of its own, what it takes to start counts for neither.
        first: clocks to compare with.

    Returns: as `Monitor.stop`, with "energy_mj", millijoules of a pass: the mean power times what a pass took.
    """
    monitor.start()
    try:
        passes, busy = stretch(seconds)
    finally:
        found = monitor.stop(first, last_seconds=seconds)
    energy = None if found["power_w"] is None else found["power_w"] * busy / passes * 1e3
    return {**found, "energy_mj": None if energy is None else float(f"{energy:.6g}")}


def repeat(
    run: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> Callable[[float], tuple[int, float]]:
    """A `stretch` of passes in this process."""

    def stretch(seconds: float) -> tuple[int, float]:
        begun, passes = clock(), 0
        while passes == 0 or clock() - begun < seconds:
            run()
            passes += 1
        return passes, clock() - begun

    return stretch

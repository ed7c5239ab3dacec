"""Measured tables on disk: found by a runtime's profile, read once, their surfaces fitted once."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from hwsearch import __version__
from hwsearch.device import DeviceProfile, Target
from hwsearch.errors import CasesError, RunError
from hwsearch.files import read_or_drop, write_text
from hwsearch.latency.interpolate import Hyper
from hwsearch.latency.points import MARK, read_points, reconciled
from hwsearch.latency.table import LatencyTable
from hwsearch.profiles import data_folder, own_tables
from hwsearch.runtime import Runtime


def roots() -> tuple[Path, Path]:
    """Where tables live: one's own, and those that come with hwsearch."""
    return own_tables(), data_folder("latency_tables")


def table_of_target(profile: DeviceProfile, target: Target) -> LatencyTable | None:
    """The measured table of a target; None where its runtime has none, or it was measured with other threads or in
    another power mode.

    Raises:
        CasesError: the table that the profile names is missing or damaged.
    """
    runtime = profile.runtimes[target.runtime]
    if not runtime.table or target.threads != runtime.threads:
        return None
    folder = folder_of(runtime.table)
    table = _read(folder, (folder / MARK).stat().st_mtime_ns, msgspec.json.encode(runtime))
    measured_in = profile.power_mode_of(table.points[0].case.power_mode)
    return table if measured_in == target.power_mode else None


def folder_of(name: str) -> Path:
    """The folder of a table that a profile names: a path, or "<device>/<runtime>" under one of `roots`.

    Raises:
        CasesError: there is none.
    """
    for root in roots():  # an absolute path stands for itself
        if (root / name / MARK).is_file():
            return root / name
    raise CasesError(
        f"no latency table {name!r} under {' or '.join(map(str, roots()))}. Measure it with `hwsearch profile`"
    )


def measured_facts(folder: Path) -> dict[str, Any]:
    """What identifies a table's measurement: its `MARK`.

    Raises:
        CasesError: it is missing or damaged.
    """
    import tomllib

    path = folder / MARK
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CasesError(f"{path} is missing or damaged: {error}") from error


@lru_cache(maxsize=8)
def _read(folder: Path, _changed: int, runtime: bytes) -> LatencyTable:
    found = msgspec.json.decode(runtime, type=Runtime)
    points = [point for point in read_points(folder) if point.kernels]
    written = measured_facts(folder).get("points", len(points))
    if len(points) < written:
        raise CasesError(
            f"the latency table {folder} has kernels of {len(points)} of its {written} points; copy it again"
        )
    if len(points) < 2:
        raise CasesError(f"the latency table {folder} has {len(points)} points with kernels; it needs 2 at least")
    tables = [point.case.ops(found) for point in points]
    points = reconciled(points, tables, found.fused_attention)
    plain = LatencyTable.digest_of(points)
    kept = platformdirs.user_cache_path("hwsearch") / "surfaces" / f"{plain}-{__version__}.json"
    hypers = read_or_drop(kept, lambda path: msgspec.json.decode(path.read_bytes(), type=dict[str, Hyper]))
    table = LatencyTable(points, tables, found.fused_attention, hypers)
    if hypers is None:
        with suppress(RunError):  # it is fitted again, where it cannot be kept
            write_text(kept, msgspec.json.encode(table.hypers).decode())
    return table

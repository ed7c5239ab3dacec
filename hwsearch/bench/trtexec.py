"""Latencies out of trtexec's JSON files, so that a few runs of it are enough to fit a profile: a CSV of cases whose
column `trtexec` names the file that stands for the latency.
"""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import numpy as np

from hwsearch.bench.board import trtexec
from hwsearch.errors import CasesError
from hwsearch.latency.cases import COLUMNS, Case

COLUMN = "trtexec"


class Timing(msgspec.Struct, frozen=True):
    """What a file of trtexec says of a model.

    Attributes:
        latency_ms: of a pass on the GPU, without copies.
        statistic: what that is of the passes.
        passes: that were timed; 0 where the file does not tell.
    """

    latency_ms: float
    statistic: str
    passes: int


def read_timing(path: Path) -> Timing:
    """The latency in a file of `--exportTimes` (median of the GPU's times), or of `--exportProfile` (sum of the layers'
    times, which are somewhat long: the profiler waits after each).

    Raises:
        CasesError: it is neither.
    """
    try:
        times = np.array([one["computeMs"] for one in trtexec.read_times(path)])
        return Timing(float(f"{np.median(times):.6g}"), "median of GPU compute time", len(times))
    except ValueError as error:
        try:
            total = sum(trtexec.read_layers(path).values())
        except ValueError:
            raise CasesError(f"{error}. Time with: trtexec --onnx=MODEL --exportTimes=FILE.json") from error
    if total <= 0:
        raise CasesError(f"{path} has layers that take no time; export times: trtexec --exportTimes=FILE.json")
    return Timing(float(f"{total:.6g}"), "sum of layer times", 0)


def names_trtexec(path: Path) -> bool:
    """Whether a CSV of cases names files of trtexec; False where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return COLUMN in (csv.DictReader(file).fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def read_trtexec_cases(path: Path) -> list[Case]:
    """Cases whose latencies are in trtexec's files.

    Args:
        path: a CSV with the columns of a cases file, without `latency_ms` and `statistic`, and with `trtexec`: a file
            relative to the CSV's folder. A folder stands for the one CSV in it.

    Raises:
        CasesError: a file cannot be read, or a column or a row is wrong; the line is named.
    """
    if path.is_dir():
        found = sorted(path.glob("*.csv"))
        if len(found) != 1:
            raise CasesError(
                f"{path} is to hold one CSV that says which model each file of trtexec is of; it has {len(found)}"
            )
        path = found[0]
    allowed = [name for name in COLUMNS if name not in ("latency_ms", "statistic")]
    required = [f.name for f in msgspec.structs.fields(Case) if f.required and f.name in allowed]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            missing = [name for name in (COLUMN, *required) if name not in header]
            unknown = [name for name in header if name not in (COLUMN, *allowed)]
            if missing or unknown:
                raise CasesError(
                    f"{path}: the columns are trtexec, {', '.join(allowed)}; missing: {missing}, unknown: {unknown}"
                )
            cases = [_case(row, path, reader.line_num) for row in reader]
    except OSError as error:
        raise CasesError(f"cannot read the cases {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CasesError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not cases:
        raise CasesError(f"{path} has no rows; give one for each file of trtexec")
    return cases


def _case(row: dict[str | None, str | None], path: Path, line: int) -> Case:
    place = f"{path}, line {line}"
    if None in row or None in row.values():
        raise CasesError(f"{place}: the row does not have as many cells as the header")
    cells = {name: cell.strip() for name, cell in row.items() if name and cell and cell.strip()}
    file = cells.pop(COLUMN, "")
    if not file:
        raise CasesError(f"{place}: the cell `trtexec` names no file")
    try:
        timing = read_timing(path.parent / file)
    except CasesError as error:
        raise CasesError(f"{place}: {error}") from error
    told = {"io": "compute", "source": f"trtexec: {file}", **cells}
    told |= {"latency_ms": str(timing.latency_ms), "statistic": timing.statistic}
    try:
        return msgspec.convert(told, Case, strict=False)
    except msgspec.ValidationError as error:
        raise CasesError(f"{place}: {error}") from error

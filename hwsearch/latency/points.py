"""The points of a measured latency table: models with their times and those of their kernels, as they lie on disk."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from hwsearch.errors import CasesError
from hwsearch.files import write_text
from hwsearch.latency.cases import COLUMNS, Case, read_cases
from hwsearch.latency.kernels import kernels_of
from hwsearch.workload import OpTable

MARK = "measured.toml"  # of a table's folder: what identifies the measurement
AGREE = 0.02  # part by which kernels and whole pass of a point may disagree more than usual


class Point(msgspec.Struct, frozen=True):
    """One measured model.

    Attributes:
        case: the model, its workload and the time of a whole pass.
        kernels: microseconds of one run of each kernel in it, by name; empty where the runtime does not tell.
        nodes: of the runtime's graph that one run of a kernel is, by name: each adds to the doubt about its time.
    """

    case: Case
    kernels: dict[str, float] = {}
    nodes: dict[str, float] = {}


def reconciled(points: Sequence[Point], tables: Sequence[OpTable], fused: bool) -> list[Point]:
    """The points with their kernels' times scaled where they do not add up to the whole pass as those of most points
    do, beyond `AGREE`.

    How a pass is shared out comes from the runtime's profiler, which is disturbed more easily than a whole pass.
    Measured on three tables with 60 unseen models each: of 180 models 176 within 10 % in place of 173.
    """
    sums = np.array(
        [
            sum(p.kernels[k.name] * table.runs[k.rows].sum() for k in kernels_of(table, fused) if k.name in p.kernels)
            for p, table in zip(points, tables, strict=True)
        ]
    )
    ratios = np.log([point.case.latency_ms * 1e3 for point in points]) - np.log(sums)
    decode = np.array([point.case.phase == "decode_token" for point in points])
    usual = [float(np.median(ratios[decode == phase])) if (decode == phase).any() else 0.0 for phase in (False, True)]
    apart = ratios - np.where(decode, usual[True], usual[False])
    factors = np.exp(np.sign(apart) * np.maximum(np.abs(apart) - AGREE, 0.0)).tolist()
    return [
        replace(point, kernels={name: time * factor for name, time in point.kernels.items()})
        for point, factor in zip(points, factors, strict=True)
    ]


def write_table(folder: Path, points: Sequence[Point], facts: Mapping[str, Any], samples: Mapping[str, Any]) -> None:
    """Write points, the raw samples, and what identifies the measurement last: `MARK`, which says that the rest is
    there. Killed before it, a table that had fewer of these points is still whole.

    Args:
        folder: as "latency_tables/<device>/<runtime>".
        points: by the order they were measured in.
        facts: for `MARK`.
        samples: raw, by case.
    """
    import tomlkit

    write_text(folder / "samples.json", msgspec.json.encode(samples).decode())
    rows = [msgspec.to_builtins(point.case) for point in points]
    blank = [{name: "" if value in ("", None) else value for name, value in row.items()} for row in rows]
    write_text(folder / "cases.csv", _csv(COLUMNS, blank))
    kernels = [
        {"case": number, "kernel": name, "nodes": f"{point.nodes.get(name, 1.0):.4g}", "microseconds": f"{time:.4g}"}
        for number, point in enumerate(points)
        for name, time in sorted(point.kernels.items())
    ]
    write_text(folder / "kernels.csv", _csv(("case", "kernel", "nodes", "microseconds"), kernels))
    write_text(folder / MARK, tomlkit.dumps(dict(facts)))


def read_points(folder: Path) -> list[Point]:
    """The points of a table on disk.

    Raises:
        CasesError: a file is missing or damaged; the line is named.
    """
    cases = read_cases(folder / "cases.csv")
    path = folder / "kernels.csv"
    kernels: list[dict[str, float]] = [{} for _ in cases]
    nodes: list[dict[str, float]] = [{} for _ in cases]
    if path.is_file():
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for number, row in enumerate(csv.DictReader(file), 2):
                    owner, time, count = int(row["case"]), float(row["microseconds"]), float(row["nodes"])
                    if not (0 <= owner < len(cases) and 0 < time < float("inf") and 0 < count < float("inf")):
                        raise CasesError(f"{path}, line {number}: no such case, or no time: {owner}, {time}")
                    kernels[owner][row["kernel"]], nodes[owner][row["kernel"]] = time, count
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
            raise CasesError(f"{path} is damaged: {error}") from error
    return [Point(*point) for point in zip(cases, kernels, nodes, strict=True)]


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

"""The students of a finished run, priced on another device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.device import DeviceProfile, Target
from hwsearch.errors import RunError
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.search.pareto import front
from hwsearch.search.plan import runs_graphs
from hwsearch.search.result import Result, memory_mib
from hwsearch.workload import Workload

NO_WAY = "The chosen student cannot run here: this runtime lacks its precisions, or takes no layers of different sizes."


def reprice(
    document: dict[str, Any], trials: Sequence[Result], profile: DeviceProfile, target: Target
) -> tuple[dict[str, Any], list[Result]]:
    """The summary and the trials of a run as they would be on another device, for the same workload.

    Scores stay: they were trained for the first device's numerics, and `repriced_from` in the summary names it. Floats
    become the other runtime's narrowest, and so does a head that it keeps in float; a student with int8 parts has no
    price where the runtime does not run int8, nor one with layers of different sizes where it does not run graphs.

    Raises:
        RunError: no student of the run can run there.
    """
    runtime = profile.runtimes[target.runtime]
    workload = Workload(**document["workload"])
    price = Estimator(profile, target, workload)
    beside = runtime.float_beside()

    def there_as(architecture: Architecture) -> Architecture:
        own = architecture.with_float(beside)
        return replace(own, head_precision=beside) if "head" in runtime.scheme.keeps_float else own

    def runs(result: Result) -> bool:
        own = there_as(result.architecture)
        known = all(p.is_float or p in runtime.precisions for p in (*own.parts, own.head_precision))
        return known and (own.uniform or runs_graphs(target.runtime))

    def priced(result: Result) -> Result:
        architecture = there_as(result.architecture)
        return replace(
            result,
            architecture=architecture,
            latency=price.one(architecture),
            predicted=None,
            size_mib=architecture.size_mib,
            memory_mib=memory_mib(architecture, workload),
        )

    there = [priced(result) for result in trials if runs(result)]
    if not there:
        raise RunError(f"no student of this run can run on {target}: it runs {', '.join(map(str, runtime.precisions))}")
    teacher = Architecture.from_json(document["teacher"]["architecture"])
    floats = {p: price.one(teacher.in_float(p)) for p in runtime.precisions if p.is_float}
    fastest = min(floats, key=lambda precision: floats[precision].median_ms)
    baselines = {name: Result.from_json(result) for name, result in document["baselines"].items()}
    moved = {
        **document,
        "device": profile.name,
        "target": msgspec.to_builtins(target),
        "note": profile.note,
        "repriced_from": document.get("repriced_from") or str(Target(**document["target"])),
        "teacher": {
            **document["teacher"],
            "precision": str(fastest),
            "architecture": teacher.in_float(fastest).to_json(),
            "latency": msgspec.to_builtins(floats[fastest]),
            "latency_fp32": msgspec.to_builtins(floats.get(Precision.FP32)),
        },
        "chosen": (chosen := _moved(document["chosen"], priced, runs)),
        "lost": NO_WAY if document["chosen"] and not chosen else document.get("lost", ""),
        "front": [result.to_json() for result in front(there)],
        "finalists": [
            {**finalist, "predicted_ms": result["latency"]["median_ms"], "measured_ms": None, "result": result}
            for finalist in document["finalists"]
            if (result := _moved(finalist["result"], priced, runs)) is not None
        ],
        "overshot": [],
        "sensitivity": None,  # in the first device's milliseconds
        "distilled": None,
        "missing_baselines": {},  # by the first device's latencies, like how students came about
        "stages": [],
        "baselines": {name: priced(result).to_json() for name, result in baselines.items() if runs(result)},
    }
    return moved, there


def _moved(result: dict[str, Any] | None, priced: Any, runs: Any) -> dict[str, Any] | None:
    if result is None:
        return None
    read = Result.from_json(result)
    moved: dict[str, Any] | None = priced(read).to_json() if runs(read) else None
    return moved

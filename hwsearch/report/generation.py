"""How fast the teacher and its students write, where the workload is a generation."""

from __future__ import annotations

from typing import Any

import msgspec

from hwsearch.architecture import Architecture
from hwsearch.precision import Precision
from hwsearch.search.result import cache_mib
from hwsearch.workload import Workload


class Speed(msgspec.Struct, frozen=True):
    """Of one model.

    Attributes:
        name: what it is in the report.
        architecture: its id.
        first_ms: until the first token.
        each_ms: of every token after it.
        tokens_a_second: of all sequences together, the first token left out.
        cache_mib: of keys and values at the end, by precision.
    """

    name: str
    architecture: str
    first_ms: float
    each_ms: float
    tokens_a_second: float
    cache_mib: dict[str, float]


def speeds(document: dict[str, Any]) -> list[Speed]:
    """Of the teacher, the chosen student and those made by hand; none where nothing is generated."""
    workload = msgspec.convert(document["workload"], Workload)
    everyone = {"teacher": document["teacher"], "chosen": document["chosen"], **document["baselines"]}
    found = []
    for name, result in everyone.items():
        phases = result["latency"]["phases"] if result else {}
        if not workload.new_tokens or not phases.get("decode_token"):
            continue
        own = Architecture.from_json(result["architecture"])
        first, each = (phases[phase] for phase in ("prefill", "decode_token"))
        caches = dict.fromkeys((own.kv_precision, Precision.FP16, Precision.INT8))
        found.append(
            Speed(
                name,
                own.id,
                first,
                each,
                1e3 * workload.batch / each,
                {str(precision): cache_mib(own, workload, precision) for precision in caches},
            )
        )
    return found

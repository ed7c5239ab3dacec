"""Which results are beaten by none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hwsearch.search.result import Result

T = TypeVar("T")


def front(results: Sequence[Result]) -> list[Result]:
    """Those with a lower loss than everything that is as fast or faster, the fastest first."""
    found: list[Result] = []
    for result in sorted((r for r in results if r.loss is not None), key=lambda r: (r.latency.median_ms, r.loss)):
        if not found or (result.loss or 0.0) < (found[-1].loss or 0.0):
            found.append(result)
    return found


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spread, the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)] if count > 1 else [items[-1]]

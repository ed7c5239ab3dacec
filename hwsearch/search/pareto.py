"""Which results are beaten by none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from hwsearch.search.result import Result

T = TypeVar("T")


def front(results: Sequence[Result]) -> list[Result]:
    """Those with a lower loss than everything that is as fast or faster, the fastest first."""
    return unbeaten((r.latency.median_ms, rank, r) for r in results if (rank := r.rank) is not None)


def unbeaten(points: Iterable[tuple[float, float, T]]) -> list[T]:
    """Of (x, y, what it is), what has a lower y than everything of the same x or a smaller one, in order of x."""
    found, least = list[T](), math.inf
    for _, y, item in sorted(points, key=lambda point: point[:2]):
        if y < least:
            found.append(item)
            least = y
    return found


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spread, the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)] if count > 1 else [items[-1]]

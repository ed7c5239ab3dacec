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


def about(results: Sequence[Result], least: float, count: int) -> list[Result]:
    """`count` of a front, the fastest first: up to the fastest that retains `least`, or the slowest where none does.
    The faster ones may still come to it, for a longer training retains more."""
    reached = next((i for i, r in enumerate(results) if (r.retention or 0.0) >= least), len(results) - 1)
    first = max(0, reached + 1 - count)
    return list(results[first : first + count])

"""What options are read as, beside click's own types."""

from __future__ import annotations

import math
from typing import Any

import click

COUNT = click.IntRange(1, 2**24)  # of sequences, tokens and rounds: as large as a `Workload` may be
NONE_OR_MORE = click.IntRange(0, COUNT.max)


MOST = 10_000  # numbers of one span


class Positive(click.FloatRange):
    """A number above zero, `most` at most; click's own ranges let "nan" and "inf" through."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(0, most, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class RangeType(click.ParamType):  # type: ignore[type-arg]
    """A smallest and a largest number: "64-512", or one number for both."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        first, _, last = str(value).partition("-")
        ends = (first.strip(), (last or first).strip())
        if not all(end.isascii() and end.isdecimal() and 0 < len(end) < 7 for end in ends):
            self.fail(f"a range is given as 64-512; got {value!r}", param, ctx)
        low, high = map(int, ends)
        if not 1 <= low <= high:
            self.fail(f"a range goes from 1 or more upwards; got {value!r}", param, ctx)
        return low, high


class BudgetType(click.ParamType):  # type: ignore[type-arg]
    """A time with its unit, or a share of the teacher's latency."""

    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from hwsearch.errors import UnitError
        from hwsearch.units import parse_budget

        try:
            return parse_budget(value)
        except UnitError as error:
            self.fail(str(error), param, ctx)


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers: "4-8" or "128,192"."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        found: list[int] = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            ends = (first, last) if dash else (first,)
            if not all(end.isascii() and end.isdecimal() and len(end) < 8 for end in ends):
                self.fail(f"numbers are given as 4-8 or 128,192; got {value!r}", param, ctx)
            low, high = int(first), int(last or first)
            if not low <= high < low + MOST:
                self.fail(f"numbers go upwards, {MOST:,} of them at most; got {part.strip()}", param, ctx)
            found += range(low, high + 1)
        return tuple(found)


class Steps(click.IntRange):
    """A number of training steps, or "auto" for what was measured to suffice."""

    name = "integer or auto"

    def __init__(self) -> None:
        super().__init__(4)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)

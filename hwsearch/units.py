"""The only place that reads or prints a unit. Inside, milliseconds are floats in names that end in `_ms`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hwsearch.errors import UnitError

_TIMES_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "min": 60e3, "h": 3600e3}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)(?:e([+-]?\d+))?"


@dataclass(frozen=True)
class Budget:
    """A latency budget: a time, or a share of the teacher's latency; exactly one of the two is set.

    Attributes:
        ms: milliseconds.
        share: of the teacher's latency, as in "0.25x".
    """

    ms: float | None = None
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.share:g}x" if self.ms is None else format_ms(self.ms).replace(" ", "")

    def resolve(self, teacher_ms: float) -> float:
        """The budget in milliseconds, given the teacher's latency.

        Raises:
            UnitError: a share that makes no time of it.
        """
        if self.ms is not None:
            return self.ms
        assert self.share is not None
        if not 0 < (ms := self.share * teacher_ms) < float("inf"):
            raise UnitError(
                f"{self} of the teacher's latency is no time that can be counted; give a share such as 0.25x"
            )
        return ms


def parse_ms(text: str) -> float:
    """Read a time: "280ms" -> 280.0, "1.5s" -> 1500.0.

    Raises:
        UnitError: no unit, an unknown one, or not a positive number.
    """
    match = re.fullmatch(_NUMBER + r"\s*([a-zµ]*)", text.strip())
    if match is None:
        raise UnitError(f"a time is a positive number and a unit, as in 280ms, 1.5s or 0.5min; got {text!r}")
    number, exponent, unit = match.groups()
    if not unit:
        raise UnitError(f"a time needs a unit ({', '.join(_TIMES_MS)}); got {text!r}. Did you mean {text.strip()}ms?")
    if unit not in _TIMES_MS:
        raise UnitError(f"unknown unit {unit!r} in {text!r}; times are given in {', '.join(_TIMES_MS)}")
    value = float(f"{number}e{exponent or 0}") * _TIMES_MS[unit]
    if not 0 < value < float("inf"):
        raise UnitError(f"a time must be more than zero and finite; got {text!r}")
    return value


def parse_budget(text: str) -> Budget:
    """Read a budget: "280ms" is a time, "0.25x" a share of the teacher's latency.

    Raises:
        UnitError: neither.
    """
    match = re.fullmatch(_NUMBER + r"\s*[x×]", text.strip())
    if match is None:
        return Budget(ms=parse_ms(text))
    share = float(f"{match[1]}e{match[2] or 0}")
    if not 0 < share < float("inf"):
        raise UnitError(f"a share of the teacher's latency must be more than zero; got {text!r}")
    return Budget(share=share)


def format_metric(name: str, value: float | None) -> str:
    """Print a metric by its kind: a perplexity with three significant digits, a share in percent."""
    if value is None:
        return ""
    return f"{value:.3g}" if name == "perplexity" else f"{value:.1%}"


def format_ms(ms: float) -> str:
    """Print a time with three significant digits in the unit that suits it: 0.0421 -> "42.1 us", 90000 -> "90.0 s"."""
    if ms < 0.1:
        value, unit = ms * 1e3, "us"
    elif ms < 10_000:
        value, unit = ms, "ms"
    elif ms < 600_000:
        value, unit = ms / 1e3, "s"
    elif ms < 3 * 3600e3:
        value, unit = ms / 60e3, "min"
    else:
        value, unit = ms / 3600e3, "h"
    digits = max(0, 2 - int(f"{value:e}".split("e")[1])) if value > 0 else 0
    return f"{value:.{digits}f} {unit}"


def format_seconds(seconds: float) -> str:
    """Print a duration for a progress line: 75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""Which learning rate suits: a few are tried, each a step from the next, as long as the next is better.

One that suits small students makes those forget that begin near their teacher, and the other way round; how far apart
the two are differs by teacher (`benchmarks/README.md`, "How fast a student should learn").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

STEP = 0.5  # from one rate to the next lower one
TRIED = 5  # rates at most


def tried(losses_of: Callable[[Sequence[float]], Sequence[float]], first: float = 1.0) -> dict[float, float]:
    """Held-out losses by learning rate.

    Args:
        losses_of: what is lost at some rates; infinite where a training diverges.
        first: to begin with, over the recipe's; then the next lower one, and on in the direction that is better.
    """
    found = dict(zip((first, STEP * first), losses_of((first, STEP * first)), strict=True))
    lower = found[STEP * first] <= found[first]
    rate, step = (STEP * first, STEP) if lower else (first, 1 / STEP)
    while len(found) < TRIED:
        (found[rate * step],) = losses_of((rate * step,))
        if found[rate * step] >= found[rate]:
            break
        rate *= step
    return found


def best(losses: Mapping[float, float]) -> float:
    """The rate at which least is lost; the recipe's where none was tried."""
    return min(losses, key=losses.__getitem__, default=1.0)


def rates_of(described: Mapping[str, Any]) -> dict[float, float]:
    """What a study's description says was tried."""
    return {rate: math.inf if loss is None else loss for rate, loss in described.get("rates", ())}


def told(losses: Mapping[float, float], steps: int) -> str:
    """What was found, for a person."""
    each = ", ".join(f"{rate:.2g} {loss:.4f}" for rate, loss in sorted(losses.items()))
    return f"learning rate: {best(losses):.2g} times the recipe's (KL on select after {steps} steps: {each})"

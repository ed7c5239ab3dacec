"""Students as a person makes them by hand, at the same latency: what a search has to beat.

They are cut, quantised and trained as the search's own are; only the choice of the shape is the person's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.latency.estimator import Estimates
from hwsearch.space import SearchSpace


class HandMade(msgspec.Struct, frozen=True):
    """A student made by hand.

    Attributes:
        name: what was done.
        architecture: of the student.
        layers: the teacher's layers behind it.
    """

    name: str
    architecture: Architecture
    layers: tuple[int, ...]


def hand_made(
    space: SearchSpace, price: Callable[[Sequence[Architecture]], Estimates], latency_ms: float
) -> list[HandMade]:
    """Every other layer, and uniform width, each in the fastest uniform precision and as large as `latency_ms`
    allows."""
    depth = space.teacher.depth
    made = []
    for name, layers in (("every other layer", tuple(range(0, depth, 2))), ("uniform width", tuple(range(depth)))):
        if (architecture := _scaled(space, price, len(layers), latency_ms)) is not None:
            made.append(HandMade(name, architecture, layers))
    return made


def _scaled(
    space: SearchSpace, price: Callable[[Sequence[Architecture]], Estimates], depth: int, latency_ms: float
) -> Architecture | None:
    """The teacher's proportions at `depth`, scaled to the latency; None when even the smallest is slower."""
    shape = space.teacher.layers[0]
    options = []
    for precision in space.precisions:
        plan = [(precision, precision)] * depth
        for width in space.widths:
            scale = width / space.teacher.width
            pairs = [pair for pair in space.heads if space.fits(width, pair)]
            if not pairs:
                continue
            heads = min(pairs, key=lambda pair: (abs(pair[0] - shape.heads * scale), -pair[0] / pair[1]))
            near = sorted(space.ffns, key=lambda ffn: abs(ffn - shape.ffn * scale))[:3]
            options += [space.build(depth, width, heads, ffn, plan) for ffn in near]
    median = price(options).median_ms
    inside = np.flatnonzero(median <= latency_ms)
    # Of what fits, the widest; of equal widths the slowest, which has most in it.
    return options[max(inside, key=lambda i: (options[i].width, median[i]))] if len(inside) else None

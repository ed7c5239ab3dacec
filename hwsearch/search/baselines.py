"""Students as a person makes them by hand, at the same latency: what a search has to beat.

They are cut, quantised and trained as the search's own are; only the choice of the shape is the person's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.latency.estimator import Estimates
from hwsearch.latency.latency import Latency
from hwsearch.precision import Precision
from hwsearch.space import SearchSpace, heads_share_width
from hwsearch.units import format_ms

WHOLE = "the teacher in int8"
BEYOND = "is beyond a limit of size, memory or a phase"
TRIES = 3


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
    space: SearchSpace,
    price: Callable[[Sequence[Architecture]], Estimates],
    latency_ms: float,
    keeps_limits: Callable[[Architecture], bool] = lambda architecture: True,  # noqa: ARG005
    ratios: Mapping[str, float] | None = None,
) -> tuple[list[HandMade], dict[str, str]]:
    """Every other layer, and uniform width, each in the uniform precision that lets it be widest inside `latency_ms`;
    the whole teacher in int8, which is as large as it is; and why one is missing, by name.

    Args:
        space: whose precisions, heads and alignment they have.
        price: of architectures.
        latency_ms: that they may take.
        keeps_limits: whether one meets what is asked beside it.
        ratios: of what is estimated to what was measured, by name, where that is known.
    """
    ratios = ratios or {}
    depth = space.teacher.depth
    made, missing = [], {}
    every, other = tuple(range(depth)), tuple(range(0, depth, 2))
    if Precision.INT8 in space.precisions:
        shape = space.teacher.layers[0]
        heads = (shape.heads, shape.kv_heads)
        whole = space.uniform(depth, space.teacher.width, heads, shape.ffn, Precision.INT8)
        takes = float(price([whole]).median_ms[0])
        if takes > latency_ms * ratios.get(WHOLE, 1.0):
            missing[WHOLE] = f"takes {format_ms(takes)}"
        elif not keeps_limits(whole):
            missing[WHOLE] = BEYOND
        else:
            made.append(HandMade(WHOLE, whole, every))
    for name, layers in (("every other layer", other), ("uniform width", every)):
        if not (options := _scaled(space, len(layers))):
            missing[name] = "none of the numbers of heads divides a width"
            continue
        median = price(options).median_ms
        inside = np.flatnonzero(median <= latency_ms * ratios.get(name, 1.0))
        kept = [i for i in inside if keeps_limits(options[int(i)])]
        if kept:
            # Of what fits, the widest; of equal widths the slowest, which has most in it.
            best = max(kept, key=lambda i: (options[i].width, median[i]))
            made.append(HandMade(name, options[int(best)], layers))
        elif len(inside):
            missing[name] = BEYOND
        else:
            missing[name] = f"{len(layers)} layers take {format_ms(float(median.min()))} at least"
    return made, missing


def hand_made_as_run(
    space: SearchSpace,
    price: Callable[[Sequence[Architecture]], Estimates],
    measure: Callable[[Sequence[Architecture]], Sequence[Latency]],
    latency_ms: float,
    keeps_limits: Callable[[Architecture], bool] = lambda architecture: True,  # noqa: ARG005
) -> tuple[list[HandMade], dict[str, str]]:
    """The same, of students that are run: each is made anew with what was measured of the one before, `TRIES` times at
    most, and the slowest that takes as long, as far as measuring can tell, is kept."""
    made, missing = hand_made(space, price, latency_ms, keeps_limits)
    tried: dict[str, list[tuple[HandMade, Latency]]] = {}
    for _ in range(TRIES):
        fresh = [one for one in made if all(one != other for other, _ in tried.get(one.name, ()))]
        if not fresh:
            break
        for one, latency in zip(fresh, measure([one.architecture for one in fresh]), strict=True):
            tried.setdefault(one.name, []).append((one, latency))
        last = {name: found[-1] for name, found in tried.items()}
        ratios = {
            name: float(price([one.architecture]).median_ms[0]) / latency.median_ms
            for name, (one, latency) in last.items()
        }
        made, _ = hand_made(space, price, latency_ms, keeps_limits, ratios)
    kept = []
    for name, found in tried.items():
        inside = [pair for pair in found if pair[1].low_ms <= latency_ms]
        if inside:
            kept.append(max(inside, key=lambda pair: pair[1].median_ms)[0])
            missing.pop(name, None)
        else:
            missing[name] = f"takes {format_ms(min(latency.median_ms for _, latency in found))} as measured"
    return kept, missing


def _scaled(space: SearchSpace, depth: int) -> list[Architecture]:
    """The teacher's proportions at `depth`, in every width and uniform precision; as narrow as it takes."""
    teacher, shape, step = space.teacher, space.teacher.layers[0], space.alignment
    apart = teacher.head_dim if heads_share_width(teacher) else step
    options = []
    for precision in space.precisions:
        for width in (*range(apart, teacher.width, apart), teacher.width):
            scale = width / teacher.width
            pairs = [pair for pair in space.heads if space.fits(width, pair)]
            if not pairs:
                continue
            heads = min(pairs, key=lambda pair: (abs(pair[0] - shape.heads * scale), -pair[0] / pair[1]))
            nearest = max(1, round(shape.ffn * scale / (2 * step)))
            for units in {max(1, nearest - 1), nearest, nearest + 1}:
                ffn = min(units * 2 * step, shape.ffn)
                options.append(space.uniform(depth, width, heads, ffn, precision))
    return options

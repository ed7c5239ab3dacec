"""Which precision each part of a student is in: what quantising it loses against the time that it saves.

What a part loses when it alone is quantised adds up over parts, and time does so too but for the change of precision
between neighbours. The best plan at a rate of exchange is therefore a shortest path through the parts: exact, by
dynamic programming, for many students at once. The plan that comes of it is priced, trained and judged as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from hwsearch.architecture import Architecture
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hwsearch.distill.sensitivity import Sensitivity

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

Plan = tuple[tuple[Precision, Precision], ...]  # of each layer: attention, feed-forward


class PartTimes(NamedTuple):
    """What the parts of some students of one depth take, beside what nothing changes.

    Attributes:
        parts: milliseconds of each part in each precision over those in the first, [students, parts, precisions]; parts
            are attention and feed-forward of the first layer, of the second, and so on.
        changes: milliseconds of going from one precision to another between two parts, [students, precisions,
            precisions].
    """

    parts: Floats
    changes: Floats


def solve(losses: Floats, times: PartTimes, rate: float) -> Ints:
    """The plan of least loss + rate x time of each student, exactly; what is before the first part and behind the last
    is in the first precision.

    Args:
        losses: of each part in each precision, [parts, precisions].
        times: of the students.
        rate: loss that a millisecond is worth.

    Returns:
        Indices of precisions, [students, parts]; of equal plans the one that comes first.
    """
    students, parts, count = times.parts.shape
    change = rate * times.changes
    costs = losses + rate * times.parts
    behind = change[:, :, 0]  # least cost of all that comes after a part, by its precision: [students, precisions]
    best = np.zeros((students, parts, count), np.int64)
    for part in range(parts - 1, 0, -1):
        onward = change + (costs[:, part] + behind)[:, None, :]
        best[:, part], behind = onward.argmin(2), onward.min(2)
    chosen = np.empty((students, parts), np.int64)
    chosen[:, 0] = (change[:, 0] + costs[:, 0] + behind).argmin(1)
    everyone = np.arange(students)
    for part in range(1, parts):
        chosen[:, part] = best[everyone, part, chosen[:, part - 1]]
    return chosen


def part_times(
    students: Sequence[Architecture],
    precisions: Sequence[Precision],
    price: Callable[[Sequence[Architecture]], Floats],
) -> PartTimes:
    """What the parts of students take, found by pricing each with one layer's parts in another precision.

    Args:
        students: of one depth, layers alike, in the first precision.
        precisions: a float first.
        price: milliseconds of architectures, [architectures].
    """
    first, others = precisions[0], precisions[1:]
    variants = [(first, first)]
    for p in others:
        variants += [(p, first), (first, p), (p, p)]
    priced = price([_first_layer(a, *pair) for a in students for pair in variants]).reshape(len(students), -1)
    depth, count = students[0].depth, len(precisions)
    parts = np.zeros((len(students), 2, count))
    changes = np.zeros((len(students), count, count))
    whole = priced[:, 0]
    for i in range(1, count):
        attention, feed_forward, both = priced[:, 3 * i - 2 : 3 * i + 1].T
        # One change in and one out, whether one part is quantised or both.
        change = np.maximum(0.0, (attention + feed_forward - both - whole) / 2)
        parts[:, 0, i] = attention - whole - 2 * change
        parts[:, 1, i] = feed_forward - whole - 2 * change
        changes[:, 0, i] = changes[:, i, 0] = change
    for i in range(1, count):
        for j in range(1, count):  # between two that are not the first: by way of what both are in between
            if i != j:
                changes[:, i, j] = np.maximum(changes[:, 0, i], changes[:, 0, j])
    return PartTimes(np.tile(parts, (1, depth, 1)), changes)


def fair_rate(losses: Floats, times: PartTimes) -> Floats:
    """The loss that a millisecond is worth where quantising all that saves time is worth just what it loses,
    [students]; 0 where nothing saves any."""
    saved = np.maximum(0.0, -times.parts.min(2)).sum(1)
    lost = losses.max(1).sum()
    rate: Floats = np.divide(lost, saved, out=np.zeros_like(saved), where=saved > 0)
    return rate


def plans(
    students: Sequence[Architecture],
    precisions: Sequence[Precision],
    losses: Floats,
    price: Callable[[Sequence[Architecture]], Floats],
    rate: float,
) -> list[Plan]:
    """The best plan of each student of one depth, layers alike, at `rate` times its fair rate.

    Args:
        students: in the first precision.
        precisions: a float first.
        losses: of each part in each precision, [parts, precisions].
        price: milliseconds of architectures, [architectures].
        rate: 0 keeps everything in the first precision.
    """
    if len(precisions) == 1 or rate == 0:
        return [((precisions[0], precisions[0]),) * a.depth for a in students]
    times = part_times(students, precisions, price)
    own = (rate * fair_rate(losses, times))[:, None, None]
    scaled = PartTimes(own * times.parts, own * times.changes)  # as losses: all students are solved at once
    chosen = solve(losses, scaled, 1.0)
    return [plan_of(row, precisions) for row in chosen]


def plan_of(chosen: Sequence[int] | Ints, precisions: Sequence[Precision]) -> Plan:
    """Pairs of precisions of what `solve` has chosen for one student."""
    parts = [precisions[int(i)] for i in chosen]
    return tuple(zip(parts[::2], parts[1::2], strict=True))


def with_plan(architecture: Architecture, plan: Plan) -> Architecture:
    """The same shape in the precisions of a plan."""
    layers = tuple(
        replace(layer, attention=attention, feed_forward=feed_forward)
        for layer, (attention, feed_forward) in zip(architecture.layers, plan, strict=True)
    )
    return replace(architecture, layers=layers)


def _first_layer(architecture: Architecture, attention: Precision, feed_forward: Precision) -> Architecture:
    first = replace(architecture.layers[0], attention=attention, feed_forward=feed_forward)
    return replace(architecture, layers=(first, *architecture.layers[1:]))


def explained(
    chosen: Architecture,
    precisions: Sequence[Precision],
    sensitivity: Sensitivity,
    price: Callable[[Sequence[Architecture]], Floats],
) -> dict[str, Any]:
    """What the chosen student's precisions cost and buy, for the report: `joint`, the KL that they cause together, and
    of each part its layer, kind and precision, and by the precisions that it could have the KL that each causes alone,
    as measured and as estimated from gradients, and the milliseconds that it saves."""
    times = part_times([_in_first(chosen, precisions)], precisions, price).parts[0]
    parts = []
    for i, layer in enumerate(chosen.layers):
        for j, (name, own) in enumerate((("attention", layer.attention), ("feed-forward", layer.feed_forward))):
            options = {
                str(p): {
                    "measured": sensitivity.measured[p][i][j],
                    "estimated": sensitivity.estimated[p][i][j],
                    "saves_ms": -float(times[2 * i + j, k]),
                }
                for k, p in enumerate(precisions)
                if not p.is_float
            }
            parts.append({"layer": i, "part": name, "precision": str(own), "options": options})
    return {"joint": sensitivity.joint, "parts": parts}


def _in_first(architecture: Architecture, precisions: Sequence[Precision]) -> Architecture:
    return with_plan(architecture, ((precisions[0], precisions[0]),) * architecture.depth)

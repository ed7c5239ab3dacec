"""Which precision each part of a student is in: what quantising it loses against the time that it saves.

What a part loses when it alone is quantised adds up over parts, and time does so too but for the change of precision
between neighbours. The best plan at a rate of exchange is therefore a shortest path through the parts of the layers:
exact, by dynamic programming, for many students at once; a language model's head, behind the last norm, has no
neighbours. The plan that comes of it is priced, trained and judged as a whole.
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
    """What the parts of students take, found by pricing each with one layer's parts in another precision at a time;
    where all layers are alike, the first's stand for all.

    Args:
        students: of one depth, in the first precision.
        precisions: a float first.
        price: milliseconds of architectures, [architectures].
    """
    first, others = precisions[0], precisions[1:]
    depth, count = students[0].depth, len(precisions)
    layers = 1 if all(a.uniform for a in students) else depth
    variants = [(i, pair) for i in range(layers) for p in others for pair in ((p, first), (first, p), (p, p))]
    options = [b for a in students for b in (a, *(_one_layer(a, *variant) for variant in variants))]
    priced = price(options).reshape(len(students), -1)
    whole = priced[:, :1, None]
    one, other, both = np.moveaxis(priced[:, 1:].reshape(len(students), layers, count - 1, 3), 3, 0)
    # One change in and one out, whether one part is quantised or both; it is of the width alone.
    change = np.maximum(0.0, (one + other - both - whole) / 2).mean(1)
    parts = np.zeros((len(students), layers, 2, count))
    parts[:, :, 0, 1:] = one - whole - 2 * change[:, None]
    parts[:, :, 1, 1:] = other - whole - 2 * change[:, None]
    changes = np.zeros((len(students), count, count))
    changes[:, 0, 1:] = changes[:, 1:, 0] = change
    for i in range(1, count):
        for j in range(1, count):  # between two that are not the first: by way of what both are in between
            if i != j:
                changes[:, i, j] = np.maximum(changes[:, 0, i], changes[:, 0, j])
    return PartTimes(np.tile(parts, (1, depth // layers, 1, 1)).reshape(len(students), 2 * depth, count), changes)


def head_times(
    students: Sequence[Architecture], precisions: Sequence[Precision], price: Callable[[Sequence[Architecture]], Floats]
) -> Floats:
    """Milliseconds of the head in each precision over those in the first, [students, precisions]; arguments as of
    `part_times`."""
    priced = price([replace(a, head_precision=p) for a in students for p in precisions])
    found: Floats = priced.reshape(len(students), -1)
    return found - found[:, :1]


def fair_rate(losses: Floats, times: Floats) -> Floats:
    """The loss that a millisecond is worth where quantising all that saves time is worth just what it loses,
    [students]; 0 where nothing saves any.

    Args:
        losses: of each part in each precision, [parts, precisions].
        times: of each, [students, parts, precisions].
    """
    fastest, saved = times.argmin(2), np.maximum(0.0, -times.min(2))
    lost = np.where(saved > 0, losses[np.arange(len(losses)), fastest], 0.0).sum(1)
    saved = saved.sum(1)
    rate: Floats = np.divide(lost, saved, out=np.zeros_like(saved), where=saved > 0)
    return rate


def planned(
    students: Sequence[Architecture],
    precisions: Sequence[Precision],
    losses: Floats,
    price: Callable[[Sequence[Architecture]], Floats],
    rate: float,
) -> list[Architecture]:
    """Each student of one depth in the best precisions at `rate` times its fair rate.

    Args:
        students: in the first precision.
        precisions: a float first.
        losses: of each part in each precision, [parts, precisions]; one part more than the layers have is the head.
        price: milliseconds of architectures, [architectures].
        rate: 0 keeps everything in the first precision.
    """
    if len(precisions) == 1 or rate == 0:
        return list(students)
    times, count = part_times(students, precisions, price), 2 * students[0].depth
    every = times.parts
    if len(losses) > count:
        every = np.concatenate([every, head_times(students, precisions, price)[:, None]], axis=1)
    own = (rate * fair_rate(losses, every))[:, None, None]
    scaled = PartTimes(own * times.parts, own * times.changes)  # as losses: all students are solved at once
    chosen = np.concatenate(
        [solve(losses[:count], scaled, 1.0), (losses[count:] + own * every[:, count:]).argmin(2)], axis=1
    )
    return [with_plan(a, row, precisions) for a, row in zip(students, chosen, strict=True)]


def with_plan(
    architecture: Architecture, chosen: Sequence[int] | Ints, precisions: Sequence[Precision]
) -> Architecture:
    """The same shape with each part in the precision of this index: attention and feed-forward of each layer in turn,
    and the head where one more is given."""
    parts = [precisions[int(i)] for i in chosen]
    pairs = zip(parts[: 2 * architecture.depth : 2], parts[1::2], strict=False)
    layers = tuple(
        replace(layer, attention=attention, feed_forward=feed_forward)
        for layer, (attention, feed_forward) in zip(architecture.layers, pairs, strict=True)
    )
    head = parts[2 * architecture.depth :] or [architecture.head_precision]
    return replace(architecture, layers=layers, head_precision=head[0])


def _one_layer(architecture: Architecture, i: int, pair: tuple[Precision, Precision]) -> Architecture:
    """The same student with one layer's parts in other precisions."""
    layers = architecture.layers
    own = replace(layers[i], attention=pair[0], feed_forward=pair[1])
    return replace(architecture, layers=(*layers[:i], own, *layers[i + 1 :]))


def explained(
    chosen: Architecture,
    precisions: Sequence[Precision],
    sensitivity: Sensitivity,
    price: Callable[[Sequence[Architecture]], Floats],
    head: bool,
) -> dict[str, Any]:
    """What the chosen student's precisions cost and buy, for the report: `joint`, the KL that they cause together, and
    of each part its layer (None for the head), kind and precision, and by the precisions that it could have the KL that
    each causes alone, as measured and as estimated from gradients, and the milliseconds that it saves.

    Args:
        chosen: the student.
        precisions: of the search; a float first.
        sensitivity: of the student.
        price: milliseconds of architectures, [architectures].
        head: whether the head may be quantised.
    """
    plain = with_plan(chosen, [0] * (2 * chosen.depth + head), precisions)
    times = part_times([plain], precisions, price).parts[0]
    named: list[tuple[int | None, str, Precision]] = [
        (i, name, own)
        for i, layer in enumerate(chosen.layers)
        for name, own in (("attention", layer.attention), ("feed-forward", layer.feed_forward))
    ]
    if head:
        named.append((None, "head", chosen.head_precision))
        times = np.concatenate([times, head_times([plain], precisions, price)])
    parts = []
    for place, (i, name, own) in enumerate(named):
        options = {
            str(p): {
                "measured": sensitivity.measured[p][place],
                "estimated": sensitivity.estimated[p][place],
                "saves_ms": -float(times[place, k]),
            }
            for k, p in enumerate(precisions)
            if not p.is_float
        }
        parts.append({"layer": i, "part": name, "precision": str(own), "options": options})
    return {"joint": sensitivity.joint, "parts": parts}

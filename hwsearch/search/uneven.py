"""Layers of different sizes: where a student's heads and feed-forward units do most.

A uniform shape says how many there are in all. Every layer keeps a share of its own, and what is left goes to the most
important ones of all layers, by the teacher's importance. Stock Transformers has no configuration for such students;
graphs do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from hwsearch.architecture import Architecture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def allot(values: Sequence[Floats], total: int, least: int) -> list[int]:
    """How many each layer gets.

    Args:
        values: what each of a layer's is worth, falling, by layer.
        total: to be given.
        least: that each layer gets.
    """
    counts = np.full(len(values), least)
    rest = [(-value, layer) for layer, own in enumerate(values) for value in own[least:]]
    for _, layer in sorted(rest)[: max(0, total - least * len(values))]:
        counts[layer] += 1
    return [int(count) for count in counts]


def uneven(
    architecture: Architecture,
    layers: Sequence[int],
    importance: Mapping[str, Sequence[Sequence[float]]],
    step: int,
    share: float,
) -> Architecture:
    """As many heads and units as a uniform student has, `share` of them where they matter most.

    Args:
        architecture: uniform.
        layers: the teacher's, behind the student's.
        importance: of the teacher's, falling, by layer: "groups" of heads that share keys and values, and "ffn" units.
        step: units that come together.
        share: 0 for the uniform student, 1 for one group and one step in each layer and all others by importance.
    """
    first, depth = architecture.layers[0], architecture.depth
    group, steps = first.heads // first.kv_heads, first.ffn // step
    groups = [np.array(importance["groups"][i]) for i in layers]
    units = [np.array(importance["ffn"][i]) for i in layers]
    blocks = [own[: len(own) // step * step].reshape(-1, step).sum(1) for own in units]
    if share == 0 or not steps:
        return architecture
    kv_heads = allot(groups, depth * first.kv_heads, max(1, int(np.ceil((1 - share) * first.kv_heads))))
    ffns = allot(blocks, depth * steps, max(1, int(np.ceil((1 - share) * steps))))
    return replace(
        architecture,
        layers=tuple(
            replace(layer, heads=kv * group, kv_heads=kv, ffn=n * step)
            for layer, kv, n in zip(architecture.layers, kv_heads, ffns, strict=True)
        ),
    )

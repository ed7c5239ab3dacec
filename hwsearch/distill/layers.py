"""Which of its teacher's layers a student keeps.

First come those that the teacher misses least. Which of the best few sets is best for a student depends on how much of
every layer it keeps: it is cut out with each, and those that lose about the same as they are cut out are told apart by
a few steps of training, after which the best is the best to the end, nearly always (`python benchmarks/layers.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from torch import nn

from hwsearch.distill.families import family_of
from hwsearch.distill.judging import divergence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwsearch.distill.proxy import Student

SHORTLIST = 5  # of sets that are missed least, which a judge is asked about and a student may choose from
EXHAUSTIVE = 70  # sets of layers that are all tried; beyond, layers leave one by one
NEAR = 1.1  # times the least that is lost as a student is cut out: sets that lose more are not tried by training
RIVALS = 3  # sets that are, at most
TRIED = 20  # steps


def choose_layers(
    count: int,
    depth: int,
    loss: Callable[[Sequence[int]], float],
    judge: Callable[[Sequence[int]], float] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """The `SHORTLIST` of sets of `depth` of `count` layers that lose least when the others are left out, least first;
    none that loses infinitely much.

    All sets are tried where they are few; else the layer that is missed least leaves, again and again. So it does
    with a `judge`, which is dearer than `loss` and nearer to the truth: the `SHORTLIST` that lose least go before it.
    """
    if judge is None and math.comb(count, depth) <= EXHAUSTIVE:
        return tuple(_least(combinations(range(count), depth), loss))
    best: tuple[tuple[int, ...], ...] = (tuple(range(count)),)
    while len(best[0]) > depth:
        kept = best[0]
        without = _least((kept[:i] + kept[i + 1 :] for i in range(len(kept))), loss)
        best = tuple(sorted(without, key=judge) if judge else without)
    return best


def _least(sets: Iterable[tuple[int, ...]], loss: Callable[[Sequence[int]], float]) -> list[tuple[int, ...]]:
    losses = {kept: loss(kept) for kept in sets}
    return sorted((kept for kept, lost in losses.items() if lost < math.inf), key=losses.__getitem__)[:SHORTLIST]


def with_layers(model: PreTrainedModel, layers: Sequence[int], run: Callable[[], float]) -> float:
    """What `run` returns while `model` has only some of its layers."""
    config, family = model.config, family_of(model.config)
    place, entry = family.layers, family.entries["depth"]
    depth, kinds = getattr(config, entry), getattr(config, "layer_types", None)
    whole = model.get_submodule(place)
    try:
        model.set_submodule(place, nn.ModuleList([whole.get_submodule(str(i)) for i in layers]))
        setattr(config, entry, len(layers))
        if kinds:
            config.layer_types = [kinds[layer] for layer in layers]
        return run()
    finally:
        model.set_submodule(place, whole)
        setattr(config, entry, depth)
        if kinds:
            config.layer_types = kinds


def near_sets(sets: Sequence[tuple[int, ...]], lost: Callable[[tuple[int, ...]], float]) -> tuple[tuple[int, ...], ...]:
    """Those with which a student loses about as little as it is cut out, least first.

    Args:
        sets: of layers, at least one.
        lost: by a student that is cut out with them.
    """
    if len(sets) == 1:
        return tuple(sets)
    losses = {layers: lost(layers) for layers in sets}
    best = sorted(losses, key=losses.__getitem__)[:RIVALS]
    return tuple(layers for layers in best if losses[layers] <= NEAR * losses[best[0]])


def best_after(
    begin: Callable[[Student], None], student: Student, other: Callable[[tuple[int, ...]], Student]
) -> Student:
    """The one that loses least after its first steps, of a student that has not begun and its likes with the other sets
    of layers that are near. It answers for the seconds of all.

    Args:
        begin: trains one for these steps.
        student: with the first of the near sets.
        other: makes one with the layers that it is given.
    """
    best, least, seconds = student, math.inf, 0.0
    for layers in student.near:
        rival = student if layers == student.layers else other(layers)
        begin(rival)
        seconds += rival.seconds
        if (lost := divergence(rival.model, student.task.few)) < least:
            best, least = rival, lost
    best.seconds = seconds
    return best

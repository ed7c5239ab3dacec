"""The architectures that a search may answer with.

Derived from the teacher, because students are cut out of it, and from the runtime, because a precision that it does not
truly run, or a width that its matrix units pad, is no choice. Every shape is one that stock Transformers loads: layers
alike, a width that heads divide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.errors import ArchitectureError
from hwsearch.precision import Precision
from hwsearch.runtime import Runtime

T = TypeVar("T")
# A student is at least a sixth of the teacher's width and feed-forward size; a width that heads share begins at one.
NARROWEST = 6


class SearchSpace(msgspec.Struct, frozen=True):
    """Choices for each part of a student.

    Attributes:
        teacher: the architecture that students are cut out of, in the float that goes beside quantised layers.
        depths, widths, ffns: rising.
        heads: pairs of query heads and key-value heads, rising.
        precisions: of a layer's parts; a float first.
        alignment: channels that the runtime's matrix units want a multiple of.
        quantised_head: whether a language model's head may be in any of the precisions; else it stays in float.
    """

    teacher: Architecture
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    ffns: tuple[int, ...]
    precisions: tuple[Precision, ...]
    alignment: int = 16
    quantised_head: bool = False

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "heads", "ffns", "precisions"):
            if not getattr(self, name):
                raise ArchitectureError(f"the search space has no {name} left; widen the option of that name")
        if not any(self.fits(width, heads) for width in self.widths for heads in self.heads):
            raise ArchitectureError(
                f"stock Transformers wants the heads to divide the width: none of {self.heads} divides any of "
                f"{self.widths}; widen --heads or --width"
            )

    def build(
        self,
        depth: int,
        width: int,
        heads: tuple[int, int],
        ffn: int,
        plan: Sequence[tuple[Precision, Precision]],
        head: Precision | None = None,
    ) -> Architecture:
        """The student of these choices; a narrower one has an output head of its own, which is in `head` where it may
        be quantised, and in float else."""
        return replace(
            self.teacher,
            width=width,
            tied=self.teacher.tied and width == self.teacher.width,
            layers=uniform_layers(depth, *heads, ffn, plan),
            head_precision=head if head and self.quantised_head else self.teacher.head_precision,
        )

    def uniform(self, depth: int, width: int, heads: tuple[int, int], ffn: int, precision: Precision) -> Architecture:
        """The student of these sizes with everything that may be in one precision."""
        return self.build(depth, width, heads, ffn, [(precision, precision)] * depth, precision)

    def sample(self, choose: Callable[[str, Sequence[T]], T]) -> Architecture:
        """A student with each part chosen by `choose(name, options)`, precision layer by layer; `fits` says whether it
        can be loaded."""
        pick: Callable[..., T] = choose
        depth = int(pick("depth", self.depths))  # type: ignore[call-overload]
        width = int(pick("width", self.widths))  # type: ignore[call-overload]
        heads = self.heads[int(pick("heads", range(len(self.heads))))]  # type: ignore[call-overload]
        ffn = int(pick("ffn", self.ffns))  # type: ignore[call-overload]
        names = tuple(map(str, self.precisions))
        plan = [
            (Precision(pick(f"attention.{i}", names)), Precision(pick(f"feed_forward.{i}", names)))  # type: ignore[arg-type]
            for i in range(depth)
        ]
        head = Precision(pick("head", names)) if self.quantised_head else None  # type: ignore[arg-type]
        return self.build(depth, width, heads, ffn, plan, head)

    def fits(self, width: int, heads: tuple[int, int]) -> bool:
        """Whether stock Transformers loads the combination: configurations want heads to divide the width, and some
        have no size of a head besides."""
        if heads_share_width(self.teacher):
            return width == heads[0] * self.teacher.head_dim
        return width % heads[0] == 0

    @property
    def smallest(self) -> list[Architecture]:
        """The least of every size, its layers in each uniform precision, and its head in each that it may have."""
        width, heads = next((w, h) for w in self.widths for h in self.heads if self.fits(w, h))
        depth, ffn = self.depths[0], self.ffns[0]
        return [
            self.build(depth, width, heads, ffn, [(p, p)] * depth, head)
            for p in self.precisions
            for head in (self.precisions if self.quantised_head else (p,))
        ]

    @property
    def lightest(self) -> list[Architecture]:
        """Those of the smallest, and of the teacher's width where that shares embedding and head, one of which has the
        fewest weights."""
        whole = self.teacher.width
        heads = next((h for h in self.heads if self.fits(whole, h)), None) if whole in self.widths else None
        if heads is None or not self.teacher.tied:
            return self.smallest
        tied = [self.uniform(self.depths[0], whole, heads, self.ffns[0], p) for p in self.precisions]
        return [*self.smallest, *tied]

    @property
    def size(self) -> int:
        """How many architectures it holds."""
        pairs = sum(self.fits(width, heads) for width in self.widths for heads in self.heads)
        plans = sum(int(len(self.precisions) ** (2 * depth + self.quantised_head)) for depth in self.depths)
        return pairs * plans * len(self.ffns)


def derive(
    teacher: Architecture,
    runtime: Runtime,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    ffns: Sequence[int] | None = None,
    precisions: Sequence[Precision] | None = None,
) -> SearchSpace:
    """The space of a teacher's students on a runtime.

    Args:
        teacher: its architecture.
        runtime: where students will run.
        depths, widths, heads, ffns, precisions: what a person wants to choose from, in place of everything that suits.

    Raises:
        ArchitectureError: a wish that the teacher or the runtime cannot meet.
    """
    shape, step = teacher.layers[0], runtime.alignment
    beside = runtime.float_beside()
    own_depths = depths or range(1, teacher.depth + 1)
    own_widths = widths or (
        [n * teacher.head_dim for n in range(1, shape.heads + 1)]
        if heads_share_width(teacher)
        else _sizes(teacher.width, step)
    )
    own_ffns = ffns or _sizes(shape.ffn, 2 * step)
    group = shape.heads // shape.kv_heads
    # All heads of some groups, or one head of each: what keeps the teacher's grouping or drops it.
    pairs = {(kv * g, kv) for kv in range(1, shape.kv_heads + 1) for g in {1, group}}
    own_heads = sorted(pair for pair in pairs if heads is None or pair[0] in heads)
    own_precisions = precisions or (beside, *(p for p in runtime.precisions if p is Precision.INT8))
    own_precisions = tuple(sorted(dict.fromkeys(own_precisions), key=lambda p: p.code))
    for name, wanted, most in (
        ("depth", own_depths, teacher.depth),
        ("width", own_widths, teacher.width),
        ("ffn", own_ffns, shape.ffn),
    ):
        outside = dict.fromkeys(str(end) for end in (min(wanted), max(wanted)) if not 1 <= end <= most)
        if outside:
            raise ArchitectureError(
                f"students are cut out of the teacher: {name} is 1 to {most}; got {' and '.join(outside)}"
            )
    if foreign := [str(p) for p in own_precisions if p not in runtime.precisions]:
        raise ArchitectureError(f"the runtime runs {', '.join(map(str, runtime.precisions))}; not {', '.join(foreign)}")
    if sum(p.is_float for p in own_precisions) > 1 or (len(own_precisions) > 1 and not own_precisions[0].is_float):
        raise ArchitectureError(
            f"layers are searched in one float and what is quantised, or in one precision alone; got "
            f"{', '.join(map(str, own_precisions))}. Name one float"
        )
    beside = runtime.float_beside(*own_precisions)
    return SearchSpace(
        teacher=teacher.in_float(beside),
        depths=tuple(sorted(set(own_depths))),
        widths=tuple(sorted(set(own_widths))),
        heads=tuple(own_heads),
        ffns=tuple(sorted(set(own_ffns))),
        precisions=own_precisions,
        alignment=step,
        quantised_head=teacher.head == "lm" and "head" not in runtime.scheme.keeps_float,
    )


def heads_share_width(teacher: Architecture) -> bool:
    """Whether the stock configurations of a teacher's kind have no size of a head: those with layer norms (BERT's kin,
    GPT-2, ViT), where the heads share the width among them."""
    return teacher.norm == "layernorm"


def _sizes(most: int, step: int) -> tuple[int, ...]:
    """Multiples of `step` from a sixth of `most` up, and `most` itself."""
    least = max(step, -(-most // NARROWEST // step) * step)
    return (*range(least, most, step), most)

"""From a few smooth numbers to an architecture that fits.

Optuna moves five dimensions: depth, attention and feed-forward sizes relative to the teacher's proportions, the share
of int8 parts, and how much of the budget to fill. Width and the exact feed-forward size are solved on the estimator to
meet that fill, so that nearly every proposal fits and none is trained that does not. A Gaussian process finds its way
in five dimensions after a few trials; in the 20 and more raw ones nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.precision import Precision
from hwsearch.space import SearchSpace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RATIOS = (0.5, 2.0)  # of the teacher's proportions
FILL = (0.25, 1.0)  # of the budget, by the strain on it
CORNER_DEPTHS = 6
FFN_SLACK = 1.35  # factor either way within which the feed-forward size may help to meet the fill


class Suggest(Protocol):
    """The part of an Optuna trial that a proposal needs."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


class Given:
    """Settings that are given, in an Optuna trial's place."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def suggest_int(self, name: str, low: int, high: int) -> int:  # noqa: ARG002
        """The setting."""
        return int(self._settings[name])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:  # noqa: ARG002
        """The setting."""
        return float(self._settings[name])


class Proposer:
    """Turns an Optuna trial into an architecture inside the budget.

    Attributes:
        infeasible: architectures that were priced and refused.

    Args:
        space: what may be answered.
        strain: of architectures, the share of the tightest budget that each takes at most; 1 at most.
        sensitivities: what int8 costs each part of the teacher's layers, [layers, 2].
        layers: the teacher's layers that a student of a depth keeps.
        admit: whether an architecture meets the other constraints.
    """

    def __init__(
        self,
        space: SearchSpace,
        strain: Callable[[Sequence[Architecture]], Floats],
        sensitivities: Sequence[tuple[float, float]],
        layers: dict[int, tuple[int, ...]],
        admit: Callable[[Architecture], bool] = lambda architecture: True,  # noqa: ARG005
    ) -> None:
        self.space, self.strain = space, strain
        self.sensitivities, self.layers, self.admit = np.array(sensitivities), layers, admit
        self.infeasible: set[Architecture] = set()

    def corners(self) -> list[dict[str, Any]]:
        """Settings to begin with: the fullest student of each depth, from the middle outwards, and at the middle depth
        one step in every other direction; last the fast end of the front. What any sampler would take long to try, and
        what depth is worth most."""
        quantised = {"int8": 1.0} if len(self.space.precisions) > 1 else {}
        full = {"heads": 1.0, "ffn": 1.0, **quantised, "fill": 1.0}
        fitting = [depth for depth in self.space.depths if self._fits(depth, bool(quantised))]
        if not fitting:
            return []
        middle = fitting[len(fitting) // 2]
        nearest = sorted(fitting, key=lambda depth: (abs(depth - middle), -depth))[:CORNER_DEPTHS]
        steps: list[dict[str, float]] = [{"ffn": RATIOS[0]}, {"heads": RATIOS[0]}, {"fill": 0.7}]
        steps += [{"int8": 0.0}] if quantised else []
        corners = [{"depth": depth, **full} for depth in nearest] + [
            {"depth": middle, **full, **step} for step in steps
        ]
        return [*corners, {"depth": fitting[0], **full, "fill": FILL[0]}]

    def _fits(self, depth: int, quantised: bool) -> bool:
        options = self.options(depth, 1.0, 1.0, self.plan(depth, float(quantised)))
        return bool((self.strain(options) <= 1.0).any())

    def __call__(self, trial: Suggest, seen: Collection[Architecture]) -> Architecture | None:
        """The architecture of a trial's settings, or the nearest that fits and is not among `seen`; None when the space
        is used up."""
        depths = self.space.depths
        depth = trial.suggest_int("depth", depths[0], depths[-1])
        depth = min(depths, key=lambda d: abs(d - depth))
        head_ratio = trial.suggest_float("heads", *RATIOS, log=True)
        ffn_ratio = trial.suggest_float("ffn", *RATIOS, log=True)
        share = trial.suggest_float("int8", 0.0, 1.0) if len(self.space.precisions) > 1 else 0.0
        fill = trial.suggest_float("fill", *FILL, log=True)
        # A depth that has nothing left in the budget gives way to the next smaller one, then to the next larger.
        nearest = sorted(depths, key=lambda d: (d > depth, abs(d - depth)))
        for candidate in nearest:
            options = self.options(candidate, head_ratio, ffn_ratio, self.plan(candidate, share))
            if (found := self._fill(options, fill, seen)) is not None:
                return found
        # Nothing in these proportions: any others, at this share of int8 and then at the ends.
        for candidate in nearest:
            for other in dict.fromkeys((share, 1.0, 0.0)) if len(self.space.precisions) > 1 else (share,):
                if (
                    found := self._fill(self._every_shape(candidate, self.plan(candidate, other)), fill, seen)
                ) is not None:
                    return found
        return None

    def plan(self, depth: int, share: float) -> list[tuple[Precision, Precision]]:
        """Precisions of each layer with the least sensitive `share` of the parts in int8."""
        first, last = self.space.precisions[0], self.space.precisions[-1]
        parts = self.sensitivities[list(self.layers[depth])].flatten()
        low = np.zeros(len(parts), bool)
        low[np.argsort(parts, kind="stable")[: round(share * len(parts))]] = True
        chosen = [last if is_low else first for is_low in low]
        return list(zip(chosen[::2], chosen[1::2], strict=True))

    def options(
        self, depth: int, head_ratio: float, ffn_ratio: float, plan: Sequence[tuple[Precision, Precision]]
    ) -> list[Architecture]:
        """Students of every width in these proportions, with feed-forward sizes around."""
        teacher, shape = self.space.teacher, self.space.teacher.layers[0]
        found = []
        for width in self.space.widths:
            heads = [pair for pair in self.space.heads if self.space.fits(width, pair)]
            if not heads:
                continue
            wanted = head_ratio * width * shape.heads / teacher.width
            pair = min(heads, key=lambda pair: (abs(np.log(pair[0] / wanted)), -pair[0] / pair[1]))
            size = ffn_ratio * width * shape.ffn / teacher.width
            near = [f for f in self.space.ffns if size / FFN_SLACK <= f <= size * FFN_SLACK]
            near = near or [min(self.space.ffns, key=lambda f: abs(f - size))]
            found += [self.space.build(depth, width, pair, ffn, plan) for ffn in near]
        return found

    def _every_shape(self, depth: int, plan: Sequence[tuple[Precision, Precision]]) -> list[Architecture]:
        space = self.space
        return [
            space.build(depth, width, pair, ffn, plan)
            for width in space.widths
            for pair in space.heads
            if space.fits(width, pair)
            for ffn in space.ffns
        ]

    def _fill(
        self, options: Sequence[Architecture], fill: float, seen: Collection[Architecture]
    ) -> Architecture | None:
        """Of the options inside the budget that are not among `seen`, the one that fills it as wanted."""
        strain = self.strain(options)
        inside = [i for i in np.argsort(strain) if strain[i] <= 1.0 and self.admit(options[i])]
        self.infeasible.update(options[i] for i in set(range(len(options))) - {int(i) for i in inside})
        inside = [i for i in inside if options[i] not in seen]
        if not inside:
            return None
        # The fullest below the wanted fill, else the emptiest above it.
        below = [i for i in inside if strain[i] <= fill]
        return options[int(below[-1] if below else inside[0])]

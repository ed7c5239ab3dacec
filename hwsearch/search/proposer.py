"""From a few smooth numbers to an architecture that fits.

Optuna moves five dimensions: depth, attention and feed-forward sizes relative to the teacher's proportions, the rate at
which quality is given for time when parts are quantised, and how much of the budget to fill. Precisions are solved at
that rate (`search/precision`), width and the exact feed-forward size on the estimator to meet the fill, so that nearly
every proposal fits and none is trained that does not. A Gaussian process finds its way in five dimensions after a few
trials; in the 20 and more raw ones nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.precision import Precision
from hwsearch.search.precision import planned, with_plan
from hwsearch.search.uneven import uneven
from hwsearch.space import SearchSpace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RATIOS = (0.5, 2.0)  # of the teacher's proportions
RATES = (0.02, 50.0)  # over the fair rate, at which all that saves time is worth what it loses
PLANS = 32  # of precisions that are tried for a shape before it is given up
FILL = (0.25, 1.0)  # of the budget, by the strain on it
FULLEST = {"fill": FILL[1]}  # what the student that loses least has
CORNER_DEPTHS = 6
FFN_SLACK = 1.35  # factor either way within which the feed-forward size may help to meet the fill
FFN_WIDE = 2.0  # and where that does not meet it
MET = 0.97  # of the fill that is wanted


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
        price: milliseconds of architectures, [architectures].
        strain: of architectures, the share of the tightest budget that each takes at most; 1 at most.
        sensitivities: what quantising one part of the teacher loses, [parts] for each precision.
        layers: the teacher's layers that a student of a depth keeps likeliest.
        admit: whether an architecture meets the other constraints.
        raw: Optuna chooses the precision of every part, in place of the rate.
        importance: of the teacher's parts, as `uneven` wants it, where layers may differ in size; else None.
    """

    def __init__(
        self,
        space: SearchSpace,
        price: Callable[[Sequence[Architecture]], Floats],
        strain: Callable[[Sequence[Architecture]], Floats],
        sensitivities: Mapping[Precision, Sequence[float]],
        layers: dict[int, tuple[int, ...]],
        admit: Callable[[Architecture], bool] = lambda architecture: True,  # noqa: ARG005
        raw: bool = False,
        importance: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ) -> None:
        self.space, self.price, self.strain, self.admit = space, price, strain, admit
        self.importance = importance
        self.layers, self.mixed, self.raw = layers, len(space.precisions) > 1, raw
        count = 2 * space.teacher.depth
        nothing = np.zeros(count + space.quantised_head)
        lost = [nothing if p.is_float else np.array(sensitivities[p])[: len(nothing)] for p in space.precisions]
        every = np.stack(lost, axis=1)  # [parts, precisions]
        self.losses, self.head_losses = every[:count].reshape(-1, 2, len(lost)), every[count:]
        self.infeasible: set[Architecture] = set()

    def corners(self) -> list[dict[str, Any]]:
        """Settings to begin with: the fullest student of each depth, from the middle outwards, and at the middle depth
        one step in every other direction; last the fast end of the front. What any sampler would take long to try, and
        what depth is worth most."""
        fast, exact = self._settings(True), self._settings(False)
        alike = {"uneven": 0.0} if self.importance else {}
        full = {"heads": 1.0, "ffn": 1.0, **fast, **alike, "fill": 1.0}
        # Where none fits in the teacher's proportions, others may.
        fitting = [depth for depth in self.space.depths if self._fits(depth)] or list(self.space.depths)
        middle = fitting[len(fitting) // 2]
        nearest = sorted(fitting, key=lambda depth: (abs(depth - middle), -depth))[:CORNER_DEPTHS]
        steps: list[dict[str, float]] = [{"ffn": RATIOS[0]}, {"heads": RATIOS[0]}, {"fill": 0.7}]
        steps += [exact] if exact else []
        steps += [{"uneven": 0.5}] if alike else []
        corners = [{"depth": depth, **full} for depth in nearest] + [
            {"depth": middle, **full, **step} for step in steps
        ]
        return [*corners, {"depth": fitting[0], **full, "fill": FILL[0]}]

    def _settings(self, fast: bool) -> dict[str, float]:
        """Of precisions: all for time, or all for quality."""
        if not self.mixed:
            return {}
        if not self.raw:
            return {"rate": RATES[1] if fast else RATES[0]}
        # What a small student is fastest in, launching kernels and changing precision, says nothing of a wide one.
        space, shape = self.space, self.space.teacher.layers[0]
        sizes = (space.teacher.depth, space.teacher.width, (shape.heads, shape.kv_heads), shape.ffn)
        whole = [space.uniform(*sizes, precision) for precision in space.precisions]
        return dict.fromkeys(self._parts(), int(self.price(whole).argmin()) if fast else 0)

    def _parts(self) -> list[str]:
        """Names of the settings of every part's precision, as deep as students may be; the head's first."""
        parts = [f"{part}.{i}" for i in range(self.space.depths[-1]) for part in ("attention", "feed_forward")]
        return ["head", *parts] if self.space.quantised_head else parts

    def _fits(self, depth: int) -> bool:
        return bool((self.strain(self.options(depth, 1.0, 1.0, RATES[1])) <= 1.0).any())

    def __call__(self, trial: Suggest, seen: Collection[Architecture]) -> Architecture | None:
        """The architecture of a trial's settings, or the nearest that fits and is not among `seen`; None when the space
        is used up."""
        depths = self.space.depths
        depth = trial.suggest_int("depth", depths[0], depths[-1])
        depth = min(depths, key=lambda d: abs(d - depth))
        head_ratio = trial.suggest_float("heads", *RATIOS, log=True)
        ffn_ratio = trial.suggest_float("ffn", *RATIOS, log=True)
        rate: float | tuple[int, ...] = 0.0
        if self.mixed and self.raw:
            rate = tuple(trial.suggest_int(name, 0, len(self.space.precisions) - 1) for name in self._parts())
        elif self.mixed:
            rate = trial.suggest_float("rate", *RATES, log=True)
        share = trial.suggest_float("uneven", 0.0, 1.0) if self.importance else 0.0
        fill = trial.suggest_float("fill", *FILL, log=True)
        # A depth that has nothing left in the budget gives way to the next smaller one, then to the next larger.
        nearest = sorted(depths, key=lambda d: (d > depth, abs(d - depth)))
        for candidate in nearest:
            found = None
            for slack in (FFN_SLACK, FFN_WIDE):
                found = self._fill(self.options(candidate, head_ratio, ffn_ratio, rate, share, slack), fill, seen)
                if found is not None and MET * fill <= self.strain([found])[0] <= fill:
                    break
            if found is not None:
                return found
        # Nothing in these proportions: any others, at this rate and then at the ends.
        for candidate in nearest:
            for other in dict.fromkeys((rate, RATES[1], 0.0)) if self.mixed else (rate,):
                options = self._planned(self._every_shape(candidate), other)
                if (found := self._fill(options, fill, seen)) is not None:
                    return found
        return self._left(nearest, fill, seen) if self.mixed else None

    def _left(self, depths: Sequence[int], fill: float, seen: Collection[Architecture]) -> Architecture | None:
        """What is left where every shape has been seen in its usual precisions: other plans of those that fit in some
        precision."""
        count = len(self.space.precisions)
        for depth in depths:
            parts = 2 * depth + len(self.head_losses)
            uniform = [
                with_plan(shape, [k] * parts, self.space.precisions)
                for shape in self._every_shape(depth)
                for k in range(count)
            ]
            if (found := self._fill(uniform, fill, seen)) is not None:
                return found
            best = self.strain(uniform).reshape(-1, count).min(1)
            shapes = [uniform[i * count] for i in np.flatnonzero(best <= 1.0)]
            shapes = [with_plan(shape, [0] * parts, self.space.precisions) for shape in shapes]
            drawn = np.random.default_rng(len(seen)).integers(0, count, (PLANS * self.raw, parts))
            options = [a for rate in np.geomspace(*RATES, PLANS).tolist() for a in self._planned(shapes, rate)]
            options += [with_plan(shape, plan, self.space.precisions) for shape in shapes for plan in drawn]
            if options and (found := self._fill(list(dict.fromkeys(options)), fill, seen)) is not None:
                return found
        return None

    def options(
        self,
        depth: int,
        head_ratio: float,
        ffn_ratio: float,
        rate: float | tuple[int, ...],
        share: float = 0.0,
        slack: float = FFN_SLACK,
    ) -> list[Architecture]:
        """Students of every width in these proportions, with feed-forward sizes up to `slack` times as large or small;
        `rate` over the fair one, 0 for all float, or the precision of every part; `share` of heads and units that lie
        where they matter most."""
        teacher, shape = self.space.teacher, self.space.teacher.layers[0]
        found = []
        for width in self.space.widths:
            heads = [pair for pair in self.space.heads if self.space.fits(width, pair)]
            if not heads:
                continue
            wanted = head_ratio * width * shape.heads / teacher.width
            pair = min(heads, key=lambda pair: (abs(np.log(pair[0] / wanted)), -pair[0] / pair[1]))
            size = ffn_ratio * width * shape.ffn / teacher.width
            near = [f for f in self.space.ffns if size / slack <= f <= size * slack]
            near = near or [min(self.space.ffns, key=lambda f: abs(f - size))]
            found += [self._in_float(depth, width, pair, ffn) for ffn in near]
        if share and self.importance:
            kept, step = self.layers[depth], 2 * self.space.alignment
            found = [uneven(a, kept, self.importance, step, share) for a in found]
        return self._planned(found, rate)

    def _planned(self, shapes: list[Architecture], rate: float | tuple[int, ...]) -> list[Architecture]:
        """Shapes of one depth in their precisions."""
        if not shapes:
            return []
        depth, precisions = shapes[0].depth, self.space.precisions
        if isinstance(rate, tuple):
            head = len(self.head_losses)
            chosen = (*rate[head : head + 2 * depth], *rate[:head])
            return [with_plan(shape, chosen, precisions) for shape in shapes]
        losses = self.losses[list(self.layers[depth])].reshape(2 * depth, -1)
        return planned(shapes, precisions, np.concatenate([losses, self.head_losses]), self.price, rate)

    def _in_float(self, depth: int, width: int, heads: tuple[int, int], ffn: int) -> Architecture:
        return self.space.uniform(depth, width, heads, ffn, self.space.precisions[0])

    def _every_shape(self, depth: int) -> list[Architecture]:
        space = self.space
        return [
            self._in_float(depth, width, pair, ffn)
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

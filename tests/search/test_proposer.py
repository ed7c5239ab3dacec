"""Proposals fit the budget, whatever Optuna suggests."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hwsearch.architecture import Architecture
from hwsearch.errors import ArchitectureError
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile
from hwsearch.search.null import TEACHER, NullTrainer
from hwsearch.search.proposer import FFN_SLACK, FFN_WIDE, MET, RATES, Proposer
from hwsearch.space import derive
from hwsearch.workload import Workload

BUDGET = 400.0


class Dice:
    """Suggests at random, and remembers what was asked."""

    def __init__(self, seed: int) -> None:
        self.rng, self.said = np.random.default_rng(seed), dict[str, float]()

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.said[name] = int(self.rng.integers(low, high + 1))
        return int(self.said[name])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value = np.exp(self.rng.uniform(np.log(low), np.log(high))) if log else self.rng.uniform(low, high)
        self.said[name] = float(value)
        return float(value)


@pytest.fixture(scope="module")
def proposer() -> Proposer:
    profile = find_profile("jetson-orin")
    target = profile.target()
    facts = NullTrainer().finish().result()
    space = derive(TEACHER, profile.runtimes[target.runtime])
    price = Estimator(profile, target, Workload(64, 128, 0, 256))
    return Proposer(
        space,
        lambda options: price(options).median_ms,
        lambda options: price(options).high_ms / BUDGET,
        facts.sensitivities,
        facts.layers,
    )


def test_every_proposal_fits_is_loadable_and_new(proposer: Proposer) -> None:
    seen: set[Architecture] = set()
    for seed in range(60):
        architecture = proposer(Dice(seed), seen)
        assert architecture is not None
        assert architecture not in seen
        assert proposer.strain([architecture])[0] <= 1.0
        assert architecture.uniform
        assert architecture.width % architecture.layers[0].heads == 0
        seen.add(architecture)


def test_the_fill_is_met_from_below_where_the_depth_allows_it(proposer: Proposer) -> None:
    gaps, wider = [], 0
    for seed in range(60):
        dice = Dice(seed)
        architecture = proposer(dice, set())
        assert architecture is not None
        said = dice.said
        fill = said["fill"] * BUDGET

        def priced(slack: float, depth: int = architecture.depth) -> tuple[list[Architecture], NDArray[np.float64]]:
            options = proposer.options(depth, said["heads"], said["ffn"], said["rate"], slack=slack)  # noqa: B023
            return options, proposer.strain(options) * BUDGET

        options, high = priced(FFN_SLACK)
        near = max((value for value in high if value <= fill), default=high.min())
        if not MET * fill <= near <= fill:
            options, high = priced(FFN_WIDE)
        found = high[options.index(architecture)]
        wider += abs(found - fill) < abs(near - fill)
        if found > fill:
            assert found == high.min()  # nothing of this depth is that fast
        else:
            assert found == max(value for value in high if value <= fill)
            gaps.append((fill - found) / BUDGET)
    assert len(gaps) > 15
    assert np.median(gaps) < 0.04
    assert wider > 5  # proposals that other feed-forward sizes bring nearer to what is wanted


def test_a_higher_rate_quantises_more_and_the_least_sensitive_first(proposer: Proposer) -> None:
    """Layer by layer the parts that lose least: those of the null teacher's first attention, last feed-forward."""
    counts = []
    for rate in (0.0, RATES[0], 0.5, 1.0, 2.0, RATES[1]):
        architecture = next(o for o in proposer.options(6, 1.0, 1.0, rate) if o.width == 96)
        low = {
            (i, j)
            for i, layer in enumerate(architecture.layers)
            for j, p in enumerate((layer.attention, layer.feed_forward))
            if p is Precision.INT8
        }
        counts.append(len(low))
        for j in (0, 1):  # one kind of part saves the same everywhere: what is lost decides
            inside = [proposer.losses[i, j, 1] for i in range(6) if (i, j) in low]
            outside = [proposer.losses[i, j, 1] for i in range(6) if (i, j) not in low]
            assert not inside or not outside or max(inside) <= min(outside)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 12)
    assert 0 < counts[3] < 12


def test_optuna_may_choose_every_precision_itself() -> None:
    profile = find_profile("jetson-orin")
    facts = NullTrainer().finish().result()
    price = Estimator(profile, profile.target(), Workload(64, 128, 0, 256))
    raw = Proposer(
        derive(TEACHER, profile.runtimes["tensorrt"]),
        lambda options: price(options).median_ms,
        lambda options: price(options).high_ms / BUDGET,
        facts.sensitivities,
        facts.layers,
        raw=True,
    )
    dice = Dice(3)
    architecture = raw(dice, set())
    assert architecture is not None
    said = [dice.said[f"{part}.{i}"] for i in range(architecture.depth) for part in ("attention", "feed_forward")]
    parts = [p is Precision.INT8 for layer in architecture.layers for p in (layer.attention, layer.feed_forward)]
    assert parts == [bool(number) for number in said]
    assert all(f"attention.{i}" in corner for corner in raw.corners() for i in range(6))


@pytest.mark.parametrize(("raw", "least"), [(False, 3), (True, 40)])
def test_one_shape_is_searched_in_all_its_plans(raw: bool, least: int) -> None:
    """A space is not used up while plans that fit are left."""
    profile = find_profile("jetson-orin")
    facts = NullTrainer().finish().result()
    price = Estimator(profile, profile.target(), Workload(64, 128, 0, 256))
    space = derive(TEACHER, profile.runtimes["tensorrt"], [6], [192], [6], [512])
    budget = 0.9 * float(price(space.smallest).high_ms.max())
    found = Proposer(
        space,
        lambda options: price(options).median_ms,
        lambda options: price(options).high_ms / budget,
        facts.sensitivities,
        facts.layers,
        raw=raw,
    )
    seen: set[Architecture] = set()
    while len(seen) < least + 1 and (proposal := found(Dice(len(seen)), seen)) is not None:
        assert found.strain([proposal])[0] <= 1.0
        assert proposal not in seen
        seen.add(proposal)
    assert len(seen) >= least


def test_the_fast_corners_are_in_the_fastest_precision() -> None:
    """int4, which comes last by name, is slower than int8 here."""
    profile = find_profile("jetson-orin")
    price = Estimator(profile, profile.target(), Workload(64, 128, 0, 256))
    precisions = (Precision.FP16, Precision.INT8, Precision.INT4)
    space = derive(TEACHER, profile.runtimes["tensorrt"], precisions=precisions)
    facts = NullTrainer().finish().result()
    lost = dict.fromkeys(precisions[1:], facts.sensitivities[Precision.INT8])
    median = lambda options: price(options).median_ms  # noqa: E731
    raw = Proposer(space, median, lambda options: median(options) / BUDGET, lost, facts.layers, raw=True)
    assert {corner["attention.0"] for corner in raw.corners()} == {0, 1}


def test_the_fast_corners_are_for_time_where_the_smallest_student_is_fastest_in_float() -> None:
    """As on T4, where launching kernels is most of what a narrow layer takes."""
    profile = find_profile("t4")
    price = Estimator(profile, profile.target(), Workload(32, 128))
    space = derive(TEACHER, profile.runtimes["tensorrt"])
    facts, median = NullTrainer().finish().result(), lambda options: price(options).median_ms
    assert int(median(space.smallest).argmin()) == 0
    proposer = Proposer(space, median, lambda options: median(options) / BUDGET, facts.sensitivities, facts.layers)
    assert proposer.corners()[0]["rate"] == RATES[1]


def test_a_head_follows_the_runtimes_scheme() -> None:
    pi = find_profile("arm-cpu").runtimes["llama.cpp"]
    space = derive(TEACHER, pi, precisions=(pi.float_beside(), Precision.INT4))
    assert space.quantised_head
    assert {a.head_precision for a in space.smallest} == {pi.float_beside(), Precision.INT4}
    orin = derive(TEACHER, find_profile("jetson-orin").runtimes["tensorrt"])
    assert {a.head_precision for a in orin.smallest} == {Precision.FP16}


def test_quantised_precisions_go_beside_a_float() -> None:
    runtime = find_profile("jetson-orin").runtimes["tensorrt"]
    with pytest.raises(ArchitectureError, match="Name one float"):
        derive(TEACHER, runtime, precisions=(Precision.INT8, Precision.INT4))
    assert derive(TEACHER, runtime, precisions=(Precision.INT8,)).precisions == (Precision.INT8,)


def test_corners_are_inside_what_may_be_suggested(proposer: Proposer) -> None:
    corners = proposer.corners()
    assert len(corners) == 6 + 4 + 1
    assert {corner["depth"] for corner in corners} == set(proposer.space.depths)
    assert {corner["rate"] for corner in corners} == set(RATES)


def test_the_space_follows_teacher_runtime_and_wishes() -> None:
    orin, pi = (find_profile(name) for name in ("jetson-orin", "arm-cpu"))
    space = derive(TEACHER, orin.runtimes["tensorrt"])
    assert space.precisions == (Precision.FP16, Precision.INT8)
    assert space.widths[0] == 32
    assert space.widths[-1] == 192
    assert all(width % 16 == 0 for width in space.widths)
    assert (6, 3) in space.heads
    assert space.build(6, 192, (6, 3), 512, [(Precision.FP16, Precision.FP16)] * 6).tied
    assert not space.build(6, 96, (6, 3), 512, [(Precision.FP16, Precision.FP16)] * 6).tied
    assert derive(TEACHER, pi.runtimes["onnxruntime"]).precisions == (Precision.FP32, Precision.INT8)
    wished = derive(TEACHER, orin.runtimes["tensorrt"], depths=(2, 3), widths=(64,), precisions=(Precision.FP16,))
    assert (wished.depths, wished.widths, wished.precisions) == ((2, 3), (64,), (Precision.FP16,))
    assert wished.size == sum(64 % q == 0 for q, _ in wished.heads) * len(wished.ffns) * 2


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"depths": (7,)}, "depth is 1 to 6"),
        ({"widths": (256,)}, "width is 1 to 192; got 256"),
        ({"widths": tuple(range(16, 5000))}, "width is 1 to 192; got 4999$"),
        ({"precisions": (Precision.FP32, Precision.FP16)}, "in one float and what is quantised"),
        ({"heads": (5,)}, "no heads left"),
    ],
)
def test_wishes_that_cannot_be_met_are_errors(wish: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        derive(TEACHER, find_profile("jetson-orin").runtimes["tensorrt"], **wish)  # type: ignore[arg-type]


def test_raw_sampling_gives_architectures() -> None:
    space = derive(TEACHER, find_profile("jetson-orin").runtimes["tensorrt"])
    rng = np.random.default_rng(0)
    found = {space.sample(lambda _, options: options[int(rng.integers(len(options)))]) for _ in range(50)}
    assert len(found) > 40

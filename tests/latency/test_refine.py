"""One's own rows beside a shipped fit."""

import numpy as np
import pytest
from msgspec.structs import replace

from hwsearch.device import DeviceProfile
from hwsearch.latency.calibrate import estimate_cases
from hwsearch.latency.cases import Case
from hwsearch.latency.refine import fit_or_refine
from hwsearch.profiles import find_profile

SHAPES = ((4, 256, 1, 64), (6, 384, 1, 128), (12, 768, 1, 128), (12, 768, 8, 128), (24, 1024, 1, 384))


def cases(shapes: tuple[tuple[int, int, int, int], ...], precision: str = "fp16") -> list[Case]:
    return [
        Case(
            "jetson-orin", "tensorrt", depth, width, width // 64, 4 * width, precision, 1.0,
            model=f"mine-{depth}x{width}", batch=batch, sequence=sequence,
        )
        for depth, width, batch, sequence in shapes
    ]  # fmt: skip


def timed(profile: DeviceProfile, rows: list[Case], factor: float, noise: float = 0.03) -> list[Case]:
    """The rows as a board would have them that takes `factor` of what the profile says."""
    rng = np.random.default_rng(0)
    return [
        replace(row, latency_ms=factor * median * float(np.exp(noise * rng.standard_normal())))
        for row, (median, _, _) in zip(rows, estimate_cases(profile, rows), strict=True)
    ]


@pytest.fixture(scope="module")
def shipped() -> DeviceProfile:
    return find_profile("jetson-orin")


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_five_rows_rescale_a_shipped_profile_and_narrow_its_interval(shipped: DeviceProfile, factor: float) -> None:
    others = cases(((8, 512, 1, 128), (6, 384, 4, 64), (12, 768, 2, 384)), "fp16") + cases(((12, 768, 1, 128),), "int8")
    mine, refined = fit_or_refine(shipped, timed(shipped, cases(SHAPES), factor), "five.csv")
    assert refined
    before, after = (np.array(estimate_cases(profile, others)) for profile in (shipped, mine))
    assert after[:, 0] / before[:, 0] == pytest.approx(factor, rel=0.1)
    width_before, width_after = (np.log(found[:, 2] / found[:, 1]) for found in (before, after))
    assert (width_after[:3] < width_before[:3]).all()


def test_what_the_profile_rests_on_stays(shipped: DeviceProfile) -> None:
    mine, _ = fit_or_refine(shipped, timed(shipped, cases(SHAPES), 1.1), "five.csv")
    old, new = shipped.runtimes["tensorrt"].fit, mine.runtimes["tensorrt"].fit
    assert old is not None
    assert new is not None
    assert (new.rows, len(new.row_digests)) == (old.rows + 5, old.rows + 5)
    assert new.cases.startswith(f"{old.cases}; five.csv")
    assert {*old.models, "mine-4x256"} <= set(new.models)
    assert set(old.hulls) <= set(new.hulls)
    for precision, hull in old.hulls.items():
        assert new.hulls[precision].n[1] >= hull.n[1]
    assert all(mine.runtimes[name] is shipped.runtimes[name] for name in shipped.runtimes if name != "tensorrt")


def test_a_stretched_fit_is_refined_again_and_again() -> None:
    """What leaving models out has put on the noise is taken off it once: noise falls as rows come, not for good."""
    board = find_profile("t4")
    shapes = (*SHAPES, (6, 512, 4, 64), (8, 512, 1, 256), (3, 384, 2, 128), (12, 512, 1, 64))
    rows = [replace(row, device="t4", runtime="onnxruntime") for row in cases(shapes, "fp32")]
    rows = timed(board, rows, 1.0, noise=0.05)
    stretched = board.runtimes["onnxruntime"].fit
    assert stretched is not None
    assert stretched.stretch > 1.2
    one_by_one = board
    for part in (rows[:3], rows[3:6], rows[6:]):
        one_by_one, _ = fit_or_refine(one_by_one, part, "three.csv")
    at_once, _ = fit_or_refine(board, rows, "nine.csv")
    found, wanted = (profile.runtimes["onnxruntime"].fit for profile in (one_by_one, at_once))
    assert found is not None
    assert wanted is not None
    assert found.noise > 0.6 * wanted.noise
    assert found.stretch < stretched.stretch


def test_a_row_counts_once(shipped: DeviceProfile) -> None:
    rows = timed(shipped, cases(SHAPES), 1.2)
    once, _ = fit_or_refine(shipped, rows, "five.csv")
    again, refined = fit_or_refine(once, rows, "five.csv")
    assert refined
    assert again == once
    assert fit_or_refine(shipped, rows * 3, "five.csv") == (once, True)
    more = timed(shipped, cases(((8, 512, 1, 64),)), 1.2)
    both, refined = fit_or_refine(once, [*rows, *more], "six.csv")
    assert refined
    fit = both.runtimes["tensorrt"].fit
    assert fit is not None
    assert fit.rows == once.runtimes["tensorrt"].fit.rows + 1  # type: ignore[union-attr]


def test_rows_that_a_fit_was_made_of_are_fitted_anew_and_alone(shipped: DeviceProfile) -> None:
    """A split of the rows behind a shipped profile does not see the rest of them."""
    rows = timed(shipped, cases(SHAPES), 1.0)
    bare = replace(shipped.runtimes["tensorrt"], parameters=None, fit=None)
    facts = replace(shipped, runtimes={**shipped.runtimes, "tensorrt": bare})
    whole, refined = fit_or_refine(facts, rows, "all.csv")
    assert not refined
    part, refined = fit_or_refine(whole, rows[:3], "part.csv")
    assert not refined
    assert part == fit_or_refine(facts, rows[:3], "part.csv")[0]


def test_a_runtime_without_a_fit_gets_one_and_the_others_stay(shipped: DeviceProfile) -> None:
    rows = timed(shipped, cases(SHAPES), 1.0)
    bare = replace(shipped.runtimes["tensorrt"], parameters=None, fit=None)
    facts = replace(shipped, runtimes={**shipped.runtimes, "tensorrt": bare})
    mine, _ = fit_or_refine(facts, rows, "mine.csv")
    assert mine.runtimes["tensorrt"].fit is not None
    assert shipped.runtimes["pytorch"].fit is not None
    assert mine.runtimes["pytorch"] is shipped.runtimes["pytorch"]

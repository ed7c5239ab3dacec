"""Fitting, on cases that a known device made: what it is, the fit must find."""

import msgspec
import numpy as np
import pytest

from hwsearch.device import DeviceProfile
from hwsearch.latency.analytic import figures_of
from hwsearch.latency.calibrate import CONFORMAL_ROWS, estimate_cases, fit_device, leave_one_model_out
from hwsearch.latency.cases import Case
from hwsearch.latency.validate import validate
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile
from hwsearch.runtime import Figure

replace = msgspec.structs.replace
TRUTH = {"pass_us": 80.0, "kernel_us": 6.0, "bandwidth_gbs": 200.0, "rate_tops.fp16": 30.0, "rate_tops.int8": 70.0}


@pytest.fixture(scope="module")
def facts() -> DeviceProfile:
    profile = find_profile("t4")
    return replace(profile, runtimes={"tensorrt": replace(profile.runtimes["tensorrt"], parameters=None, fit=None)})


@pytest.fixture(scope="module")
def truth() -> DeviceProfile:
    """The profile of a device that does not exist, known exactly."""
    profile = find_profile("t4")
    runtime = profile.runtimes["tensorrt"]
    parameters = runtime.parameters
    assert parameters is not None
    for name, value in TRUTH.items():
        group, _, precision = name.partition(".")
        if precision:
            table = {**getattr(parameters, group), precision: Figure(value, "made up")}
            parameters = replace(parameters, **{group: table})
        else:
            parameters = replace(parameters, **{group: Figure(value, "made up")})
    return replace(profile, runtimes={"tensorrt": replace(runtime, parameters=parameters, fit=None)})


def make_cases(truth: DeviceProfile, widths: tuple[int, ...] = (512, 768, 1024), noise: float = 0.0) -> list[Case]:
    shapes = [
        Case(
            "t4",
            "tensorrt",
            layers,
            width,
            width // 64,
            4 * width,
            str(precision),
            1.0,
            model=f"m{width}",
            batch=batch,
            sequence=sequence,
        )
        for width, layers in zip(widths, (6, 12, 24), strict=False)
        for batch in (1, 4, 32)
        for sequence in (64, 256)
        for precision in (Precision.FP16, Precision.INT8)
    ]
    rng = np.random.default_rng(0)
    times = [median for median, _, _ in estimate_cases(truth, shapes)]
    return [
        replace(case, latency_ms=ms * float(np.exp(rng.normal(0, noise))))
        for case, ms in zip(shapes, times, strict=True)
    ]


def test_a_fit_finds_the_device_that_made_the_rows(facts: DeviceProfile, truth: DeviceProfile) -> None:
    fitted = fit_device(facts, make_cases(truth), "made up")
    parameters = fitted.runtimes["tensorrt"].parameters
    assert parameters is not None
    found = figures_of(parameters)
    for name in ("rate_tops.fp16", "rate_tops.int8"):
        assert found[name].value == pytest.approx(TRUTH[name], rel=0.05)
        assert found[name].source.startswith("fit")
        assert found[name].sd < 0.1
    assert found["rate_tops.fp32"].source.startswith("assumed")  # no row says anything of it
    unseen = [median for median, _, _ in estimate_cases(fitted, make_cases(truth, (640, 896)))]
    real = [case.latency_ms for case in make_cases(truth, (640, 896))]
    assert np.abs(np.array(unseen) / real - 1).max() < 0.06


def test_a_model_left_out_is_really_left_out(facts: DeviceProfile, truth: DeviceProfile) -> None:
    cases = make_cases(truth, noise=0.03)
    spoiled = [replace(case, latency_ms=case.latency_ms * 3) if case.model == "m1024" else case for case in cases]
    intervals = dict(leave_one_model_out(facts, spoiled, "tensorrt"))
    wrong = [median / case.latency_ms for case, (median, _, _) in intervals.items() if case.model == "m1024"]
    assert max(wrong) < 0.5  # the fit never saw the spoiled rows
    assert len(intervals) == len(cases)


def test_intervals_hold_what_they_say_and_grow_with_noise(facts: DeviceProfile, truth: DeviceProfile) -> None:
    widths = []
    for noise in (0.02, 0.15):
        profile = fit_device(facts, make_cases(truth, noise=noise), "made up")
        fresh = make_cases(truth, (640, 960), noise=0.0)
        scores = validate(profile, fresh).scores()
        assert scores is not None
        assert scores.coverage_90 >= 0.8
        widths.append(scores.width_90)
    assert widths[0] < widths[1]


def test_one_outlier_does_not_bend_the_fit(facts: DeviceProfile, truth: DeviceProfile) -> None:
    cases = make_cases(truth)
    spoiled = [replace(cases[0], latency_ms=cases[0].latency_ms * 5), *cases[1:]]
    fitted = fit_device(facts, spoiled, "made up")
    errors = [
        abs(median / case.latency_ms - 1)
        for case, (median, _, _) in zip(cases[1:], estimate_cases(fitted, cases[1:]), strict=True)
    ]
    assert np.mean(errors) < 0.05


def test_a_runtime_without_rows_borrows_and_says_so(facts: DeviceProfile, truth: DeviceProfile) -> None:
    lender = facts.runtimes["tensorrt"]
    both = replace(facts, runtimes={"tensorrt": lender, "other": replace(lender, borrows=("tensorrt",))})
    fitted = fit_device(both, make_cases(truth), "made up")
    own, borrowed = (fitted.runtimes[name].parameters for name in ("tensorrt", "other"))
    assert own is not None
    assert borrowed is not None
    assert borrowed.rate_tops["fp16"].value == own.rate_tops["fp16"].value
    assert borrowed.rate_tops["fp16"].sd > own.rate_tops["fp16"].sd + 0.1
    assert borrowed.rate_tops["fp16"].source == "borrowed: tensorrt"
    assert borrowed.rate_tops["fp16"].value == pytest.approx(30.0, rel=0.05)


def test_fits_are_reproducible(facts: DeviceProfile, truth: DeviceProfile) -> None:
    cases = make_cases(truth, noise=0.05)
    assert fit_device(facts, cases, "made up") == fit_device(facts, cases, "made up")


def test_few_rows_make_no_conformal_quantile(facts: DeviceProfile, truth: DeviceProfile) -> None:
    cases = make_cases(truth)[: CONFORMAL_ROWS - 1]
    fit = fit_device(facts, cases, "made up").runtimes["tensorrt"].fit
    assert fit is not None
    assert fit.stretch == 1.0
    assert fit.rows == CONFORMAL_ROWS - 1


def test_validation_skips_and_names_what_is_foreign(truth: DeviceProfile) -> None:
    cases = make_cases(truth)
    foreign = [replace(cases[0], device="h100"), replace(cases[0], runtime="ncnn")]
    result = validate(truth, [*cases, *foreign])
    assert list(result.skipped) == foreign
    document = result.to_json()
    assert document["cases"] == len(cases)
    assert document["skipped"] == 2
    assert document["mape"] == pytest.approx(0.0, abs=1e-9)
    assert document["spearman"] == pytest.approx(1.0)
    row = document["rows"][0]
    assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)
    assert "latency_ms" not in row


def test_nothing_to_validate_is_no_number(truth: DeviceProfile) -> None:
    document = validate(truth, []).to_json()
    assert document["cases"] == 0
    assert document["mape"] is None

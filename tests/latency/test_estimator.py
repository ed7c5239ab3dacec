import dataclasses
import time

import numpy as np
import pytest
from msgspec.structs import replace

from hwsearch.architecture import Architecture, Layer, parse_precisions, uniform_layers
from hwsearch.latency.estimator import AT_ONCE, Estimator, estimation
from hwsearch.latency.latency import Latency
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile
from hwsearch.workload import Workload, lower


def decoder(width: int = 128, depth: int = 4, plan: str = "int8") -> Architecture:
    layers = uniform_layers(depth, 4, 2, 2 * width, parse_precisions(plan, depth))
    fp16 = Precision.FP16
    return Architecture("decoder", width, 32, layers, True, "rmsnorm", False, 2048, "lm", fp16, fp16, fp16)


@pytest.fixture
def orin() -> Estimator:
    profile = find_profile("jetson-orin")
    return Estimator(profile, profile.target(), Workload(64, 128, 0, 256))


def test_where_the_time_goes_adds_up_to_the_time(orin: Estimator) -> None:
    latency = orin.one(decoder())
    assert sum(latency.ops.values()) == pytest.approx(latency.median_ms)
    assert latency.phases == {"prefill": pytest.approx(latency.median_ms / 256)}
    assert latency.low_ms < latency.median_ms < latency.high_ms
    assert latency.source == "analytic"
    assert latency.extrapolated


def test_phases_of_a_generation_add_up() -> None:
    profile = find_profile("jetson-orin")
    latency = Estimator(profile, profile.target(), Workload(1, 64, 10, 3)).one(decoder())
    assert latency.median_ms == pytest.approx(3 * (latency.phases["prefill"] + 10 * latency.phases["decode_token"]))


def test_a_latency_is_judged_by_every_budget() -> None:
    latency = Latency(10.0, 9.0, 11.0, "measured", False, 1.0, {"prefill": 1.0, "decode_token": 0.2})
    assert latency.filled(20.0, {}) == pytest.approx(0.55)
    assert latency.tightest(20.0, {"prefill": 4.0, "decode_token": 0.25}) == ("decode_token", 0.25)
    assert (latency.median_of("decode_token"), latency.at_most("decode_token")) == (0.2, pytest.approx(0.22))
    assert latency.filled(20.0, {"prefill": 4.0, "decode_token": 0.2}) == pytest.approx(1.1)
    unsure = replace(latency, phases_high={"prefill": 3.0, "decode_token": 0.2})
    assert unsure.tightest(20.0, {"prefill": 4.0, "decode_token": 0.4}) == ("prefill", 4.0)
    assert unsure.filled(20.0, {"prefill": 4.0, "decode_token": 0.4}) == pytest.approx(0.75)


@pytest.mark.parametrize(("device", "runtime"), [("t4", "onnxruntime"), ("t4", "tensorrt"), ("arm-cpu", "llama.cpp")])
def test_a_phase_is_as_sure_as_it_would_be_alone(device: str, runtime: str) -> None:
    """A workload of both is none of them."""
    profile = find_profile(device)
    target, facts = profile.target(runtime), profile.runtimes[runtime]
    plan = [(facts.precisions[0], facts.precisions[0])] * 4
    student = replace(decoder(), layers=uniform_layers(4, 4, 2, 512, plan)).with_float(facts.float_beside())
    found = Estimator(profile, target, Workload(1, 512, 8)).one(student)
    table = lower([student], Workload(1, 512, 8), facts.int8_products)
    for phase, passes in (("prefill", [[1.0, 0.0]]), ("decode_token", [[0.0, 1.0]])):
        alone = estimation(profile, target)(dataclasses.replace(table, passes=np.array(passes)))[0]
        assert found.phases[phase] == pytest.approx(alone.median_ms)
        assert found.at_most(phase) == pytest.approx(alone.high_ms)
    widths = {phase: found.at_most(phase) / found.phases[phase] for phase in found.phases}
    assert min(widths.values()) < max(widths.values())


def test_what_lies_partly_outside_is_never_wholly_inside() -> None:
    latency = Latency(10.0, 9.0, 11.0, "analytic", True, 0.9973)
    assert latency.certainty == "analytic, extrapolated, 99% covered by measured shapes"


def test_more_work_takes_longer(orin: Estimator) -> None:
    widths = orin([decoder(width) for width in range(32, 257, 32)])
    depths = orin([decoder(depth=depth) for depth in range(1, 7)])
    assert (np.diff(widths.median_ms) > 0).all()
    assert (np.diff(depths.median_ms) > 0).all()


def test_int8_is_priced_by_time_and_changes_of_precision_cost(orin: Estimator) -> None:
    uniform, mixed, floats = (orin.one(decoder(plan=plan)) for plan in ("int8*4", "int8,fp16,int8,fp16", "fp16*4"))
    assert uniform.median_ms < mixed.median_ms < floats.median_ms
    assert mixed.ops["cast"] > uniform.ops["cast"]
    assert "cast" not in floats.ops


def test_batches_are_priced_as_one_by_one(orin: Estimator) -> None:
    few = [decoder(width, depth) for width in (64, 96, 128) for depth in (1, 3)]
    many = orin(few * (AT_ONCE // 3))
    for i, architecture in enumerate(few):
        assert many[i] == many[i + len(few)]
        assert many[i].median_ms == pytest.approx(orin.one(architecture).median_ms)
        assert many[i].high_ms == pytest.approx(orin.one(architecture).high_ms)


def test_a_hundred_thousand_take_a_few_times_what_building_them_takes(orin: Estimator) -> None:
    """Compared in one run, in CPU time: the bar in seconds stands in benchmarks/estimates.py."""
    precisions = (Precision.FP16, Precision.INT8)

    def build(count: int) -> list[Architecture]:
        rng = np.random.default_rng(0)
        picks = rng.integers(0, 2, (count, 8)).tolist()
        widths = (rng.integers(2, 13, count) * 16).tolist()
        return [
            Architecture(
                "decoder",
                width,
                32,
                tuple(Layer(4, 2, 64 + 32 * pick[i], precisions[pick[i]], precisions[pick[i + 4]]) for i in range(4)),
                True,
                "rmsnorm",
                vocab=2048,
                head="lm",
            )
            for width, pick in zip(widths, picks, strict=True)
        ]

    started = time.process_time()
    found = build(20_000)
    built = time.process_time()
    orin(found)
    priced = time.process_time()
    assert priced - built < 4 * (built - started)


def test_an_unmeasured_precision_is_less_sure() -> None:
    profile = find_profile("t4")
    price = Estimator(profile, profile.target(), Workload(8, 128))

    def width(precision: Precision) -> float:
        encoder = Architecture("encoder", 768, 64, uniform_layers(2, 12, 12, 3072, [(precision, precision)] * 2))
        latency = price.one(encoder)
        return latency.high_ms / latency.median_ms

    assert width(Precision.FP32) > 1.3 > 1.15 > width(Precision.FP16)


def test_attention_is_priced_as_it_is_exported(orin: Estimator) -> None:
    """The cases that TensorRT's parameters are of have its products in int8 beside int8 layers; exports have not."""
    assert orin.profile.runtimes["tensorrt"].int8_products
    quantised, floats = orin.one(decoder(plan="int8")), orin.one(decoder(plan="fp16"))
    assert quantised.ops["attention"] == pytest.approx(floats.ops["attention"])
    assert quantised.ops["qkv"] < floats.ops["qkv"]
    cases = estimation(orin.profile, orin.target)(lower([decoder(plan="int8")], orin.workload))[0]
    assert cases.ops["attention"] < quantised.ops["attention"]

import numpy as np
import pytest

from hwsearch.architecture import Architecture, parse_precisions, uniform_layers
from hwsearch.device import DeviceProfile
from hwsearch.latency.analytic import AnalyticModel
from hwsearch.latency.estimator import log_gradient, medians_us
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile
from hwsearch.workload import Workload, lower

TARGETS = [
    ("t4", "tensorrt", "int8*2,fp16*2"),
    ("t4", "onnxruntime", "fp16*4"),
    ("raspberry-pi-5", "onnxruntime", "int8*2,fp32*2"),
]


def decoder(plan: str) -> Architecture:
    return Architecture(
        "decoder",
        192,
        32,
        uniform_layers(4, 6, 3, 256, parse_precisions(plan, 4)),
        True,
        "rmsnorm",
        vocab=2048,
        head="lm",
    )


@pytest.mark.parametrize(("device", "runtime", "plan"), TARGETS)
def test_derivatives_are_those_of_the_time(device: str, runtime: str, plan: str) -> None:
    profile = find_profile(device)
    target = profile.target(runtime, threads=2 if device.startswith("rasp") else None)
    table = lower([decoder(plan)], Workload(4, 64, 7, 3))
    model = AnalyticModel(profile, target)
    median = medians_us(model, model.kernels(table), table)
    step = 1e-5
    for name, slope in log_gradient(model, model.kernels(table), table, median).items():
        moved = AnalyticModel(profile, target, {**model.values, name: model.values[name] * np.exp(step)})
        numeric = (np.log(medians_us(moved, moved.kernels(table), table)) - np.log(median)) / step
        assert slope == pytest.approx(numeric, abs=1e-4), name


@pytest.mark.parametrize(("device", "runtime", "plan"), TARGETS)
def test_parts_of_a_kernel_add_up(device: str, runtime: str, plan: str) -> None:
    profile = find_profile(device)
    kernels = AnalyticModel(profile, profile.target(runtime)).kernels(lower([decoder(plan)], Workload(8, 128)))
    parts = kernels.launch + kernels.compute + kernels.ramp + kernels.memory + kernels.scores
    assert np.allclose(parts, kernels.total)
    assert (kernels.cached <= kernels.memory + kernels.scores + 1e-9).all()


def test_a_slower_power_mode_and_fewer_threads_take_longer() -> None:
    def milliseconds(profile: DeviceProfile, **choice: object) -> float:
        model = AnalyticModel(profile, profile.target(**choice))  # type: ignore[arg-type]
        table = lower([decoder("fp32*4")], Workload(8, 128))
        return float(medians_us(model, model.kernels(table), table)[0])

    orin, pi = find_profile("jetson-orin"), find_profile("raspberry-pi-5")
    modes = [milliseconds(orin, power_mode=mode) for mode in ("MAXN", "50W", "30W", "15W")]
    assert modes == sorted(modes)
    assert modes[0] < modes[-1]
    assert milliseconds(pi, threads=1) > milliseconds(pi, threads=4)


def test_doubt_about_the_form_grows_with_the_distance_and_vanishes_inside() -> None:
    profile = find_profile("t4")
    model = AnalyticModel(profile, profile.target("tensorrt"))

    def away(width: int) -> float:
        layers = uniform_layers(1, width // 32, width // 32, 4 * width, [(Precision.FP16, Precision.FP16)])
        return float(model.kernels(lower([Architecture("encoder", width, 32, layers)], Workload(8, 128))).away.max())

    assert away(768) == away(1024) == 0.0
    assert 0.0 < away(512) < away(128) < away(32)


def test_only_measured_shapes_in_a_measured_precision_are_covered() -> None:
    profile = find_profile("t4")
    model = AnalyticModel(profile, profile.target("tensorrt"))

    def covered(width: int, precision: Precision) -> set[bool]:
        layers = uniform_layers(1, width // 64, width // 64, 4 * width, [(precision, precision)])
        return set(
            model.kernels(lower([Architecture("encoder", width, 64, layers)], Workload(8, 128))).covered.tolist()
        )

    assert covered(768, Precision.INT8) == {True}
    assert False in covered(256, Precision.INT8)
    assert covered(768, Precision.FP32) == {False}

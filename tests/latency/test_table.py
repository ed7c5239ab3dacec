from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.bench.onnxruntime import FACTS as CPU
from hwsearch.bench.points import Ranges, case_of, draw
from hwsearch.device import DeviceProfile
from hwsearch.errors import CasesError, RunError
from hwsearch.files import write_text
from hwsearch.latency.kernels import Kernel, kernels_of
from hwsearch.latency.points import Point, read_points, reconciled, write_table
from hwsearch.latency.table import LatencyTable
from hwsearch.latency.validate import validate
from hwsearch.precision import Precision, Scheme
from hwsearch.profiles import find_profile
from hwsearch.workload import OpTable, Workload, lower

PRECISIONS = (Precision.FP32, Precision.INT8)


def kernel_us(kernel: str, terms: np.ndarray) -> np.ndarray:
    """A made-up machine: int8 is twice as fast, whatever moves goes at 8 GB/s, a launch takes 5 us."""
    work, moved, *_ = terms.T
    rate = 8e4 if "int8" in kernel else 4e4
    return 5 + np.hypot(work / rate, moved / 8e3)


def whole_us(table: OpTable) -> float:
    """Its kernels, 4 % that no kernel shows, and a microsecond a launch."""
    total = sum(
        (kernel_us(k.name, k.terms) * table.runs[k.rows]).sum() + table.runs[k.rows].sum()
        for k in kernels_of(table, fused=False)
    )
    return float(1.04 * total)


def measured(
    count: int, seed: int, noise: float = 0.01, ranges: Ranges | None = None
) -> tuple[list[Point], list[OpTable]]:
    rng = np.random.default_rng(seed)
    points, tables = [], []
    for _ in range(count):
        architecture, workload = draw(rng, ranges or Ranges(), PRECISIONS)
        table = lower([architecture], workload)
        kernels = {
            k.name: float(kernel_us(k.name, k.terms)[0] * np.exp(noise * rng.standard_normal()))
            for k in kernels_of(table, fused=False)
        }
        ms = whole_us(table) / 1e3 * np.exp(noise * rng.standard_normal())
        points.append(
            Point(
                replace(
                    case_of("host", "onnxruntime", CPU, architecture, workload, f"{architecture.id} {workload}"),
                    latency_ms=float(ms),
                ),
                kernels,
            )
        )
        tables.append(table)
    return points, tables


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return LatencyTable(*measured(80, seed=0))


def test_unseen_models_are_priced_within_a_few_percent(table: LatencyTable) -> None:
    points, tables = measured(60, seed=1)
    errors, inside = [], 0
    for point, ops in zip(points, tables, strict=True):
        priced = table.price(ops, np.zeros(len(ops.m)))
        error = np.log(priced.total_us[0] / 1e3 / point.case.latency_ms)
        errors.append(error)
        inside += abs(error) <= 1.645 * priced.sd[0]
        assert priced.known[0] == pytest.approx(1.0)
    assert np.abs(errors).mean() < 0.03
    assert inside >= 48  # 90 % of 60 is 54; below 48 has a chance of 1 %


def test_leaving_a_point_out_is_as_wrong_as_on_new_ones(table: LatencyTable) -> None:
    held_out = table.held_out()
    inside = np.mean([low <= case.latency_ms <= high for case, (_, low, high) in held_out])
    error = np.mean([abs(median / case.latency_ms - 1) for case, (median, _, _) in held_out])
    assert inside >= 0.85
    assert np.mean([high / low for _, (_, low, high) in held_out]) < 1.2
    assert error < 0.03


def test_kernels_that_do_not_add_up_as_others_do_are_scaled() -> None:
    points, tables = measured(9, seed=2, noise=0.001)
    slow = {name: 1.3 * time for name, time in points[4].kernels.items()}
    points[4] = replace(points[4], kernels=slow)
    factors = []
    for before, point in zip(points, reconciled(points, tables, fused=False), strict=True):
        found = [time / before.kernels[name] for name, time in point.kernels.items()]
        assert np.ptp(found) < 1e-9
        factors.append(found[0])
    assert factors[4] == pytest.approx(1.02 / 1.3, rel=0.02)
    assert np.median(np.delete(factors, 4)) == pytest.approx(1.0)


def test_one_price_is_the_same_alone_and_among_many(table: LatencyTable) -> None:
    rng = np.random.default_rng(5)
    architectures = [draw(rng, Ranges(), PRECISIONS)[0] for _ in range(20)]
    workload = Workload(4, 64)
    many = lower(architectures, workload)
    together = table.price(many, np.zeros(len(many.m)))
    for i, architecture in enumerate(architectures):
        alone = lower([architecture], workload)
        priced = table.price(alone, np.zeros(len(alone.m)))
        assert priced.total_us[0] == pytest.approx(together.total_us[i], rel=1e-9)
        assert priced.sd[0] == pytest.approx(together.sd[i], rel=1e-6)
        assert priced.covered[0] == pytest.approx(together.covered[i], rel=1e-9)


def test_a_kernel_that_was_never_measured_is_a_counted_fallback(table: LatencyTable) -> None:
    rng = np.random.default_rng(2)
    architecture, workload = draw(rng, Ranges(), (Precision.FP16, Precision.FP16))
    ops = lower([architecture], workload)
    priced = table.price(ops, np.full(len(ops.m), 1000.0))
    assert 0 < priced.known[0] < 1
    assert priced.covered[0] <= priced.known[0]
    assert priced.total_us[0] > 1000 * architecture.depth
    inside = lower([draw(rng, Ranges(), PRECISIONS)[0]], workload)
    assert priced.sd[0] > table.price(inside, np.zeros(len(inside.m))).sd[0]


def test_outside_the_measured_shapes_it_says_so_and_widens(table: LatencyTable) -> None:
    layers = uniform_layers(4, 4, 4, 640, ((Precision.FP32, Precision.INT8),) * 4)
    architecture = Architecture("encoder", 256, 64, layers, False, "layernorm", kv_precision=Precision.FP32)
    near, far = (lower([architecture], workload) for workload in (Workload(4, 128), Workload(512, 1024)))
    one, other = (table.price(ops, np.zeros(len(ops.m))) for ops in (near, far))
    assert one.covered[0] > 0.9
    assert other.covered[0] < 0.5
    assert other.sd[0] > 1.5 * one.sd[0]


def test_rows_of_an_odd_length_have_bytes_that_are_written_across_lines() -> None:
    """The last term and the last feature of a product: none where rows are whole vectors."""
    head = uniform_layers(1, 2, 2, 64, ((Precision.FP32, Precision.FP32),))

    def product(vocab: int) -> Kernel:
        architecture = Architecture("decoder", 64, 32, head, True, "rmsnorm", vocab=vocab, head="lm")
        return next(k for k in kernels_of(lower([architecture], Workload(2, 144)), False) if k.name == "head/fp32")

    even, odd = product(9664), product(9663)
    assert (even.terms[0, 3], even.features[0, -1]) == (0.0, 0.0)
    assert odd.features[0, -1] == 4.0  # every row begins somewhere else in a line
    written = 4.0 * 288 * 9663
    assert odd.terms[0, 3] == pytest.approx(written * written / (written + 2 * 2**20))
    assert odd.terms[0, 0] == even.terms[0, 0]


def test_a_table_survives_the_disk(tmp_path: Path, table: LatencyTable) -> None:
    write_table(tmp_path, table.points, {"kind": "measured"}, {})
    back = read_points(tmp_path)
    assert [point.case for point in back] == [point.case for point in table.points]
    assert back[3].kernels == pytest.approx(table.points[3].kernels, rel=1e-3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("\n0,", "\n999,", 1),
        lambda text: text.replace("microseconds", "us"),
        lambda text: text.rstrip("0123456789.\n") + "-3\n",
        lambda text: text + "1,up/fp32,fast\n",
    ],
)
def test_a_damaged_table_is_a_clear_error(tmp_path: Path, table: LatencyTable, damage: object) -> None:
    write_table(tmp_path, table.points[:4], {"kind": "measured"}, {})
    path = tmp_path / "kernels.csv"
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(CasesError, match=r"kernels\.csv"):
        read_points(tmp_path)


@pytest.mark.parametrize("last", ["samples.json", "cases.csv", "kernels.csv", "measured.toml"])
def test_a_table_that_was_cut_off_while_it_was_written_is_as_before(
    tmp_path: Path, table: LatencyTable, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    from hwsearch.latency import points, tables

    monkeypatch.setattr(tables, "roots", lambda: (tmp_path, tmp_path))
    runtime = replace(find_profile("raspberry-pi-5").runtimes["onnxruntime"], table="board/onnxruntime")
    folder = tmp_path / "board" / "onnxruntime"
    write_table(folder, table.points[:8], {"points": 8}, {})

    def full(path: Path, text: str) -> None:
        if path.name == last:
            raise RunError("no space left")
        write_text(path, text)

    monkeypatch.setattr(points, "write_text", full)
    with pytest.raises(RunError):
        write_table(folder, table.points[:12], {"points": 12}, {})
    profile = replace(find_profile("raspberry-pi-5"), runtimes={"onnxruntime": runtime})
    found = tables.table_of_target(profile, profile.target())
    assert found is not None
    assert len(found.points) == (12 if last == "measured.toml" else 8)


def test_tables_are_found_through_the_profile(
    tmp_path: Path, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwsearch.latency import estimator, tables

    profile: DeviceProfile = find_profile("raspberry-pi-5")
    # The points have their heads in float.
    runtime = replace(profile.runtimes["onnxruntime"], table="board/onnxruntime", scheme=Scheme("dynamic", "uint8"))
    profile = replace(profile, runtimes={"onnxruntime": runtime})
    monkeypatch.setattr(tables, "roots", lambda: (tmp_path, tmp_path))
    architecture, workload = draw(np.random.default_rng(6), Ranges(), PRECISIONS)
    with pytest.raises(CasesError, match="no latency table"):
        estimator.Estimator(profile, profile.target(), workload).one(architecture)
    write_table(tmp_path / "board" / "onnxruntime", table.points, {"kind": "measured"}, {})
    first = estimator.Estimator(profile, profile.target(), workload)
    found = first.one(architecture)
    ops = lower([architecture], workload)
    assert found.source == "table"
    assert found.median_ms == pytest.approx(table.price(ops, np.zeros(len(ops.m))).total_us[0] / 1e3, rel=0.02)
    assert sum(found.ops.values()) == pytest.approx(found.median_ms)
    # What a search prices by is what `validate` judges.
    own = [replace(point.case, device=profile.name, runtime="onnxruntime", threads=0) for point in table.points[:3]]
    prices = [
        estimator.Estimator(profile, profile.target(), case.workload).one(case.architecture(runtime)).median_ms
        for case in own
    ]
    assert [median for _, (median, _, _) in validate(profile, own).rows] == pytest.approx(prices)
    # A table that was copied in part is none.
    write_table(tmp_path / "part", table.points, {"kind": "measured", "points": len(table.points) + 1}, {})
    part = replace(profile, runtimes={"onnxruntime": replace(runtime, table="part")})
    with pytest.raises(CasesError, match=r"has kernels of \d+ of its \d+ points"):
        estimator.Estimator(part, part.target(), workload).one(architecture)
    # Other threads than the table's are the model's business.
    other = profile.target(threads=1)
    assert other.threads != runtime.threads
    assert estimator.Estimator(profile, other, workload).one(architecture).source == "analytic"
    # And another power mode than the one it was measured in.
    mode = next(iter(profile.power_modes.values()))
    modes = {"fast": mode, "slow": replace(mode, aliases=("slow",))}
    both = replace(profile, power_modes=modes)
    slow = [replace(point, case=replace(point.case, power_mode="slow")) for point in table.points]
    write_table(tmp_path / "board" / "onnxruntime", slow, {"kind": "measured"}, {})
    assert first.one(architecture) == found  # what is measured meanwhile does not change a search's prices
    for name, source in (("fast", "analytic"), ("slow", "table")):
        priced = estimator.Estimator(both, both.target(power_mode=name), workload).one(architecture)
        assert priced.source == source

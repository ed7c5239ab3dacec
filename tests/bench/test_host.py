"""Graphs that ONNX Runtime really runs, and this machine as a device."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from hwsearch.architecture import Architecture, parse_precisions, uniform_layers
from hwsearch.bench import host
from hwsearch.bench.graph import PARTS, build_graph, example_input
from hwsearch.bench.onnxruntime import KernelProfile, prepare
from hwsearch.bench.points import Ranges
from hwsearch.errors import ArchitectureError, CasesError, ProfileError
from hwsearch.latency.estimator import Estimator
from hwsearch.latency.kernels import kernel_name, kernels_of
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile, load_profile
from hwsearch.workload import Workload, lower


def model(block: str, plan: str, head: str = "lm", vocab: int = 50) -> Architecture:
    decoder = block == "decoder"
    layers = uniform_layers(2, 4, 2 if decoder else 4, 64, parse_precisions(plan, 2))
    return Architecture(block, 32, 8, layers, decoder, "rmsnorm" if decoder else "layernorm", vocab=vocab, head=head)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", ["decoder", "encoder"])
@pytest.mark.parametrize("plan", ["fp32", "int8", "int8/fp32*2"])
@pytest.mark.parametrize(
    ("head", "vocab", "shape"),
    [("lm", 50, (3, 7, 50)), ("none", 0, (3, 7, 32)), ("span", 50, (3, 7, 2)), ("classify", 50, (3, 2))],
)
def test_graphs_are_valid_and_run(block: str, plan: str, head: str, vocab: int, shape: tuple[int, ...]) -> None:
    architecture, workload = model(block, plan, head, vocab), Workload(3, 7)
    onnx.checker.check_model(build_graph(architecture, workload), full_check=True)
    (output,) = prepare(architecture, workload, threads=1)()  # type: ignore[misc]
    assert output.shape == shape
    assert np.isfinite(output).all()


def test_the_graph_has_an_integer_product_for_every_quantised_matrix() -> None:
    def products(plan: str) -> int:
        return sum(
            node.op_type == "MatMulInteger" for node in build_graph(model("decoder", plan), Workload(1, 4)).graph.node
        )

    assert products("fp32") == 0
    assert products("int8/fp32*2") == 2 * 4
    assert products("int8") == 2 * 7


def test_a_causal_graph_does_not_look_ahead() -> None:
    architecture, workload = model("decoder", "fp32"), Workload(1, 6)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        build_graph(architecture, workload).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    tokens = example_input(architecture, workload)["input"]
    changed = tokens.copy()
    changed[0, -1] = (changed[0, -1] + 1) % architecture.vocab
    one, other = (session.run(None, {"input": t})[0][0] for t in (tokens, changed))
    assert np.allclose(one[:-1], other[:-1], atol=1e-5)
    assert not np.allclose(one[-1], other[-1], atol=1e-5)


def test_a_precision_without_operators_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="int4"):
        build_graph(model("decoder", "int4"), Workload())


@pytest.mark.parametrize("block", ["decoder", "encoder"])
@pytest.mark.parametrize("plan", ["fp32", "int8", "int8/fp32,fp32/int8"])
def test_every_node_of_the_fused_graph_has_its_part(block: str, plan: str) -> None:
    """What ONNX Runtime makes of the graph adds up to the kernels that the op table has, layer by layer."""
    architecture, workload = model(block, plan), Workload(2, 20)
    profile = KernelProfile(architecture, workload, threads=1)
    profile.run(3)
    times = profile.finish()
    assert times.shape == (3, len(profile.parts))
    assert len(profile.when) == 3
    assert (times >= 0).all()
    assert times.sum() > 0
    named = {kernel_name(architecture, part) for part in profile.parts}
    assert named == {kernel.name for kernel in kernels_of(lower([architecture], workload))}
    for layer in range(architecture.depth):
        inside = [part for part in profile.parts if part.startswith(f"{layer}.")]
        assert {part.partition(".")[2] for part in inside} == PARTS - {"embedding", "last_norm", "head"}


RANGES = Ranges(depth=(1, 2), width=(64, 96), sequence=(16, 32), batch=(1, 2), vocab=(100, 200))


@pytest.fixture(scope="module")
def measured(monkeypatch_module: pytest.MonkeyPatch) -> Path:
    """A real, short measurement of this machine."""
    monkeypatch_module.setattr(host, "SECONDS", 1.0)
    monkeypatch_module.setattr(host, "POINTS", 10)
    monkeypatch_module.setattr(host, "RANGES", RANGES)
    profile = host.host_profile(threads=1)
    assert profile.name == "host"
    return host.host_folder(host.this_machine(1))


@pytest.fixture(scope="module")
def monkeypatch_module() -> object:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_the_host_is_measured_once_and_remembered(measured: Path) -> None:
    table = (measured / "cases.csv").read_text()
    assert (measured / "measured.toml").read_text().count('kind = "measured"') == 1
    assert {"samples.json", "kernels.csv"} <= {path.name for path in measured.iterdir()}
    before = (measured / "cases.csv").stat().st_mtime_ns
    profile = host.host_profile(threads=1)
    assert (measured / "cases.csv").stat().st_mtime_ns == before
    fit = profile.runtimes["onnxruntime"].fit
    assert fit is not None
    assert table.count("\n") == 1 + fit.rows == 11
    assert sum(error.rows for error in fit.leave_one_model_out.values()) == 10
    latency = Estimator(profile, profile.target(), Workload(2, 20)).one(model("decoder", "int8"))
    assert 0 < latency.low_ms < latency.high_ms
    assert latency.source == "table"


def test_measuring_goes_on_where_it_stopped(measured: Path, tmp_path: Path) -> None:
    machine = host.this_machine(1)
    shutil.copytree(measured, tmp_path / "table")
    going_on = host.host_measuring(machine, RANGES, tmp_path / "table")
    before = [case.model for case in going_on.cases]
    assert len(before) == 10
    told: list[float] = []
    points = going_on.measure(12, 1.0, told.append)
    assert [point.case.model for point in points][:10] == before
    assert len(points) == 12
    assert told == sorted(told)
    assert told[0] > 10
    again = host.host_measuring(machine, RANGES, tmp_path / "table")
    assert [case.model for case in again.cases] == [point.case.model for point in points]


def test_a_device_of_ones_own_is_measured_under_its_name(measured: Path, tmp_path: Path) -> None:
    profile, folder = host.measure_device(host.this_machine(1), "my-board", RANGES, 8, 1.0, tmp_path)
    assert folder == tmp_path / "my-board" / "onnxruntime"
    again = load_profile(tmp_path / "my-board.toml")
    assert again == profile
    assert again.name == "my-board"
    architecture = model("decoder", "int8")
    assert Estimator(again, again.target(), Workload(2, 20)).one(architecture).source == "table"
    with pytest.raises(ProfileError, match="small letters"):
        host.measure_device(host.this_machine(1), "../my board", RANGES, 8, 1.0, tmp_path)


def test_students_are_measured_where_the_table_was(measured: Path) -> None:
    profile = host.host_profile(threads=1)
    ruler = host.measurer_of(profile, profile.target(), Workload(2, 20, repeat=3))
    assert ruler is not None
    small, large = ruler.measure([model("decoder", "fp32"), replace(model("decoder", "fp32"), width=96, head_dim=24)])
    assert small.source == large.source == "measured"
    assert small.low_ms < small.median_ms < small.high_ms
    assert small.median_ms == pytest.approx(3 * small.phases["prefill"])
    # Another machine's table, another runtime or a generation cannot be measured here.
    assert host.measurer_of(profile, profile.target(), Workload(2, 20, new_tokens=4)) is None
    t4 = find_profile("t4")
    assert host.measurer_of(t4, t4.target(), Workload(2, 20)) is None
    facts = measured / "measured.toml"
    whole = facts.read_text()
    facts.write_text(whole.replace('processor = "', 'processor = "another '))
    try:
        assert host.measurer_of(profile, profile.target(), Workload(2, 20)) is None
    finally:
        facts.write_text(whole)


@pytest.mark.parametrize("name", ["cases.csv", "kernels.csv", "samples.json"])
def test_a_damaged_table_is_an_error_that_loses_nothing(measured: Path, name: str) -> None:
    table = measured / name
    whole = table.read_text()
    damaged = whole.replace("decoder", "sideways", 1) if name == "cases.csv" else whole[:-20] + "\n3,x,"
    table.write_text(damaged)
    for kept in measured.glob("profile-*.json"):
        kept.unlink()
    try:
        with pytest.raises(CasesError, match=rf"{name}.*Delete"):
            host.host_profile(threads=1)
        assert table.read_text() == damaged
    finally:
        table.write_text(whole)


def test_another_number_of_threads_is_another_machine() -> None:
    assert host.this_machine(1).key != host.this_machine(2).key
    assert host.this_machine(1) == host.this_machine(1)
    assert Precision.INT8 in host.runtime_of(host.this_machine(1)).precisions

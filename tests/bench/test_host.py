"""Graphs that ONNX Runtime really runs, and this machine as a device."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from hwsearch.architecture import Architecture, parse_precisions, uniform_layers
from hwsearch.bench import host
from hwsearch.bench.graph import build_graph, example_input
from hwsearch.bench.onnxruntime import prepare
from hwsearch.errors import ArchitectureError, CasesError
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.workload import Workload


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


@pytest.fixture(scope="module")
def measured(monkeypatch_module: pytest.MonkeyPatch) -> Path:
    """A real, short measurement of this machine."""
    monkeypatch_module.setattr(host, "SECONDS", 1.0)
    monkeypatch_module.setattr(host, "SHAPES", [shape for shape in host.SHAPES if shape[2] <= 192 and shape[8] <= 8])
    profile = host.host_profile(threads=1)
    assert profile.name == "host"
    return next(
        (Path(host.platformdirs.user_cache_path("hwsearch")) / "latency_tables" / "host").rglob("cases.csv")
    ).parent


@pytest.fixture(scope="module")
def monkeypatch_module() -> object:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_the_host_is_measured_once_and_remembered(measured: Path) -> None:
    table = (measured / "cases.csv").read_text()
    assert (measured / "measured.toml").read_text().count('kind = "measured"') == 1
    assert "samples.json" in {path.name for path in measured.iterdir()}
    before = (measured / "cases.csv").stat().st_mtime_ns
    profile = host.host_profile(threads=1)
    assert (measured / "cases.csv").stat().st_mtime_ns == before
    assert table.count("\n") == 1 + profile.runtimes["onnxruntime"].fit.rows  # type: ignore[union-attr]
    price = Estimator(profile, profile.target(), Workload(4, 64))
    latency = price.one(model("decoder", "int8"))
    assert 0 < latency.low_ms < latency.high_ms


def test_a_damaged_table_is_an_error_that_loses_nothing(measured: Path) -> None:
    table = measured / "cases.csv"
    whole = table.read_text()
    table.write_text(whole.replace("decoder", "sideways", 1))
    try:
        with pytest.raises(CasesError, match=r"line 2.*Delete"):
            host.host_profile(threads=1)
        assert "sideways" in table.read_text()
    finally:
        table.write_text(whole)


def test_another_number_of_threads_is_another_machine() -> None:
    assert host.this_machine(1).key != host.this_machine(2).key
    assert host.this_machine(1) == host.this_machine(1)
    assert Precision.INT8 in host._runtime(host.this_machine(1)).precisions

"""Graphs that ONNX Runtime really runs, and this machine as a device."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.json import encode
from msgspec.structs import replace

from hwsearch.architecture import Architecture, parse_precisions, uniform_layers
from hwsearch.bench import host
from hwsearch.bench.board import machine as board
from hwsearch.bench.graph import PARTS, build_graph, example_input
from hwsearch.bench.local import LOCAL, local
from hwsearch.bench.machine import Machine, host_folder, runtime_of, this_machine
from hwsearch.bench.measurer import measurer_of
from hwsearch.bench.onnxruntime import PartProfile, prepare
from hwsearch.bench.points import Ranges
from hwsearch.errors import ArchitectureError, CasesError, ProfileError
from hwsearch.latency.estimator import Estimator
from hwsearch.latency.kernels import DECODE, kernel_name, kernels_of
from hwsearch.latency.points import MARK
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile, load_profile
from hwsearch.workload import Phase, Workload, lower


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
    profile = PartProfile(architecture, workload, threads=1)
    profile.run(True, 3)
    times = profile.finish()
    assert times.shape == (3, len(profile.parts))
    assert len(profile.when) == 3
    assert (times >= 0).all()
    assert times.sum() > 0
    named = {kernel_name(architecture, part) for part in profile.parts}
    assert named == {kernel.name for kernel in kernels_of(lower([architecture], workload), fused=False)}
    for layer in range(architecture.depth):
        inside = [part for part in profile.parts if part.startswith(f"{layer}.")]
        assert {part.partition(".")[2] for part in inside} == PARTS - {"embedding", "last_norm", "head"}


@pytest.mark.parametrize("bench", list(LOCAL))
@pytest.mark.parametrize(
    ("block", "phase"), [("encoder", "prefill"), ("decoder", "prefill"), ("decoder", "decode_token")]
)
def test_the_parts_of_a_pass_are_the_kernels_of_the_op_table(bench: str, block: str, phase: Phase) -> None:
    architecture, workload = model(block, "fp32"), Workload(2, 20, new_tokens=3 if block == "decoder" else 0)
    runtime = local(bench)
    profile = runtime.PartProfile(architecture, workload, 1, phase)
    profile.run(False, 2)
    assert profile.finish().shape == (2, len(profile.parts))
    kernels = kernels_of(lower([architecture], workload), runtime.FACTS.fused_attention)
    wanted = {kernel.name for kernel in kernels if kernel.name.endswith(DECODE) == (phase == "decode_token")}
    assert {kernel_name(architecture, part, phase) for part in profile.parts} == wanted


@pytest.mark.parametrize("bench", list(LOCAL))
def test_a_new_token_sees_what_was_cached(bench: str) -> None:
    """The logits of a token after its prompt are those of the same tokens read at once."""
    architecture, prompt = model("decoder", "fp32"), Workload(2, 6, new_tokens=1)
    tokens = example_input(architecture, Workload(2, 7))["input"]

    if bench == "onnxruntime":
        import onnxruntime

        def run(phase: Phase, workload: Workload, inputs: dict[str, object]) -> list[np.ndarray]:
            graph = build_graph(architecture, workload, phase=phase).SerializeToString()
            session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            return session.run(None, inputs)  # type: ignore[no-any-return]

        _, *kept = run("prefill", prompt, {"input": tokens[:, :6]})
        cached = {f"cached.{i // 2}.{'kv'[i % 2]}": value for i, value in enumerate(kept)}
        newest, *_ = run("decode_token", prompt, {"input": tokens[:, 6:], **cached})
        (whole,) = run("prefill", Workload(2, 7), {"input": tokens})
    else:
        import torch

        from hwsearch.bench.torch import Network

        def network(phase: Phase, workload: Workload, inputs: np.ndarray, kept: list[torch.Tensor]) -> object:
            found = Network(architecture, workload, phase)
            found._input = torch.from_numpy(inputs)
            found._caches = {f"{i // 2}.{'kv'[i % 2]}": value for i, value in enumerate(kept)}
            return found(1, lambda part: None)

        _, kept = network("prefill", prompt, tokens[:, :6], [])  # type: ignore[misc,assignment]
        newest, _ = network("decode_token", prompt, tokens[:, 6:], kept)  # type: ignore[misc]
        whole, _ = network("prefill", Workload(2, 7), tokens, [])  # type: ignore[misc]
    assert newest.shape == (2, 1, 50)
    assert np.allclose(newest[:, 0], whole[:, -1], atol=1e-5)


@pytest.mark.parametrize("bench", list(LOCAL))
def test_an_encoder_does_not_generate(bench: str) -> None:
    with pytest.raises(ArchitectureError, match="generates nothing"):
        local(bench).prepare(model("encoder", "fp32"), Workload(1, 4, new_tokens=2), 1)


RANGES = Ranges(depth=(1, 2), width=(64, 96), sequence=(16, 32), batch=(1, 2), vocab=(100, 200))


@pytest.fixture(scope="module")
def measured(monkeypatch_module: pytest.MonkeyPatch) -> Path:
    """A real, short measurement of this machine."""
    monkeypatch_module.setattr(host, "SECONDS", 1.0)
    monkeypatch_module.setattr(host, "POINTS", 10)
    monkeypatch_module.setattr(host, "RANGES", RANGES)
    profile = host.host_profile(threads=1)
    assert profile.name == "host"
    assert encode(host.host_profile(threads=1)) == encode(profile)  # a run knows it by what it looks like written
    return host_folder(this_machine(1))


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
    machine = this_machine(1)
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
    anew = host.host_measuring(machine, RANGES, tmp_path / "table", fresh=True)
    assert not anew.cases
    again = host.host_measuring(machine, RANGES, tmp_path / "table")
    assert [case.model for case in again.cases] == [point.case.model for point in points]


def test_a_device_of_ones_own_is_measured_under_its_name(measured: Path, tmp_path: Path) -> None:
    profile, file = host.measure_device(this_machine(1), "my-board", RANGES, 8, 1.0, tmp_path)
    assert file == tmp_path / "my-board.toml"
    assert (tmp_path / "my-board" / "onnxruntime" / MARK).is_file()
    again = load_profile(file)
    assert again == profile
    assert again.name == "my-board"
    architecture = model("decoder", "int8")
    assert Estimator(again, again.target(), Workload(2, 20)).one(architecture).source == "table"
    with pytest.raises(ProfileError, match="small letters"):
        host.measure_device(this_machine(1), "../my board", RANGES, 8, 1.0, tmp_path)
    both, _ = host.measure_device(this_machine(1, "pytorch"), "my-board", RANGES, 8, 1.0, tmp_path, name="pytorch")
    assert [name for name, runtime in both.runtimes.items() if runtime.measured] == ["onnxruntime", "pytorch"]


@pytest.mark.parametrize(
    ("machine", "flags", "overflows"),
    [("x86_64", "avx2 avx512bw", True), ("x86_64", "avx2 avx_vnni", False), ("x86_64", "avx512_vnni", False),
     ("aarch64", "asimddp", False)],
)  # fmt: skip
def test_where_eight_bits_overflow_weights_have_seven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, overflows: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : x\nflags : fpu {flags}\n")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert board.saturates(tmp_path / "cpuinfo") is overflows
    monkeypatch.setattr(board, "saturates", lambda: overflows)
    assert runtime_of(this_machine(1)).scheme.weight_bits == (7 if overflows else 8)


def test_a_table_is_of_one_number_of_threads(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("there")
    (tmp_path / "measured.toml").write_text('processor = "x"\ncores = 4\nthreads = 4\nruntime = "1.0"\n')
    machine = Machine("x", 4, 2, "1.0")
    with pytest.raises(CasesError, match="measured with threads 4, this is 2: measure it anew with --fresh"):
        host.host_measuring(machine, Ranges(), tmp_path, "mine")


def test_students_are_measured_where_the_table_was(measured: Path) -> None:
    profile = host.host_profile(threads=1)
    ruler = measurer_of(profile, profile.target(), Workload(2, 20, repeat=3))
    assert ruler is not None
    small, large = ruler.measure([model("decoder", "fp32"), replace(model("decoder", "fp32"), width=96, head_dim=24)])
    assert small.source == large.source == "measured"
    assert small.low_ms < small.median_ms < small.high_ms
    assert small.median_ms == pytest.approx(3 * small.phases["prefill"])
    # Another machine's table and another runtime cannot be measured here.
    t4 = find_profile("t4")
    assert measurer_of(t4, t4.target(), Workload(2, 20)) is None
    facts = measured / "measured.toml"
    whole = facts.read_text()
    facts.write_text(whole.replace('processor = "', 'processor = "another '))
    try:
        assert measurer_of(profile, profile.target(), Workload(2, 20)) is None
    finally:
        facts.write_text(whole)


def test_new_tokens_are_measured_when_they_are_asked_about(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So many that they are most of the time, whatever the machine's pace was.
    generation, architecture = Workload(2, 20, new_tokens=40), model("decoder", "int8")
    before = host.host_profile(threads=1)
    partly = Estimator(before, before.target(), generation).one(architecture)
    monkeypatch.setattr(host, "DECODE_POINTS", 8)
    monkeypatch.setattr(host, "DECODE_SECONDS", 1.0)
    profile = host.host_profile(threads=1, generates=True)
    table = (measured / "cases.csv").read_text()
    assert table.count("decode_token") == 8
    assert len(table.splitlines()) == 1 + 10 + 8
    found = Estimator(profile, profile.target(), generation).one(architecture)
    assert (partly.source, found.source) == ("analytic", "table")
    assert found.median_ms == pytest.approx(found.phases["prefill"] + 40 * found.phases["decode_token"])
    ruler = measurer_of(profile, profile.target(), generation)
    assert ruler is not None
    (here,) = ruler.measure([architecture])
    assert here.median_ms == pytest.approx(here.phases["prefill"] + 40 * here.phases["decode_token"])
    assert here.phases["decode_token"] < here.phases["prefill"]
    assert encode(host.host_profile(threads=1, generates=True)) == encode(profile)


def test_torch_is_a_runtime_of_this_machine(measured: Path) -> None:
    profile = host.host_profile(threads=1, runtime="pytorch")
    assert list(profile.runtimes) == ["onnxruntime", "pytorch"]
    target = profile.target("pytorch")
    found = Estimator(profile, target, Workload(2, 20)).one(model("encoder", "fp32"))
    assert found.source == "table"
    ruler = measurer_of(profile, target, Workload(2, 20))
    assert ruler is not None
    (here,) = ruler.measure([model("encoder", "fp32")])
    assert here.source == "measured"
    assert host.host_profile(threads=1).runtimes == profile.runtimes
    with pytest.raises(ProfileError, match="measured with onnxruntime or pytorch"):
        host.host_profile(threads=1, runtime="tflite")


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


def test_two_first_uses_at_once_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said, order = list[str](), list[str]()

    def second() -> None:
        with host.alone(said.append):
            order.append("second")

    with host.alone():
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert said == ["another hwsearch is measuring this machine; this one waits for it"]


def test_two_runtimes_measured_at_once_are_both_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second begins while the first is measuring."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    waiting = threading.Event()

    class Nothing:
        def measure(self, *_: object) -> None:
            waiting.wait(30)

    monkeypatch.setattr(host, "host_measuring", lambda *_: Nothing())
    monkeypatch.setattr(host, "fitted", lambda known, _: known)

    def measure(name: str, say: Callable[[str], None]) -> None:
        host.measure_device(this_machine(1, name), "my-pc", RANGES, 8, 1.0, tmp_path, name=name, say=say)

    first, second = (
        threading.Thread(target=measure, args=(name, say))
        for name, say in (("onnxruntime", lambda _: None), ("pytorch", lambda _: waiting.set()))
    )
    first.start()
    while not (tmp_path / "cache" / "hwsearch" / "latency_tables" / ".measuring").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    second.start()
    first.join()
    second.join()
    assert waiting.is_set()
    assert set(load_profile(tmp_path / "my-pc.toml").runtimes) == {"onnxruntime", "pytorch"}


def test_arm_processors_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    cpuinfo, tree = tmp_path / "cpuinfo", tmp_path / "model"
    found = set()
    for part in ("0xd0c", "0xd40"):
        cpuinfo.write_text(f"processor : 0\nCPU implementer : 0x41\nCPU part\t: {part}\nCPU revision : 1\n")
        found.add(board.processor(cpuinfo, tree))
    assert len(found) == 2
    tree.write_text("Raspberry Pi 5 Model B\0")
    assert board.processor(cpuinfo, tree) == "Raspberry Pi 5 Model B, implementer 0x41, part 0xd40, revision 1"


def test_another_number_of_threads_is_another_machine() -> None:
    assert this_machine(1).key != replace(this_machine(1), threads=2).key
    assert this_machine(1) == this_machine(1)
    assert Precision.INT8 in runtime_of(this_machine(1)).precisions

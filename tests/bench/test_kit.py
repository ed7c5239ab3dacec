"""Kits: written here, run in an interpreter that has only numpy and ONNX Runtime, and taken back."""

import ast
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec.structs import replace

from hwsearch.bench import adopt, board, carry
from hwsearch.bench.adopt import adopt_kit
from hwsearch.bench.answers import identity_of, measured_of, read_results, readings_of
from hwsearch.bench.board import run as board_run
from hwsearch.bench.board import tensorrt as board_tensorrt
from hwsearch.bench.kit import read_manifest, write_kit
from hwsearch.bench.machine import runtime_of, this_machine
from hwsearch.bench.measuring import Measuring
from hwsearch.bench.points import Ranges
from hwsearch.bench.tensorrt import build_typed_graph
from hwsearch.bench.timing import Reference
from hwsearch.errors import ArchitectureError, CasesError, ProfileError
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile, load_profile
from hwsearch.runtime import Runtime
from tests.bench.fake_tensorrt import Driver, tensorrt

RANGES = Ranges(depth=(1, 2), width=(64, 128), sequence=(16, 48), batch=(1, 2), vocab=(200, 400))
POINTS = 8
# What a board has: the standard library, numpy and the runtime.
CLEAN = """
import json, runpy, sys
sys.path.append(sys.argv[1])
sys.argv = sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("modules", json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return runtime_of(this_machine(1))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of site-packages that holds numpy and ONNX Runtime alone."""
    folder = tmp_path_factory.mktemp("libraries")
    site = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs", "onnxruntime"):
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return folder


def clean(libraries: Path, kit: Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", CLEAN, str(libraries), str(kit / "run.py")]


@pytest.fixture(scope="module")
def kit(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit as it is written."""
    folder = tmp_path_factory.mktemp("kit") / "kit"
    write_kit(folder, runtime, "board", "onnxruntime", RANGES, POINTS, seconds=0.3, batch=4)
    return folder


@pytest.fixture(scope="module")
def measured(kit: Path, libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit, measured by a run that was killed after the first batch and one that went on."""
    folder = tmp_path_factory.mktemp("board") / "kit"
    shutil.copytree(kit, folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(clean(libraries, folder), stdout=subprocess.PIPE, env=environment)
    results = folder / "results"
    for _ in range(600):
        if len(list(results.glob("0*.json"))) >= 4:
            break
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    kept = {path: path.stat().st_mtime_ns for path in results.glob("0*.json")}
    assert 4 <= len(kept) < POINTS
    second = subprocess.run(clean(libraries, folder), capture_output=True, text=True, env=environment, check=False)
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(results.glob("0*.json"))) == POINTS
    modules = json.loads(second.stdout.rpartition("modules ")[2])
    assert {"numpy", "onnxruntime"} <= set(modules)
    assert not {"hwsearch", "onnx", "torch", "msgspec"} & set(modules)
    return folder


def test_a_kit_is_small_and_the_same_each_time(kit: Path, runtime: Runtime, tmp_path: Path) -> None:
    write_kit(tmp_path / "again", runtime, "board", "onnxruntime", RANGES, POINTS, seconds=0.3, batch=4)
    files = sorted(path.relative_to(kit) for path in kit.rglob("*") if path.is_file())
    assert all((kit / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    assert sum((kit / file).stat().st_size for file in files) < 2**20
    manifest, _ = read_manifest(kit)
    assert manifest.weights.bytes > 2**20
    for point in manifest.points:
        model = onnx.load(kit / point.file, load_external_data=False)
        assert (model.ir_version, model.opset_import[0].version) == (8, 17)
        assert len({node.name for node in model.graph.node}) == len(model.graph.node)
        assert "0.layout" in {name.partition("/")[0] for node in model.graph.node for name in node.output}


def test_tensors_of_one_graph_share_no_place_in_the_weights(kit: Path) -> None:
    manifest, _ = read_manifest(kit)
    regions = {region.kind: region for region in manifest.weights.regions}
    for point in manifest.points:
        places = []
        for tensor in onnx.load(kit / point.file, load_external_data=False).graph.initializer:
            told = {entry.key: entry.value for entry in tensor.external_data}
            if told and len(tensor.dims) == 2 and tensor.name.endswith(".weight"):
                kind = "int8" if tensor.data_type == onnx.TensorProto.INT8 else "float32"
                start, length = int(told["offset"]), int(told["length"])
                assert regions[kind].offset <= start <= start + length <= regions[kind].offset + regions[kind].bytes
                places.append((start, start + length))
        assert places
        assert all(a[1] <= b[0] for a, b in zip(sorted(places), sorted(places)[1:], strict=False))


def test_a_kit_asks_for_the_points_that_measuring_begins_with(kit: Path, runtime: Runtime, tmp_path: Path) -> None:
    measuring = Measuring(tmp_path, runtime, "board", "onnxruntime", RANGES, {})
    assert [point.model for point in read_manifest(kit)[0].points] == [
        f"{architecture.id} {workload}" for architecture, workload in measuring._choose(POINTS, "prefill")
    ]


def test_a_board_gives_the_table_that_measuring_here_gives(measured: Path, runtime: Runtime, tmp_path: Path) -> None:
    direct = Measuring(tmp_path, runtime, "board", "onnxruntime", RANGES, {})
    here = {point.case.model: point for point in direct.measure(POINTS, 3.0)}
    cases, raws = measured_of(read_results(measured))
    assert [case.model for case in cases] == list(here)
    reference = Reference(lambda: None, known=[spell for raw in raws for spell in raw.reference[::5]])
    # The machine may have been slower in one of the two: each beside its own reference model.
    slower = reference.usual / direct.reference.usual
    ratios = [case.latency_ms / slower / here[case.model].case.latency_ms for case in cases]
    assert 1 / 1.6 < np.median(ratios) < 1.6
    assert all(1 / 3 < ratio < 3 for ratio in ratios)
    imported = Measuring(tmp_path / "imported", runtime, "board", "onnxruntime", RANGES, {})
    imported.cases, imported.raw = cases, raws
    imported.reference = reference
    for point, case, raw in zip(imported.points(), cases, raws, strict=True):
        same = here[point.case.model]
        assert point.case.latency_ms == pytest.approx(case.latency_ms, rel=1e-4)
        assert set(point.kernels) == set(same.kernels)
        assert sum(raw.nodes.values()) == sum(direct.raw[list(here).index(case.model)].nodes.values())
        ratio = sum(point.kernels.values()) / slower / sum(same.kernels.values())
        assert 1 / 3 < ratio < 3
    imported.write()
    assert (tmp_path / "imported" / "cases.csv").is_file()


def test_what_was_measured_says_where(measured: Path) -> None:
    facts = identity_of(read_results(measured))
    assert facts["interface"] == "onnxruntime"
    assert facts["runtime"] == onnxruntime.__version__
    assert facts["asked"] == POINTS
    cases, _ = measured_of(read_results(measured))
    assert {case.runtime_version for case in cases} == {onnxruntime.__version__}
    assert {case.threads for case in cases} == {1}
    assert all(reading.samples > 0 for reading in readings_of(read_results(measured)).values())
    assert not (measured / "work").exists()
    assert not (measured / "graphs" / "weights.bin").exists()


def edited(measured: Path, folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the results with one document changed."""
    shutil.copytree(measured / "results", folder)
    document = json.loads((folder / name).read_text())
    edit(document)
    (folder / name).write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("0001.json", lambda d: d["wall"].pop(), "wall, cpu and reference have as many"),
        ("0001.json", lambda d: d["wall"].__setitem__(0, -1.0), "not positive and finite"),
        ("0001.json", lambda d: d["wall"].__setitem__(0, float("nan")), "damaged"),
        ("0001.json", lambda d: d["reference"].__setitem__(0, 0.0), "not positive and finite"),
        ("0001.json", lambda d: d["passes"][0].pop(), "other numbers of nodes"),
        ("0001.json", lambda d: d["passes"][0].__setitem__(0, -3.0), "negative"),
        ("0001.json", lambda d: d["operators"].__setitem__(0, "Conv"), "not the graph whose nodes were timed"),
        (
            "0003.json",
            lambda d: d.update(passes=[], pass_reference=[]),
            "0003.json has no times of kernels, as others have",
        ),
        ("0001.json", lambda d: d.update(graph="0" * 64), "answers another kit or model"),
        ("0001.json", lambda d: d.update(model="other"), "answers another kit or model"),
        ("0001.json", lambda d: d.update(extra=1), "damaged"),
        ("0001.json", lambda d: d.pop("wall"), "damaged"),
        ("board.json", lambda d: d.update(manifest="0" * 64), "belongs to another kit"),
        ("board.json", lambda d: d.update(interface="pickle"), "damaged"),
    ],
)
def test_results_that_do_not_belong_are_refused(
    measured: Path, tmp_path: Path, name: str, edit: Callable[[dict[str, Any]], object], says: str
) -> None:
    folder = edited(measured, tmp_path / "results", name, edit)
    with pytest.raises(CasesError, match=says) as error:
        measured_of(read_results(measured, folder))
    assert "\n" not in str(error.value)


def test_unknown_damaged_and_missing_files_are_refused(measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with pytest.raises(CasesError, match=r"python3 run\.py"):
        measured_of(read_results(measured, folder))
    shutil.copytree(measured / "results", folder)
    (folder / "0099.json").write_text("{}")
    with pytest.raises(CasesError, match="no result of this kit"):
        measured_of(read_results(measured, folder))
    (folder / "0099.json").unlink()
    (folder / "0002.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(CasesError, match=r"0002\.onnx is damaged"):
        measured_of(read_results(measured, folder))
    for path in folder.glob("0*"):
        path.unlink()
    with pytest.raises(CasesError, match="no measured models"):
        measured_of(read_results(measured, folder))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CasesError, match="not the manifest of a kit"):
        measured_of(read_results(tmp_path, measured / "results"))


def test_a_part_of_the_models_can_be_taken_back(measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured / "results", tmp_path / "results")
    (tmp_path / "results" / "0003.json").unlink()
    (tmp_path / "results" / ".0003.json.part").write_text("half")
    cases, raws = measured_of(read_results(measured, tmp_path / "results"))
    assert len(cases) == len(raws) == POINTS - 1


def test_a_damaged_kit_and_another_board_are_refused_on_the_board(
    kit: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kit"
    shutil.copytree(kit, folder)
    (folder / "graphs" / "0002.onnx").write_bytes(b"")
    assert board_run.main(["--kit", str(folder)]) == 1
    assert "0002.onnx is missing or damaged; copy the kit again" in capsys.readouterr().err
    shutil.copy(kit / "graphs" / "0002.onnx", folder / "graphs")
    edited(measured, folder / "results", "board.json", lambda d: d.update(runtime_version="0.1"))
    (folder / "results" / "0001.json").unlink()
    assert board_run.main(["--kit", str(folder)]) == 1
    assert "was measured with runtime_version '0.1'" in capsys.readouterr().err
    told = folder / "results" / "board.json"
    told.write_text(json.dumps({**json.loads((measured / "results" / "board.json").read_text()), "graphics": "other"}))
    assert board_run.main(["--kit", str(folder)]) == 1
    assert "was measured with graphics 'other'" in capsys.readouterr().err
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert board_run.main(["--kit", str(folder)]) == 1
    assert "another run is at work" in capsys.readouterr().err


def test_too_few_models_and_an_unknown_power_mode_take_the_place_of_nothing(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kit"
    shutil.copytree(measured, folder)
    board = find_profile("jetson-orin")
    monkeypatch.setattr(adopt, "known_profile", lambda *_: board)
    told = folder / "results" / "board.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "power_mode": "MODE_40W"}))
    with pytest.raises(CasesError, match=r"'MODE_40W', which the profile .* does not have \(have: MAXN"):
        adopt_kit(folder, tmp_path / "own")
    for number in range(2, POINTS + 1):
        (folder / "results" / f"{number:04d}.json").unlink()
    with pytest.raises(CasesError, match=f"1 of {POINTS} models were measured, too few"):
        adopt_kit(folder, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_a_board_that_is_known_by_another_runtime_gets_a_second(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which computes in what the first does not."""
    first, _, _ = adopt_kit(measured, tmp_path / "first")
    assert first.cores is not None
    assert first.cores.value == json.loads((measured / "results" / "board.json").read_text())["cores"]
    known = replace(first, peaks={name: peak for name, peak in first.peaks.items() if name != "fp32"})
    monkeypatch.setattr(adopt, "known_profile", lambda *_: known)
    second, _, _ = adopt_kit(measured, tmp_path / "second")
    assert second.peaks == first.peaks
    assert second.runtimes["onnxruntime"].fit is not None


def test_what_cannot_be_fitted_takes_the_place_of_nothing(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CasesError("no fit")

    monkeypatch.setattr(adopt, "fitted", fail)
    with pytest.raises(CasesError, match="no fit"):
        adopt_kit(measured, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_a_kit_of_no_device_is_refused(kit: Path, tmp_path: Path) -> None:
    manifest = json.loads((kit / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "device": "../../elsewhere"}))
    with pytest.raises(ProfileError, match=r"small letters, digits.* got '\.\./\.\./elsewhere'"):
        adopt_kit(tmp_path)


def test_a_model_that_the_board_cannot_run_keeps_back_no_other(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, prepare, tried = tmp_path / "kit", board_run.OnnxRuntime.prepare, list[str]()
    shutil.copytree(kit, folder)

    def crowded(self: Any, path: Path, point: dict[str, Any], kernels: bool) -> Any:
        tried.append(path.stem)
        if path.stem == "0002" or (path.stem == "0005" and tried.count("0005") == 1):
            raise RuntimeError("no memory left")
        return prepare(self, path, point, kernels)

    monkeypatch.setattr(board_run.OnnxRuntime, "prepare", crowded)
    assert board_run.main(["--kit", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "1 cannot be measured here, first " in said
    assert f"{POINTS - 1} of {POINTS} models are measured" in said
    assert tried.count("0002") == tried.count("0005") == 2
    assert not (folder / "work").exists()
    cases, _ = measured_of(read_results(folder))
    assert len(cases) == POINTS - 1


def test_a_kit_needs_an_empty_folder_and_a_runtime_that_it_has(kit: Path, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(CasesError, match="new or empty folder"):
        write_kit(kit, runtime, "board", "onnxruntime", RANGES, 1)
    with pytest.raises(CasesError, match=r"a kit measures onnxruntime, .*got runtime 'ncnn'"):
        write_kit(tmp_path / "kit", runtime, "board", "ncnn", RANGES, 1)
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize("path", sorted(Path(board.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_board_code_is_python_3_8_and_imports_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in ast.walk(tree)) or (
        path.name == "__init__.py"
    )
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] in {*sys.stdlib_module_names, "numpy", "onnxruntime"}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "zip")  # zip without strict hides a mistake


# TensorRT


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit for TensorRT, as it is written."""
    folder = tmp_path_factory.mktemp("typed") / "kit"
    facts = find_profile("jetson-orin").runtimes["tensorrt"]
    manifest = write_kit(folder, facts, "jetson-orin", "tensorrt", RANGES, 4, seconds=0.05, batch=2)
    assert manifest.facts.precisions[0] is Precision.FP16
    return folder


def precisions(kit: Path) -> set[str]:
    return {point.case.label for point in read_manifest(kit)[0].points}


def test_what_tensorrt_is_given_is_typed_and_runs(typed: Path) -> None:
    manifest, _ = read_manifest(typed)
    board_run.make_weights(typed, board_run.read_manifest(typed))
    kinds = set()
    for point in manifest.points:
        model = onnx.load(typed / point.file)
        assert (model.ir_version, model.opset_import[0].version) == (9, 19)
        onnx.checker.check_model(model, full_check=True)
        kinds |= {node.op_type for node in model.graph.node}
        assert not {"MatMulInteger", "DynamicQuantizeLinear"} & kinds
        floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 0]
        assert not floats
        session = onnxruntime.InferenceSession(typed / point.file, providers=["CPUExecutionProvider"])
        from hwsearch.bench.board.onnxruntime import example_input

        (out,) = session.run(None, example_input(board_run.read_manifest(typed)["points"][int(point.id) - 1]))
        assert out.dtype == np.float16
        assert np.isfinite(out).all()
    (typed / "graphs" / "weights.bin").unlink()
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_a_typed_graph_mixes_precisions_and_refuses_what_it_has_no_operators_for(typed: Path) -> None:
    manifest, _ = read_manifest(typed)
    case = replace(manifest.points[0].case, precision="fp32/int8", layers=1)
    facts = replace(manifest.facts, precisions=(Precision.FP32, Precision.FP16, Precision.INT8))
    architecture = case.architecture(facts)
    model = build_typed_graph(replace(architecture, kv_precision=Precision.FP16), case.workload)
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(ArchitectureError, match="TensorRT is measured in fp32, fp16, int8; got int4"):
        build_typed_graph(replace(case, precision="int4").architecture(facts), case.workload)


def install(monkeypatch: pytest.MonkeyPatch, module: Any, driver: Driver | None = None) -> None:
    """A TensorRT that can be imported, and the driver beneath it."""
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(board_tensorrt.ctypes, "CDLL", lambda name: driver or Driver())


@pytest.mark.parametrize("version", ["10.3.0", "11.4.1"])
def test_tensorrt_builds_and_runs_with_names_that_every_version_has(
    typed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    kit, module, driver = tmp_path / "kit", tensorrt(version), Driver()
    shutil.copytree(typed, kit)
    install(monkeypatch, module, driver)
    assert board_run.main(["--kit", str(kit)]) == 0
    assert set(module.asked["networks"]) == ({2} if version.startswith("10.") else {0})
    assert len(module.asked["builds"]) == 5
    assert len(driver.memory) == 2  # of the reference model, which is used to the end
    cases, raws = measured_of(read_results(kit))
    assert len(cases) == 4
    assert all(case.latency_ms > 0 and case.runtime_version == version for case in cases)
    assert all(not raw.kernels and len(raw.reference) == len(raw.samples.wall) for raw in raws)
    answer = json.loads((kit / "results" / "0001.json").read_text())
    assert set(answer["layers"].values().__iter__().__next__()) == {0.25}
    assert len(answer["layers"]) == 2


def test_what_a_board_measured_is_set_beside_what_its_profile_knows(
    typed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = tmp_path / "kit"
    shutil.copytree(typed, kit)
    install(monkeypatch, tensorrt("10.3.0"))
    assert board_run.main(["--kit", str(kit)]) == 0
    shipped = find_profile("jetson-orin").runtimes["tensorrt"]
    profile, file, count = adopt_kit(kit, tmp_path / "own")
    own = profile.runtimes["tensorrt"]
    assert (profile.name, count, own.version) == ("jetson-agx-orin-64gb", 4, "10.3.0")
    assert file == tmp_path / "own" / "jetson-agx-orin-64gb.toml"
    assert load_profile(file) == profile
    assert (profile.board_at_hand, profile.note, own.note) == (True, "Measured on the device: tensorrt.", "")
    assert [name for name, runtime in profile.runtimes.items() if runtime.measured] == ["tensorrt"]
    table = tmp_path / "own" / "jetson-agx-orin-64gb" / "tensorrt"
    readings, samples = (json.loads((table / f"{name}.json").read_text()) for name in ("readings", "samples"))
    assert len(readings) == 4
    assert readings.keys() == samples.keys()
    assert all(one["samples"]["wall"] for one in samples.values())
    assert own.precisions == shipped.precisions
    assert own.fit is not None
    assert shipped.fit is not None
    assert own.fit.rows == shipped.fit.rows + 4
    # What lies where it is written to is what is known of the device: with its other runtimes, say.
    file.write_text(file.read_text().replace(f'"{profile.title}"', '"a title of its own"'))
    assert adopt_kit(kit, tmp_path / "own")[0].title == "a title of its own"


def test_a_second_run_builds_no_engine_again(
    typed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kit, module = tmp_path / "kit", tensorrt("10.3.0")
    shutil.copytree(typed, kit)
    install(monkeypatch, module)
    monkeypatch.setattr(board_run, "write_json", interrupted_after(3, board_run.write_json))
    assert board_run.main(["--kit", str(kit)]) == 130
    assert "run again to go on" in capsys.readouterr().err
    monkeypatch.undo()
    install(monkeypatch, module)
    assert board_run.main(["--kit", str(kit)]) == 0
    assert len(module.asked["builds"]) == len(set(module.asked["builds"])) == 5


def interrupted_after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    """The function, until someone presses Ctrl-C in its place."""
    left = [calls]

    def call(*arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        function(*arguments)

    return call


def test_a_graph_that_the_runtime_refuses_is_named_and_the_others_are_measured(
    typed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kit, module = tmp_path / "kit", tensorrt("10.3.0")
    shutil.copytree(typed, kit)
    install(monkeypatch, module)
    read = module.OnnxParser.parse_from_file

    def refuse(parser: Any, path: str) -> bool:
        parser.error = "In node 3 (importFallbackPluginImporter): UNSUPPORTED_NODE"
        return False if path.endswith("0002.onnx") else read(parser, path)

    monkeypatch.setattr(module.OnnxParser, "parse_from_file", refuse)
    assert board_run.main(["--kit", str(kit)]) == 0
    assert "TensorRT cannot read 0002.onnx: In node 3" in capsys.readouterr().out
    assert len(measured_of(read_results(kit))[0]) == 3


TRTEXEC = """#!{python}
import json, pathlib, sys
HELP = '''&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --help
  --onnx=<file> --saveEngine=<file> --loadEngine=<file> --skipInference {typed}
  --duration=N --iterations=N --noDataTransfers --timingCacheFile=<file>
  --exportTimes=<file> --exportProfile=<file> --separateProfileRun'''
calls = pathlib.Path({calls!r})
with calls.open("a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if "--help" in sys.argv:
    print(HELP)
    sys.exit(0)
told = dict(one.partition("=")[::2] for one in sys.argv[1:])
unknown = [name for name in told if name not in HELP]
if unknown:
    print("[E] Unknown option:", *unknown)
    sys.exit(1)
if "--onnx" in told:
    assert pathlib.Path(told["--onnx"]).is_file() and "--skipInference" in told
    pathlib.Path(told["--saveEngine"]).write_text("engine of " + told["--onnx"])
else:
    assert pathlib.Path(told["--loadEngine"]).read_text().startswith("engine of ")
    times = [{{"startEnqMs": i, "endEnqMs": i + 0.25, "startComputeMs": i, "endComputeMs": i + 2, "h2dMs": 0.1,
             "computeMs": 2 + 0.01 * (i % 3), "d2hMs": 0.1, "latencyMs": 2.3}} for i in range(300)]
    pathlib.Path(told["--exportTimes"]).write_text(json.dumps(times))
    if "--exportProfile" in told:
        layers = [{{"count": 9}}, {{"name": "0.qkv/matmul1", "timeMs": 9.9, "averageMs": 1.1, "medianMs": 1.0}}]
        pathlib.Path(told["--exportProfile"]).write_text(json.dumps(layers))
"""


@pytest.mark.parametrize(("number", "version"), [("8503", "8.5.3"), ("100300", "10.3.0"), ("110401", "11.4.1")])
def test_trtexec_alone_suffices(
    typed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, version: str
) -> None:
    kit, calls = tmp_path / "a kit; with 'quotes'", tmp_path / "calls"
    shutil.copytree(typed, kit)
    folder = tmp_path / "bin"
    folder.mkdir()
    option = "--stronglyTyped" if number.startswith("10") else ""
    script = TRTEXEC.format(python=sys.executable, number=number, typed=option, calls=str(calls))
    (folder / "trtexec").write_text(script)
    (folder / "trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert board_run.main(["--kit", str(kit)]) == 0
    cases, raws = measured_of(read_results(kit))
    assert {case.runtime_version for case in cases} == {version}
    assert {case.latency_ms for case in cases} == {2.0}
    assert {len(raw.samples.wall) for raw in raws} == {3 * 200}
    assert {raw.samples.cpu[0] for raw in raws} == {0.25}
    builds = [call for call in map(json.loads, calls.read_text().splitlines()) if any("--onnx" in one for one in call)]
    assert len(builds) == 5
    assert all(("--stronglyTyped" in call) == number.startswith("10") for call in builds)


def test_a_board_without_tensorrt_says_so(
    typed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(typed, tmp_path / "kit")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(board_run.trtexec, "find", lambda: None)
    assert board_run.main(["--kit", str(tmp_path / "kit")]) == 1
    assert "there is no trtexec on PATH" in capsys.readouterr().err


# here and there


def test_a_kit_runs_here(runtime: Runtime, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    write_kit(kit, runtime, "board", "onnxruntime", RANGES, 2, seconds=0.02, batch=2)
    said: list[str] = []
    assert len(measured_of(read_results(kit, carry.run_here(kit, said.append)))[0]) == 2
    assert any("2 of 2 models" in line for line in said)
    (kit / "manifest.json").write_text("{}")
    with pytest.raises(CasesError, match="format"):
        carry.run_here(kit)


SSH = """#!/bin/sh
# What sshd does: the rest of the command line, joined, goes to the user's shell in the home folder.
for argument in "$@"; do printf '%s\\n' "$argument" >>"$FAKE_SSH_LOG"; done
printf -- '--end--\\n' >>"$FAKE_SSH_LOG"
while [ "$1" != -- ]; do shift; done
shift 2
cd "$FAKE_SSH_HOME" && exec sh -c "$*"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a board that the only ssh on PATH leads to."""
    home, folder = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    folder.mkdir()
    (folder / "ssh").write_text(SSH)
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SSH_HOME", str(home))
    monkeypatch.setenv("FAKE_SSH_LOG", str(tmp_path / "log"))
    return home


def test_ssh_copies_runs_and_fetches(runtime: Runtime, libraries: Path, home: Path, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    write_kit(kit, runtime, "board", "onnxruntime", RANGES, 2, seconds=0.02, batch=2)
    python = tmp_path / "py'thon $(touch hit); x"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{libraries}" exec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    said: list[str] = []
    results = carry.run_over_ssh("user@board", kit, said.append, python=str(python))
    assert len(measured_of(read_results(kit, results))[0]) == 2
    assert any("2 of 2 models" in line for line in said)
    digest = read_manifest(kit)[1]
    assert not list(home.iterdir())  # the next kit of these models is measured anew
    assert not list(tmp_path.rglob("hit"))
    arguments = [call.splitlines() for call in (tmp_path / "log").read_text().split("--end--\n") if call]
    assert len(arguments) == 4
    assert all(call[4:6] == ["--", "user@board"] and len(call) == 7 for call in arguments)
    assert all(f"hwsearch-kit-{digest[:12]}" in call[6] for call in arguments)


def test_a_board_that_fails_leaves_what_it_has(runtime: Runtime, home: Path, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    write_kit(kit, runtime, "board", "onnxruntime", RANGES, 1, seconds=0.02)
    with pytest.raises(CasesError, match=r"status 127 on board: .*not found"):
        carry.run_over_ssh("board", kit, python="no-such-python")


def test_what_a_board_sends_is_taken_by_name(tmp_path: Path) -> None:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("../evil", "results/../../evil", "results/evil.py", "/etc/evil", "results/0001.json"):
            told = tarfile.TarInfo(name)
            told.size = 2
            archive.addfile(told, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("results/0002.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert carry._unpack(buffer.getvalue(), tmp_path / "kit" / "results")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["0001.json"]
    with pytest.raises(CasesError, match="no archive"):
        carry._unpack(b"x" * 2000, tmp_path / "kit" / "results")


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=touch x", "", "a b", "user@-x", "a;b", "$(x)", "a\nb", "user@", "@host", "a`b`", "a@b@c"]
)
def test_a_host_that_is_none_is_refused(kit: Path, host: str) -> None:
    with pytest.raises(CasesError, match="a host is given as user@board"):
        carry.run_over_ssh(host, kit)


@pytest.mark.parametrize("host", ["board", "user@192.168.1.7", "pi@raspberrypi.local", "u_1@[fe80::1%eth0]", "a@b:22"])
def test_hosts_of_every_kind_are_taken(host: str) -> None:
    carry.check_host(host)

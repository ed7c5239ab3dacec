"""Every command on real files, right and wrong; one clear line for each error."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from hwsearch.cli import cli, main
from hwsearch.precision import Precision
from hwsearch.profiles import find_file, find_profile
from hwsearch.search.null import TEACHER
from tests.latency.test_cases import ROW, write

ROOT = Path(__file__).parents[2]
ENCODER = ["--layers", "12", "--width", "768", "--heads", "12", "--ffn", "3072"]


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line in this process."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0), out.getvalue(), err.getvalue()


def document(*arguments: str) -> dict[str, Any]:
    status, out, err = run(*arguments, "--json")
    assert status == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


def line_of(err: str) -> str:
    """The one line of an error."""
    lines = [line for line in err.splitlines() if line.startswith("Error")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_help_names_every_command() -> None:
    result: Result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name in ("search", "report", "export", "latency", "validate", "profile", "devices"):
        assert name in result.output
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_latency_is_one_latency() -> None:
    found = document("latency", "--device", "t4", *ENCODER, "--precision", "int8*6,fp16*6", "--batch", "8")
    assert set(found) == {"median_ms", "low_ms", "high_ms", "source", "extrapolated", "covered", "phases", "ops"}
    assert found["low_ms"] < found["median_ms"] < found["high_ms"]
    by_file = document("latency", "--device", "t4", *ENCODER, "--precision", "int8")
    assert by_file["median_ms"] < document("latency", "--device", "t4", *ENCODER, "--precision", "fp16")["median_ms"]


def test_latency_and_validate_price_one_network(tmp_path: Path) -> None:
    """Where a runtime quantises the head too, both know it."""
    sizes = {"layers": 22, "width": 2048, "heads": 32, "kv_heads": 4, "ffn": 5632, "vocab": 32000, "gated_ffn": 1}
    kinds = {"device": "raspberry-pi-5", "runtime": "llama.cpp", "block": "decoder", "head": "lm", "precision": "int4"}
    case = {**kinds, **sizes, "sequence": 128, "batch": 1, "latency_ms": 100.0}
    cases = tmp_path / "cases.csv"
    cases.write_text(",".join(case) + "\n" + ",".join(map(str, case.values())) + "\n")
    (row,) = document("validate", "--device", "raspberry-pi-5", "--cases", str(cases))["rows"]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items() if name != "gated_ffn"]
    options += [f"--{name}={kinds[name]}" for name in ("device", "runtime", "block", "head", "precision")]
    found = document("latency", *options, "--gated-ffn", "--sequence", "128")
    assert found["median_ms"] == pytest.approx(row["predicted_ms"])


def test_latency_reads_an_architecture_from_a_file(tmp_path: Path) -> None:
    from tests.search.test_proposer import TEACHER

    path = tmp_path / "architecture.json"
    fp16 = {
        **TEACHER.to_json(),
        "layers": [{**layer, "attention": "fp16", "feed_forward": "fp16"} for layer in TEACHER.to_json()["layers"]],
    }
    path.write_text(json.dumps(fp16))
    generation = document("latency", "--device", "jetson-orin", "--architecture", str(path), "--new-tokens", "4")
    assert set(generation["phases"]) == {"prefill", "decode_token"}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--device", "jetson-orin", "--budget", "280"], 2, "Did you mean 280ms"),
        (["--device", "jetson-orin", "--budget", "soon"], 2, "positive number and a unit"),
        (["--device", "jetson-orin"], 2, "--budget"),
        (["--device", "jetson-orin", "--budget", "1s", "--depth", "a-b"], 2, "4-8 or 128,192"),
        (["--device", "jetson-orin", "--budget", "1s", "--precision", "int7"], 2, "precisions are"),
        (["--device", "jetson-orin", "--budget", "1s", "--batch", "0"], 2, "--batch"),
        (["--device", "jetson-orin", "--budget", "1s", "--runtime", "ncnn"], 1, "no runtime 'ncnn'"),
        (["--device", "jetson-orin", "--budget", "1s", "--power-mode", "9W"], 1, "no power mode '9W'"),
        (["--device", "banana", "--budget", "1s"], 1, "unknown device 'banana'"),
        (["serch", "--device", "t4"], 2, "did you mean 'search'?"),
        (["--bogus"], 2, "--bogus"),
        (["latency", "--device", "t4", "--layers", "3"], 2, "--width, --heads, --ffn"),
        (["latency", "--device", "t4", *ENCODER, "--precision", "int4"], 1, "runs fp32, fp16, int8"),
        (["latency", "--device", "t4", *ENCODER, "--precision", "int8*3"], 1, "3 layers"),
        (["latency", "--device", "t4", *ENCODER, "--kv-heads", "5"], 1, "divide"),
        (["latency", "--device", "t4", "--architecture", "none.json"], 1, "cannot read none.json"),
        (
            ["latency", "--device", "t4", "--architecture", "a.json", *ENCODER],
            2,
            "--architecture says all that --layers",
        ),
        (["latency", "--device", "t4", "--architecture", "a.json", "--head", "none"], 2, "that --head would"),
        (["validate", "--device", "t4", "--cases", "none.csv"], 1, "cannot read"),
        (["profile", "--device", "t4", "--from-cases", "none.csv"], 1, "cannot read"),
        (["report", "no-such-run"], 1, "no finished run"),
        (["export", "no-such-run", "--to", "x"], 1, "no finished run"),
        (["fidelity", "no-such-run"], 1, "holds no study"),
        (["fidelity", "no-such-run", "--candidates", "3"], 2, "8<=x<=24"),
        (["worker", "--study", "mine"], 2, "--storage"),
        (["worker", "--study", "mine", "--storage", "magic://x"], 1, "check --storage"),
        (["worker", "--study", "mine", "--storage", "sqlite:///no.db"], 1, "no study 'mine'"),
        (["worker", "--study", "mine", "--storage", "sqlite://"], 1, "a study outlives its search"),
        (["--device", "jetson-orin", "--budget", "1s", "--steps", "3"], 2, "x>=4"),
        (["--device", "jetson-orin", "--budget", "1s", "--steps", "many"], 2, "integer or auto"),
        (["devices", "banana"], 1, "unknown device"),
        (["--device", "t4", "--budget", "1s", "--depth", "²"], 2, "4-8 or 128,192"),
        (["--device", "t4", "--budget", "1s", "--depth", "4-"], 2, "4-8 or 128,192"),
        (["--device", "t4", "--budget", "1s", "--depth", "8-4"], 2, "numbers go upwards"),
        (["--device", "t4", "--budget", "1s", "--width", "1-20000"], 2, "10,000 of them at most; got 1-20000"),
        (["--device", "t4", "--budget", "1s", "--threads", "4"], 1, "no threads to choose"),
        (["--device", "host", "--budget", "1s", "--threads", "4096"], 1, "cores; got 4096 threads"),
        (["latency", "--device", "host"], 2, "an architecture needs --layers, --width, --heads, --ffn"),
        (["latency", "--device", "host", "--architecture", "none.json"], 1, "cannot read none.json"),
        (["latency", "--device", "t4", *ENCODER[:2], "--width", "9" * 20, *ENCODER[4:]], 1, "sizes of at most"),
        (["latency", "--device", "t4", *ENCODER, "--precision", "int8*9999999999"], 1, "12"),
        (["profile", "--device", "host", "--from-cases", "none.csv"], 2, "measured, not fitted"),
        (["profile", "--device", "b", "--kit", "k", "--minutes", "nan"], 2, "not a finite number"),
        (["--device", "t4", "--budget", "1s", "--min-quality", "nan"], 2, "not a finite number"),
        (["--device", "t4", "--budget", "1s", "--minutes", "inf"], 2, "not a finite number"),
        (["latency", "--device", "t4", *ENCODER, "--batch", "9" * 20], 2, "--batch"),
        (["latency", "--device", "t4", "--layers", "9" * 9, *ENCODER[2:]], 1, "at most 1000 layers"),
    ],
)
def test_wrong_input_is_one_clear_line(
    arguments: list[str], status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwsearch.bench.host._measured", lambda *_: pytest.fail("this machine was measured first"))
    found, out, err = run(*arguments)
    assert found == status, err
    assert says in line_of(err)
    assert out == ""


def test_no_arguments_print_the_help() -> None:
    status, out, err = run()
    assert (status, err) == (0, "")
    assert "hwsearch --device jetson-orin --budget 280ms" in out
    assert len(out.splitlines()) > 10


def test_brackets_in_names_are_no_markup(tmp_path: Path) -> None:
    path = tmp_path / "t4.toml"
    path.write_text(find_file("t4").read_text().replace('title = "', 'title = "[bold] [/x] ', 1))
    status, out, _ = run("devices", str(path))
    assert status == 0
    assert "[bold] [/x]" in out


def test_broken_architectures_are_one_clear_line(tmp_path: Path) -> None:
    for name, content in (
        ("a.json", "{"),
        ("b.json", '{"block": "decoder"}'),
        ("c.json", "[1]"),
        ("d.json", '{"a": "\xff"}'),
        ("e.json", "[" * 200_000),
    ):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        status, _, err = run("latency", "--device", "t4", "--architecture", str(tmp_path / name))
        assert status == 1
        assert len(line_of(err)) > 20


def test_latency_refuses_what_no_runtime_does(tmp_path: Path) -> None:
    status, _, err = run("latency", "--device", "t4", *ENCODER, "--new-tokens", "16")
    assert status == 1
    assert "an encoder writes no text" in line_of(err)
    file = tmp_path / "architecture.json"
    found = replace(TEACHER, head_precision=Precision.INT4)
    file.write_text(json.dumps(found.to_json()))
    status, _, err = run("latency", "--device", "t4", "--architecture", str(file))
    assert status == 1
    assert "the architecture wants int4" in line_of(err)


def test_validate_prints_the_contract_and_names_what_it_skips(tmp_path: Path) -> None:
    rows = [{**ROW, "batch": str(2**i), "latency_ms": str(1.5 * 2**i), "model": f"m{i % 2}"} for i in range(6)]
    path = write(
        tmp_path / "cases.csv",
        *rows,
        {**ROW, "device": "h100"},
        {**ROW, "runtime": "ncnn"},
        {**ROW, "precision": "int4"},
    )
    status, out, err = run("validate", "--device", "t4", "--cases", str(path), "--json")
    assert status == 0
    found = json.loads(out)
    assert {"cases", "skipped", "mape", "within_10", "spearman", "coverage_90", "width_90", "groups", "rows"} == set(
        found
    )
    assert (found["cases"], found["skipped"]) == (6, 3)
    assert "h100/tensorrt, t4/ncnn, tensorrt in int4" in err
    assert "power mode" not in err
    assert found["groups"][0]["n"] == 6
    unseen = document("validate", "--device", "t4", "--cases", str(path), "--leave-one-model-out")
    assert unseen["mape"] != found["mape"]
    status, out, _ = run("validate", "--device", "t4", "--cases", str(path))
    assert status == 0
    assert "tensorrt" in out


def test_rows_in_a_power_mode_that_a_profile_has_not_are_counted(tmp_path: Path) -> None:
    stated = ("", "default", "40 W", "not stated", "40 W")
    rows = [{**ROW, "power_mode": mode, "latency_ms": str(1.5 + i)} for i, mode in enumerate(stated)]
    path = str(write(tmp_path / "cases.csv", *rows))
    said = "3 rows state no power mode of the profile, taken as default: '40 W', 'not stated'"
    for command in (("validate", "--cases", path), ("profile", "--from-cases", path, "--to", str(tmp_path))):
        status, _, err = run(*command, "--device", "t4")
        assert status == 0
        assert said in err


def test_cases_that_nobody_meant_are_refused(tmp_path: Path) -> None:
    for wrong, says in (
        ({"layers": "9" * 9}, "at most 1000 layers"),
        ({"latency_ms": "1e-300"}, "latency_ms is from"),
        ({"latency_ms": "1e300"}, "latency_ms is from"),
        ({"sequence": "9" * 12}, "at most"),
        ({"ffn": "9" * 12}, "at most"),
    ):
        status, _, err = run("validate", "--device", "t4", "--cases", str(write(tmp_path / "x.csv", {**ROW, **wrong})))
        assert status == 1
        assert "line 2" in line_of(err)
        assert says in err
    status, _, err = run(
        "validate", "--device", "t4", "--cases", str(write(tmp_path / "y.csv", {**ROW, "device": "a"}))
    )
    assert status == 1
    assert "nothing to compare" in line_of(err)


def test_profile_fits_and_the_fit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    rows = [{**ROW, "batch": str(2**i), "latency_ms": str(4.0 * 2**i)} for i in range(6)]
    path = write(tmp_path / "cases.csv", *rows)
    before = document("latency", "--device", "t4", *ENCODER, "--precision", "int8", "--batch", "16")["median_ms"]
    made = document("profile", "--device", "t4", "--runtime", "tensorrt", "--from-cases", str(path))
    assert made["fits"]["tensorrt"]["rows"] == 40 + 6
    after = document("latency", "--device", "t4", *ENCODER, "--precision", "int8", "--batch", "16")["median_ms"]
    assert after > 3 * before
    assert after == pytest.approx(64.0, rel=0.2)
    status, _, err = run("profile", "--device", "t4", "--runtime", "onnxruntime", "--from-cases", str(path))
    assert status == 1
    assert "nothing to fit" in line_of(err)


def test_own_rows_are_not_lost_to_a_file_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device that borrows all it knows: there a file without its rows is fitted on, as long as it has none."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    device = find_profile("jetson-orin-nano").name
    other = write(tmp_path / "other.csv", {**ROW, "device": "elsewhere"})
    fit = ("profile", "--device", device, "--from-cases")
    assert document(*fit, str(other))["fits"]["tensorrt"]["rows"] == 0
    rows = [{**ROW, "device": device, "batch": str(2**i), "latency_ms": str(6.0 * 2**i)} for i in range(6)]
    assert "no measured row exists" in find_profile(device).note
    assert document(*fit, str(write(tmp_path / "own.csv", *rows)))["fits"]["tensorrt"]["rows"] == 6
    found = find_profile(device)
    assert found.note == "Fitted on timings in own.csv: tensorrt."
    assert [name for name, runtime in found.runtimes.items() if "Extrapolated" in runtime.note] == [
        "pytorch",
        "tinychat",
    ]
    status, _, err = run(*fit, str(other))
    assert status == 1
    assert "nothing to fit" in line_of(err)


def test_devices_tell_how_they_know(tmp_path: Path) -> None:
    status, out, _ = run("devices")
    assert status == 0
    for name in ("t4", "jetson-orin", "arm-cpu", "host"):
        assert name in out
    everyone = document("devices")
    names = {profile["name"] for profile in everyone}  # type: ignore[index]
    assert names >= {"t4", "jetson-agx-orin-64gb", "raspberry-pi-5"}
    status, out, _ = run("devices", "jetson-orin")
    assert "No board was at hand" in out
    assert "rate_tops.int8" in out
    assert "MLPerf" in out or "mlcommons" in out
    one = document("devices", "arm-cpu")
    assert one["runtimes"]["onnxruntime"]["fit"]["rows"] == 0
    assert "--runtime tensorrt --ssh USER@HOST" in out
    assert "--runtime tinychat --from-cases YOUR-TIMINGS.csv" in out


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = "torch, optuna, transformers, pandas, plotly, scipy, onnx, onnxruntime"
    code = (
        "import sys\nfrom hwsearch.cli import main\n"
        "try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        "print('LOADED', [m for m in '{heavy}'.split(', ') if m in sys.modules], file=sys.stderr)"
    )
    for arguments, allowed in (
        (["--help"], ()),
        (["devices"], ()),
        (["latency", "--device", "t4", *ENCODER], ()),
        (["validate", "--device", "t4", "--cases", str(ROOT / "tests" / "cli" / "cases.csv")], ("scipy",)),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments, heavy=heavy)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        loaded = re.search(r"LOADED \[(.*)\]", done.stderr)
        assert loaded is not None
        assert {name.strip("' ") for name in loaded[1].split(",") if name.strip("' ")} <= set(allowed), arguments


def test_help_and_latency_are_light() -> None:
    """CPU time over that of starting Python and numpy, in one run; the bars in seconds: benchmarks/estimates.py."""
    import resource

    def cpu(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    base, help_, latency = (
        min(cpu(*command) for _ in range(3))
        for command in (
            ["-c", "import numpy"],
            ["-m", "hwsearch", "--help"],
            ["-m", "hwsearch", "latency", "--device", "t4", *ENCODER],
        )
    )
    assert help_ < 2 * base
    assert latency < 6 * base


@pytest.mark.skipif(shutil.which("hwsearch") is None, reason="the command is not on the path")
def test_the_command_is_installed() -> None:
    done = subprocess.run(["hwsearch", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hwsearch, version ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize("arguments", [("devices", "--json"), ("devices",)])
def test_an_output_that_cannot_be_written_is_an_error(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "hwsearch", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: cannot write the output: No space left on device\n"


def test_rows_in_another_unit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for factor in (1e-3, 1e3, 1e6):
        path = write(tmp_path / "cases.csv", {**ROW, "latency_ms": str(4.0 * factor)})
        status, _, err = run("profile", "--device", "t4", "--from-cases", str(path))
        assert status == 1
        assert "latency_ms is in milliseconds: tensorrt rows of 't4' are" in line_of(err)
    assert not (tmp_path / "home").exists()


def test_names_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    narrow = Console(file=io.StringIO(), width=80, highlight=False, markup=False)
    monkeypatch.setattr("hwsearch.cli.devices.console", lambda: narrow)
    run("devices")
    assert "\u2026" not in narrow.file.getvalue()  # type: ignore[attr-defined]

"""Latencies out of trtexec's files."""

import json
from pathlib import Path

import pytest

from hwsearch.bench.board import trtexec as board_trtexec
from hwsearch.bench.trtexec import names_trtexec, read_timing, read_trtexec_cases
from hwsearch.errors import CasesError

# As samples/common/sampleReporting.cpp writes them: before 8.4, and from then on.
OLD = """[
  { "startInMs" : 0, "endInMs" : 0.1, "startComputeMs" : 0.1, "endComputeMs" : 2.1, "startOutMs" : 2.1,
    "endOutMs" : 2.2, "inMs" : 0.1, "computeMs" : 2, "outMs" : 0.1, "latencyMs" : 2.2, "endToEndMs" : 2.3 }
, { "startInMs" : 3, "endInMs" : 3.1, "startComputeMs" : 3.1, "endComputeMs" : 7.1, "startOutMs" : 7.1,
    "endOutMs" : 7.2, "inMs" : 0.1, "computeMs" : 4, "outMs" : 0.1, "latencyMs" : 4.2, "endToEndMs" : 4.3 }
]
"""
NEW = """[
  { "startEnqMs" : 10, "endEnqMs" : 10.25, "startH2dMs" : 10, "endH2dMs" : 10, "startComputeMs" : 10.1,
    "endComputeMs" : 11.6, "startD2hMs" : 11.6, "endD2hMs" : 11.6, "h2dMs" : 0, "computeMs" : 1.5, "d2hMs" : 0,
    "latencyMs" : 1.5 }
, { "startEnqMs" : 12, "endEnqMs" : 12.25, "startH2dMs" : 12, "endH2dMs" : 12, "startComputeMs" : 12.1,
    "endComputeMs" : 13.6, "startD2hMs" : 13.6, "endD2hMs" : 13.6, "h2dMs" : 0, "computeMs" : 1.7, "d2hMs" : 0,
    "latencyMs" : 1.5 }
, { "startEnqMs" : 14, "endEnqMs" : 14.25, "startH2dMs" : 14, "endH2dMs" : 14, "startComputeMs" : 14.1,
    "endComputeMs" : 15.6, "startD2hMs" : 15.6, "endD2hMs" : 15.6, "h2dMs" : 0, "computeMs" : 9.1, "d2hMs" : 0,
    "latencyMs" : 1.5 }
]
"""
LAYERS_OLD = """[
  { "count" : 200 }
, { "name" : "a", "timeMs" : 100, "averageMs" : 0.5, "percentage" : 40 }
, { "name" : "b", "timeMs" : 150, "averageMs" : 0.75, "percentage" : 60 }
]
"""
LAYERS_NEW = """[
  { "count" : 200 }
, { "name" : "a", "timeMs" : 100, "averageMs" : 0.5, "medianMs" : 0.4, "percentage" : 40 }
, { "name" : "{ForeignNode[b...c]}", "timeMs" : 150, "averageMs" : 0.75, "medianMs" : 0.7, "percentage" : 60 }
]
"""
HEADER = "device,runtime,layers,width,heads,ffn,precision,batch,trtexec\n"
ROWS = [f"t4,tensorrt,{layers},768,12,3072,fp16,{batch},times-{layers}-{batch}.json\n" for layers, batch in
        [(12, 1), (12, 8), (6, 1), (6, 8), (3, 1)]]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five rows and their files."""
    (tmp_path / "cases.csv").write_text(HEADER + "".join(ROWS))
    for row in ROWS:
        (tmp_path / row.rpartition(",")[2].strip()).write_text(NEW)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "latency", "statistic", "passes"),
    [
        (OLD, 3.0, "median of GPU compute time", 2),
        (NEW, 1.7, "median of GPU compute time", 3),
        (LAYERS_OLD, 1.25, "sum of layer times", 0),
        (LAYERS_NEW, 1.1, "sum of layer times", 0),
    ],
)
def test_files_of_every_version_are_read(
    tmp_path: Path, text: str, latency: float, statistic: str, passes: int
) -> None:
    (tmp_path / "a.json").write_text(text)
    timing = read_timing(tmp_path / "a.json")
    assert timing.latency_ms == pytest.approx(latency)
    assert (timing.statistic, timing.passes) == (statistic, passes)


def test_the_hosts_time_is_kept_beside_the_gpus(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(NEW)
    assert [one["enqueueMs"] for one in board_trtexec.read_times(tmp_path / "a.json")] == [0.25] * 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("{}", "is not a list of objects"),
        ("[]", "has no passes"),
        ('[{"latencyMs": 1}]', "passes without computeMs"),
        ('[{"computeMs": 0}]', "times are positive"),
        ('[{"computeMs": true}]', "times are positive"),
        ('[{"computeMs": "3"}]', "times are positive"),
        ('[{"computeMs": 1e999}]', "times are positive"),
        ('[{"computeMs": 1%s}]' % ("0" * 400), "times are positive"),
        ('[{"computeMs": 1, "startEnqMs": 0, "endEnqMs": null}]', "startEnqMs or endEnqMs is no time"),
        ('[{"computeMs": 1, "startEnqMs": "x", "endEnqMs": 1}]', "startEnqMs or endEnqMs is no time"),
        ('[{"count": 1}, {"name": "a", "averageMs": 1%s}]' % ("0" * 400), "passes without computeMs"),
        ('[{"count": 1}, {"name": "a", "averageMs": 0}]', "take no time"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_is_none_says_what_to_do(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CasesError, match=says) as error:
        read_timing(tmp_path / "a.json")
    assert "--exportTimes" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("whole", [False, True])
def test_five_rows_are_five_cases(folder: Path, whole: bool) -> None:
    assert names_trtexec(folder / "cases.csv")
    cases = read_trtexec_cases(folder if whole else folder / "cases.csv")
    assert [(case.layers, case.batch) for case in cases] == [(12, 1), (12, 8), (6, 1), (6, 8), (3, 1)]
    assert {(case.latency_ms, case.io, case.statistic) for case in cases} == {
        (1.7, "compute", "median of GPU compute time")
    }
    assert cases[0].source == "trtexec: times-12-1.json"


def test_five_rows_are_enough_to_fit_a_profile(folder: Path) -> None:
    from hwsearch.latency.calibrate import fit_device
    from hwsearch.profiles import find_profile

    for row in ROWS:
        layers, batch = int(row.split(",")[2]), int(row.split(",")[7])
        times = [{"computeMs": 0.1 + 0.12 * layers * batch**0.9}] * 5
        (folder / row.rpartition(",")[2].strip()).write_text(json.dumps(times))
    fitted = fit_device(find_profile("t4"), read_trtexec_cases(folder), "trtexec", only="tensorrt")
    fit = fitted.runtimes["tensorrt"].fit
    assert fit is not None
    assert fit.rows == 5


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch,trtexec", "batch,file", r"missing: \['trtexec'\], unknown: \['file'\]"),
        ("device,runtime", "latency_ms,runtime", r"missing: \['device'\], unknown: \['latency_ms'\]"),
        ("times-12-8.json", "other.json", r"line 3: cannot read .*other\.json"),
        ("times-12-8.json", "", "line 3: the cell `trtexec` names no file"),
        ("fp16,8,times-12-8", "fp17,8,times-12-8", "line 3: "),
        ("t4,tensorrt,12,768,12,3072,fp16,8,", "t4,", "line 3: the row does not have as many cells"),
    ],
)
def test_a_row_that_is_wrong_is_named(folder: Path, old: str, new: str, says: str) -> None:
    path = folder / "cases.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CasesError, match=says):
        read_trtexec_cases(path)


def test_folders_and_files_that_are_none_say_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CasesError, match="cannot read"):
        read_trtexec_cases(tmp_path / "none.csv")
    assert not names_trtexec(tmp_path / "none.csv")
    (folder / "second.csv").write_text(HEADER)
    with pytest.raises(CasesError, match="one CSV"):
        read_trtexec_cases(folder)
    with pytest.raises(CasesError, match="no rows"):
        read_trtexec_cases(folder / "second.csv")
    (folder / "second.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CasesError, match="UTF-8"):
        read_trtexec_cases(folder / "second.csv")

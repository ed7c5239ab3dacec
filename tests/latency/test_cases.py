from pathlib import Path

import pytest

from hwsearch.errors import CasesError
from hwsearch.latency.cases import COLUMNS, read_cases
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile

HEADER = ",".join(COLUMNS)
ROW = {
    "device": "t4",
    "runtime": "tensorrt",
    "layers": "12",
    "width": "768",
    "heads": "12",
    "ffn": "3072",
    "precision": "int8",
    "latency_ms": "1.69",
    "vocab": "30522",
    "head": "span",
}


def write(path: Path, *rows: dict[str, str], header: str = HEADER) -> Path:
    lines = [",".join(row.get(name, "") for name in header.split(",")) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_empty_cells_are_defaults(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path / "cases.csv", ROW))
    assert (case.batch, case.sequence, case.phase, case.block, case.kv_heads) == (1, 128, "total", "encoder", 0)
    architecture = case.architecture(find_profile("t4").runtimes["tensorrt"])
    assert architecture.head_dim == 64
    assert architecture.layers[0].kv_heads == 12
    assert architecture.head_precision is Precision.FP16
    assert case.identity == "encoder-12x768-f3072"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latency_ms": "fast"}, r"line 3.*latency_ms"),
        ({"latency_ms": "-1"}, "line 3.*latency_ms is from"),
        ({"latency_ms": "nan"}, "line 3.*latency_ms is from"),
        ({"latency_ms": ""}, "line 3.*latency_ms"),
        ({"precision": "int7"}, "line 3.*int7"),
        ({"layers": "1.5"}, "line 3.*layers"),
        ({"kv_heads": "5"}, "line 3.*divide"),
        ({"head": "lm", "vocab": ""}, "line 3.*vocab"),
        ({"batch": "0"}, "line 3.*at least 1"),
    ],
)
def test_a_wrong_cell_names_its_line(tmp_path: Path, change: dict[str, str], says: str) -> None:
    path = write(tmp_path / "cases.csv", ROW, {**ROW, **change})
    with pytest.raises(CasesError, match=says) as error:
        read_cases(path)
    assert "\n" not in str(error.value)


def test_other_broken_files(tmp_path: Path) -> None:
    with pytest.raises(CasesError, match="cannot read"):
        read_cases(tmp_path / "none.csv")
    with pytest.raises(CasesError, match=r"missing: \['latency_ms'\].*unknown: \['speed'\]"):
        read_cases(write(tmp_path / "a.csv", ROW, header=HEADER.replace("latency_ms", "speed")))
    with pytest.raises(CasesError, match="has the column latency_ms twice"):
        read_cases(write(tmp_path / "a.csv", {**ROW, "again": "1"}, header=f"{HEADER},latency_ms"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00device")
    with pytest.raises(CasesError, match="UTF-8"):
        read_cases(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text(HEADER + "\nt4,tensorrt\n")
    with pytest.raises(CasesError, match="as many cells"):
        read_cases(tmp_path / "c.csv")

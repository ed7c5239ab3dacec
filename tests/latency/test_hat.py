from pathlib import Path

import pytest

from hwsearch.errors import CasesError
from tests.latency.hat import COLUMNS, RASPBERRY_PI, folder, read_encoders

ROW = dict(zip(COLUMNS, ("640", "6", "1706.6666666666667", "4.666666666666667", "211.4"), strict=True))


def write(path: Path, *rows: dict[str, str]) -> Path:
    header = list(rows[0])
    lines = [",".join(row[name] for name in header) for row in rows]
    path.write_text("\n".join([",".join(header), *lines]) + "\n")
    return path


def test_a_row_becomes_a_case_of_what_was_run(tmp_path: Path) -> None:
    (case,) = read_encoders(write(tmp_path / "pi.csv", {**ROW, "latency_std_encoder": "0"}))
    assert (case.device, case.runtime, case.precision, case.block) == ("raspberry-pi-4", "pytorch", "fp32", "encoder")
    assert (case.layers, case.width, case.ffn, case.batch, case.sequence) == (6, 640, 1707, 1, 30)
    assert case.heads * case.head_dim == 512
    assert case.heads == 4
    assert case.latency_ms == 211.4
    assert "hardware-aware-transformers" in case.source


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        ("latency_mean_encoder", "fast", "line 3.*latency_mean_encoder.*'fast'"),
        ("latency_mean_encoder", "-3", "line 3.*latency_mean_encoder.*positive.*'-3'"),
        ("latency_mean_encoder", "nan", "line 3.*positive"),
        ("latency_mean_encoder", "", "line 3.*latency_mean_encoder"),
        ("encoder_embed_dim", "0", "line 3.*encoder_embed_dim.*positive"),
        ("encoder_self_attention_heads_avg", "many", "line 3.*encoder_self_attention_heads_avg"),
    ],
)
def test_a_wrong_cell_names_its_line(tmp_path: Path, column: str, cell: str, says: str) -> None:
    with pytest.raises(CasesError, match=says) as error:
        read_encoders(write(tmp_path / "pi.csv", ROW, {**ROW, column: cell}))
    assert "\n" not in str(error.value)


def test_other_broken_files(tmp_path: Path) -> None:
    with pytest.raises(CasesError, match="cannot read"):
        read_encoders(tmp_path / "none.csv")
    with pytest.raises(CasesError, match="no column 'latency_mean_encoder'"):
        read_encoders(write(tmp_path / "a.csv", {name: cell for name, cell in ROW.items() if "latency" not in name}))
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(CasesError, match="no column"):
        read_encoders(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CasesError, match="UTF-8"):
        read_encoders(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text(",".join(COLUMNS) + "\n512,6\n")
    with pytest.raises(CasesError, match="line 2"):
        read_encoders(tmp_path / "d.csv")


@pytest.mark.skipif(folder() is None, reason="needs the HAT data sets: set HWSEARCH_HAT to their folder")
def test_the_real_file_is_read() -> None:
    place = folder()
    assert place is not None
    cases = read_encoders(place / RASPBERRY_PI)
    assert len(cases) == 2000
    assert {case.width for case in cases} == {512, 640}
    assert {case.layers for case in cases} == {6}
    assert all(512 <= case.ffn <= 3072 and case.heads * case.head_dim == 512 for case in cases)
    assert sorted(case.latency_ms for case in cases)[1000] == pytest.approx(211, abs=1)

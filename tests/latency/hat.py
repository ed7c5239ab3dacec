"""A reader of the latency data sets of Hardware-Aware Transformers (Wang et al. 2020, arXiv:2005.14187; MIT licence).

The files are not part of the project: they are read where they lie. What their columns mean: the README beside them.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

from hwsearch.errors import CasesError
from hwsearch.latency.cases import Case

RASPBERRY_PI = "wmt14ende_cpu_raspberrypi_all.csv"
SOURCE = "github.com/mit-han-lab/hardware-aware-transformers latency_dataset/{} @70e5a27"
COLUMNS = {
    "encoder_embed_dim": "width",
    "encoder_layer_num": "layers",
    "encoder_ffn_embed_dim_avg": "ffn",
    "encoder_self_attention_heads_avg": "heads",
    "latency_mean_encoder": "latency_ms",
}
QUERIES = 512  # channels of all heads together, whatever the width and the number of heads
TOKENS = 30  # of the dummy sentence of the WMT sets


def folder() -> Path | None:
    """Where the data sets are: `HWSEARCH_HAT`, or `../shared/data/hat` beside the repository; None where they are
    not."""
    named = os.environ.get("HWSEARCH_HAT")
    beside = Path(__file__).parents[3] / "shared" / "data" / "hat"
    found = Path(named) if named else beside
    return found if (found / RASPBERRY_PI).is_file() else None


def read_encoders(path: Path) -> list[Case]:
    """The encoder column of a Raspberry Pi file as cases of raspberry-pi-4, in the order of the file.

    The files keep means over the layers alone: every layer here has the mean feed-forward size, rounded, and the number
    of heads of 2, 4 and 8 that is nearest to the mean in the logarithm. Embeddings are a look-up and left out.

    Raises:
        CasesError: the file cannot be read, lacks a column, or a cell is not a positive number; the line is named.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise CasesError(f"{path}: no column {missing[0]!r}; a HAT file has {', '.join(COLUMNS)}")
            return [_encoder(row, f"{path}, line {reader.line_num}", path.name) for row in reader]
    except OSError as error:
        raise CasesError(f"cannot read the HAT file {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CasesError(f"{path} is not a CSV file in UTF-8: {error}") from error


def _encoder(row: dict[str, str | None], place: str, file: str) -> Case:
    found = {name: _positive(row[column], f"{place}, {column}") for column, name in COLUMNS.items()}
    heads = 2 ** min(3, max(1, round(math.log2(found["heads"]))))
    return Case(
        device="raspberry-pi-4",
        runtime="pytorch",
        layers=round(found["layers"]),
        width=round(found["width"]),
        heads=heads,
        head_dim=QUERIES // heads,
        ffn=round(found["ffn"]),
        precision="fp32",
        sequence=TOKENS,
        latency_ms=found["latency_ms"],
        statistic="mean",
        source=SOURCE.format(file),
    )


def _positive(cell: str | None, place: str) -> float:
    try:
        value = float(cell or "")
    except ValueError:
        raise CasesError(f"{place}: a number is wanted; got {cell!r}") from None
    if not 0 < value < math.inf:
        raise CasesError(f"{place}: a positive, finite number is wanted; got {cell!r}")
    return value

"""Files of rows, read as a table: CSV, TSV, JSONL, Parquet, plain text with a row on each line, or a folder that
`datasets` has saved."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwsearch.errors import DataError
from hwsearch.files import read_json

if TYPE_CHECKING:
    import pandas as pd

LABEL_COLUMN = "label"  # that is looked for unasked
AS_WRITTEN: dict[str, Any] = {  # "01" is not 1, and no column is anything but what its name says
    "encoding": "utf-8",
    "keep_default_na": False,
    "dtype": str,
    "index_col": False,
}
FORMS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")


def table(path: Path, text_column: str, label_column: str | None, pairs: bool = False) -> Iterable[tuple[Any, Any]]:
    """(text, label) of each row; None for a label where there is no column, or none of the usual name. Of two columns,
    where `pairs` may be, a text is a tuple."""
    table = _read(path)
    columns = text_column.split(",") if pairs and text_column not in table else [text_column]
    if len(columns) > 2:
        raise DataError(f"--text-column names one column, or the two of a pair; got {text_column!r}")
    asked = [("--text-column", column) for column in columns]
    if label_column not in (None, LABEL_COLUMN):
        asked.append(("--label-column", label_column))
    for option, column in asked:
        if column not in table:
            raise DataError(
                f"{path} has no column {column!r} (have: {', '.join(map(str, table))}); name it with {option}"
            )
    given = table[label_column] if label_column in table else [None] * len(table)
    texts = zip(*(table[column] for column in columns), strict=True) if len(columns) > 1 else table[text_column]
    return zip(texts, given, strict=True)


def _read(path: Path) -> pd.DataFrame:
    """A file, or a folder that `datasets` has saved, as a table."""
    import pandas as pd

    readers: dict[str, Callable[[], pd.DataFrame]] = {
        ".csv": lambda: pd.read_csv(path, **AS_WRITTEN),
        ".tsv": lambda: _tabbed(path),
        ".jsonl": lambda: pd.read_json(path, lines=True, encoding="utf-8", dtype=False),
        ".parquet": lambda: pd.read_parquet(path),
        ".txt": lambda: pd.DataFrame({"text": path.read_text(encoding="utf-8").splitlines()}),
    }
    if path.suffix not in FORMS and not path.is_dir():
        raise DataError(
            f"texts come as {', '.join(FORMS)}, or as a folder that datasets has saved; got {path.name or path}"
        )
    kind = "folder that datasets has saved" if path.is_dir() else f"{path.suffix[1:]} file in UTF-8"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more cells than there are columns
            return _saved(path) if path.is_dir() else readers[path.suffix]()
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ImportError as error:
        raise DataError(f"{path}: files of this kind are read by pyarrow: pip install 'hwsearch[parquet]'") from error
    except Exception as error:  # pandas and its engines raise their own kinds for what is no such file
        reason = next(iter(str(error).splitlines()), "")
        raise DataError(f"{path} is no {kind}: {type(error).__name__}: {reason}") from error


def _tabbed(path: Path) -> pd.DataFrame:
    """Cells between tabs. Where they are well formed as those of a CSV, quotation marks are around cells; else they are
    characters like others, as in the files of GLUE."""
    import pandas as pd

    with path.open(encoding="utf-8", newline="") as file:
        try:
            quoted = len({len(row) for row in csv.reader(file, delimiter="\t", strict=True) if row}) == 1
        except csv.Error:
            quoted = False
    plain: dict[str, Any] = {} if quoted else {"quoting": csv.QUOTE_NONE}
    cells: pd.DataFrame = pd.read_csv(path, sep="\t", **plain, **AS_WRITTEN)
    return cells


def _saved(folder: Path) -> pd.DataFrame:
    """What `Dataset.save_to_disk` wrote: Arrow's own format, of which a small file gives the order."""
    if (several := folder / "dataset_dict.json").is_file():
        splits = ", ".join(map(str, read_json(several).get("splits", ())))
        raise DataError(f"{folder} holds several splits ({splits}); name one: --data {folder / 'train'}")
    if not (folder / "state.json").is_file():
        raise DataError(f"{folder} is no folder that datasets has saved (no state.json)")
    import pandas as pd
    import pyarrow as pa  # type: ignore[import-not-found, import-untyped, unused-ignore]

    parts = []
    for entry in read_json(folder / "state.json")["_data_files"]:
        with pa.memory_map(str(folder / Path(entry["filename"]).name)) as file:
            parts.append(pa.ipc.open_stream(file).read_pandas())
    whole: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return whole

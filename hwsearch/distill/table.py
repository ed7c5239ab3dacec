"""Files of rows, read as a table: CSV, TSV, JSONL, Parquet, plain text with a row on each line, or a folder that
`datasets` has saved."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
ROWS = (".csv", ".tsv", ".jsonl", ".parquet")  # whose rows have columns
FORMS = (*ROWS, ".txt")


def table(
    path: Path,
    text_column: str,
    label_column: str | None,
    pairs: bool = False,
    known: Iterable[str] = (),
    unlabelled: bool = False,
) -> Iterable[tuple[Any, Any]]:
    """(text, label) of each row; None for a label where there is no column.

    Args:
        path: of the file or folder.
        text_column: its name; of two, where `pairs` may be, a text is a tuple.
        label_column: likewise; the usual one need not be there.
        pairs: as said.
        known: names of classes. Numbers that the file itself has names for (`datasets`' ClassLabel) become these, where
            any of them is known.
        unlabelled: a label's column of another name need not be there either.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    table = _read(path)
    columns = text_column.split(",") if pairs and text_column not in table else [text_column]
    if len(columns) > 2:
        raise DataError(f"--text-column names one column, or the two of a pair; got {text_column!r}")
    asked = [("--text-column", column) for column in columns]
    if label_column not in (None, LABEL_COLUMN) and not unlabelled:
        asked.append(("--label-column", label_column))
    for option, column in asked:
        if column not in table:
            raise DataError(
                f"{path} has no column {column!r} (have: {', '.join(map(str, table))}); name it with {option}"
            )
    given = table[label_column] if label_column in table else [None] * len(table)
    if label_column and label_column in table and (names := class_names(path, label_column)):
        theirs = {name.casefold(): name for name in known}
        if any(name.casefold() in theirs for name in names):
            given = [_named(cell, [theirs.get(name.casefold(), name) for name in names]) for cell in given]
    texts = zip(*(table[column] for column in columns), strict=True) if len(columns) > 1 else table[text_column]
    return zip(texts, given, strict=True)


def class_names(path: Path, column: str) -> list[str]:
    """The names that a Parquet file or a saved folder has for the numbers of a column, as `datasets` keeps them; none
    where it has none."""
    features: Any = {}
    if path.is_dir() and (path / "dataset_info.json").is_file():
        features = read_json(path / "dataset_info.json").get("features")
    elif path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq  # type: ignore[import-not-found, import-untyped, unused-ignore]

        kept = (pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
        try:
            features = json.loads(kept)["info"]["features"]
        except (ValueError, KeyError, TypeError):
            return []
    feature = features.get(column) if isinstance(features, dict) else None
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):  # of each word
        feature = feature["feature"] if isinstance(feature, dict) else next(iter(feature), None)
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _named(cell: Any, names: list[str]) -> Any:
    """A number, or some, by name; what has none stays."""
    if isinstance(cell, (list, tuple, np.ndarray)):
        return [_named(one, names) for one in cell]
    try:
        number = int(cell)
    except (TypeError, ValueError):
        return cell
    return names[number] if 0 <= number < len(names) else None


def _read(path: Path) -> pd.DataFrame:
    """A file, or a folder that `datasets` has saved, as a table."""
    import pandas as pd

    readers: dict[str, Callable[[], pd.DataFrame]] = {
        ".csv": lambda: pd.read_csv(path, **AS_WRITTEN),
        ".tsv": lambda: _tabbed(path),
        ".jsonl": lambda: pd.read_json(path, lines=True, encoding="utf-8-sig", dtype=False, convert_axes=False),
        ".parquet": lambda: pd.read_parquet(path),
        ".txt": lambda: pd.DataFrame({"text": path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")}),
    }
    suffix = path.suffix.lower()
    if suffix not in FORMS and not path.is_dir():
        raise DataError(
            f"texts come as {', '.join(FORMS)}, or as a folder that datasets has saved; got {path.name or path}"
        )
    kind = "folder that datasets has saved" if path.is_dir() else f"{suffix[1:]} file in UTF-8"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more cells than there are columns
            return _saved(path) if path.is_dir() else readers[suffix]()
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

    longest = csv.field_size_limit(sys.maxsize)  # a long cell is none the less well formed
    with path.open(encoding="utf-8", newline="") as file:
        try:
            quoted = len({len(row) for row in csv.reader(file, delimiter="\t", strict=True) if row}) == 1
        except csv.Error:
            quoted = False
        finally:
            csv.field_size_limit(longest)
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

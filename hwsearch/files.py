"""Files are written whole or not at all; those that can be made again are read or dropped."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hwsearch.errors import RunError

T = TypeVar("T")

TEMPORARY = ".hwsearch-tmp-"
"""How the names of what is being written begin; nothing else is ever deleted by its name."""
_WRITTEN_S = 3600  # no writer takes so long over one file


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what was written takes the place of `path` when the block ends without an
    error.

    Raises:
        RunError: the folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(path.suffix, TEMPORARY, dir=path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what writers that were killed have left in a folder; others may be at work there."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # a writer may just have ended
            written = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
            if time.time() - written > _WRITTEN_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def pretty(value: Any) -> str:
    """A value as JSON that a person can read, without a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON document; errors as of `read_as`."""
    return read_as(path, dict[str, Any])


def read_as(path: Path, kind: type[T], deleted: str = "") -> T:
    """A JSON document of a kind; `deleted` says what comes once the file is gone, where that is a way out.

    Raises:
        RunError: it cannot be read, or is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        way_out = f"; delete it: {deleted}" if deleted else ""
        raise RunError(f"{path} cannot be read: {error}{way_out}") from error


def read_or_drop(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file of a cache; None where there is none, or where it is damaged: then it is gone."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except Exception:  # zip, pickle, safetensors, JSON and NumPy raise a dozen kinds for a damaged file
        path.unlink(missing_ok=True)
        return None

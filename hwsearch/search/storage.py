"""Where a study lies: SQLite by default, a journal file, or PostgreSQL across machines; and a lock beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import optuna
import optuna.storages.journal
import sqlalchemy
from filelock import FileLock

from hwsearch.errors import RunError
from hwsearch.interrupt import held_back

LONGEST = 2**20  # bytes of a journal's first line
TAIL = 2**12  # bytes of a journal that are looked at at once for the end of its last line
LOCK = 0x68777365  # of PostgreSQL, beside the study's own number

Address = Path | str  # an SQLite file; or a URL of SQLAlchemy's, or the path of a journal file


class Journal(optuna.storages.journal.JournalFileBackend):
    """Optuna's journal file, of which a line stands whole or not at all. Optuna's own writes on behind what a full disk
    or a kill has left of one, and can read none of it from then on."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write behind the last line that is whole."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        path = Path(self._file_path)
        self._lock.acquire()
        try:
            end = _end_of_lines(path)
            try:
                with path.open("r+b") as file:
                    file.truncate(end)
                    file.seek(end)
                    file.write(lines.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                os.truncate(path, end)
                raise
        finally:
            self._lock.release()


def open_storage(address: Address) -> optuna.storages.BaseStorage:
    """Optuna's storage there; begun where there is none.

    Raises:
        RunError: it is no address of a storage that outlives this process.
    """
    if (url := _url(address)) is None:
        _check_journal(Path(address))
        return optuna.storages.JournalStorage(Journal(str(address)))
    arguments = {"connect_args": {"timeout": 60}} if _is_file(url) else {"pool_pre_ping": True}
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    opened = optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=arguments)
    return optuna.storages.get_storage(opened)


def _check_journal(path: Path) -> None:
    """Raise where a file is no journal: Optuna takes a line that does not end for one that was torn, and writes on
    behind it."""
    if path.is_file():
        with path.open("rb") as file:
            first = file.readline(LONGEST)
        try:
            known = not first or "op_code" in msgspec.json.decode(first, type=dict[str, Any])
        except msgspec.MsgspecError:
            known = False
        if not known:
            raise RunError(f"{path} is no journal of Optuna's; name a file of its own with --storage")


def _end_of_lines(path: Path) -> int:
    """Bytes of a file up to the end of the last line that is whole."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - TAIL)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
    return 0


def close_storage(storage: optuna.storages.BaseStorage) -> None:
    """Release its connections, where it has any."""
    if (engine := _engine(storage)) is not None:
        engine.dispose()


def file_of(address: Address) -> Path | None:
    """The file that a storage is; None for a server."""
    if (url := _url(address)) is None:
        return Path(address)
    return Path(str(url.database)) if _is_file(url) else None


@contextmanager
def locked(address: Address, storage: optuna.storages.BaseStorage, study: int) -> Iterator[None]:
    """Alone with a study, among all processes that use this; a Ctrl-C waits until the block has ended.

    Args:
        address: of the storage.
        storage: opened.
        study: its id there.
    """
    if (path := file_of(address)) is not None:
        with FileLock(f"{path}.alone"), held_back():  # ".lock" is what Optuna's journal calls its own
            yield
        return
    engine = _engine(storage)
    if engine is None or engine.dialect.name != "postgresql":
        raise RunError(f"studies lie in SQLite, a journal file or PostgreSQL; got {str(address).split(':')[0]}")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        key = {"lock": LOCK, "study": study}
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:lock, :study)"), key)
        try:
            with held_back():
                yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:lock, :study)"), key)


@contextmanager
def reachable(address: Address) -> Iterator[None]:
    """What goes wrong with the storage meanwhile is one clear error.

    Raises:
        RunError: its server has gone, or its disk is full, say.
    """
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        cause = error.__cause__ or error
        reason = next(iter(str(cause).splitlines()), "")
        raise RunError(
            f"the study in {public(address)} cannot be reached any more ({type(cause).__name__}: {reason[:120]}); "
            "once it can, the same command goes on from there"
        ) from error


def public(address: Address) -> str:
    """Its address without a password, which may stand before the host or among the options."""
    text = str(address)
    if isinstance(address, Path) or "://" not in text:
        return text
    # SQLAlchemy's own hiding shows what follows an @ in a password.
    scheme, _, rest = text.partition("://")
    head, at, tail = rest.rpartition("@")
    if "?" in head:  # the @ may be of an option
        return f"{scheme}://..."
    return f"{scheme}://{'...@' if at else ''}{tail.partition('?')[0]}"


def _url(address: Address) -> sqlalchemy.URL | None:
    """SQLAlchemy's; None of a journal file."""
    if isinstance(address, Path):
        return sqlalchemy.URL.create("sqlite", database=str(address))
    if "://" not in address:
        return None
    try:
        url = sqlalchemy.make_url(address)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise RunError("a storage is sqlite:///FILE, postgresql://USER@HOST/NAME or a journal file") from error
    if _is_file(url) and url.database in (None, "", ":memory:"):
        raise RunError(f"a study outlives its search: it lies in a file, sqlite:///FILE; got {address}")
    return url


def _is_file(url: sqlalchemy.URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _engine(storage: optuna.storages.BaseStorage) -> Any:
    return getattr(getattr(storage, "_backend", None), "engine", None)

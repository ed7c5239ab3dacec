"""A run's folder: what it holds, and what it may be taken up with.

run.json        everything that changes a score or a price; another run's folder is refused, and what differs is said
study.db        trials, and what is known of the search (SQLite, Optuna's own form)
measured.json, prices.json      latencies of students that were run, and of trials as they are known by that
students/       states of students in training, from which longer runs go on
trials.csv, pareto.csv, summary.json, report.html, chosen/      the answer
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from hwsearch.architecture import Architecture
from hwsearch.errors import RunError
from hwsearch.files import pretty, read_json, sweep, write_text


def default_folder(device: str, budget: str, teacher: str, identity: dict[str, Any]) -> Path:
    """reports/<device>-<budget>-<teacher>-<8 hex of the identity>."""
    digest = hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()[:8]
    names = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in (device, budget, teacher))
    return Path("reports") / "-".join([*names, digest])


def state_of(folder: Path, trial: int | str, architecture: Architecture, run: str = "") -> Path:
    """The state of a student in training, by the number of its trial or what it is called, and "long" for the long run;
    another architecture under the same number has another."""
    return folder / "students" / f"{'-'.join(filter(None, (str(trial), architecture.digest, run)))}.pt"


class Run:
    """A run's folder, open for one process.

    Args:
        folder: made when it is not there.
        identity: what the run stands for.

    Raises:
        RunError: the folder cannot be written, belongs to another run, or another process is at work in it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.name = folder, folder.resolve().name
        try:
            if (
                folder.exists()
                and not (folder / "run.json").is_file()
                and any(not p.name.startswith(".") for p in folder.iterdir())
            ):
                raise RunError(f"{folder} is not empty and holds no run; choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock", timeout=0)
            self._lock.acquire()
            for inner in (folder, folder / "students"):
                sweep(inner)
        except Timeout as error:
            raise RunError(f"another hwsearch is at work in {folder}; wait for it or choose another --out") from error
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror}. Choose another --out") from error
        stored = self.read("run.json")
        if stored is None:
            write_text(folder / "run.json", pretty(identity))
        elif stored != identity:
            self.close()
            raise RunError(f"{folder} holds another run: {differences(stored, identity)}. Choose another --out")

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.folder / name

    def student(self, trial: int | str, architecture: Architecture, run: str = "") -> Path:
        """The state of a student in training, as `state_of`."""
        return state_of(self.folder, trial, architecture, run)

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run; None when it is not there.

        Raises:
            RunError: it is not JSON.
        """
        path = self.folder / name
        return read_json(path) if path.is_file() else None

    def close(self) -> None:
        """Let others in."""
        self._lock.release()


def differences(stored: dict[str, Any], identity: dict[str, Any]) -> str:
    """In what two identities differ."""
    return ", ".join(_differences("", stored, identity))


def _differences(place: str, there: Any, now: Any) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(now, dict):
        for name in sorted({*there, *now}):
            if there.get(name) != now.get(name):
                yield from _differences(f"{place}.{name}" if place else name, there.get(name), now.get(name))
    else:
        yield f"{place} ({_short(there)} there, {_short(now)} now)"


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."

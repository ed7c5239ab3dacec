"""What a finished run has left in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwsearch.errors import RunError
from hwsearch.files import read_json
from hwsearch.search.result import Result
from hwsearch.search.study import Study, results_of
from hwsearch.search.summary import KEYS

FIDELITY_KEYS = {"candidates", "band", "full_steps", "lengths", "baselines", "ceiling"}


def stored_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        RunError: the folder holds none, or something else by that name.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise RunError(f"{folder} holds no finished run (no summary.json); finish it with the command that began it")
    document = read_json(path)
    if missing := sorted(KEYS - set(document)):
        raise RunError(f"{path} is no summary of a run: it lacks {', '.join(missing)}")
    measured = folder / "fidelity.json"  # since the run
    if measured.is_file():
        document["fidelity"] = read_json(measured)
        if missing := sorted(FIDELITY_KEYS - set(document["fidelity"])):
            raise RunError(
                f"{measured} lacks {', '.join(missing)}; delete it, or measure anew: hwsearch fidelity {folder}"
            )
    return document


def stored_trials(folder: Path) -> list[Result]:
    """The finished trials of a run.

    Raises:
        RunError: it has no study.
    """
    study = open_study(folder)
    trials = study.trials()
    found = results_of(trials, max((len(trial.losses) for trial in trials), default=1))
    study.close()
    return found


def open_study(folder: Path) -> Study:
    """The study of a run.

    Raises:
        RunError: it has none.
    """
    path = folder / "study.db"
    if not path.is_file():
        raise RunError(f"{folder} holds no study (no study.db)")
    return Study(path, folder.name)

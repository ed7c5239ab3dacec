"""What a finished run has left in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from hwsearch.architecture import Architecture
from hwsearch.device import DeviceProfile, Target
from hwsearch.distill.job import UNMOVED, Moved, ProxyScore, TaskSpec
from hwsearch.errors import HwsearchError, RunError
from hwsearch.files import read_as, read_json
from hwsearch.latency.latency import Latency
from hwsearch.search.description import Description
from hwsearch.search.measured import Known
from hwsearch.search.result import Result
from hwsearch.search.run import state_of
from hwsearch.search.storage import reachable
from hwsearch.search.study import Study
from hwsearch.search.summary import KEYS
from hwsearch.search.trial import results_of
from hwsearch.workload import Workload

ANEW = "the command that began the run writes it anew"
FIDELITY_KEYS = {"candidates", "band", "full_steps", "lengths", "baselines", "ceiling"}


class Distilled(msgspec.Struct, frozen=True):
    """What `hwsearch distill` leaves in `distilled.json`; the report looks at the rest of it.

    Attributes:
        trial: of the run.
        architecture: of the student, as JSON.
        before: as it was when it was chosen.
        after: on *report*.
        latency: of the workload.
        state: of the student, beneath the run's folder.
    """

    trial: int
    architecture: dict[str, Any]
    before: dict[str, Any] | None
    after: ProxyScore
    latency: Latency
    state: str


def stored_summary(folder: Path) -> dict[str, Any]:
    """As `plain_summary`, with what came after the search."""
    return with_later(plain_summary(folder), folder)


def plain_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run, as its search has written it.

    Raises:
        RunError: the folder holds none, or something else by that name.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise RunError(f"{folder} holds no finished run (no summary.json); finish it with the command that began it")
    document = read_as(path, dict[str, Any], ANEW)
    if missing := sorted(KEYS - set(document)):
        raise RunError(f"{path} is no summary of a run: it lacks {', '.join(missing)}; delete it: {ANEW}")
    try:
        msgspec.convert(document["workload"], Workload)
        for result in [document["chosen"], *document["front"], *document["baselines"].values()]:
            if result is not None:
                msgspec.convert(result["latency"], Latency)
                Architecture.from_json(result["architecture"])
        Architecture.from_json(document["teacher"]["architecture"])
        msgspec.convert((document["chosen"] or {}).get("trial"), int | None)
        msgspec.convert(document.get("asked_trials"), int | None)
    except (msgspec.ValidationError, HwsearchError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{path} is damaged: {type(error).__name__}: {error}; delete it: {ANEW}") from error
    return document


def with_later(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run's summary with what `hwsearch fidelity` and `hwsearch distill` have left beside it.

    Raises:
        RunError: that is damaged.
    """
    found, measured = dict(document), folder / "fidelity.json"
    if measured.is_file():
        found["fidelity"] = read_json(measured)
        if missing := sorted(FIDELITY_KEYS - set(found["fidelity"])):
            raise RunError(
                f"{measured} lacks {', '.join(missing)}; delete it, or measure anew: hwsearch fidelity {folder}"
            )
    if (distilled := _distilled(folder / "distilled.json", folder)) is not None:
        found["distilled"] = distilled
    return found


def stored_trials(folder: Path) -> list[Result]:
    """The finished trials of a run, at the prices of its end.

    Raises:
        RunError: it has no study, or its prices are damaged.
    """
    prices, path = dict[str, Known](), folder / "prices.json"
    if path.is_file():
        prices = read_as(path, dict[str, Known], "prices are then as they were before any was measured")
    with stored_study(folder) as study:
        trials = study.trials()
    found = results_of(trials, max((len(trial.losses) for trial in trials), default=1))
    return [prices[str(r.trial)].of(r) if str(r.trial) in prices else r for r in found]


def stored_profile(folder: Path) -> DeviceProfile:
    """The profile of a run's own device, as it was searched for.

    Raises:
        RunError: it has no study.
    """
    with stored_study(folder) as study:
        return Description(study).profile


@contextmanager
def stored_study(folder: Path) -> Iterator[Study]:
    """The study of a run.

    Raises:
        RunError: it has none, or a damaged one.
    """
    path = folder / "study.db"
    if not path.is_file():
        raise RunError(f"{folder} holds no study (no study.db)")
    study = Study(path, folder.name, make=False)
    try:
        with reachable(path):
            yield study
    finally:
        study.close()


class Finished(msgspec.Struct, frozen=True):
    """A student of a finished run.

    Attributes:
        trial: its number.
        architecture: its own.
        latency: of the workload.
        state: of its full distillation, else of its longest training in the search.
        spec: of the task that it was trained on.
        profile, target: of the device that it was searched for.
        workload: what the latency is the time of.
        rate: at which it has learned, over the recipe's.
        weights, text: hashes of the teacher and of the text that the run was begun with.
        judged: on *report*, as it was when it was chosen; None for other trials.
        distilled: steps of its full distillation, where there was one.
    """

    trial: int
    architecture: Architecture
    latency: Latency
    state: Path
    spec: TaskSpec
    profile: DeviceProfile
    target: Target
    workload: Workload
    rate: float
    weights: str
    text: str
    judged: dict[str, Any] | None
    distilled: int | None

    def needs(self, folder: Path) -> list[Path]:
        """What it was made of, in the folder of its run and elsewhere: nothing may take its place."""
        files = (Path(name) for name in (self.spec.teacher, self.spec.data, self.spec.held_out) if name)
        return [folder, *(path for path in files if path.exists())]  # others are names on the Hub

    def check_teacher(self, weights: str) -> None:
        """Refuse a teacher, known by its hash, that the student was not cut out of.

        Raises:
            RunError: it is another one.
        """
        if weights != self.weights:
            raise RunError(
                f"the run was begun with another teacher ({self.weights}) than this one ({weights}); give the same: "
                "--teacher, and --trust-remote-code where that was given"
            )


def finished(
    folder: Path,
    trial: int | None = None,
    moved: Moved = UNMOVED,
) -> Finished:
    """A student of a finished run, the chosen one by default.

    Args:
        folder: of the run.
        trial: a trial's number.
        moved: where files lie now.

    Raises:
        RunError: the run has no such student.
    """
    document = stored_summary(folder)
    with stored_study(folder) as study:
        description, chosen = Description(study), document["chosen"]
    if trial is None:
        if chosen is None or chosen["trial"] is None:
            raise RunError(f"{folder} has no chosen student; name one with --trial")
        trial = int(chosen["trial"])
    found = {result.trial: result for result in stored_trials(folder) if result.trial is not None}
    if trial not in found:
        raise RunError(f"{folder} has no finished trial {trial} (have: {', '.join(map(str, sorted(found)))})")
    architecture = found[trial].architecture
    states = [state_of(folder, trial, architecture, "long"), state_of(folder, trial, architecture)]
    fully = _fully_trained(folder, document, trial)
    state = fully[0] if fully else next((path for path in states if path.is_file()), states[-1])
    is_chosen = chosen is not None and chosen["trial"] == trial
    return Finished(
        trial=trial,
        architecture=architecture,
        latency=msgspec.convert(chosen["latency"], Latency) if is_chosen else found[trial].latency,
        state=state,
        spec=moved.of(description.spec),
        profile=description.profile,
        target=description.target,
        workload=msgspec.convert(document["workload"], Workload),
        rate=description.rate,
        weights=description.weights,
        text=description.text,
        judged=chosen if is_chosen else None,
        distilled=fully[1] if fully else None,
    )


def _fully_trained(folder: Path, document: dict[str, Any], trial: int) -> tuple[Path, int] | None:
    """The state that `hwsearch distill` has left of a trial's student, and its steps."""
    known = document.get("distilled")
    if known is None or known["trial"] != trial:
        known = _distilled(folder / "distilled" / f"{trial}.json", folder)
    if known is None or known["trial"] != trial:
        return None
    path = (folder / known["state"]).resolve()
    there = path.is_relative_to(folder.resolve()) and path.is_file()
    return (path, int(known["after"]["steps"])) if there else None


def _distilled(path: Path, folder: Path) -> dict[str, Any] | None:
    """What a distillation has said; None where there was none.

    Raises:
        RunError: it is damaged.
    """
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        known = msgspec.convert(found, Distilled)
    except msgspec.ValidationError as error:
        raise RunError(f"{path}: {error}; delete it, or distil anew: hwsearch distill {folder}") from error
    return {**found, **msgspec.to_builtins(known)}

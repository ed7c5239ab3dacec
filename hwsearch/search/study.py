"""The study: every trial with its whole record, shared by all who work on it.

It lies in an Optuna storage, which Optuna Dashboard opens: SQLite by default, a journal file, or PostgreSQL across
machines. A trial is one student. Its record says which rungs it has passed, and who trains it at the moment. What is
decided (who goes on, what to try next, whose worker has died) is decided by a function of the study, under a lock of
its own: `Study.alone`. So no trial is trained twice, and a process that is killed leaves nothing half-decided.

Who trains a trial is its owner. An owner on this machine is dead when its process is; one elsewhere when the beat that
it leaves in the trial has stood still for two minutes of the observer's own clock, so that clocks need not agree.
"""

from __future__ import annotations

import json
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import optuna
from msgspec.structs import asdict, replace
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from hwsearch.architecture import Architecture
from hwsearch.errors import RunError
from hwsearch.files import whole
from hwsearch.interrupt import held_back
from hwsearch.search.owner import LEFT, alive
from hwsearch.search.result import Result
from hwsearch.search.storage import Address, close_storage, file_of, locked, open_storage, public
from hwsearch.search.trial import Record, Trial

DIRECTIONS = (optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MINIMIZE)
METRICS = ("latency_ms", "loss")
OURS = "hwsearch:"  # attributes that are no user's: Optuna Dashboard leaves them out
RECORD, BEAT = OURS + "record", OURS + "beat"
STALE_S = 120.0  # a beat that has stood still for so long is nobody's

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Study:
    """A study in its storage.

    Args:
        address: of the storage: an SQLite file; or a URL of SQLAlchemy's, or the path of a journal file.
        name: of the study; a file that holds one under another name keeps it, wherever its folder has moved.
        make: whether a study that is not there is begun.
        before: a file that may hold the same search, as far as it has come: a study that is not there begins with that.

    Attributes:
        address: of the storage.
        name: of the study.

    Raises:
        RunError: the storage cannot be opened, or holds no study of hwsearch, or one of fewer trials than that before.
    """

    def __init__(self, address: Address, name: str, make: bool = True, before: Path | None = None) -> None:
        self.address = address
        if not make and (path := file_of(address)) is not None and not path.exists():
            raise RunError(f"no study {name!r} in {public(address)}: there is no such file")
        try:
            self._storage = open_storage(address)
            names = optuna.get_all_study_names(self._storage)
            self.name = next(iter(names), name) if isinstance(address, Path) else name
            if not make and self.name not in names:
                raise RunError(f"no study {name!r} in {public(address)} (have: {', '.join(names) or 'none'})")
            if before is not None and before.is_file():
                self._begin_with(before, self.name in names)
                names = [*names, self.name]
            if self.name in names:  # it may lie where nothing can be written
                self._study = optuna.load_study(storage=self._storage, study_name=self.name)
            else:
                self._study = optuna.create_study(
                    storage=self._storage, study_name=self.name, directions=list(DIRECTIONS), load_if_exists=True
                )
            if make and self._study.metric_names is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    self._study.set_metric_names(list(METRICS))
        except RunError:
            raise
        except ImportError as error:
            raise RunError(f"{public(address)} needs a driver: pip install 'hwsearch[postgres]' ({error})") from error
        except Exception as error:  # SQLAlchemy, its drivers and Optuna raise their own kinds for a broken storage
            reason = next(iter(str(error).splitlines()), "")
            way = "move it away or name another folder" if isinstance(address, Path) else "check --storage"
            raise RunError(
                f"{public(address)} is not a study that can be opened ({type(error).__name__}: {reason[:120]}); {way}"
            ) from error
        self._ended: dict[int, Trial] = {}
        self._beats: dict[int, tuple[tuple[str, int, int], float]] = {}

    def _begin_with(self, path: Path, known: bool) -> None:
        """Take over what another file has of the same search, unless the study is `known` already."""
        other = Study(path, self.name, make=False)
        try:
            if not known:
                optuna.copy_study(
                    from_study_name=other.name,
                    from_storage=other._storage,
                    to_storage=self._storage,
                    to_study_name=self.name,
                )
                return
            here = other._storage.get_n_trials(other._study._study_id)
            if (there := self._storage.get_n_trials(self._storage.get_study_id_from_name(self.name))) < here:
                raise RunError(
                    f"{path} has {here} trials of this search, study {self.name!r} in {public(self.address)} "
                    f"{there}; leave --storage out, or name a --study that is not there yet"
                )
        finally:
            other.close()

    def alone(self) -> AbstractContextManager[None]:
        """Nobody else decides anything in the meantime."""
        return locked(self.address, self._storage, self._study._study_id)

    @held_back()
    def trials(self) -> list[Trial]:
        """Every trial, in the order of its number."""
        return [
            self._ended.get(frozen.number) or self._read(frozen) for frozen in self._study.get_trials(deepcopy=False)
        ]

    def _read(self, frozen: FrozenTrial) -> Trial:
        try:
            record = msgspec.json.decode(frozen.system_attrs[RECORD], type=Record)
        except (KeyError, ValueError) as error:
            raise RunError(
                f"trial {frozen.number} of the study has no record of hwsearch; is it another program's study?"
            ) from error
        trial = Trial(
            **asdict(record),
            number=frozen.number,
            settings=frozen.params,
            distributions=frozen.distributions,
            place=frozen._trial_id,
        )
        if frozen.state.is_finished():
            self._ended[frozen.number] = trial
        return trial

    def begin(
        self,
        architecture: Architecture,
        ms: float,
        settings: dict[str, Any],
        distributions: dict[str, BaseDistribution],
        owner: str,
        due: float = 0.0,
        resized: bool = False,
    ) -> Trial:
        """A new trial, in its owner's hands."""
        trial = Trial(
            architecture=architecture,
            ms=ms,
            settings=settings,
            distributions=distributions,
            owner=owner,
            turn=_now(),
            due=due,
            resized=resized,
        )
        frozen = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=settings,
            distributions=distributions,
            user_attrs={"architecture": architecture.id},
            system_attrs={RECORD: _record(trial)},
        )
        place = self._storage.create_new_trial(self._study._study_id, template_trial=frozen)
        return replace(trial, place=place, number=self._storage.get_trial_number_from_id(place))

    def take(self, trial: Trial, owner: str, due: float | None = None) -> Trial:
        """Put a trial into an owner's hands; one that was in somebody's has seen that owner die, or leave."""
        died = trial.deaths
        due = trial.due if due is None else due
        return self._keep(replace(trial, owner=owner, turn=_now(), died=died, due=due))

    def held(self, trial: Trial) -> bool:
        """Whether a trial is still in the hands of the owner that took it: one that was suspended for long has lost
        it to another."""
        now = self.trials()[trial.number]
        return (now.owner, now.turn) == (trial.owner, trial.turn)

    def passed(self, trial: Trial, result: Result) -> Trial:
        """A rung is passed: the trial waits for what comes next."""
        r, losses = result, (*trial.losses, result.loss or 0.0)
        shown = {"high_ms": r.latency.high_ms, "quality": r.quality, "retention": r.retention, "steps": r.steps}
        shown |= {"rungs": len(losses), "parameters": r.architecture.parameters, "size_mib": r.size_mib}
        self._show(trial, {**shown, "seconds": r.seconds})
        return self._keep(replace(trial, owner="", died=0, result=result, losses=losses))

    def end(self, trial: Trial, reason: str = "") -> None:
        """A trial will not be trained any further; with a reason where it has failed."""
        self._tell(self._keep(replace(trial, owner="", ended=True, reason=reason)))

    def tidy(self) -> None:
        """Finish for Optuna what was ended by a process that was killed over it."""
        for trial in self.trials():
            if trial.ended and trial.number not in self._ended:
                self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        if (r := trial.result) is not None and not trial.reason:
            self._study.tell(trial.number, [r.latency.median_ms, r.loss or 0.0])
            return
        if trial.reason:
            self._show(trial, {"reason": trial.reason})
        self._study.tell(trial.number, state=TrialState.FAIL)

    def _show(self, trial: Trial, values: dict[str, Any]) -> None:
        """As columns of Optuna Dashboard."""
        for name, value in values.items():
            self._storage.set_trial_user_attr(trial.place, name, value)

    @held_back()
    def leave(self, owner: str) -> None:
        """Put an owner's trials into nobody's hands: it will not finish them."""
        for trial in self.trials():
            if trial.owner == owner:
                self._keep(replace(trial, owner=LEFT))

    def stopped(self, trial: Trial) -> None:
        """Put a trial into nobody's hands: its training ended with an error that may be its own."""
        self._keep(replace(trial, owner=LEFT, died=trial.deaths))

    def beat(self, trial: Trial) -> None:
        """Say that a trial's owner is alive, as long as it is its owner."""
        if self.held(trial):
            self._storage.set_trial_system_attr(trial.place, BEAT, _now())

    def abandoned(self, trial: Trial) -> bool:
        """Whether a trial's owner is dead, as far as can be seen from here."""
        if not trial.owner or trial.ended:
            return False
        if (seen := alive(trial.owner)) is not None:
            return not seen
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        now, beat = time.monotonic(), (trial.owner, trial.turn, int(frozen.system_attrs.get(BEAT, 0)))
        if trial.number not in self._beats or self._beats[trial.number][0] != beat:
            self._beats[trial.number] = (beat, now)
        return now - self._beats[trial.number][1] > STALE_S

    @held_back()
    def describe(self, **facts: Any) -> None:
        """Keep what whoever joins must know."""
        for name, fact in facts.items():
            text = msgspec.json.encode(fact).decode()
            self._storage.set_study_system_attr(self._study._study_id, OURS + name, text)

    @held_back()
    def described(self) -> dict[str, Any]:
        """What `describe` kept."""
        kept = self._storage.get_study_system_attrs(self._study._study_id)
        return {name.removeprefix(OURS): json.loads(fact) for name, fact in kept.items() if name.startswith(OURS)}

    def copy(self, path: Path) -> None:
        """Write the whole study to an SQLite file.

        Raises:
            RunError: it cannot be written.
        """
        with whole(path) as temporary:
            try:
                there = open_storage(temporary)
                optuna.copy_study(
                    from_study_name=self.name, from_storage=self._storage, to_storage=there, to_study_name=self.name
                )
                close_storage(there)
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:  # a full disk, say
                raise OSError(str(error.__cause__ or error).partition("\n")[0]) from error

    def close(self) -> None:
        """Release the storage."""
        close_storage(self._storage)

    def _keep(self, trial: Trial) -> Trial:
        self._storage.set_trial_system_attr(trial.place, RECORD, _record(trial))
        return trial


def _record(trial: Trial) -> str:
    record = Record(**{name: getattr(trial, name) for name in Record.__struct_fields__})
    return msgspec.json.encode(record).decode()


def _now() -> int:
    return time.time_ns() // 1000

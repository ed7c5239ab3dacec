"""The study: every finished trial with its whole record, and what to try next.

A trial enters the storage once, finished, in the order of its number: a killed run leaves nothing half-done behind.
What to try next is asked of an in-memory study that sees trial k's result only when trial k + lag is asked for, however
fast it was: proposal k is a function of the seed and the trials before it, so that a resumed run equals an undisturbed
one. The files are Optuna's own; Optuna Dashboard opens them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from hwsearch.errors import RunError
from hwsearch.search.result import Result

DIRECTIONS = (optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MINIMIZE)
METRICS = ("latency_ms", "loss")
START_UP = 8  # finished trials before the Gaussian process takes over
GP_LIMIT = 250  # trials up to which its cubic cost stays below a second; multivariate TPE beyond

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Study:
    """Finished trials on disk.

    Args:
        path: SQLite file; made when it is not there.
        name: of a new study; one that is there keeps its own, wherever its folder has moved.

    Attributes:
        name: of the study.

    Raises:
        RunError: the file is there and is not a study.
    """

    def __init__(self, path: Path, name: str) -> None:
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
            self.name: str = next(iter(optuna.get_all_study_names(storage)), name)
            self._study = optuna.create_study(
                storage=storage, study_name=self.name, directions=list(DIRECTIONS), load_if_exists=True
            )
            if self._study.metric_names is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    self._study.set_metric_names(list(METRICS))
        except Exception as error:  # SQLAlchemy, SQLite and Optuna raise their own kinds for a broken file
            raise RunError(
                f"{path} is not a study that can be opened ({type(error).__name__}); "
                "move it away or choose another --out"
            ) from error

    def records(self) -> list[Record]:
        """Every finished trial, in the order of its number."""
        return [Record.of(trial) for trial in self._study.get_trials(deepcopy=False)]

    def lag(self, count: int) -> int:
        """How many trials were under way at once when the study began: `count` for a new one. Proposals depend on
        it."""
        attributes = self._study.user_attrs
        if "lag" not in attributes:
            self._study.set_user_attr("lag", count)
        return int(attributes.get("lag", count))

    def add(self, record: Record) -> None:
        """Store a finished trial."""
        result = record.result
        values = [result.latency.median_ms, result.loss] if result is not None and result.loss is not None else None
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL if values is None else TrialState.COMPLETE,
                params=record.settings,
                distributions=record.distributions,
                values=values,
                user_attrs=record.attributes(),
            )
        )

    def close(self) -> None:
        """Release the file."""
        storage: Any = self._study._storage
        storage = getattr(storage, "_backend", storage)
        storage.engine.dispose()


class Record:
    """A trial: its settings, and its result unless it failed.

    Args:
        settings: what was suggested, by name.
        distributions: from which, by name.
        result: of the student; None when its training failed.
        reason: why it failed.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        distributions: dict[str, BaseDistribution],
        result: Result | None,
        reason: str = "",
    ) -> None:
        self.settings, self.distributions, self.result, self.reason = settings, distributions, result, reason

    @classmethod
    def of(cls, trial: optuna.trial.FrozenTrial) -> Record:
        """Read a stored trial.

        Raises:
            RunError: the study was not written by hwsearch.
        """
        try:
            stored = trial.user_attrs["result"]
            result = None if stored is None else Result.from_json(json.loads(stored))
        except (KeyError, ValueError, TypeError) as error:
            raise RunError(
                f"trial {trial.number} of the study has no record of hwsearch; is it another program's study?"
            ) from error
        return cls(trial.params, trial.distributions, result, trial.user_attrs.get("reason", ""))

    def attributes(self) -> dict[str, Any]:
        """What is stored beside settings and values: the record, and the parts of it that read well in a dashboard."""
        if self.result is None:
            return {"result": None, "reason": self.reason}
        r = self.result
        return {
            "result": json.dumps(r.to_json()),
            "architecture": r.architecture.id,
            "high_ms": r.latency.high_ms,
            "quality": r.quality,
            "retention": r.retention,
            "parameters": r.architecture.parameters,
            "size_mib": r.size_mib,
            "seconds": r.seconds,
        }


class Sampler:
    """What to try next.

    Args:
        seed: of every proposal.
        corners: settings of the first trials.
        lag: how many trials are under way at once; proposal k sees the results of trials up to k - lag.
    """

    def __init__(self, seed: int, corners: Sequence[dict[str, Any]], lag: int) -> None:
        self.seed, self.corners, self.lag = seed, corners, lag
        self._study = optuna.create_study(directions=list(DIRECTIONS))
        self._asked: list[optuna.Trial] = []
        self._told = 0

    def ask(self, finished: Sequence[Record], settings: dict[str, Any] | None = None) -> optuna.Trial:
        """The next trial, to be asked for suggestions.

        Args:
            finished: trials in the order of their numbers; later ones than the lag allows are not looked at.
            settings: of a trial that was finished before, when a run is taken up again.
        """
        number = len(self._asked)
        while self._told <= number - self.lag:
            result = finished[self._told].result
            if result is None or result.loss is None:
                self._study.tell(self._asked[self._told], state=TrialState.FAIL)
            else:
                self._study.tell(self._asked[self._told], [result.latency.median_ms, result.loss])
            self._told += 1
        if settings is None and number < len(self.corners):
            settings = self.corners[number]
        if settings is not None:
            self._study.enqueue_trial(settings)
            self._study.sampler = optuna.samplers.RandomSampler(seed=self.seed)
        else:
            self._study.sampler = self._fresh_sampler(number)
        trial = self._study.ask()
        self._asked.append(trial)
        return trial

    def _fresh_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = self.seed * 100_003 + number
        if number > GP_LIMIT:
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=START_UP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=START_UP, deterministic_objective=True)

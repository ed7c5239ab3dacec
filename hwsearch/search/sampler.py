"""What to try next: Optuna's samplers over a few smooth numbers.

A Gaussian process while trials are few, multivariate TPE beyond. They are asked in an in-memory mirror of the study:
every trial counts with the loss of its first rung, which all have in common and which never changes. Proposal k follows
from the seed, k and what is known of the trials before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hwsearch.search.study import DIRECTIONS
from hwsearch.search.trial import Trial

SEEDS = 2**32  # of NumPy's generators, which Optuna seeds
START_UP = 8  # finished trials before the Gaussian process takes over
GP_LIMIT = 250  # trials up to which its cubic cost stays below a second; multivariate TPE beyond


class Sampler:
    """What to try next.

    Args:
        seed: of every proposal.
        corners: settings of the first trials.
    """

    def __init__(self, seed: int, corners: Sequence[dict[str, Any]]) -> None:
        self.seed, self.corners = seed, corners
        self._study = optuna.create_study(directions=list(DIRECTIONS))
        self._mirrored: dict[int, int] = {}  # numbers there by numbers in the study
        self._told: set[int] = set()
        self._count = 0  # of trials there

    def ask(self, trials: Sequence[Trial]) -> optuna.Trial:
        """The next trial, to be asked for suggestions and then `kept` or `dropped`.

        Args:
            trials: of the study, in the order of their numbers.
        """
        for trial in trials:
            if trial.number not in self._mirrored:
                self._mirror(trial)
            if trial.number not in self._told and (trial.losses or trial.reason):
                self._told.add(trial.number)
                values = [trial.ms, trial.losses[0]] if trial.losses else None
                state = None if trial.losses else TrialState.FAIL
                self._study.tell(self._mirrored[trial.number], values, state)
        number = len(trials)
        if number < len(self.corners):
            self._study.enqueue_trial(self.corners[number])
            self._study.sampler = optuna.samplers.RandomSampler(seed=self.seed % SEEDS)
        else:
            self._study.sampler = self._fresh_sampler(number)
        self._count += 1
        return self._study.ask()

    def kept(self, asked: optuna.Trial, trial: Trial) -> None:
        """What was asked has become a trial of the study."""
        self._mirrored[trial.number] = asked.number

    def dropped(self, asked: optuna.Trial) -> None:
        """Nothing has come of what was asked."""
        self._study.tell(asked, state=TrialState.FAIL)

    def _mirror(self, trial: Trial) -> None:
        """A trial that another has begun, or this one before it was taken up again."""
        self._mirrored[trial.number] = self._count
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING, params=trial.settings, distributions=trial.distributions
            )
        )
        self._count += 1

    def _fresh_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self.seed * 100_003 + number) % SEEDS
        if number > GP_LIMIT:
            return _Parzen(seed=seed, multivariate=True, n_startup_trials=START_UP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=START_UP, deterministic_objective=True)


class _Parzen(optuna.samplers.TPESampler):
    """Every trial of a study suggests the same numbers: Optuna need not look through thousands of them to find out
    which."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Of the first trial."""
        first = study.get_trials(deepcopy=False)[0].distributions
        return {name: first[name] for name in sorted(first) if not first[name].single()}

"""What to try next: Optuna's samplers over a few smooth numbers.

A Gaussian process while trials are few, multivariate TPE beyond. One turn in three looks for the student that loses
least, the others along the front: a front has many places to improve, most of them far below the budget, and searches
that looked nowhere else found little for the one student that they were asked for (`benchmarks/budget.py`).

They are asked in in-memory mirrors of the study: every trial counts with the loss of its first rung, which all have in
common and which never changes. Proposal k follows from the seed, k and what is known of the trials before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hwsearch.search.study import DIRECTIONS
from hwsearch.search.trial import Trial, asked_for

SEEDS = 2**32  # of NumPy's generators, which Optuna seeds
START_UP = 8  # finished trials before the Gaussian process takes over
GP_LIMIT = 250  # trials up to which its cubic cost stays below a second; multivariate TPE beyond


class Sampler:
    """What to try next.

    Args:
        seed: of every proposal.
        corners: settings of the first trials.
        least: what is set wherever the student that loses least is looked for; None where it is not.
    """

    def __init__(self, seed: int, corners: Sequence[dict[str, Any]], least: dict[str, Any] | None = None) -> None:
        self.seed, self.corners = seed, corners
        front = (_Mirror(len(DIRECTIONS)), dict[str, Any]())
        # At every other turn the front would have less than 99 % of its hypervolume after 50 trials (`replay.py`).
        self._turns = (front,) if least is None else ((_Mirror(1), least), front, front)

    def ask(self, trials: Sequence[Trial]) -> optuna.Trial:
        """The next trial, to be asked for suggestions and then `kept` or `dropped`.

        Args:
            trials: of the study, in the order of their numbers.
        """
        number = asked_for(trials)  # those in another size take nobody's turn
        mirror, settings = self._turns[(number - len(self.corners)) % len(self._turns)]
        if number < len(self.corners):
            sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=self.seed % SEEDS)
            return mirror.ask(trials, sampler, self.corners[number])
        return mirror.ask(trials, self._fresh_sampler(number), settings)

    def kept(self, asked: optuna.Trial, trial: Trial) -> None:
        """What was asked has become a trial of the study."""
        for mirror, _ in self._turns:
            mirror.kept(asked, trial)

    def dropped(self, asked: optuna.Trial) -> None:
        """Nothing has come of what was asked."""
        asked.study.tell(asked, state=TrialState.FAIL)

    def _fresh_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self.seed * 100_003 + number) % SEEDS
        if number > GP_LIMIT:
            return _Parzen(seed=seed, multivariate=True, n_startup_trials=START_UP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=START_UP, deterministic_objective=True)


class _Mirror:
    """The study as a sampler sees it.

    Args:
        objectives: what it is to make small: the loss, after the latency where there are two.
    """

    def __init__(self, objectives: int) -> None:
        self._objectives = objectives
        self._study = optuna.create_study(directions=list(DIRECTIONS[:objectives]))
        self._numbers: dict[int, int] = {}  # here, by numbers in the study
        self._told: set[int] = set()
        self._count = 0  # of trials here

    def ask(
        self, trials: Sequence[Trial], sampler: optuna.samplers.BaseSampler, settings: dict[str, Any]
    ) -> optuna.Trial:
        """The next trial; `settings` are given, the others the sampler's."""
        for trial in trials:
            if trial.number not in self._numbers:
                self._add(trial)
            if trial.number not in self._told and (trial.losses or trial.reason):
                self._told.add(trial.number)
                values = [trial.ms, trial.losses[0]][-self._objectives :] if trial.losses else None
                state = None if trial.losses else TrialState.FAIL
                self._study.tell(self._numbers[trial.number], values, state)
        self._study.enqueue_trial(settings)
        self._study.sampler = sampler
        self._count += 1
        return self._study.ask()

    def kept(self, asked: optuna.Trial, trial: Trial) -> None:
        """What was asked, if it was here, has become a trial of the study."""
        if asked.study is self._study:
            self._numbers[trial.number] = asked.number

    def _add(self, trial: Trial) -> None:
        """A trial that was asked elsewhere: by another worker, by the other turn, or before this one was taken up
        again."""
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING, params=trial.settings, distributions=trial.distributions
            )
        )
        self._numbers[trial.number] = self._count
        self._count += 1


class _Parzen(optuna.samplers.TPESampler):
    """Every trial of a study suggests the same numbers: Optuna need not look through thousands of them to find out
    which."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Of the first trial."""
        first = study.get_trials(deepcopy=False)[0].distributions
        return {name: first[name] for name in sorted(first) if not first[name].single()}

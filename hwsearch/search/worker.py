"""Join a study that the main job has begun, from another process or another machine.

Everything that a worker must know stands in the study: what is asked, the device's profile, the task. Its own teacher
and text are checked against the study's hashes. It does what the main job does, under the same lock, until nothing is
left to train; the choice is the main job's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs

from hwsearch.distill.job import UNMOVED, Moved, TaskSpec
from hwsearch.errors import RunError
from hwsearch.files import sweep
from hwsearch.search.description import Description
from hwsearch.search.owner import alive
from hwsearch.search.run import state_of
from hwsearch.search.storage import reachable
from hwsearch.search.study import Study
from hwsearch.search.trainer import Progress, Trainer
from hwsearch.search.trials import Trials


def join(
    study: Study,
    make_trainer: Callable[[TaskSpec], Trainer],
    progress: Progress,
    moved: Moved = UNMOVED,
    out: Path | None = None,
) -> dict[str, Any]:
    """Work on a study until nothing is left to train.

    Args:
        study: that the main job has begun.
        make_trainer: of the task.
        progress: who is told.
        moved: where files lie on this machine.
        out: folder of the students in training; the run's own by default, where this machine has it.

    Returns:
        The study's name, how many rungs were trained here, and how many trials there are.

    Raises:
        RunError: the study was begun with something else than this worker has, or its main job ended before the first
            trial.
    """
    with reachable(study.address):
        return _joined(study, make_trainer, progress, moved, out)


def _joined(
    study: Study, make_trainer: Callable[[TaskSpec], Trainer], progress: Progress, moved: Moved, out: Path | None
) -> dict[str, Any]:
    while not (description := Description(study)).ready:
        if alive(description.main) is False:
            raise RunError(f"the main job of study {study.name!r} ended before its first trial; start it again")
        progress.stage("waiting for the main job to begin its trials", 1.0)
        time.sleep(1)
    trainer = make_trainer(moved.of(description.spec))
    facts, plan = description.open(trainer, progress)
    folder = out or description.folder
    if out is None and not folder.is_dir():
        folder = platformdirs.user_cache_path("hwsearch") / "studies" / study.name
        progress.say(f"this machine has no {description.folder}; students in training are kept in {folder}")
    elif folder.resolve() != description.folder:
        progress.say(f"students in training are kept in {folder}; who takes one over elsewhere begins it anew")
    try:
        (folder / "students").mkdir(parents=True, exist_ok=True)
        sweep(folder / "students")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}. Choose another --out") from error
    trials = Trials(
        plan,
        plan.proposer(facts),
        study,
        trainer,
        partial(state_of, folder),
        trainer.count,
        progress,
    )
    progress.stage("training", float(plan.wishes.trials))
    found = trials.run(lambda note: progress.at(float(sum(t.ended for t in study.trials())), note=note))
    return {"study": study.name, "rungs": trials.trained, "trials": len(found)}

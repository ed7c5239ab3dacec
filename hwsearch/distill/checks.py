"""Whether a teacher, its text and a recipe go together: told before anything is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwsearch.distill.data import Corpus
from hwsearch.distill.families import image_of, longest_of, task_of
from hwsearch.distill.families.tasks import TASKS, TaskName
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.rows import NO_ANSWER, UNLABELLED
from hwsearch.distill.teacher import Teacher
from hwsearch.errors import DataError

FEWEST_SAMPLES = 3  # rows between which distances say anything


def check_teachers(spec: TaskSpec, teacher: Teacher, further: list[Teacher]) -> None:
    """Refuse inputs that a teacher cannot read, and recipes that ask for what there is not.

    Raises:
        DataError: with what is wrong.
    """
    config, recipe = teacher.model.config, spec.recipe
    for one in (teacher, *further):
        limit = longest_of(one.model.config)
        if limit is not None and spec.sequence > limit:
            raise DataError(
                f"{one.name} reads at most {limit} tokens; --sequence of the search asks for {spec.sequence}"
            )
    image = image_of(config.to_dict())
    if image is not None and spec.sequence != image.tokens:
        raise DataError(f"the teacher reads an image as {image.tokens} tokens; --sequence asks for {spec.sequence}")
    if image is not None and any(stage.token_noise for stage in recipe.stages):
        raise DataError("the recipe puts other tokens in place of some (token_noise), and images have none")
    if recipe.written and task_of(config) != "text-generation":
        raise DataError("the recipe has text written by the teacher (written), and this one is no language model")
    rows = recipe.batch * teacher.objective.inputs_a_chunk // recipe.accumulate
    if rows < FEWEST_SAMPLES and any(stage.samples for stage in recipe.stages):
        raise DataError(
            f"the recipe compares the rows of a piece (samples), which takes {FEWEST_SAMPLES}; batch and accumulate "
            f"make pieces of {rows}"
        )


def check_labels(spec: TaskSpec, corpus: Corpus, task: TaskName) -> None:
    """Refuse a stage that asks for nothing but labels where there are none; those of sentences are no answers.

    Raises:
        DataError: with the number of the stage.
    """
    if corpus.labels is None:
        return  # running text is its own
    given = corpus.labels["train"] if TASKS[task].head != "none" else ()
    if any(bool(np.any((np.asarray(label) != UNLABELLED) & (np.asarray(label) != NO_ANSWER))) for label in given):
        return
    for number, stage in enumerate(spec.recipe.stages, start=1):
        if stage.labels and not stage.answers and not stage.watches:
            raise DataError(
                f"stage {number} of the recipe asks for labels alone, and {Path(spec.data).name} has none: "
                "--label-column of the search, or another --recipe"
            )

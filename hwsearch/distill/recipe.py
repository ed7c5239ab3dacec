"""How a student is trained: one small file of data, each a published practice with its source.

The files in `recipes` come with hwsearch; a person's own has the same entries.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec

from hwsearch.errors import DataError

RECIPES = Path(__file__).parent / "recipes"


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a student is asked for some time. The losses are added up with their weights; 0 leaves one out.

    Attributes:
        steps: how long; 0 for all that are left, which the last stage has.
        answers: weight of the KL to the teacher's answers.
        temperature: that softens both, where the stage begins and where it ends (linear in between), the KL times its
            square (Hinton et al. 2015, arXiv:1503.02531). Of a vocabulary the likeliest 32 and all others together.
        labels: weight of the cross entropy to the labels that the text has; rows without one count for nothing.
        hidden: weight of the squared distance of hidden states, as a share of the teacher's variance, through a linear
            map (Romero et al. 2015, arXiv:1412.6550).
        attention: weight of the KL of attention maps (Sun et al. 2020, arXiv:2004.02984); of their mean over the heads
            where the numbers of heads differ.
        relations: weight of the KL of the relations among queries, among keys and among values of the last layer (Wang
            et al. 2021, arXiv:2012.15828).
        samples: weight of the distance of distances between the rows of a batch (Park et al. 2019, arXiv:1904.05068).
        layers: the teacher's layer whose hidden states and maps a student's are set beside: the last one before the
            next that was "kept", or an "even" share of all.
        progressive: whether layers join one by one over the stage, the first one first.
        token_noise: share of the tokens that the student reads another one for.
        hidden_noise: of the embeddings, as a share of their standard deviation.
        quantised: whether parts are rounded as the runtime will.
    """

    steps: int = 0
    answers: float = 1.0
    temperature: tuple[float, float] = (1.0, 1.0)
    labels: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    samples: float = 0.0
    layers: Literal["kept", "even"] = "kept"
    progressive: bool = False
    token_noise: float = 0.0
    hidden_noise: float = 0.0
    quantised: bool = True

    def __post_init__(self) -> None:
        weights = (self.answers, self.labels, self.hidden, self.attention, self.relations, self.samples)
        noises = (self.token_noise, self.hidden_noise)
        if not all(map(math.isfinite, (*weights, *noises, *self.temperature))):
            raise ValueError("weights, noise and temperature are numbers: no nan, no inf")
        if min(*weights, *noises, self.steps) < 0 or self.token_noise > 1:
            raise ValueError("steps, weights and noise are 0 or more, token_noise 1 at most")
        if not any(weights):
            raise ValueError("a stage asks for something: a weight above 0")
        if min(self.temperature) <= 0:
            raise ValueError("a temperature is above 0")

    @property
    def watches(self) -> bool:
        """Whether it looks at more than answers: the teacher then runs beside the student."""
        return any((self.hidden, self.attention, self.relations, self.samples))


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a student is trained.

    Attributes:
        rate: of Adam, constant after the warm-up.
        batch: chunks a step.
        warm_up: steps.
        clip: largest norm of the gradient.
        seed: of the data and its order.
        source: where the practice comes from.
        accumulate: pieces that a step's chunks go through the student in, each counting by what is asked in it;
            relations between rows are among those of a piece.
        recompute: whether activations are computed again on the way back, which takes less memory.
        written: share of the training chunks that the teacher, a language model, continues after their first quarter
            (Kim and Rush 2016, arXiv:1606.07947).
        teachers: folders of further teachers of the same tokenizer and task; a step listens to one of them in turn
            (Fukuda et al. 2017, Efficient knowledge distillation from an ensemble of teachers, Interspeech).
        assistants: sizes between student (0) and teacher (1): each is trained by those before it and teaches those
            behind it (Mirzadeh et al. 2020, arXiv:1902.03393; Son et al. 2021, arXiv:2009.08825).
        stages: what it is asked, in turn.
    """

    rate: float = 2.8e-3
    batch: int = 8
    warm_up: int = 20
    clip: float = 1.0
    seed: int = 0
    source: str = ""
    accumulate: int = 1
    recompute: bool = False
    written: float = 0.0
    teachers: tuple[str, ...] = ()
    assistants: tuple[float, ...] = ()
    stages: tuple[Stage, ...] = (Stage(),)

    def __post_init__(self) -> None:
        if not (0 < self.rate < math.inf and 0 < self.clip < math.inf):
            raise ValueError("rate and clip are numbers above 0")
        if min(self.batch, self.accumulate, self.warm_up) < 1 or self.seed < 0:
            raise ValueError("batch, accumulate and warm_up are 1 or more, seed 0 or more")
        if self.accumulate > self.batch:
            raise ValueError(f"a batch of {self.batch} chunks has no {self.accumulate} pieces (accumulate)")
        if not 0 <= self.written <= 1 or any(not 0 < size < 1 for size in self.assistants):
            raise ValueError("written is from 0 to 1, assistants lie between 0 and 1")
        if list(self.assistants) != sorted(self.assistants, reverse=True):
            raise ValueError("assistants fall: the first is nearest to the teacher")
        if not self.stages or self.stages[-1].steps or not all(stage.steps for stage in self.stages[:-1]):
            raise ValueError("every stage but the last says its steps")
        if any(stage.progressive and not stage.steps for stage in self.stages):
            raise ValueError("a progressive stage says its steps")
        if not self.stages[-1].quantised:
            raise ValueError("the last stage trains what is deployed: quantised")
        if len(set(self.stages[-1].temperature)) > 1:
            raise ValueError("the last stage has no end for the temperature to go to")

    def at(self, step: int) -> tuple[int, float]:
        """The number of the stage at a step, and how much of it is over, 0 to 1; the last is never over."""
        begun = 0
        for number, stage in enumerate(self.stages):
            if not stage.steps or step < begun + stage.steps:
                return number, (step - begun) / stage.steps if stage.steps else 0.0
            begun += stage.steps
        raise AssertionError("the last stage never ends")

    @property
    def before_last(self) -> int:
        """Steps of all stages but the last."""
        return sum(stage.steps for stage in self.stages)


def names() -> list[str]:
    """Of the recipes that come with hwsearch."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by its name, or of a file; folders in it are relative to the file's own.

    Raises:
        DataError: there is none, or it is no recipe.
    """
    path = RECIPES / f"{name}.toml" if name in names() else Path(name)
    if not path.is_file():
        raise DataError(f"no recipe {name!r}: give a TOML file, or one of {', '.join(names())}")
    try:
        recipe = msgspec.toml.decode(path.read_text(encoding="utf-8"), type=Recipe)
    except OSError as error:
        raise DataError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no recipe: {error}") from error
    teachers = tuple(str((path.parent / folder).resolve()) for folder in recipe.teachers)
    return msgspec.structs.replace(recipe, teachers=teachers)

"""What goes to a worker and comes back: plain values, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from hwsearch.architecture import Architecture
from hwsearch.distill.families.tasks import TaskName
from hwsearch.distill.recipe import Recipe
from hwsearch.precision import Precision, Scheme

DType = Literal["float32", "bfloat16", "float16", "int8"]
CHUNKS = 4096  # to train on, at most, unless a task says otherwise
COOL = 0.7  # of a training's steps: from there on its rate falls to zero
STATISTICS = ("importance", "sensitivities", "layers")  # that are taken of a teacher; the last may rest on the first


def chunks_of(steps: int, recipe: Recipe) -> int:
    """What so many steps of a recipe read, where each is read once, and `CHUNKS` at most."""
    return min(CHUNKS, steps * recipe.batch)


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a score depends on beside the architecture and the steps.

    Attributes:
        teacher: folder of a checkpoint; empty for the embedded one.
        data, held_out: text files; empty for the standard library and for a split of `data`.
        text_column, label_column: of texts in rows.
        teacher_dtype: of the teacher's weights: half precision takes half the memory. "int8" is of its outputs alone,
            and cuts students out of the weights as they are stored.
        trust_remote_code: whether code that lies in the checkpoint may be run.
        task: what the teacher is for, as `families.tasks` names it; empty for what its checkpoint says.
        sequence: tokens of an input.
        chunks: to train on, at most; four texts of a row each count as one.
        held_out_chunks: to judge by on *select* and on *report* each, at most.
        recipe: how to train.
        scheme: how the runtime quantises.
        together: texts that are judged at once, students and what quantising a part loses alike, where ranges of
            activations are of all of them; 0 for as many as there is room for.
        precisions: that parts may be quantised to.
    """

    teacher: str = ""
    data: str = ""
    held_out: str = ""
    sequence: int = 128
    chunks: int = CHUNKS
    held_out_chunks: int = 384
    recipe: Recipe = Recipe()
    scheme: Scheme = Scheme()
    together: int = 0
    precisions: tuple[Precision, ...] = (Precision.INT8,)
    text_column: str = "text"
    label_column: str = "label"
    task: str = ""
    teacher_dtype: DType = "float32"
    trust_remote_code: bool = False

    @property
    def placeless(self) -> TaskSpec:
        """The same without the places of its files, which are known by what they hold."""
        recipe = msgspec.structs.replace(self.recipe, teachers=())
        return msgspec.structs.replace(self, teacher="", data="", held_out="", recipe=recipe)


class Moved(NamedTuple):
    """What a person says anew of a run's files: where they lie now or here, if elsewhere than when it was begun.

    Attributes:
        teacher, data, held_out: as of `TaskSpec`.
        trusted: whether code in the teacher's checkpoint may be run. It is never taken over from a run, which may come
            from somebody else.
    """

    teacher: str | None = None
    data: Path | None = None
    held_out: Path | None = None
    trusted: bool = False

    def of(self, spec: TaskSpec) -> TaskSpec:
        """The task with these files."""
        own = {"teacher": self.teacher, "data": self.data, "held_out": self.held_out}
        files = {name: str(Path(path).absolute()) for name, path in own.items() if path}
        return msgspec.structs.replace(spec, **files, trust_remote_code=self.trusted)


UNMOVED = Moved()


class Facts(msgspec.Struct, frozen=True):
    """What the search needs to know of a task, in plain values.

    Attributes:
        teacher: its name.
        digest: hash of teacher, text and everything else that a score depends on.
        architecture: the teacher's, in fp32.
        corpus: what the text is called.
        quality: the teacher's on *select*.
        layers: those that are missed least when the others are left out, by depth.
        sensitivities: KL to itself of the teacher with one part in a precision: attention and feed-forward of each
            layer in turn, then a language model's head.
        blocks: of the teacher's outputs.
        task: what the teacher is for.
        importance: of the teacher's parts, falling, by layer: "groups" of heads that share keys and values, "ffn"
            units.
        weights: hash of the teacher alone.
        text: hash of the text alone.
        subject: hash of what decides how far short runs may be trusted: the same for any seed and amount of text.
        longest: tokens that the teacher has positions for; None where it computes them.
    """

    teacher: str
    digest: str
    architecture: Architecture
    corpus: str
    blocks: int
    task: TaskName = "text-generation"
    quality: float = 0.0
    layers: dict[int, tuple[int, ...]] = {}
    sensitivities: dict[Precision, tuple[float, ...]] = {}
    subject: str = ""
    weights: str = ""
    text: str = ""
    importance: dict[str, tuple[tuple[float, ...], ...]] = {}
    longest: int | None = None


class Job(msgspec.Struct, frozen=True):
    """One student to train.

    Attributes:
        path: where its state is kept; a state that is there already is gone on from.
        start: a shorter run's state to go on from where `path` has none.
        architecture: of the student.
        steps: to train up to.
        cool_from: step from which on the rate falls to zero; None keeps it constant.
        marks: further steps at which the held-out KL is noted.
        order: of the text, one for each number.
        split: to judge it on at the end.
        layers: the teacher's layers behind the student's; the best by default.
        rate: learning rate over the recipe's.
        further: whether a state that has passed `steps` serves as well.
    """

    path: str
    architecture: Architecture
    steps: int
    start: str = ""
    cool_from: int | None = None
    marks: tuple[int, ...] = ()
    order: int = 0
    split: Literal["select", "report"] = "select"
    layers: tuple[int, ...] | None = None
    rate: float = 1.0
    further: bool = False


class ProxyScore(msgspec.Struct, frozen=True):
    """What a short run says of an architecture.

    Attributes:
        loss: held-out KL to the teacher, nats an answer.
        quality: held-out accuracy, with its 90 % bootstrap interval.
        teacher_quality: the teacher's accuracy on the same tokens.
        retention: quality over it, with its paired interval.
        steps: trained.
        seconds: that it took.
        curve: (step, held-out KL) as measured.
        metrics, teacher_metrics: of the task's own field (`metrics_of`), on *report*; empty on *select*.
    """

    loss: float
    quality: float
    quality_low: float
    quality_high: float
    teacher_quality: float
    retention: float
    retention_low: float
    retention_high: float
    steps: int
    seconds: float
    curve: tuple[tuple[int, float], ...]
    metrics: dict[str, float] = {}
    teacher_metrics: dict[str, float] = {}


def work_of(architecture: Architecture, steps: int) -> float:
    """How much work training is: parameters that every token goes through times steps, with a floor for what no size
    saves."""
    return (architecture.parameters + 150_000.0) * steps

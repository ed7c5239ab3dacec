"""Where tasks are prepared: once for a teacher and a text, kept on disk by content, read by every worker.

Preparation is cut into pieces that several processes can take: the tokens, blocks of the teacher's outputs, and the
teacher's statistics.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hwsearch import __version__
from hwsearch.distill.checks import check_labels, check_teachers
from hwsearch.distill.data import SPLITS, Corpus, Split
from hwsearch.distill.families import architecture_of, family_of, longest_of, task_of
from hwsearch.distill.families.tasks import TASKS
from hwsearch.distill.importance import Importance, measure_importance
from hwsearch.distill.job import STATISTICS, Facts, TaskSpec
from hwsearch.distill.judging import divergence
from hwsearch.distill.layers import choose_layers, with_layers
from hwsearch.distill.objectives.outputs import Outputs
from hwsearch.distill.sensitivity import Probe
from hwsearch.distill.student import StudentPlan, build_student
from hwsearch.distill.task import HeldOut, Task
from hwsearch.distill.teacher import Teacher, continued, load_further, teacher_of, teacher_outputs
from hwsearch.files import read_as, read_or_drop, whole, write_text
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 256  # chunks of the teacher's outputs that are computed and kept together
TOKENS = 2**23  # whose likeliest continuations are kept at most: 1 GiB, 1.5 of a vocabulary over 65,536
STATISTICS_CHUNKS = 192
FORMAT = f"{__version__}, 14"  # of what is kept and of how scores come about; what an earlier one has left is not read
SUBSET_CHUNKS = 16  # for the choice of layers and for sensitivity: differences there are large
REFIT_CHUNKS = 96  # for the choice of layers where students are refitted, a third of which is to judge by


class Workshop:
    """One process' view of a task: prepares pieces of it and keeps what it has loaded.

    Args:
        spec: of the task.
        device: of the teacher's outputs.
    """

    def __init__(self, spec: TaskSpec, device: str = "cpu") -> None:
        self.spec, self.device = spec, device
        self.teacher = teacher_of(spec)
        self._further = [load_further(folder, self.teacher) for folder in spec.recipe.teachers]
        check_teachers(spec, self.teacher, self._further)
        corpus = self.teacher.objective.read(spec)
        check_labels(spec, corpus, task_of(self.teacher.model.config))
        self.corpus, self.text = corpus.name, corpus.digest
        recipe = spec.placeless.recipe
        settings = msgspec.json.encode(
            (
                __version__,
                FORMAT,
                spec.sequence,
                spec.chunks,
                spec.held_out_chunks,
                recipe,
                spec.scheme,
                spec.together,
                spec.precisions,
            )
        )
        sources = " ".join([*(t.digest for t in (self.teacher, *self._further)), self.text, ""]).encode()
        self.digest = hashlib.sha256(sources + settings).hexdigest()[:16]
        recipe = msgspec.structs.replace(recipe, seed=0)
        kind = msgspec.json.encode((FORMAT, spec.sequence, recipe, spec.scheme))
        self.subject = hashlib.sha256(sources + kind).hexdigest()[:16]
        self._cache = platformdirs.user_cache_path("hwsearch")
        self.folder = self._cache / "tasks" / self.digest
        self.tokens = self._tokens(corpus)
        self._task: Task | None = None

    def facts(self) -> Facts:
        """What is known before anything was computed."""
        config = self.teacher.model.config
        return Facts(
            teacher=self.teacher.name,
            digest=self.digest,
            architecture=architecture_of(config, Precision.FP32),
            corpus=self.corpus,
            blocks=self._blocks,
            task=task_of(config),
            subject=self.subject,
            weights=self.teacher.digest,
            text=self.text,
            longest=longest_of(config),
        )

    @property
    def _blocks(self) -> int:
        return -(-len(self.tokens["train"]) // BLOCK)

    def compute_block(self, index: int) -> None:
        """The teachers' outputs on one block of the training chunks."""
        chunks = self._block(index)
        for teacher in (self.teacher, *self._further):
            self._outputs(chunks, teacher)

    def compute_statistics(self, name: str) -> None:
        """One of `STATISTICS` of the teacher, from training chunks."""
        self._statistics(name)

    def _statistics(self, name: str) -> dict[str, torch.Tensor]:
        """Kept by content, as outputs are: searches for other devices share them, and trainings on more rows."""
        refits = family_of(self.teacher.model.config).behind
        compute, count, settings = {
            "layers": (self._layers, REFIT_CHUNKS if refits else SUBSET_CHUNKS, ()),
            "importance": (self._importance, STATISTICS_CHUNKS, ()),
            "sensitivities": (
                self._sensitivities,
                SUBSET_CHUNKS,
                (self.spec.scheme, self.spec.together, self.spec.precisions),
            ),
        }[name]
        chunks = self.tokens["train"][: count * self.teacher.objective.inputs_a_chunk]
        known = msgspec.json.encode(
            (FORMAT, name, self.teacher.digest, type(self.teacher.objective).__name__, settings)
        )
        key = hashlib.sha256(known + np.ascontiguousarray(chunks).tobytes()).hexdigest()[:24]
        path = self._cache / "statistics" / f"{key}.safetensors"
        if (stored := read_or_drop(path, load_file)) is not None:
            return stored
        tensors = {entry: value.contiguous() for entry, value in compute(chunks).items()}
        _write(path, tensors)
        return tensors

    def finish(self) -> Facts:
        """What is known once every piece is there."""
        task = self.task
        kv_heads = self.facts().architecture.layers[0].kv_heads
        groups = task.importance.heads.unflatten(1, (kv_heads, -1)).sum(2)
        sensitivities = {p: tuple(map(float, lost)) for p, lost in task.sensitivities.items()}
        return msgspec.structs.replace(
            self.facts(),
            quality=task.select.teacher_quality,
            layers={depth: sets[0] for depth, sets in task.layers.items()},
            sensitivities=sensitivities,
            importance={"groups": _falling(groups), "ffn": _falling(task.importance.ffn)},
        )

    @property
    def task(self) -> Task:
        """The whole task; pieces that nobody has computed yet are computed now."""
        if self._task is None:
            importance, sensitivities, layers = (self._statistics(name) for name in STATISTICS)
            blocks = [self._block(i) for i in range(self._blocks)]
            chunks, join = np.concatenate(blocks), self.teacher.objective.outputs.join
            first, *further = (
                join((self._outputs(block, teacher) for block in blocks), len(chunks))
                for teacher in (self.teacher, *self._further)
            )
            self._task = Task(
                teacher=self.teacher,
                importance=Importance.of(importance),
                layers={d: tuple(map(tuple, layers[str(d)].tolist())) for d in range(1, len(layers) + 1)},
                sensitivities={p: sensitivities[p.value].numpy() for p in self.spec.precisions},
                chunks=chunks,
                outputs=first,
                select=self._held_out("select"),
                report=self._held_out("report"),
                recipe=self.spec.recipe,
                scheme=self.spec.scheme,
                further=tuple(further),
                digest=self.digest,
            )
            for teacher in (self.teacher, *self._further):
                teacher.let_go()
        return self._task

    @property
    def teacher_metrics(self) -> dict[str, float]:
        """The teacher's own on *report*, computed once."""
        path = self.folder / "metrics.json"
        if (known := read_or_drop(path, lambda path: read_as(path, dict[str, float]))) is not None:
            return known
        from hwsearch.distill.metrics import metrics_of

        report = self.task.report
        found = metrics_of(self.teacher, self.teacher.model, report, report.outputs.best())
        write_text(path, msgspec.json.encode(found).decode())
        return found

    def _block(self, index: int) -> NDArray[np.int64]:
        """Some of the training chunks, those continued that the teacher is to continue."""
        chunks = self.tokens["train"][index * BLOCK : (index + 1) * BLOCK]
        few = round(self.spec.recipe.written * len(chunks))
        if not few:
            return chunks
        return np.concatenate(
            [continued(self.teacher, chunks[:few], self._cache / "written", self.device), chunks[few:]]
        )

    def _tokens(self, corpus: Corpus) -> dict[Split, NDArray[np.int64]]:
        path, spec = self.folder / "tokens.safetensors", self.spec
        stored = read_or_drop(path, load_file)
        if stored is None:
            objective, held_out = self.teacher.objective, spec.held_out_chunks
            counts: dict[Split, int] = {"train": spec.chunks, "select": held_out, "report": held_out}
            stored = {}
            for split, chunks in counts.items():
                seed = spec.recipe.seed if split == "train" else None
                labels = corpus.labels[split] if corpus.labels else None
                count = chunks * objective.inputs_a_chunk
                if TASKS[task_of(self.teacher.model.config)].head == "lm":
                    count = max(1, min(count, TOKENS // spec.sequence))
                drawn = objective.draw(corpus.texts[split], labels, count, spec.sequence, seed)
                stored[split] = torch.from_numpy(drawn)
            _write(path, stored)
        return {name: stored[name].numpy() for name in SPLITS}

    def _outputs(self, chunks: NDArray[np.int64], teacher: Teacher) -> Outputs:
        """Kept by content: searches for other devices, of other seeds or lengths share what they have in common."""
        return teacher_outputs(teacher, chunks, self._cache / "outputs", self.device)

    def _held_out(self, split: Split) -> HeldOut:
        tokens = self.tokens[split]
        return HeldOut(self.teacher.objective, tokens, self._outputs(tokens, self.teacher), self.spec.together)

    def _importance(self, chunks: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        return measure_importance(self.teacher.model, self.teacher.objective, torch.from_numpy(chunks)).tensors()

    def _layers(self, chunks: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Sets of layers to keep, by depth: with which the teacher says most nearly what it said. Where students are
        refitted, which makes up for one layer and not for another, they are judged by it, on other text."""
        model, own = self.teacher.model, self.facts().architecture
        family = family_of(model.config)
        fitted = len(chunks) - max(1, len(chunks) // 3) if family.behind else 0
        probe = HeldOut(self.teacher.objective, chunks[fitted:], self._outputs(chunks[fitted:], self.teacher))
        first, *others = ({name for name, _ in layer.named_parameters()} for layer in family.layers_of(model))
        alike = all(names == first for names in others)  # ModernBERT's first layer has one norm less

        @cache
        def loss(kept: Sequence[int]) -> float:
            if not alike and kept[0]:
                return math.inf
            return with_layers(model, kept, lambda: divergence(model, probe))

        judge = None
        if family.behind:
            importance = Importance.of(self._statistics("importance")).of_first(fitted)

            @cache
            def judge(kept: Sequence[int]) -> float:
                architecture = msgspec.structs.replace(own, layers=tuple(own.layers[layer] for layer in kept))
                student = build_student(model, StudentPlan(architecture, tuple(kept)), importance)
                return divergence(student.eval(), probe)

        depths = range(1, own.depth + 1)
        return {str(depth): torch.tensor(choose_layers(own.depth, depth, loss, judge)) for depth in depths}

    def _sensitivities(self, chunks: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        few, spec = torch.from_numpy(chunks), self.spec
        parts = Probe(self.teacher.model, self.teacher.objective, spec.scheme, few, spec.together)
        return {precision.value: torch.from_numpy(parts.measured(precision)) for precision in spec.precisions}


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with whole(path) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # a full disk, say
            raise OSError(str(error)) from error


def _falling(values: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.sort(1, descending=True).values.tolist())

"""One stage of a recipe, as a student goes through it."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from hwsearch.distill.features import Beside, plain_attention
from hwsearch.distill.losses import kl
from hwsearch.distill.quantise import rest
from hwsearch.distill.recipe import Stage
from hwsearch.distill.rows import NO_ANSWER, UNLABELLED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwsearch.distill.objectives.objective import Inputs
    from hwsearch.distill.task import Task


class Lesson:
    """What a stage asks of a student; a context, in which both models are prepared for it.

    Args:
        stage: of the recipe.
        task: whose teacher and text.
        student: in training.
        layers: the teacher's behind the student's.
        maps: of hidden states, as of `features.hidden_maps`.
    """

    def __init__(
        self, stage: Stage, task: Task, student: PreTrainedModel, layers: tuple[int, ...], maps: nn.ModuleList
    ) -> None:
        self.stage, self.task, self.student, self._layers, self._maps = stage, task, student, layers, maps
        self._beside: Beside | None = None
        self._exit = ExitStack()
        self._random = torch.Generator()
        self._special = torch.tensor(getattr(task.teacher.processor, "all_special_ids", []), dtype=torch.int64)

    def __enter__(self) -> Self:
        rest(self.student, not self.stage.quantised)
        teacher: Any = self.task.teacher.model
        if self.stage.watches:
            if self.stage.attention:
                self._exit.enter_context(plain_attention(self.student, teacher))
            self._exit.callback(teacher.to, teacher.device)
            teacher.to(self.student.device)
            self._beside = Beside(self.student, teacher, self._layers, self._maps)
            self._exit.callback(self._beside.close)
        if self.stage.hidden_noise:
            handle = self.student.get_input_embeddings().register_forward_hook(self._shaken)
            self._exit.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        rest(self.student, False)

    def loss(self, chunks: Tensor, indices: Tensor, probabilities: Tensor, over: float, seed: int) -> Tensor:
        """What the stage adds up, on some chunks; differentiable.

        Args:
            chunks: as the objective draws them.
            indices, probabilities: what a teacher says of them, as `Outputs.batch` gives it.
            over: how much of the stage is, 0 to 1.
            seed: of noise.
        """
        stage, objective = self.stage, self.task.teacher.objective
        self._random.manual_seed(seed)
        inputs = objective.inputs(chunks)
        read = self._mistaken(chunks, inputs) if stage.token_noise else chunks
        temperature = stage.temperature[0] + over * (stage.temperature[1] - stage.temperature[0])
        if stage.answers and temperature == 1 and not stage.labels:
            total = stage.answers * objective.loss(self.student, read, indices, probabilities)
        else:
            total = self._answers(read, objective.labels(chunks), indices, probabilities, temperature)
        if self._beside is not None:
            self._beside.look(inputs)
            total = total + self._beside.loss(stage, over, inputs.get("attention_mask"))
        return total

    def _answers(
        self, chunks: Tensor, labels: Tensor, indices: Tensor, probabilities: Tensor, temperature: float
    ) -> Tensor:
        """KL at a temperature, and cross entropy to labels."""
        stage, objective = self.stage, self.task.teacher.objective
        if not stage.answers and not stage.labels:
            self.student.base_model(**objective.inputs(chunks))
            return chunks.new_zeros((), dtype=torch.float32)
        labels = labels.flatten()
        logits = objective.logits(self.student, chunks).flatten(0, 1).float()
        apart = kl(logits.softmax(-1), indices, probabilities, temperature)
        asked = (labels != NO_ANSWER).sum().clamp_min(1)
        total: Tensor = stage.answers * temperature**2 * apart.sum() / asked
        if stage.labels:
            known = torch.where(labels == UNLABELLED, NO_ANSWER, labels)
            wrong = nn.functional.cross_entropy(logits, known, ignore_index=NO_ANSWER, reduction="sum")
            total = total + stage.labels * wrong / (known != NO_ANSWER).sum().clamp_min(1)
        return total

    def _mistaken(self, chunks: Tensor, inputs: Inputs) -> Tensor:
        """Chunks with some of the tokens replaced by others of the batch; special ones, which begin, end, hide or fill
        up, stay and are not drawn."""
        ids = inputs["input_ids"].cpu()
        common = inputs["attention_mask"].bool().cpu() & ~torch.isin(ids, self._special)
        others = ids[common]
        places = common & (torch.rand(ids.shape, generator=self._random) < self.stage.token_noise)
        drawn = others[torch.randint(max(1, len(others)), (int(places.sum()),), generator=self._random)]
        noisy = chunks.clone()
        noisy[:, : ids.shape[1]][places.to(chunks.device)] = drawn.to(chunks.device)
        return noisy

    def _shaken(self, module: nn.Module, arguments: Any, found: Tensor) -> Tensor | None:  # noqa: ARG002
        if not module.training:
            return None
        noise = torch.randn(found.shape, generator=self._random).to(found.device)
        shaken: Tensor = found + self.stage.hidden_noise * found.detach().std() * noise
        return shaken

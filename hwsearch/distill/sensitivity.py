"""What quantising one part of a model loses, the others in float: measured, and estimated from gradients.

Measured is the KL of the model with that part quantised from itself in float. Estimated is half the Fisher information
of the part's outputs times their rounding error, squared: the second term of the same KL (the first is zero), for one
backward pass in place of a forward pass a part. Positions that are each asked something are taken to err independently,
those of one question together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from hwsearch.distill.judging import passes
from hwsearch.distill.losses import summed_kl
from hwsearch.distill.quantise import apart, parts_of, quantise, restore
from hwsearch.distill.rows import NO_ANSWER
from hwsearch.precision import Precision, Scheme

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hwsearch.architecture import Architecture
    from hwsearch.distill.objectives.objective import Objective
    from hwsearch.distill.workshop import Workshop

    Floats = NDArray[np.float64]

BATCH = 4  # chunks at once
CHUNKS = 16  # that are looked at


class Sensitivity(msgspec.Struct, frozen=True):
    """Of a trained student.

    Attributes:
        measured: KL from itself in float with one part in a precision, nats an answer, by part (`quantise.parts_of`).
        estimated: the same from gradients.
        joint: KL with all parts in the student's own precisions.
    """

    measured: dict[Precision, tuple[float, ...]]
    estimated: dict[Precision, tuple[float, ...]]
    joint: float


@dataclass(frozen=True)
class Probe:
    """Parts of a model, looked at one by one.

    Attributes:
        model: in float; left as it is.
        objective: of its task.
        scheme: how the runtime quantises.
        chunks: as the objective draws them.
        together: how many of them the runtime sees at once (`TaskSpec.together`).
    """

    model: PreTrainedModel
    objective: Objective
    scheme: Scheme
    chunks: Tensor
    together: int = 0

    def measured(self, precision: Precision) -> Floats:
        """KL of the model from itself with one part in a precision, nats an answer, [parts]."""
        parts = parts_of(self.model)
        found = np.zeros(len(parts))
        with torch.inference_mode():
            for rows, groups in self._passes():
                own = self.objective.logits(self.model, rows)
                for i, (module, names) in enumerate(parts):
                    quantise(module, names, self.scheme, precision)
                    with apart(groups):
                        found[i] += summed_kl(own, self.objective.logits(self.model, rows))
                    restore(self.model)
        return found / self._asked

    def estimated(self, precision: Precision) -> Floats:
        """The same, estimated from the gradients of the model's own answers, drawn by their probabilities."""
        parts = parts_of(self.model)
        found = np.zeros(len(parts))
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def watch(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                output.retain_grad()
                seen[module] = (given[0].detach(), output)

        linear = [[module.get_submodule(name) for name in names] for module, names in parts]
        handles = [m.register_forward_hook(watch) for part in linear for m in part]
        generator = torch.Generator().manual_seed(0)
        self.model.requires_grad_(True)
        try:
            for rows, groups in self._passes():
                each = self.objective.logits(self.model, rows)
                logits, one_question = each.flatten(0, 1), each.shape[1] == 1
                drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).flatten()
                nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
                self.model.zero_grad(set_to_none=True)
                for i, (module, names) in enumerate(parts):
                    quantise(module, names, self.scheme, precision)
                    with apart(groups):
                        slope = torch.stack([_slope(one, *seen[one]) for one in linear[i]]).sum(0)
                    restore(self.model)
                    found[i] += float((slope.sum(1) if one_question else slope).square().sum()) / 2
                seen.clear()
        finally:
            self.model.requires_grad_(False)
            for handle in handles:
                handle.remove()
        return found / self._asked

    def joint(self, quantised: PreTrainedModel) -> float:
        """KL of the model from itself with several parts quantised, nats an answer."""
        found = 0.0
        with torch.inference_mode():
            for rows, groups in self._passes():
                with apart(groups):
                    found += summed_kl(self.objective.logits(self.model, rows), self.objective.logits(quantised, rows))
        return found / self._asked

    @property
    def _asked(self) -> int:
        """Answers, at least one."""
        return max(1, int((self.objective.labels(self.chunks) != NO_ANSWER).sum()))

    def _passes(self) -> Iterator[tuple[Tensor, int]]:
        """Chunks that are looked at at once, and in how many groups the runtime sees them."""
        count, columns = self.chunks.shape
        most = BATCH * self.objective.inputs_a_chunk
        for rows, groups in passes(self.model, self.objective, np.arange(count), columns, most, self.together):
            yield self.chunks[rows], groups


def _slope(module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
    """How much rounding a layer changes the log-likelihood by, to first order, [rows, tokens]."""
    assert output.grad is not None
    with torch.no_grad():
        change: Tensor = module(given) - output
        return (change * output.grad).sum(-1)


def sensitivity_in_worker(
    workshop: Workshop, architecture: Architecture, state: Path, precisions: Sequence[Precision]
) -> Sensitivity:
    """Of a student as it was trained, for `Workers.run`."""
    from hwsearch.distill.proxy import load_state
    from hwsearch.distill.quantise import quantise_parts
    from hwsearch.distill.student import empty_student

    objective, scheme, together = workshop.teacher.objective, workshop.spec.scheme, workshop.spec.together
    few = torch.from_numpy(workshop.tokens["train"][: CHUNKS * objective.inputs_a_chunk])
    trained = load_state(state)
    model = empty_student(workshop.teacher.model, architecture, trained.get("layers"))
    quantise_parts(model, architecture, scheme)
    model.load_state_dict(trained["model"])
    model.eval().requires_grad_(False)
    plain = copy.deepcopy(model)
    restore(plain)
    probe = Probe(plain, objective, scheme, few, together)
    return Sensitivity(
        measured={p: tuple(probe.measured(p).tolist()) for p in precisions},
        estimated={p: tuple(probe.estimated(p).tolist()) for p in precisions},
        joint=probe.joint(model),
    )

"""What quantising one part of a model loses, the others in float: measured, and estimated from gradients.

Measured is the KL of the model with that part quantised from itself in float. Estimated is half the Fisher information
of the part's outputs times their rounding error, squared: the second term of the same KL (the first is zero), for one
backward pass in place of a forward pass a part. Positions that are each asked something are taken to err independently,
those of one question together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
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


def measured_losses(
    model: PreTrainedModel,
    objective: Objective,
    scheme: Scheme,
    precision: Precision,
    chunks: Tensor,
    together: int = 0,
) -> Floats:
    """KL of a float model from itself with one part in a precision, [parts], over token ids [chunks, sequence + 1], so
    many `together` as the runtime sees (`TaskSpec.together`)."""
    parts = parts_of(model)
    found = np.zeros(len(parts))
    with torch.inference_mode():
        for part, groups in _parts(model, objective, chunks, together):
            own = objective.logits(model, part)
            for i, (module, names) in enumerate(parts):
                quantise(module, names, scheme, precision)
                with apart(groups):
                    found[i] += summed_kl(own, objective.logits(model, part))
                restore(model)
    return found / max(1, _asked(objective, chunks))


def estimated_losses(
    model: PreTrainedModel,
    objective: Objective,
    scheme: Scheme,
    precision: Precision,
    chunks: Tensor,
    together: int = 0,
) -> Floats:
    """The same, estimated from the gradients of the model's own answers, drawn by their probabilities."""
    parts = parts_of(model)
    found = np.zeros(len(parts))
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def watch(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            seen[module] = (given[0].detach(), output)

    linear = [[module.get_submodule(name) for name in names] for module, names in parts]
    handles = [m.register_forward_hook(watch) for part in linear for m in part]
    generator = torch.Generator().manual_seed(0)
    model.requires_grad_(True)
    try:
        for part, groups in _parts(model, objective, chunks, together):
            each = objective.logits(model, part)
            logits, one_question = each.flatten(0, 1), each.shape[1] == 1
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).flatten()
            nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
            model.zero_grad(set_to_none=True)
            for i, (module, names) in enumerate(parts):
                quantise(module, names, scheme, precision)
                with apart(groups):
                    slope = torch.stack([_slope(one, *seen[one]) for one in linear[i]]).sum(0)
                restore(model)
                found[i] += float((slope.sum(1) if one_question else slope).square().sum()) / 2
            seen.clear()
    finally:
        model.requires_grad_(False)
        for handle in handles:
            handle.remove()
    return found / max(1, _asked(objective, chunks))


def _asked(objective: Objective, chunks: Tensor) -> int:
    """How much is asked of some chunks."""
    return int((objective.labels(chunks) != NO_ANSWER).sum())


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
    plain, joint = copy.deepcopy(model), 0.0
    restore(plain)
    with torch.inference_mode():
        for part, groups in _parts(model, objective, few, together):
            with apart(groups):
                joint += summed_kl(objective.logits(plain, part), objective.logits(model, part))
    given = (plain, objective, scheme)
    return Sensitivity(
        measured={p: tuple(measured_losses(*given, p, few, together).tolist()) for p in precisions},
        estimated={p: tuple(estimated_losses(*given, p, few, together).tolist()) for p in precisions},
        joint=joint / _asked(objective, few),
    )


def _parts(model: PreTrainedModel, objective: Objective, chunks: Tensor, together: int) -> Iterator[tuple[Tensor, int]]:
    """Chunks that are looked at at once, and in how many groups the runtime sees them."""
    most = BATCH * objective.inputs_a_chunk
    for rows, groups in passes(model, objective, np.arange(len(chunks)), chunks.shape[1], most, together):
        yield chunks[rows], groups

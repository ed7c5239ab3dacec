"""What quantising one part of a model loses, the others in float: measured, and estimated from gradients.

Measured is the KL of the model with that part quantised from itself in float. Estimated is half the Fisher information
of the part's outputs times their rounding error, squared: the second term of the same KL (the first is zero), for one
backward pass in place of a forward pass a part. Positions that are each asked something are taken to err independently,
those of one question together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from hwsearch.distill.families import rows_at_once
from hwsearch.distill.objectives.outputs import TopK
from hwsearch.distill.quantise import parts_of, quantise, restore
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
ROWS = 512  # answers at once: their logarithms take several times the room of the logits


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
    model: PreTrainedModel, objective: Objective, scheme: Scheme, precision: Precision, chunks: Tensor
) -> Floats:
    """KL of a float model from itself with one part in a precision, [parts], over token ids [chunks, sequence + 1]."""
    parts, answers = parts_of(model), 0
    found = np.zeros(len(parts))
    with torch.inference_mode():
        for part in _parts(model, objective, chunks):
            own = objective.logits(model, part)
            answers += _asked(objective, part)
            for i, (module, names) in enumerate(parts):
                quantise(module, names, scheme, precision)
                found[i] += _kl(own, objective.logits(model, part))
                restore(model)
    return found / max(1, answers)


def estimated_losses(
    model: PreTrainedModel, objective: Objective, scheme: Scheme, precision: Precision, chunks: Tensor
) -> Floats:
    """The same, estimated from the gradients of the model's own answers, drawn by their probabilities."""
    parts, answers = parts_of(model), 0
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
        for part in _parts(model, objective, chunks):
            each = objective.logits(model, part)
            logits, together = each.flatten(0, 1), each.shape[1] == 1
            answers += _asked(objective, part)
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).flatten()
            nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
            model.zero_grad(set_to_none=True)
            for i, (module, names) in enumerate(parts):
                quantise(module, names, scheme, precision)
                slope = torch.stack([_slope(one, *seen[one]) for one in linear[i]]).sum(0)
                restore(model)
                found[i] += float((slope.sum(1) if together else slope).square().sum()) / 2
            seen.clear()
    finally:
        model.requires_grad_(False)
        for handle in handles:
            handle.remove()
    return found / max(1, answers)


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

    objective, scheme = workshop.teacher.objective, workshop.spec.scheme
    few = torch.from_numpy(workshop.tokens["train"][: CHUNKS * objective.inputs_a_chunk])
    trained = load_state(state)
    model = empty_student(workshop.teacher.model, architecture, trained.get("layers"))
    quantise_parts(model, architecture, scheme)
    model.load_state_dict(trained["model"])
    model.eval().requires_grad_(False)
    parts, plain = _parts(model, objective, few), copy.deepcopy(model)
    restore(plain)
    with torch.inference_mode():
        joint = sum(_kl(objective.logits(plain, part), objective.logits(model, part)) for part in parts)
    joint /= sum(_asked(objective, part) for part in parts)
    given = (plain, objective, scheme)
    return Sensitivity(
        measured={p: tuple(measured_losses(*given, p, few).tolist()) for p in precisions},
        estimated={p: tuple(estimated_losses(*given, p, few).tolist()) for p in precisions},
        joint=joint,
    )


def _parts(model: PreTrainedModel, objective: Objective, chunks: Tensor) -> tuple[Tensor, ...]:
    """Chunks that are looked at at once: fewer where these are long or there is much to choose from, unless they are
    answers to each other."""
    size = BATCH * objective.inputs_a_chunk
    if objective.outputs is TopK:
        size = min(size, rows_at_once(model.config, chunks.shape[1], size))
    parts: tuple[Tensor, ...] = chunks.split(size)
    return parts


def _kl(p: Tensor, q: Tensor) -> float:
    """Summed KL of `q` from `p`, logits."""
    found = 0.0
    for some, others in zip(p.flatten(0, -2).split(ROWS), q.flatten(0, -2).split(ROWS), strict=True):
        first, second = some.float().log_softmax(-1), others.float().log_softmax(-1)
        found += float((first.exp() * (first - second)).sum())
    return max(0.0, found)

"""Where norms stand behind the parts, they and the output projections are fitted to the teacher's stream.

Such a norm weighs the channels of the stream, and a rotation does not pass through it; nor does it forgive a part that
is missing, as it divides by the deviation of what is left. So in one pass over a few texts, part by part on what the
student itself computes, least squares give

- every norm's weight and bias, by channel, from the teacher's stream there;
- every output projection what is missing of that: attention's of the teacher's behind the attention that it was cut
  from, the feed-forward part's of what the next kept layer reads in the teacher. Dropped layers are thus made up for
  (Shopkhoev et al. 2025, ReplaceMe, arXiv:2505.02819).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hwsearch.distill.families import family_of
from hwsearch.distill.importance import TINY, Importance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RIDGE = 0.3  # of the mean second moment; `benchmarks/head_start.py`: 0.1 to 1 alike, 0.01 and 10 worse once trained
DEAD = 1e-2  # of the mean square of a norm's weights: a channel weighted less is not asked to say what is missing
FLAT = 1e-4  # variance of a normalised channel that says nothing


def refit(student: PreTrainedModel, layers: Sequence[int], importance: Importance, basis: Tensor | None) -> None:
    """Fit the norms and output projections of `student` in place.

    Args:
        student: whose stream is the teacher's, times `basis`.
        layers: the teacher's layer behind each of the student's.
        importance: of the teacher.
        basis: [teacher width, width]; None keeps every direction.
    """
    family, there = family_of(student.config), importance.inputs["attention_mask"].bool()
    last = (len(importance.behind) - 1) // 2
    targets = [2 * layers[0]]  # of `Importance.behind`: what a layer reads is behind twice as many parts
    for layer, following in zip(layers, (*layers[1:], last), strict=True):
        targets += [2 * layer + 1, 2 * following]
    projections: list[nn.Linear | None] = [None]
    for module in family.layers_of(student):
        projections += [module.get_submodule(part[-1]) for part in (family.attention, family.feed_forward)]  # type: ignore[misc]
    read: dict[nn.Module, Tensor] = {}

    def fit(target: int, projection: nn.Linear | None) -> Any:
        wanted = importance.behind[target].float()
        wanted = wanted if basis is None else wanted @ basis

        def hook(norm: nn.LayerNorm, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            stream = arguments[0]
            _fit_norm(norm, stream[there], wanted)
            if projection is not None:
                inputs = read.pop(projection)
                weight, bias = _missing(norm, stream[there], wanted, inputs[there])
                projection.weight.add_(weight)
                projection.bias.add_(bias)
                stream = stream + nn.functional.linear(inputs, weight, bias)
                _fit_norm(norm, stream[there], wanted)
            return (stream,)

        return hook

    def watch(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        read[module] = arguments[0]

    handles = [p.register_forward_pre_hook(watch) for p in projections if p is not None]
    for name, target, projection in zip(family.norms_behind(len(layers)), targets, projections, strict=True):
        handles.append(student.get_submodule(name).register_forward_pre_hook(fit(target, projection)))
    training = student.training
    try:
        with torch.no_grad():
            student.eval().base_model(**importance.inputs)
    finally:
        student.train(training)
        for handle in handles:
            handle.remove()


def _normalised(stream: Tensor) -> tuple[Tensor, Tensor]:
    """Rows without their mean and over their deviation, and the deviation, [rows, 1]."""
    centred = stream - stream.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).clamp_min(TINY).sqrt()
    return centred / deviation, deviation


def _fit_norm(norm: nn.LayerNorm, stream: Tensor, wanted: Tensor) -> None:
    """Weight and bias that bring a norm of the rows of `stream` nearest to `wanted`, channel by channel."""
    rows, _ = _normalised(stream)
    mean, wanted_mean = rows.mean(0), wanted.mean(0)
    shared = ((rows - mean) * (wanted - wanted_mean)).mean(0)
    norm.weight.copy_(shared / (rows.var(0, unbiased=False) + FLAT))
    norm.bias.copy_(wanted_mean - norm.weight * mean)


def _missing(norm: nn.LayerNorm, stream: Tensor, wanted: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias over `inputs` of what is to be added to the rows of `stream` for their norm to be `wanted`:
    ridge regression, rows by one over the deviation that the norm divides by."""
    rows, deviation = _normalised(stream)
    weight, power = norm.weight, norm.weight.square()
    short = wanted - torch.addcmul(norm.bias, rows, weight)
    short *= weight / (power + DEAD * power.mean()).clamp_min(TINY)
    # Over the deviation, what is short before the norm is what is short behind it.
    read = torch.cat([inputs, torch.ones_like(deviation)], 1) / deviation
    moments = (read.T @ read).double()
    ridge = (RIDGE * moments.diagonal()[:-1].mean().clamp_min(TINY)).repeat(len(moments))
    ridge[-1] = 0.0
    moments.diagonal().add_(ridge)
    solved = torch.cholesky_solve((read.T @ short).double(), torch.linalg.cholesky(moments)).to(weight.dtype)
    return solved[:-1].T, solved[-1]

"""The distillation loss, fused with the output head.

A vocabulary is the widest thing in a small student. Here the head's product, the softmax, the loss and its gradient go
through a few hundred positions at a time, in cache, forward and backward at once (as fused linear cross-entropy kernels
do on GPUs, Hsu et al. 2024, arXiv:2410.10989), where a chain of PyTorch operations would send every one of them through
16 MB of memory: a step of the narrowest students is 1.3 times faster, of the widest 1.1 (`benchmarks/steps.py`).

The teacher's distribution is kept as its k largest probabilities and the rest as one mass. With p over top-k set K and
r = 1 - sum p,
    KL = sum_K p log(p / q) + r log(r / q_rest),   q_rest = 1 - sum_K q
which is the divergence of the two distributions after merging everything outside K: a lower bound of the full one, zero
where they agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hwsearch.distill.products import are_fast

POSITIONS = 256  # at a time: 256 x 2,048 floats are 2 MB, which a core's cache holds
POSITIONS_GPU = 8192  # a GPU wants large pieces
ROWS = 512  # answers at once in float64: their logarithms take several times the room of the logits
_SMALL = 1e-30  # keeps a quotient finite
_SMALL_REST = 1e-6  # single precision of one minus a sum


def head_kl(hidden: Tensor, weight: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
    """Mean over positions of KL(teacher || student), differentiable by `hidden` and `weight`.

    Args:
        hidden: the student's last hidden states, [positions, width].
        weight: the output head, [vocab, width].
        indices: the teacher's k most likely tokens, [positions, k], int64.
        probabilities: their probabilities, [positions, k].
    """
    result: Tensor = _HeadKL.apply(hidden, weight, indices, probabilities)  # type: ignore[no-untyped-call]
    return result


def positionwise_kl(hidden: Tensor, weight: Tensor, indices: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) of each position and the student's most likely token, both of shape [positions]; arguments
    as of `head_kl`."""
    losses, best = [], []
    for part in _pieces(hidden):
        q = torch.softmax((hidden[part] @ weight.T).float(), dim=-1)
        losses.append(kl(q, indices[part], probabilities[part]))
        best.append(q.argmax(-1))
    return torch.cat(losses), torch.cat(best)


def kl_of_each(p: Tensor, q: Tensor) -> Tensor:
    """KL of one model's answers from another's, `q` from `p`, both logits, [..., classes]: of each answer, [answers],
    in nats, in float64."""
    found = []
    for some, others in zip(p.flatten(0, -2).split(ROWS), q.flatten(0, -2).split(ROWS), strict=True):
        first, second = some.double().log_softmax(-1), others.double().log_softmax(-1)
        found.append((first.exp() * (first - second)).sum(-1))
    return torch.cat(found)


def summed_kl(p: Tensor, q: Tensor) -> float:
    """As `kl_of_each`, summed over all answers."""
    return max(0.0, float(kl_of_each(p, q).sum()))


def kl(q: Tensor, indices: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each position, [positions], differentiable.

    Args:
        q: what the student says, [positions, classes].
        indices, probabilities: what the teacher says, [positions, k], as of `head_kl`.
        temperature: that softens both, each of the k and the rest as one.
    """
    top = q.gather(-1, indices)
    rest = (1 - probabilities.sum(-1)).clamp_min(0)
    q_rest = (1 - top.sum(-1)).clamp_min(_SMALL_REST)
    if indices.shape[1] == q.shape[1]:  # nothing is left over but what rounding has left
        probabilities, rest = probabilities / probabilities.sum(-1, keepdim=True), torch.zeros_like(rest)
        q_rest = torch.zeros_like(q_rest)
    if temperature != 1:
        probabilities, rest = _softened(probabilities, rest, temperature)
        top, q_rest = _softened(top, q_rest, temperature)
    return _kl(probabilities, rest, top, q_rest.clamp_min(_SMALL))


def _softened(top: Tensor, rest: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A distribution and its rest at a temperature."""
    whole = torch.cat([top, rest.unsqueeze(-1)], -1)
    soft = torch.where(whole > 0, whole.clamp_min(_SMALL), 0.0) ** (1 / temperature)
    soft = soft / soft.sum(-1, keepdim=True)
    return soft[..., :-1], soft[..., -1]


def _pieces(hidden: Tensor) -> Iterator[slice]:
    size = POSITIONS if hidden.device.type == "cpu" else POSITIONS_GPU
    for start in range(0, len(hidden), size):
        yield slice(start, start + size)


def _kl(p: Tensor, rest: Tensor, top: Tensor, q_rest: Tensor) -> Tensor:
    # Not p log(p / q): where a p has been rounded to zero its gradient would be 0 / 0.
    inside: Tensor = (torch.xlogy(p, p) - p * top.clamp_min(_SMALL).log()).sum(-1)
    return inside + torch.xlogy(rest, rest) - rest * q_rest.log()


class _HeadKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
        wants_gradient = hidden.requires_grad or weight.requires_grad
        total = hidden.new_zeros(())
        d_hidden = torch.empty_like(hidden) if wants_gradient else None
        d_weight = torch.zeros_like(weight) if wants_gradient else None
        count, half = len(hidden), weight.bfloat16() if wants_gradient and are_fast(hidden) else None
        for part in _pieces(hidden):
            h, k, p = hidden[part], indices[part], probabilities[part].to(hidden.dtype)
            q = torch.softmax(h @ weight.T, dim=-1)
            top = q.gather(-1, k)
            rest = (1 - p.sum(-1)).clamp_min(0)
            q_rest = (1 - top.sum(-1)).clamp_min(_SMALL_REST)
            total += _kl(p, rest, top, q_rest).sum()
            if d_hidden is not None and d_weight is not None:
                # d KL / d logit_j = q_j - p_j inside K, q_j (1 - r / q_rest) outside
                q *= (1 - rest / q_rest).unsqueeze(-1)
                q.scatter_(-1, k, top - p)
                if half is None:
                    torch.mm(q, weight, out=d_hidden[part])
                    d_weight.addmm_(q.T, h)
                else:
                    slopes = q.bfloat16()
                    d_hidden[part] = slopes @ half
                    d_weight += slopes.T @ h.bfloat16()
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.count = count
        return total / count

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = d_loss / ctx.count
        return d_hidden * scale, d_weight * scale, None, None

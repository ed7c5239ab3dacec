"""A narrower residual stream: it is rotated to its principal directions, and the first are kept (Ashkboos et al. 2024,
SliceGPT, arXiv:2401.15024). Some directions along which it hardly varies change much of what the teacher says: those of
the loss's gradient count besides (`benchmarks/slices.py`).

A root-mean-square norm before a part does not see a rotation once its weights are folded into the matrices behind it;
the last one's are folded into the output head, which therefore parts from the embedding. One that takes out the mean
first does not either, where nothing that is kept has a mean: then a student of k channels keeps k - 1 directions, laid
at right angles to its vector of ones. What such a norm adds goes into the biases behind it. Norms behind the parts are
fitted anew (`refit`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hwsearch.distill.families.family import Family
from hwsearch.distill.importance import TINY

SLOPES = 0.5  # of the gradient beside the stream, each with a trace of 1; 0.25 and 1 do about as well


def basis_of(streams: Mapping[str, Tensor], slopes: Tensor, width: int, centred: bool) -> Tensor:
    """What a stream is multiplied with, [teacher width, width].

    Args:
        streams: second moments of it, by who reads it, [teacher width, teacher width] each.
        slopes: second moments of the loss's gradient by it, [teacher width, teacher width].
        width: of the student.
        centred: whether nothing that is kept may have a mean.
    """
    stream = torch.stack([streams[name] for name in sorted(streams)]).mean(0)
    counts = sum(share * m.double() / m.trace().clamp_min(TINY) for share, m in ((1.0, stream), (SLOPES, slopes)))
    directions: Tensor = torch.linalg.eigh(counts).eigenvectors.flip(1)
    if centred:
        # Any directions at right angles to the vector of ones: a reflection takes the first axis to it.
        ones = torch.full((width, 1), width**-0.5, dtype=directions.dtype)
        ones[0] -= 1
        reflection = torch.eye(width, dtype=directions.dtype) - 2 * ones @ ones.T / (ones.T @ ones).clamp_min(TINY)
        return (directions[:, : width - 1] @ reflection[1:]).to(stream.dtype)
    return directions[:, :width].to(stream.dtype)


def rotate(
    weights: Mapping[str, Tensor], streams: Mapping[str, Tensor], basis: Tensor, family: Family
) -> dict[str, Tensor]:
    """The weights of a student as wide as its teacher with its stream multiplied with `basis`.

    Args:
        weights: by name.
        streams: second moments of it, by who reads it: a norm, where that is read through one.
        basis: [teacher width, width].
        family: of the student.
    """
    norms = {name for name in streams if family.axes(f"{name}.weight")[1] == ("width",)}
    rotated: dict[str, Tensor] = {}
    for name, weight in weights.items():
        axes, module = family.axes(name)[1], name.rpartition(".")[0]
        through = family.read_by(name) if len(axes) > 1 else None
        scale = weights[f"{through}.weight"] if through in norms else None
        if module in norms:
            rotated[name] = _own(basis, streams[module]) if name.endswith("weight") else torch.zeros_like(basis[0])
            continue
        for position, axis in enumerate(axes):
            if axis == "width":
                turned = basis if scale is None else scale.unsqueeze(1) * basis
                weight = torch.tensordot(weight, turned, ([position], [0])).movedim(-1, position)
        rotated[name] = weight
    for name in weights:
        if (norm := family.read_by(name)) in norms and name.endswith(".weight") and f"{norm}.bias" in weights:
            _add_behind(name, weights, rotated, f"{norm}.bias", family)
    return rotated


def _own(basis: Tensor, stream: Tensor) -> Tensor:
    """Weights of a norm: the kept directions' root mean square, where all of them have 1, which the student's norm
    divides by instead."""
    every, width = basis.shape
    kept = torch.trace(basis.T @ stream @ basis) / torch.trace(stream).clamp_min(TINY)
    return (kept * every / width).sqrt().expand(width).clone()


def _add_behind(
    name: str, weights: Mapping[str, Tensor], rotated: dict[str, Tensor], norm: str, family: Family
) -> None:
    """Have what a matrix makes of its norm's bias added by its own. One without reads it along the vector of ones,
    where nothing else is."""
    first = family.input_axis(name) == 0
    added = weights[norm] @ weights[name] if first else weights[name] @ weights[norm]
    bias = f"{name.removesuffix('weight')}bias"
    if bias in rotated:
        rotated[bias] = rotated[bias] + added
        return
    width = len(rotated[norm])
    rotated[norm] = torch.ones_like(rotated[norm])
    along = (added / width).expand(width, -1)
    rotated[name] = rotated[name] + (along if first else along.T)

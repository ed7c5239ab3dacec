"""What a student is set beside its teacher in, other than answers: hidden states, attention maps, relations.

The teacher runs beside the student for these; its answers are still those that were computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hwsearch.distill.families import family_of
from hwsearch.distill.recipe import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwsearch.distill.objectives.objective import Inputs

RELATION_HEADS = 12  # at most, as many as divide the channels of both
RIDGE = 1e-3  # of the mean second moment
TINY = 1e-8


class Watched:
    """What a model's layers gave when it last ran, kept by hooks.

    Attributes:
        hidden: of each layer, [rows, tokens, width].
        maps: attention's probabilities of each layer, [rows, heads, tokens, tokens]; empty where it is computed fused.
        projections: queries, keys and values of the last layer, [rows, tokens, channels] each.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        family = family_of(model.config)
        layers = family.layers_of(model)
        self.hidden: list[Any] = [None] * len(layers)
        self.maps: list[Any] = [None] * len(layers)
        self.projections: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        inside = family.attention[0].rpartition(".")[0]
        for i, layer in enumerate(layers):
            self._keep(layer, self.hidden, i)
            self._keep(layer.get_submodule(inside), self.maps, i, 1)
        for name in family.attention[:-1]:
            self._keep(layers[-1].get_submodule(name), self.projections, name)

    def _keep(self, module: nn.Module, place: Any, key: Any, part: int = 0) -> None:
        def hook(module: nn.Module, arguments: Any, found: Any) -> None:  # noqa: ARG001
            place[key] = found[part] if isinstance(found, tuple) else found

        self._handles.append(module.register_forward_hook(hook))

    def relations(self) -> list[Tensor]:
        """Queries, keys and values, also where one matrix gives all three."""
        found = list(self.projections.values())
        return list(found[0].chunk(3, -1)) if len(found) == 1 else found

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()


class Beside:
    """A student and its teacher, both watched.

    Args:
        student, teacher: of one family.
        layers: the teacher's behind the student's.
        maps: for hidden states, one a layer (`hidden_maps`).
    """

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[int], maps: nn.ModuleList
    ) -> None:
        self.teacher, self.maps = teacher, maps
        depth = len(family_of(teacher.config).layers_of(teacher))
        self._partners = {
            "kept": [*(after - 1 for after in layers[1:]), depth - 1],
            "even": [round((i + 1) * depth / len(layers)) - 1 for i in range(len(layers))],
        }
        self.own, self.others = Watched(student), Watched(teacher)

    def look(self, inputs: Inputs) -> None:
        """Run the teacher."""
        with torch.no_grad():
            self.teacher.base_model(**inputs)

    def loss(self, stage: Stage, over: float, mask: Tensor | None) -> Tensor:
        """Of all that a stage looks at, a scalar.

        Args:
            stage: with the weights.
            over: how much of it is, 0 to 1.
            mask: which tokens are there, [rows, tokens]; None for all of them.
        """
        last: Tensor = self.own.hidden[-1]
        there = torch.ones(last.shape[:2], dtype=torch.bool, device=last.device) if mask is None else mask.bool()
        total = last.new_zeros((), dtype=torch.float32)
        pairs = list(enumerate(self._partners[stage.layers]))
        if stage.progressive:
            pairs = pairs[: math.floor(over * len(pairs)) + 1]
        if stage.hidden:
            found = [self._hidden(i, other, there) for i, other in pairs]
            total = total + stage.hidden * torch.stack(found).mean()
        if stage.attention:
            found = [apart(self.own.maps[i], self.others.maps[other], there) for i, other in pairs]
            total = total + stage.attention * torch.stack(found).mean()
        if stage.relations:
            both = zip(self.own.relations(), self.others.relations(), strict=True)
            found = [apart(*_related(own, other, there), there) for own, other in both]
            total = total + stage.relations * torch.stack(found).mean()
        if stage.samples:
            total = total + stage.samples * _distances(self.own.hidden[-1], self.others.hidden[-1], there)
        return total

    def _hidden(self, own: int, other: int, there: Tensor) -> Tensor:
        x, y = self.own.hidden[own][there].float(), self.others.hidden[other][there].float()
        mapped, y_mean = self.maps[own], y.mean(0)
        assert isinstance(mapped, nn.Linear)
        if not bool(mapped.weight.any()):
            _fit(mapped, x.detach(), y)
        gap: Tensor = (mapped(x) - y).square().sum() / (y - y_mean).square().sum().clamp_min(TINY)
        return gap

    def close(self) -> None:
        """Watch no longer."""
        self.own.close()
        self.others.close()


def hidden_maps(student: PreTrainedModel, teacher: PreTrainedModel) -> nn.ModuleList:
    """A linear map from a student's width to its teacher's for each of its layers, still zero: fitted when it is first
    used."""
    entry = family_of(teacher.config).entries["width"]
    sizes = getattr(student.config, entry), getattr(teacher.config, entry)
    maps = nn.ModuleList(nn.Linear(*sizes) for _ in family_of(student.config).layers_of(student))
    for parameter in maps.parameters():
        nn.init.zeros_(parameter)
    return maps


@contextmanager
def plain_attention(*models: PreTrainedModel) -> Iterator[None]:
    """Attention computed so that its maps can be seen."""
    before = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for model, kind in zip(models, before, strict=True):
            model.set_attn_implementation(kind)


def apart(own: Tensor, other: Tensor, there: Tensor) -> Tensor:
    """Mean KL of attention maps, [rows, heads, tokens, tokens], over the tokens that are there, [rows, tokens]; of
    their means over the heads where the numbers of these differ."""
    if own.shape[1] != other.shape[1]:
        own, other = own.mean(1, keepdim=True), other.mean(1, keepdim=True)
    own, other = own.float(), other.float()
    gap = (torch.xlogy(other, other) - other * own.clamp_min(TINY).log()).sum(-1)  # [rows, heads, tokens]
    mean: Tensor = gap.mean(1)[there].mean()
    return mean


def _related(own: Tensor, other: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are near each other, as softmax over tokens, for as many heads in both."""
    common = math.gcd(own.shape[-1], other.shape[-1])
    heads = max(n for n in range(1, RELATION_HEADS + 1) if common % n == 0)

    def relation(x: Tensor) -> Tensor:
        x = x.unflatten(-1, (heads, -1)).transpose(1, 2).float()  # [rows, heads, tokens, channels]
        scores = x @ x.mT / math.sqrt(x.shape[-1])
        return scores.masked_fill(~there[:, None, None, :], float("-inf")).softmax(-1)

    return relation(own), relation(other)


def _distances(own: Tensor, other: Tensor, there: Tensor) -> Tensor:
    """How differently the rows of a batch lie from each other, in units of their mean distance."""

    def distances(hidden: Tensor) -> Tensor:
        weights = there.unsqueeze(-1).float()
        pooled = (hidden.float() * weights).sum(1) / weights.sum(1).clamp_min(1)
        found = nn.functional.pdist(pooled)
        return found / found.mean().clamp_min(TINY)

    if len(own) < 2:
        return own.new_zeros(())
    gap: Tensor = nn.functional.smooth_l1_loss(distances(own), distances(other))
    return gap


@torch.no_grad()
def _fit(linear: nn.Linear, x: Tensor, y: Tensor) -> None:
    """The map with which `x` comes nearest to `y`, least squares with a ridge."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = (x - x_mean).double().cpu()
    moments = centred.T @ centred
    ridge = RIDGE * moments.diagonal().mean().clamp_min(TINY) * torch.eye(len(moments), dtype=moments.dtype)
    solved = torch.linalg.solve(moments + ridge, centred.T @ (y - y_mean).double().cpu())
    linear.weight.copy_(solved.T)
    linear.bias.copy_(y_mean - linear.weight @ x_mean)

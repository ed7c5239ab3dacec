"""What the teacher's parts carry: what slices keep, and how they make up for what they drop.

Collected in one pass over a few hundred chunks:
- importance of heads and feed-forward units, first-order Taylor (Molchanov et al. 2019, arXiv:1906.10771): the loss
  changes by about the sum of activation times gradient when an activation is set to zero;
- second moments of the normalised residual stream and of the loss's gradient there, whose principal directions a
  narrower student keeps;
- second moments of what the output projections read, with which the kept heads and units take over for the dropped
  ones;
- where norms stand behind the parts, the stream itself, to which these are fitted (`refit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hwsearch.distill.families import family_of, rows_at_once
from hwsearch.distill.objectives.objective import Objective
from hwsearch.distill.rows import UNLABELLED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = 1e-12
BATCH = 16  # rows at once, fewer where these are long or there is much to choose from
MOMENTS = 4 * 2**30  # bytes; where units do not take over for others, a student begins a few percent further off
EXPLAINED = 0.99  # of the variance of feed-forward activations
FITTED = 2**14  # positions that norms and projections are fitted on at most
WHOLE = 0.95  # of the texts for that stay as they are; what is longer is cut off, or most positions would be padding


@dataclass(frozen=True)
class Importance:
    """Statistics of a teacher over some text.

    Attributes:
        heads: importance of the query heads, [layers, heads].
        ffn: importance of the feed-forward units, [layers, ffn].
        stream: second moments of what reads the residual stream (`Family.reads`), by the module's name, [width, width];
            divided by its root mean square where a norm does so.
        slopes: second moments of the gradient of the loss by that divided stream, summed over all who read it, [width,
            width]; [0, 0] in families that do not rotate.
        attention, feed_forward: second moments of the inputs of the output projections, a layer each, [channels,
            channels]; [0, 0] of feed-forward parts that would take more than `MOMENTS` together.
        channels: importance of the channels of what is pooled of the residual stream, and of itself in families that do
            not rotate, by axis, [width].
        inputs: of the model, the text that `behind` is of.
        behind: the residual stream behind the embeddings and behind every part, [positions that are not padding,
            width]; where norms stand there (`Family.behind`).
    """

    heads: Tensor
    ffn: Tensor
    stream: dict[str, Tensor]
    slopes: Tensor
    attention: tuple[Tensor, ...]
    feed_forward: tuple[Tensor, ...]
    channels: dict[str, Tensor]
    inputs: dict[str, Tensor]
    behind: tuple[Tensor, ...]

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, streams in half precision."""
        found = {"heads": self.heads, "ffn": self.ffn, "slopes": self.slopes}
        for kind in ("stream", "channels", "inputs"):
            found |= {f"{kind}.{name}": value for name, value in getattr(self, kind).items()}
        for kind in ("attention", "feed_forward"):
            found |= {f"{kind}.{i}": value for i, value in enumerate(getattr(self, kind))}
        return found | {f"behind.{i}": stream.half() for i, stream in enumerate(self.behind)}

    def of_first(self, texts: int) -> Importance:
        """The same with the stream behind the first `texts` alone."""
        inputs = {name: value[:texts] for name, value in self.inputs.items()}
        positions = int(inputs["attention_mask"].sum())
        return replace(self, inputs=inputs, behind=tuple(stream[:positions] for stream in self.behind))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Importance:
        """What `tensors` gave."""

        def named(kind: str) -> dict[str, Tensor]:
            return {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}

        def numbered(kind: str) -> tuple[Tensor, ...]:
            found = named(kind)
            return tuple(found[str(i)] for i in range(len(found)))

        return cls(
            heads=tensors["heads"],
            ffn=tensors["ffn"],
            stream=named("stream."),
            slopes=tensors["slopes"],
            attention=numbered("attention."),
            feed_forward=numbered("feed_forward."),
            channels=named("channels."),
            inputs=named("inputs."),
            behind=numbered("behind."),
        )


def measure_importance(model: PreTrainedModel, objective: Objective, chunks: Tensor) -> Importance:
    """Statistics of `model` over `chunks`, as its objective draws them."""
    family, batch = family_of(model.config), rows_at_once(model.config, chunks.shape[1], BATCH, backward=True)
    layers = family.layers_of(model)
    heads = int(getattr(model.config, family.entries["heads"]))
    matrices = [name for name, weight in model.state_dict().items() if weight.dim() == 2]
    axes = {read: family.axes(name)[1][family.input_axis(name)] for name in matrices if (read := family.read_by(name))}
    watched: dict[str, nn.Module] = {name: model.get_submodule(name) for name in axes}
    streams = tuple(watched)
    for i, layer in enumerate(layers):
        watched[f"attention.{i}"] = layer.get_submodule(family.attention[-1])
        watched[f"feed_forward.{i}"] = layer.get_submodule(family.feed_forward[-1])

    inputs: dict[str, Tensor] = {}

    def watch(name: str) -> object:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            arguments[0].retain_grad()
            inputs[name] = arguments[0]

        return hook

    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    handles: list[Any] = [module.register_forward_pre_hook(watch(name)) for name, module in watched.items()]  # type: ignore[arg-type]
    handles.append(model.get_input_embeddings().register_forward_hook(_differentiable))
    try:
        for start in range(0, len(chunks), batch):
            part = chunks[start : start + batch]
            logits, labels = objective.logits(model, part), objective.labels(part)
            labels = torch.where(labels == UNLABELLED, logits.argmax(-1), labels)
            nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum").backward()
            for name, value in inputs.items():
                assert value.grad is not None
                x, slope = (part.flatten(0, -2).float() for part in (value.detach(), value.grad))  # [tokens, channels]
                x = x * (slope != 0).any(-1, keepdim=True)  # padding, and what nothing is read of, counts for nothing
                if name in streams:
                    if family.rotates and axes[name] == "width":
                        x = x - x.mean(-1, keepdim=True) if family.centres else x
                        size = x.square().mean(-1, keepdim=True).clamp_min(TINY).sqrt()
                        x, slope = x / size, slope * size
                        add("slopes", slope.T @ slope)
                    else:
                        add(f"taylor.{axes[name]}", (x * slope).abs().sum(0))
                else:
                    products = x * slope
                    if name.startswith("attention"):
                        products = products.unflatten(-1, (heads, -1)).sum(-1)
                    add(f"taylor.{name}", products.abs().sum(0))
                if not name.startswith("feed_forward") or 4 * len(layers) * x.shape[1] ** 2 <= MOMENTS:
                    add(name, x.T @ x)
            inputs.clear()
    finally:
        for handle in handles:
            handle.remove()
    tokens, nothing = chunks[:, :-1].numel(), torch.zeros((0, 0))
    fitted, behind = _behind(model, objective, chunks, batch) if family.behind else ({}, ())
    every = range(len(layers))
    return Importance(
        heads=torch.stack([sums[f"taylor.attention.{i}"] for i in every]),
        ffn=torch.stack([sums[f"taylor.feed_forward.{i}"] for i in every]),
        stream={name: sums[name].div_(tokens) for name in streams},  # in place: they take gigabytes
        slopes=sums.get("slopes", nothing).div_(tokens),
        attention=tuple(sums[f"attention.{i}"].div_(tokens) for i in every),
        feed_forward=tuple(sums.get(f"feed_forward.{i}", nothing).div_(tokens) for i in every),
        channels={axis: sums[f"taylor.{axis}"] for axis in axes.values() if f"taylor.{axis}" in sums},
        inputs=fitted,
        behind=behind,
    )


def _behind(
    model: PreTrainedModel, objective: Objective, chunks: Tensor, batch: int
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Inputs of a model, `FITTED` positions of them, and the stream that its norms behind the parts leave of these."""
    family = family_of(model.config)
    norms = family.norms_behind(len(family.layers_of(model)))
    inputs = objective.inputs(chunks)
    length = int(inputs["attention_mask"].sum(1).float().quantile(WHOLE).ceil())
    inputs = {name: value[: max(1, FITTED // length), :length].contiguous() for name, value in inputs.items()}
    found: list[list[Tensor]] = [[] for _ in norms]
    mask = inputs["attention_mask"].bool()

    def keep(place: int) -> Any:
        return lambda module, arguments, stream: found[place].append(stream[mask])  # noqa: ARG005

    handles = [model.get_submodule(name).register_forward_hook(keep(place)) for place, name in enumerate(norms)]
    try:
        with torch.no_grad():
            for start in range(0, len(inputs["attention_mask"]), batch):
                part = {name: value[start : start + batch] for name, value in inputs.items()}
                mask = part["attention_mask"].bool()
                model.base_model(**part)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, tuple(torch.cat(parts).float() for parts in found)


def _differentiable(module: nn.Module, arguments: Any, embedded: Tensor) -> None:  # noqa: ARG001
    """Have gradients reach back to here, and none of the weights: those of a large teacher take as much room as it."""
    embedded.requires_grad_(True)


def ffn_dimensions(model: PreTrainedModel, objective: Objective, chunks: Tensor) -> int:
    """Principal components that hold 99 % of the variance of the feed-forward activations, summed over the layers: how
    much of a student's feed-forward parts is used, for one forward pass over `chunks`, as the objective draws them."""
    found: list[int] = []

    def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG001
        x = arguments[0].detach().flatten(0, -2).double()
        x = x - x.mean(0)
        variances = torch.linalg.eigvalsh(x.T @ x).flip(0).clamp_min(0)
        found.append(int((variances.cumsum(0) < EXPLAINED * variances.sum()).sum()) + 1)

    family = family_of(model.config)
    last = family.feed_forward[-1]
    handles = [layer.get_submodule(last).register_forward_pre_hook(add) for layer in family.layers_of(model)]
    try:
        with torch.no_grad():
            model.base_model(**objective.inputs(chunks))
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)

"""What the teacher's parts carry: what slices keep, and how they make up for what they drop.

Collected in one pass over a few hundred chunks:
- importance of heads and feed-forward units, first-order Taylor (Molchanov et al. 2019, arXiv:1906.10771): the loss
  changes by about the sum of activation times gradient when an activation is set to zero;
- second moments of the normalised residual stream, whose principal directions a narrower student keeps;
- second moments of what the output projections read, with which the kept heads and units take over for the dropped
  ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPLAINED = 0.99  # of the variance of feed-forward activations


@dataclass(frozen=True)
class Importance:
    """Statistics of a teacher over some text.

    Attributes:
        heads: importance of the query heads, [layers, heads].
        ffn: importance of the feed-forward units, [layers, ffn].
        stream: second moments of the residual stream at the input of each norm, divided by its root mean square, by the
            norm's name, [width, width] each, trace = width.
        attention, feed_forward: second moments of the inputs of the output projections, a layer each, [channels,
            channels].
    """

    heads: Tensor
    ffn: Tensor
    stream: dict[str, Tensor]
    attention: tuple[Tensor, ...]
    feed_forward: tuple[Tensor, ...]


def measure_importance(model: PreTrainedModel, chunks: Tensor, batch: int = 16) -> Importance:
    """Statistics of `model` over `chunks` of token ids, [chunks, sequence + 1]; the last column holds only labels."""
    layers = list(model.get_submodule("model.layers").children())
    heads = int(model.config.num_attention_heads)
    watched: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name.endswith("norm")}
    norms = tuple(watched)
    for i, layer in enumerate(layers):
        watched[f"attention.{i}"] = layer.get_submodule("self_attn.o_proj")
        watched[f"feed_forward.{i}"] = layer.get_submodule("mlp.down_proj")

    inputs: dict[str, Tensor] = {}

    def watch(name: str) -> object:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            arguments[0].retain_grad()
            inputs[name] = arguments[0]

        return hook

    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in watched.items()]  # type: ignore[arg-type]
    model.requires_grad_(True)
    try:
        for start in range(0, len(chunks), batch):
            part = chunks[start : start + batch]
            logits = model(input_ids=part[:, :-1], use_cache=False).logits
            nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").backward()
            model.zero_grad(set_to_none=True)
            for name, value in inputs.items():
                assert value.grad is not None
                x, slope = value.detach().flatten(0, 1), value.grad.flatten(0, 1)  # [tokens, channels]
                if name in norms:
                    x = x * x.square().mean(-1, keepdim=True).rsqrt()
                else:
                    products = x * slope
                    if name.startswith("attention"):
                        products = products.unflatten(-1, (heads, -1)).sum(-1)
                    add(f"taylor.{name}", products.abs().sum(0))
                add(name, x.T @ x)
            inputs.clear()
    finally:
        model.requires_grad_(False)
        for handle in handles:
            handle.remove()
    tokens = chunks[:, :-1].numel()
    every = range(len(layers))
    return Importance(
        heads=torch.stack([sums[f"taylor.attention.{i}"] for i in every]),
        ffn=torch.stack([sums[f"taylor.feed_forward.{i}"] for i in every]),
        stream={name: sums[name] / tokens for name in norms},
        attention=tuple(sums[f"attention.{i}"] / tokens for i in every),
        feed_forward=tuple(sums[f"feed_forward.{i}"] / tokens for i in every),
    )


def ffn_dimensions(model: PreTrainedModel, chunks: Tensor) -> int:
    """Principal components that hold 99 % of the variance of the feed-forward activations, summed over the layers: how
    much of a student's feed-forward parts is used, for one forward pass over `chunks`, [chunks, sequence + 1]."""
    found: list[int] = []

    def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG001
        x = arguments[0].detach().flatten(0, 1).double()
        x = x - x.mean(0)
        variances = torch.linalg.eigvalsh(x.T @ x).flip(0).clamp_min(0)
        found.append(int((variances.cumsum(0) < EXPLAINED * variances.sum()).sum()) + 1)

    layers = model.get_submodule("model.layers").children()
    handles = [layer.get_submodule("mlp.down_proj").register_forward_pre_hook(add) for layer in layers]
    try:
        with torch.no_grad():
            model(input_ids=chunks[:, :-1], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)

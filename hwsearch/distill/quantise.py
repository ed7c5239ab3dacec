"""Fake quantisation: what the runtime will do to a layer's numbers, inside the training graph.

Values are rounded to the runtime's grid and gradients let through inside the range (straight-through, Bengio et al.
2013, arXiv:1308.3432). Which grid is the `Scheme`'s: a static range is a running mean of the extremes of the training
batches, a dynamic one is taken from each tensor. PyTorch's own fake-quantise kernels do the same, element by element on
a CPU; a few vectorised passes take a fraction of the time (`benchmarks/steps.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from hwsearch.architecture import Architecture
from hwsearch.distill.families import family_of
from hwsearch.distill.products import Gridded, are_fast, product
from hwsearch.precision import Precision, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINED = "_trained_range"  # where a layer that is in float again keeps its range
RANGE_MOMENTUM = 0.95  # of the running range of static activations
_TINY = 1e-8


class Rounded:
    """The last input that one of a group of layers has rounded, and what it became: query, key and value read the same
    one, gate and up too."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.rounded: Gridded | None = None
        self.training = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Rounded:
        """Of the same group's copies; what was rounded last is nothing to copy."""
        return Rounded()


def recomputing() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts in which activations are computed, and computed again on the way back: running ranges move once.
    `context_fn` of `torch.utils.checkpoint`."""
    return nullcontext(), _again()


@contextmanager
def _again() -> Iterator[None]:
    QuantisedLinear.again = True
    try:
        yield
    finally:
        QuantisedLinear.again = False


@contextmanager
def apart(groups: int) -> Iterator[None]:
    """Dynamic ranges of activations are each of one of so many equal parts of a batch, as if a model saw them one after
    the other."""
    QuantisedLinear.groups = groups
    try:
        yield
    finally:
        QuantisedLinear.groups = 1


class QuantisedLinear(nn.Linear):
    """A linear layer that computes as its quantised counterpart does: weights and input on the int8 grid, or weights
    alone on that of int8 or int4.

    A float layer becomes one by `quantise` and a float one again by `restore`; its weights stay where they are.
    """

    again: ClassVar[bool] = False  # whether activations are computed again, on the way back
    groups: ClassVar[int] = 1  # of a batch, with dynamic ranges of their own
    plain: type[nn.Module]  # what it was: GPT-2's kind has its matrix the other way round
    precision: Precision
    scheme: Scheme
    shared: Rounded
    low: Tensor  # running range of the input, for static schemes; both 0 before the first batch
    high: Tensor
    known: bool  # whether there is a range; asked of the buffers once, for a GPU must come to a stop to tell
    resting: bool  # whether it computes in float for the time being

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """The layer's output, [..., out], with input and weights on their grids."""
        if self.resting or self.precision is not Precision.INT8 or not are_fast(input):
            return nn.functional.linear(*self.rounded(input), self.bias)
        found = product(self._activations(input), self._grid(self._plain_weights()))
        return found if self.bias is None else found + self.bias

    def rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """An input and the weights, [out, in], on their grids."""
        if self.resting:
            return x, self._plain_weights()
        return self._activations(x).values if self.precision is Precision.INT8 else x, self._weights()

    def _plain_weights(self) -> Tensor:
        return self.weight if issubclass(self.plain, nn.Linear) else self.weight.T

    def _weights(self) -> Tensor:
        plain = self._plain_weights()
        weight = plain.float()  # of a teacher in half precision, whose grid would be rounded once more
        if self.precision is Precision.INT4:
            return in_groups(weight, self.scheme.group).to(plain.dtype)
        return self._grid(weight).values.to(plain.dtype)

    def _grid(self, weight: Tensor) -> Gridded:
        """Weights, [out, in], on that of int8."""
        per_channel = self.scheme.weights == "channel"
        with torch.no_grad():
            largest = weight.abs().amax(dim=1, keepdim=True) if per_channel else weight.abs().amax()
            narrow = self.precision is Precision.INT8 and self.scheme.weight_bits == 7
            scale = largest.clamp_min(_TINY) / (64 if narrow else 127)  # as ONNX Runtime's reduced range has it
        return Gridded(on_grid(weight, scale), scale)

    def _activations(self, x: Tensor) -> Gridded:
        """The input on its grid. Rounding is half of what int8 adds to a step: one of several readers does it."""
        # Where a head is asked for some positions of each text alone, these are no equal parts.
        grouped = self.groups > 1 and self.scheme.activations == "dynamic" and not len(x) % self.groups
        parts = x.reshape(self.groups, -1) if grouped else x
        with torch.no_grad():
            low, high = self._range(parts, 1 if grouped else None)
        shared = self.shared
        if shared.given is not x or shared.rounded is None or shared.training != self.training:
            found = self._round(parts.float(), low.float(), high.float())
            shared.rounded = replace(found, values=found.values.to(x.dtype).view_as(x))
            shared.given, shared.training = x, self.training
        return shared.rounded

    def _round(self, x: Tensor, low: Tensor, high: Tensor) -> Gridded:
        with torch.no_grad():
            if self.scheme.activation_type == "uint8":
                scale = ((high - low) / 255).clamp_min(_TINY)
                zero = torch.round(-low / scale)
                bounds = (-zero, 255 - zero)
            else:
                scale = (torch.maximum(-low, high) / 127).clamp_min(_TINY)
                bounds = (torch.full_like(scale, -128), torch.full_like(scale, 127))  # as QuantizeLinear saturates
        return Gridded(on_grid(x, scale, bounds), scale, bounds[0])

    def _range(self, x: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
        """Of the whole input, or along one dimension, which stays."""
        static = self.scheme.activations == "static"
        if static and not self.known:
            self.known = bool(self.high > self.low)
        if static and self.known and (not self.training or self.again):
            return self.low, self.high  # as they were when it was computed first
        low, high = torch.aminmax(x.detach(), dim=dim, keepdim=dim is not None)
        # In float32, as they are kept; zero is on the grid.
        low, high = low.float().clamp_max(0.0), high.float().clamp_min(0.0)
        if not static:
            return low, high
        if self.known:
            low, high = torch.lerp(low, self.low, RANGE_MOMENTUM), torch.lerp(high, self.high, RANGE_MOMENTUM)
        if self.training:
            self.low.copy_(low)
            self.high.copy_(high)
        return low, high


def on_grid(x: Tensor, scale: Tensor, bounds: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """`x` rounded to multiples of `scale`, from `bounds[0]` to `bounds[1]` of them; the gradient is let through inside.

    Args:
        x: any shape.
        scale: that broadcasts against it.
        bounds: multiples, scalars; None where nothing lies outside.
    """
    result: Tensor = _OnGrid.apply(x, scale, bounds)  # type: ignore[no-untyped-call]
    return result


def in_groups(weight: Tensor, group: int) -> Tensor:
    """Weights, [out, in], on a grid of 16 values from the least to the largest of each `group` inputs of an output,
    zero among them; the gradient is let through. As ONNX Runtime's `quantize_matmul_4bits` has them, which multiplies
    by the reciprocal of a scale and rounds a half upwards."""
    out, inputs = weight.shape
    padded = nn.functional.pad(weight, (0, -inputs % group)).view(out, -1, group)
    with torch.no_grad():
        low, high = torch.aminmax(padded, dim=-1, keepdim=True)
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        scale = ((high - low) / 15).clamp_min(_TINY)
        per_step = scale.reciprocal()
        zero = (-low * per_step + 0.5).floor_().clamp_(0, 15)
        rounded = ((padded * per_step + zero + 0.5).floor_().clamp_(0, 15) - zero) * scale
        change = rounded.view(out, -1)[:, :inputs] - weight
    return weight + change


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
        steps = (x / scale).round_()  # a product with the reciprocal takes the other side of some ties than runtimes do
        if bounds is None:
            return steps.mul_(scale)
        low, high = bounds
        if x.device.type == "cpu" and low.dim() == 0:  # a processor takes several times as long for bounds in tensors
            ctx.bounds = float(low) - 0.5, float(high) + 0.5
            ctx.save_for_backward(steps)
            return steps.clamp(float(low), float(high)).mul_(scale)
        inside = steps.clamp(low, high)
        ctx.save_for_backward(inside == steps)
        return inside.mul_(scale)

    @staticmethod
    def backward(ctx: Any, d_rounded: Tensor) -> tuple[Tensor, None, None]:
        saved = ctx.saved_tensors
        if not saved:
            return d_rounded, None, None
        if saved[0].dtype is torch.bool:
            return d_rounded * saved[0], None, None
        return torch.ops.aten.hardtanh_backward(d_rounded, saved[0], *ctx.bounds), None, None


def quantise(part: nn.Module, names: Iterable[str], scheme: Scheme, precision: Precision = Precision.INT8) -> None:
    """Make the linear layers of a part that have these names compute as their quantised counterparts, in place."""
    shared = Rounded()
    for name in names:
        linear = part.get_submodule(name)
        plain = type(linear)
        linear.__class__ = QuantisedLinear
        assert isinstance(linear, QuantisedLinear)
        linear.plain, linear.precision, linear.scheme = plain, precision, scheme
        linear.shared, linear.known, linear.resting = shared, False, False
        trained = linear.__dict__.pop(TRAINED, None) or torch.zeros(2, device=linear.weight.device).unbind()
        for end, value in zip(("low", "high"), trained, strict=True):
            linear.register_buffer(end, value.clone())


def rest(model: nn.Module, resting: bool) -> None:
    """Have the quantised layers of a model compute in float, or round again; what they are stays."""
    for module in model.modules():
        if isinstance(module, QuantisedLinear):
            module.resting = resting


def settle(model: nn.Module) -> None:
    """Leave the quantised layers of a model the weights that they compute with, those on their grids, in place. What
    an embedding shares stays as it is: that one is not rounded."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, QuantisedLinear) and id(module.weight) not in embeddings:
                module._plain_weights().copy_(module._weights())


def restore(model: nn.Module) -> None:
    """Make every quantised layer of a model a float one again, in place."""
    for module in model.modules():
        if isinstance(module, QuantisedLinear):
            module.__class__ = module.plain  # type: ignore[assignment]
            low, high = module.low, module.high
            for end in ("low", "high"):
                module._buffers.pop(end)
            if bool(high > low):
                module.__dict__[TRAINED] = (low, high)  # in case it is quantised again


def parts_of(model: PreTrainedModel) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """What has a precision of its own: a module and the names of linear layers in it, attention and feed-forward of the
    first layer, of the second, and so on, and last a language model's head."""
    family = family_of(model.config)
    parts = [(layer, names) for layer in family.layers_of(model) for names in (family.attention, family.feed_forward)]
    head = model.get_output_embeddings()
    return parts + [(model, (name,)) for name, module in model.named_modules() if module is head]


def quantise_parts(model: PreTrainedModel, architecture: Architecture, scheme: Scheme) -> None:
    """Quantise the parts of a student that `architecture` has in int8, w8a16 or int4, in place. Float parts stay in
    float32: fp16's rounding is three orders of magnitude finer than int8's.
    """
    for (module, names), precision in zip(parts_of(model), architecture.parts, strict=True):
        if not precision.is_float:
            quantise(module, names, scheme, precision)

"""A student cut out of the teacher: the layers, directions, heads and units that matter most, in the teacher's own
class.

- Layers are given (`layers` says which are best).
- Width: the residual stream is rotated to principal directions and the first are kept (`rotation`). Where that
  cannot be folded into the weights, the most important channels are kept, and what reads the stream takes over as
  below.
- Heads and units: the most important are kept, and their output projections solve a ridge regression for the
  contribution of all.
- Where norms stand behind the parts, output projections and norms make up for what is left out (`refit`).

Slicing to the teacher's own shape gives the teacher's own outputs, exactly: an axis that keeps everything is not
touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor, nn

from hwsearch.architecture import Architecture
from hwsearch.distill.families import architecture_of, attention_of, config_of, family_of
from hwsearch.distill.families.family import Family
from hwsearch.distill.importance import Importance
from hwsearch.distill.refit import refit
from hwsearch.distill.rotation import basis_of, rotate
from hwsearch.errors import ArchitectureError
from hwsearch.precision import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RIDGE = 1e-3  # of the mean second moment


@dataclass(frozen=True)
class StudentPlan:
    """An architecture and which teacher layers it keeps.

    Attributes:
        architecture: of the student.
        layers: the teacher's layer behind each of the student's, rising.
    """

    architecture: Architecture
    layers: tuple[int, ...]


def build_student(teacher: PreTrainedModel, plan: StudentPlan, importance: Importance) -> PreTrainedModel:
    """The student of `plan`, in float32, cut out of the teacher.

    Raises:
        ArchitectureError: the plan has more of anything than the teacher, head counts that do not fit the teacher's
            groups, or a narrower residual stream with a tied head.
    """
    family = family_of(teacher.config)
    kept = _kept(teacher, plan, importance)
    source = {name: weight.detach() for name, weight in teacher.state_dict().items()}
    weights: dict[str, Tensor] = {}
    student = empty_student(teacher, plan.architecture, plan.layers)
    for name in student.state_dict():
        layer, axes = family.axes(name)
        origin = _origin(name, plan, family)
        weight = source[origin].float()
        for position, axis in enumerate(axes):
            indices = kept.get(f"{axis}.{layer}", kept.get(axis))
            if indices is None or len(indices) == weight.shape[position]:
                continue
            moments = _moments(axis, position, origin, importance, family) if len(axes) == 2 else None
            if moments is None:
                weight = weight.index_select(position, indices)
            elif position:
                weight = _take_over(weight, moments, indices)
            else:
                weight = _take_over(weight.T, moments, indices).T
        weights[name] = weight
    basis = None
    if family.rotates and plan.architecture.width < architecture_of(teacher.config, Precision.FP32).width:
        streams = streams_of(weights, plan, importance, family)
        basis = basis_of(streams, importance.slopes, plan.architecture.width, family.centres)
        weights = rotate(weights, streams, basis, family)
    student.load_state_dict(weights)
    whole = len(weights) == len(source) and all(weight.shape == source[name].shape for name, weight in weights.items())
    if family.behind and not whole:
        refit(student, plan.layers, importance, basis)
    return student


def streams_of(weights: Iterable[str], plan: StudentPlan, importance: Importance, family: Family) -> dict[str, Tensor]:
    """Second moments of the teacher's residual stream, by who reads it in a student with these weights."""
    axes = ((name, family.axes(name)[1]) for name in weights)
    readers = {family.read_by(name) for name, along in axes if along[1:] and along[family.input_axis(name)] == "width"}
    return {name: importance.stream[_origin(name, plan, family)] for name in readers if name is not None}


def random_student(teacher: PreTrainedModel, architecture: Architecture, seed: int) -> PreTrainedModel:
    """A student of the same shape with fresh weights, as Transformers initialises them."""
    torch.manual_seed(seed)
    return _shaped(teacher, architecture)


def empty_student(
    teacher: PreTrainedModel, architecture: Architecture, layers: Sequence[int] | None = None
) -> PreTrainedModel:
    """A student of a shape whose weights are yet to be loaded, in float32, the teacher's `layers` behind its own; where
    its layers differ in size, one that no stock configuration describes."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        student = _shaped(teacher, architecture, layers)
    student.tie_weights()
    return student


def _shaped(
    teacher: PreTrainedModel, architecture: Architecture, layers: Sequence[int] | None = None
) -> PreTrainedModel:
    own_head_dim = family_of(teacher.config).own_head_dim
    stock = architecture if architecture.uniform else _stock(architecture, own_head_dim)
    config = config_of(stock, teacher.config, layers)
    student: PreTrainedModel = type(teacher)(config)
    student.float()
    if getattr(teacher, "pooler", student) is None:
        student.pooler = None  # type: ignore[assignment]
    student.set_attn_implementation(attention_of(config))
    if not architecture.uniform:
        _reshape(student, architecture)
    return student


def _stock(architecture: Architecture, own_head_dim: bool) -> Architecture:
    """Some shape that a configuration may have, with as many layers of the same width."""
    heads = 1 if own_head_dim else architecture.width // architecture.head_dim
    layers = tuple(msgspec.structs.replace(layer, heads=heads, kv_heads=heads, ffn=1) for layer in architecture.layers)
    return msgspec.structs.replace(architecture, layers=layers)


def _reshape(student: PreTrainedModel, architecture: Architecture) -> None:
    """Give every layer's matrices the sizes of its own; the families' code reads the number of heads from these."""
    from transformers.pytorch_utils import Conv1D

    family, head_dim = family_of(student.config), architecture.head_dim
    for module, layer in zip(family.layers_of(student), architecture.layers, strict=True):
        heads, kv_heads = layer.heads * head_dim, layer.kv_heads * head_dim
        sizes = {"width": architecture.width, "head": heads, "kv_head": kv_heads, "qkv": 3 * heads}
        sizes |= {"ffn": layer.ffn, "gate_up": 2 * layer.ffn}
        for name in (*family.attention, *family.feed_forward):
            first, second = (sizes[axis] for axis in family.layer[f"{name}.weight"])
            biased = module.get_submodule(name).bias is not None
            own = Conv1D(second, first) if family.transposed else nn.Linear(second, first, bias=biased)
            module.set_submodule(name, own)
        for part in module.modules():
            if hasattr(part, "num_key_value_groups"):
                part.num_key_value_groups = layer.heads // layer.kv_heads  # type: ignore[assignment]
            if hasattr(part, "split_size"):
                part.split_size = heads  # type: ignore[assignment]


def _kept(teacher: PreTrainedModel, plan: StudentPlan, importance: Importance) -> dict[str, Tensor]:
    """Indices kept along "head.N", "kv_head.N", "ffn.N" and what is made of these of the student's layer N, and where
    the residual stream is not rotated along "width" and "pooled"."""
    config, width, layers = teacher.config, plan.architecture.width, plan.architecture.layers
    family, whole = family_of(config), architecture_of(config, Precision.FP32)
    heads, kv_heads, units = whole.layers[0].shape
    group = heads // kv_heads
    sizes = (
        ("width", width, whole.width),
        ("kv_heads", max(layer.kv_heads for layer in layers), kv_heads),
        ("heads per key-value head", max(layer.heads // layer.kv_heads for layer in layers), group),
        ("ffn", max(layer.ffn for layer in layers), units),
        ("depth", plan.architecture.depth, whole.depth),
    )
    for name, wanted, available in sizes:
        if wanted > available:
            raise ArchitectureError(f"a student is cut out of its teacher: {name} is {available} at most; got {wanted}")
    if plan.architecture.head_dim != whole.head_dim:
        raise ArchitectureError(f"heads are kept whole: head_dim is {whole.head_dim}; got {plan.architecture.head_dim}")
    uniform, first = plan.architecture.uniform, layers[0]
    if uniform and not family.own_head_dim and first.heads * plan.architecture.head_dim != width:
        raise ArchitectureError(
            f"a {config.model_type} shares its width among the heads: {first.heads} of {plan.architecture.head_dim} "
            f"channels are not {width}"
        )
    if plan.architecture.tied and width < whole.width:
        raise ArchitectureError(
            "a narrower student has a head of its own (tied = false): the last norm is folded into it"
        )

    kept: dict[str, Tensor] = {}
    for axis, values in importance.channels.items():
        kept[axis] = _largest(values, width)
    for i, (origin, shape) in enumerate(zip(plan.layers, layers, strict=True)):
        by_group = importance.heads[origin].view(kv_heads, group)
        groups = _largest(by_group.sum(1), shape.kv_heads)
        wanted = shape.heads // shape.kv_heads
        members = torch.stack([g * group + _largest(by_group[g], wanted) for g in groups]).flatten()
        kept[f"head.{i}"] = own = _channels(members, plan.architecture.head_dim)
        kept[f"qkv.{i}"] = _blocks(own, heads * whole.head_dim, 3)
        kept[f"kv_head.{i}"] = _channels(groups, plan.architecture.head_dim)
        kept[f"ffn.{i}"] = own = _largest(importance.ffn[origin], shape.ffn)
        kept[f"gate_up.{i}"] = _blocks(own, units, 2)
    return kept


def _origin(name: str, plan: StudentPlan, family: Family) -> str:
    """The teacher's weight behind a student's."""
    layer, rest = family.place(name)
    return name if layer is None else family.named(plan.layers[layer], rest)


def _moments(axis: str, position: int, origin: str, importance: Importance, family: Family) -> Tensor | None:
    """Second moments of what a weight reads along an axis that narrows."""
    if position != family.input_axis(origin):
        return None
    if axis in ("head", "ffn"):
        layer, _ = family.place(origin)
        assert layer is not None
        moments = (importance.attention if axis == "head" else importance.feed_forward)[layer]
        return moments if moments.numel() else None
    read = family.read_by(origin)
    return None if read is None else importance.stream[read]


def _take_over(weight: Tensor, moments: Tensor, kept: Tensor) -> Tensor:
    """The matrix over the kept inputs whose outputs come nearest to those of `weight` over all: argmin E |W x - W'
    x_kept|^2 with a ridge."""
    among = moments[kept][:, kept].double()
    ridge = RIDGE * among.diagonal().mean().clamp_min(1e-12)
    among = among + ridge * torch.eye(len(kept), dtype=among.dtype)
    solved: Tensor = torch.linalg.solve(among, (weight @ moments[:, kept]).double().T)
    return solved.T.to(weight.dtype)


def _largest(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest values, in rising order."""
    return values.topk(count).indices.sort().values


def _channels(heads: Tensor, head_dim: int) -> Tensor:
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _blocks(indices: Tensor, size: int, count: int) -> Tensor:
    """The same indices in each of `count` blocks of `size`."""
    return torch.cat([indices + block * size for block in range(count)])

"""A student's graph in float, as PyTorch's exporter writes it.

Two things are written as runtimes know to fuse them: attention without the guard against rows that see nothing, and a
root-mean-square norm as a division.
"""

from __future__ import annotations

import copy
import logging
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from hwsearch.distill.families import longest_of
from hwsearch.distill.quantise import QuantisedLinear, restore
from hwsearch.errors import ExportError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwsearch.distill.objectives.objective import Objective

Shape = tuple[int, int]  # batch, sequence
MASKED = -3e4  # what a mask adds in float16
TRACED, TRACED_BEFORE = 16, 5  # tokens that an open graph is traced on, and cached ones before them
OPSET = 20  # float16 scales need 19; what JetPack 6 has reads 20 at most


class _Whole(nn.Module):
    """One forward pass."""

    def __init__(self, student: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self.counts = hasattr(student.base_model, "wpe")  # GPT-2 learns positions, others compute or compare them

    def forward(self, *inputs: Tensor) -> Tensor:
        """Every answer; inputs in the order of `Objective.axes`."""
        given = dict(zip(self.objective.axes, inputs, strict=True))
        if self.counts:
            given["position_ids"] = _positions(given["attention_mask"])
        return self.objective.answer(self.student, given).float()


class _Continued(nn.Module):
    """New tokens behind those whose keys and values are given."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__()
        self.student = student

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[list[Tensor]]) -> tuple[Tensor, ...]:
        """Logits of the last position, and all keys and values."""
        from transformers import DynamicCache

        positions = _positions(attention_mask)
        given: Any = {
            "attention_mask": attention_mask,
            "position_ids": positions[:, past[0][0].shape[2] :],
            "past_key_values": DynamicCache(tuple(map(tuple, past))),
            "use_cache": True,
        }
        found = self.student(input_ids=input_ids, logits_to_keep=1, **given)
        present = [tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (found.logits.float(), *present)


def _positions(mask: Tensor) -> Tensor:
    """They count from the first token that is there: shorter texts may be filled up at their beginning, so that what
    is said of the last position is of a text's last token."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def in_floats(model: nn.Module, dtype: torch.dtype) -> None:
    """Take a model's weights in other floats. Not its buffers: the frequencies of rotary positions stay in float32, as
    in Transformers, or far positions would be turned by something else."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def float_graph(
    student: PreTrainedModel, objective: Objective, half: bool, shape: Shape | None, cached: bool
) -> onnx.ModelProto:
    """What PyTorch's exporter makes of a student with every layer in float.

    Raises:
        ExportError: it cannot write such a model.
    """
    model = copy.deepcopy(student).eval()
    head = model.get_output_embeddings()
    if isinstance(head, QuantisedLinear):  # and what it may share its weights with is not
        head.weight = nn.Parameter(head.weight.detach().clone())
    restore(model)
    _input_last(model)
    model.set_attn_implementation("eager")
    model.config.use_cache = cached
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_divided_norm, module)
    in_floats(model, torch.float16 if half else torch.float32)
    before = TRACED_BEFORE if cached else 0
    batch, sequence = shape or (2, min(TRACED, (longest_of(model.config) or TRACED + before) - before))
    blank = objective.blank(batch, sequence)
    names, outputs = list(objective.axes), [objective.output]
    inputs: tuple[Any, ...] = tuple(blank[name] for name in names)
    each = tuple(dict(enumerate(map(_axis, axes))) for axes in objective.axes.values())
    axes: tuple[Any, ...] = (each,)  # of all the positional ones
    if cached:
        ids = blank["input_ids"]
        with torch.no_grad():
            seen_before = model(input_ids=ids[:, :1].expand(-1, before), use_cache=True).past_key_values
        past = [[layer.keys.clone(), layer.values.clone()] for layer in seen_before.layers]
        count = len(past)
        seen = {0: _axis("batch"), 1: _axis("seen")}
        stored = {0: _axis("batch"), 2: _axis("past")}
        inputs = (ids, torch.ones((batch, sequence + before), dtype=torch.int64), past)
        axes = (each[0], seen, [[stored, stored] for _ in range(count)])
        parts = [f"{i}.{part}" for i in range(count) for part in ("key", "value")]
        names += [f"past.{part}" for part in parts]
        outputs += [f"present.{part}" for part in parts]
    try:
        with _quiet():
            program = torch.onnx.export(
                _Continued(model) if cached else _Whole(model, objective),
                inputs,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=None if shape and not cached else axes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = next(filter(None, map(str.strip, str(error.__cause__ or error).splitlines())), type(error).__name__)
        raise ExportError(f"PyTorch's exporter cannot write this model as a graph: {shorten(reason, 200)}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    if half:
        _mask_higher(proto)
    return proto


def _mask_higher(model: onnx.ModelProto) -> None:
    """Have a mask add less than the lowest number of float16: where all scores of a row that sees nothing are negative,
    their sums would be infinite, and its softmax no number."""
    lowest = np.finfo(np.float16).min
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16 and np.prod(tensor.dims) == 1:
            value = numpy_helper.to_array(tensor)
            raised = np.where(value == lowest, np.float16(MASKED), value)
            tensor.CopyFrom(numpy_helper.from_array(raised, tensor.name))


def _input_last(model: nn.Module) -> None:
    """Put linear layers in place of those that have their matrix the other way round: one kind of product is less to
    tell apart."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.nx, module.nf)
            linear.weight, linear.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
            model.set_submodule(name, linear)


def _axis(name: str) -> Any:
    return torch.export.Dim(name, min=0 if name == "past" else 1)


def _divided_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """A root-mean-square norm, in float32 as Transformers takes it, by division: what ONNX Runtime and TensorRT know as
    a norm."""
    x = hidden_states.float()
    root = (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
    scaled: Tensor = self.weight * (x / root).to(hidden_states.dtype)
    return scaled


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what the exporter says of packages that are not there and of axes that it names itself."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)

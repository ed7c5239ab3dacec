"""A student as an ONNX graph, each part in its precision.

ONNX Runtime's own quantiser puts the linear layers of the int8 parts of the float graph into int8, by the scheme that
the student was trained for: MatMulInteger for dynamic ranges, QuantizeLinear and DequantizeLinear for static ones,
which are those that training has found. Half precision is float16 throughout, what Transformers takes in float32 left
there.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from hwsearch.distill.quantise import QuantisedLinear
from hwsearch.errors import ExportError
from hwsearch.export.float_graph import Shape, float_graph
from hwsearch.precision import Precision, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwsearch.distill.objectives.objective import Objective

TINY = 1e-8  # a scale is at least that of this weight
LEAST_HALF = np.float16(2.0**-24)  # that is not 0
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules that a node comes from


def onnx_model(
    student: PreTrainedModel,
    objective: Objective,
    scheme: Scheme,
    half: bool = False,
    shape: Shape | None = None,
    cached: bool = False,
) -> onnx.ModelProto:
    """The graph of a student.

    Inputs are the objective's: `input_ids` and `attention_mask`, [batch, sequence] int64, of texts. The output is
    `logits`, or what else the objective calls it, float32.

    With `cached`, keys and values that were computed before are inputs, `past.N.key` and `past.N.value`, [batch,
    kv_heads, past, head_dim], of which there may be none; all of them are outputs, `present.N.key` and so on. The mask
    covers past and new tokens, and the logits are of the last position alone, [batch, 1, vocab].

    Args:
        student: with its parts rounded by its plan; not changed.
        objective: what it is for.
        scheme: by which they were trained.
        half: float parts in float16.
        shape: of static inputs; symbolic by default.
        cached: for the new tokens of a generation.

    Raises:
        ExportError: ONNX Runtime's quantiser has no such scheme, or a static range was never set.
    """
    by_precision: dict[Precision, dict[str, QuantisedLinear]] = {}
    for name, module in student.named_modules():
        if isinstance(module, QuantisedLinear):
            by_precision.setdefault(module.precision, {})[name] = module
    eight = by_precision.get(Precision.INT8, {})
    check_scheme(scheme, half, list(eight.values()))
    model = float_graph(student, objective, half, shape, cached)
    if four := by_precision.get(Precision.INT4):
        model = _four_bit_weights(model, _nodes_of(model, set(four)), scheme.group)
    if wide := by_precision.get(Precision.W8A16):
        _eight_bit_weights(model, _nodes_of(model, set(wide)), scheme)
    if not eight:
        return model
    constant = {tensor.name for tensor in model.graph.initializer}
    if missing := [name for name, node in _nodes_of(model, set(eight)).items() if node.input[1] not in constant]:
        raise ExportError(f"the exporter's graph has no constant weights of {', '.join(missing)}; report this as a bug")
    readers = _stand_apart(model, _nodes_of(model, set(eight)))
    ranges = {
        given: (eight[name].low, eight[name].high) for name, (_, given) in readers.items()
    }  # those who read one input have one range
    with _own_log():
        return _quantise(model, [node for node, _ in readers.values()], scheme, ranges, half)


def check_scheme(scheme: Scheme, half: bool, quantised: list[QuantisedLinear]) -> None:
    """Raise unless ONNX Runtime's quantiser can write the scheme.

    Raises:
        ExportError: it cannot.
    """
    if not quantised:
        return
    if scheme.activations == "dynamic" and (scheme.activation_type == "int8" or half):
        raise ExportError(
            "ONNX quantises activations as they pass to uint8, beside float32; this student was trained for "
            f"{scheme.activation_type} beside {'float16' if half else 'float32'}, as the runtime that it was searched "
            "for has them. Search with --runtime onnxruntime"
        )
    if scheme.activations == "static" and not all(bool(module.high > module.low) for module in quantised):
        raise ExportError("the student has int8 parts without ranges; train it for a step at least")


@contextmanager
def _own_log() -> Iterator[None]:
    """The log as it was: a module of ONNX Runtime's sets it up for everybody as it is imported, and its quantisers
    hint in everybody's name."""
    log = logging.getLogger()
    level, handlers = log.level, list(log.handlers)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        log.handlers[:] = handlers


def _nodes_of(model: onnx.ModelProto, modules: set[str]) -> dict[str, onnx.NodeProto]:
    """The matrix product of each of some linear layers.

    Raises:
        ExportError: the graph does not tell.
    """
    products = (node for node in model.graph.node if node.op_type in ("MatMul", "Gemm"))
    found = {name: node for node in products if (name := module_of(node)) in modules}
    if missing := sorted(modules - set(found)):
        raise ExportError(f"the exporter's graph has no matrix product of {', '.join(missing)}; report this as a bug")
    return found


def _stand_apart(model: onnx.ModelProto, products: dict[str, onnx.NodeProto]) -> dict[str, tuple[str, str]]:
    """Give some matrix products an input that none but they and their like reads, so that nobody else is given the
    rounded one; the name of each and that input, by module."""
    own: dict[str, str] = {}
    for node in products.values():
        given = node.input[0]
        if given not in own:
            own[given] = f"{given}.rounded"
            place = list(model.graph.node).index(node)
            model.graph.node.insert(place, helper.make_node("Identity", [given], [own[given]], own[given]))
    for node in products.values():
        node.input[0] = own[node.input[0]]
    return {name: (node.name, node.input[0]) for name, node in products.items()}


def _four_bit_weights(model: onnx.ModelProto, products: dict[str, onnx.NodeProto], group: int) -> onnx.ModelProto:
    """The graph with the weights of some products in int4, by groups, by ONNX Runtime's own quantiser."""
    with _own_log():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    wanted = {node.name for node in products.values()}
    others = [n.name for n in model.graph.node if n.op_type in ("MatMul", "Gather") and n.name not in wanted]
    quantiser = MatMulNBitsQuantizer(model, block_size=group, is_symmetric=False, nodes_to_exclude=others)
    quantiser.process()
    found: onnx.ModelProto = quantiser.model.model
    return found


def _eight_bit_weights(model: onnx.ModelProto, products: dict[str, onnx.NodeProto], scheme: Scheme) -> None:
    """Put the weights of some products into int8 with a scale for each output or for all of them, in place; ONNX
    Runtime's quantiser does so only together with the activations."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in products.values():
        name = node.input[1]
        value = numpy_helper.to_array(weights[name])  # [in, out]
        across = 0 if scheme.weights == "channel" else None
        scale = np.maximum(np.abs(value.astype(np.float32)).max(across), TINY) / 127
        rounded = np.clip(np.round(value.astype(np.float32) / scale), -127, 127).astype(np.int8)
        model.graph.initializer.remove(weights[name])
        # Zero points of 0 may be left out, but `WIDE_PRODUCTS` fails with a matrix that has none.
        parts = {"int8": rounded, "scale": np.asarray(scale, value.dtype), "zero": np.zeros_like(scale, np.int8)}
        for part, array in parts.items():
            model.graph.initializer.append(numpy_helper.from_array(array, f"{name}.{part}"))
        wide = helper.make_node("DequantizeLinear", [f"{name}.{part}" for part in parts], [f"{name}.wide"], axis=1)
        model.graph.node.insert(list(model.graph.node).index(node), wide)
        node.input[1] = f"{name}.wide"


def module_of(node: onnx.NodeProto) -> str | None:
    """The module of a student that a node of an exported graph computes, by the names that the exporter notes."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            scopes = [str(scope) for scope in json.loads(entry.value.replace("'", '"'))]
            inside = [scope for scope in scopes if scope.startswith("student.")]
            return inside[-1].removeprefix("student.") if inside else None
    return None


def _quantise(
    model: onnx.ModelProto, nodes: list[str], scheme: Scheme, ranges: dict[str, tuple[Tensor, Tensor]], half: bool
) -> onnx.ModelProto:
    """The graph with these matrix products in int8, by ONNX Runtime's quantiser."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, quantize_dynamic
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    add_pre_process_metadata(model)  # the exporter has folded what there is
    del model.graph.value_info[:]  # shapes that the quantiser infers itself, and takes offence at
    per_channel, kinds, narrow = scheme.weights == "channel", ["MatMul", "Gemm"], scheme.weight_bits == 7
    if scheme.activations == "dynamic":
        with tempfile.TemporaryDirectory(prefix="hwsearch-") as folder:
            path = Path(folder) / "model.onnx"
            quantize_dynamic(
                model, path, op_types_to_quantize=kinds, per_channel=per_channel, weight_type=QuantType.QInt8,
                nodes_to_quantize=nodes, reduce_range=narrow, use_external_data_format=True,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )  # fmt: skip
            return onnx.load(path)
    kind: type[np.floating[Any]] = np.float16 if half else np.float32
    widest = max(abs(float(end)) for pair in ranges.values() for end in pair)
    if widest > float(np.finfo(kind).max):
        raise ExportError(f"activations of up to {widest:.3g} do not fit float16; search with --precision fp32,int8")
    known = {name: (np.array(float(low), kind), np.array(float(high), kind)) for name, (low, high) in ranges.items()}
    quantiser = QDQQuantizer(
        model,
        per_channel,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if scheme.activation_type == "uint8" else QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, known),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=kinds,
        extra_options={
            "ActivationSymmetric": scheme.activation_type == "int8",
            "OpTypesToExcludeOutputQuantization": kinds,
            "QuantizeBias": False,
            "TensorQuantOverrides": _half_scales(model, nodes, scheme, ranges) if half else {},
        },
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()  # nodes that were added stand behind those that read them
    quantised: onnx.ModelProto = quantiser.model.model
    return quantised


def _half_scales(
    model: onnx.ModelProto, nodes: list[str], scheme: Scheme, ranges: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, list[dict[str, Any]]]:
    """Scales of int8 beside float16, by tensor. The quantiser's own would be 1 wherever they are less than the least
    normal number in float16: weights of an output channel that stay under 0.0078 would all be rounded to 0."""
    from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType

    def given(low: float, high: float, kind: int, symmetric: bool) -> dict[str, Any]:
        ends = np.float32(low), np.float32(high)
        zero, scale = compute_scale_zp(*ends, *get_qmin_qmax_for_qType(kind, symmetric=symmetric), symmetric)
        return {"scale": np.asarray(np.maximum(scale.astype(np.float16), LEAST_HALF)), "zero_point": zero}

    int8, symmetric = onnx.TensorProto.INT8, scheme.activation_type == "int8"
    kind = int8 if symmetric else onnx.TensorProto.UINT8
    found = {name: [given(float(low), float(high), kind, symmetric)] for name, (low, high) in ranges.items()}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in (node for node in model.graph.node if node.name in nodes):
        value = numpy_helper.to_array(weights[node.input[1]])
        if scheme.weights == "channel":
            axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
            most = np.abs(value).max(1 - axis)
            found[node.input[1]] = [{"axis": axis, **given(-m, m, int8, True)} for m in most.tolist()]
        else:
            most = float(np.abs(value).max())
            found[node.input[1]] = [given(-most, most, int8, True)]
    return found

"""An architecture as the graph that TensorRT is given: every precision written in it, for a strongly typed network.

Half precision is written as float16 tensors, int8 as QuantizeLinear and DequantizeLinear (symmetric, one scale for the
activations and one for each output channel of a weight), which is the one form that TensorRT 10 and 11 both read.
float16 scales need opset 19, which TensorRT 10.3 and JetPack 6's ONNX Runtime read (both up to 20).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from hwsearch.architecture import Architecture
from hwsearch.bench.graph import GraphBuilder
from hwsearch.errors import ArchitectureError
from hwsearch.precision import Precision
from hwsearch.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 19
IR_VERSION = 9
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8)  # that it has operators for
ACTIVATION_SCALE, WEIGHT_SCALE = 0.05, 1e-3  # of random numbers; what they are changes no time
LOWEST = -6e4  # of a mask in float16
_FLOAT = {Precision.FP32: TensorProto.FLOAT, Precision.FP16: TensorProto.FLOAT16}
_NUMPY: dict[Precision, type[np.floating[Any]]] = {Precision.FP32: np.float32, Precision.FP16: np.float16}


def build_typed_graph(architecture: Architecture, workload: Workload, seed: int = 0) -> onnx.ModelProto:
    """As `graph.build_graph`, strongly typed; what is between the layers has the precision of the cached keys and
    values.

    Raises:
        ArchitectureError: a precision that this graph has no operators for.
    """
    return _Typed(architecture, workload, seed).model()


class _Typed(GraphBuilder):
    def __init__(self, architecture: Architecture, workload: Workload, seed: int) -> None:
        super().__init__(architecture, workload, seed)
        self.stream = architecture.kv_precision
        if not self.stream.is_float:
            raise ArchitectureError(f"a typed graph is float between its layers; got {self.stream}")
        self.doubles: dict[tuple[str, Precision], str] = {}  # activations in another precision

    def model(self) -> onnx.ModelProto:
        model = super().model()
        for tensor in (*model.graph.input, *model.graph.output):
            if tensor.type.tensor_type.elem_type == TensorProto.FLOAT:
                tensor.type.tensor_type.elem_type = _FLOAT[self.stream]
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", OPSET))
        model.ir_version = IR_VERSION
        return model

    def norm(self, x: str, name: str) -> str:
        """A root mean square in float16 overflows: it is taken in float32, as the families do."""
        if self.a.norm == "layernorm" or self.stream is Precision.FP32:
            return super().norm(x, name)
        self.part = "last_norm" if name == "last" else f"{self.place}norm"
        x = self.node("Cast", [x], to=TensorProto.FLOAT)
        squares = self.node("Pow", [x, self.exact(np.float32(2), "two.exact")])
        mean = self.node("ReduceMean", [squares], axes=[-1], keepdims=1)
        root = self.node("Sqrt", [self.node("Add", [mean, self.exact(np.float32(1e-6), "epsilon.exact")])])
        narrow = self.node("Cast", [self.node("Div", [x, root])], to=_FLOAT[self.stream])
        return self.node(
            "Mul", [narrow, self.constant(np.ones(self.a.width, np.float32), f"{self.part}/{name}.weight")]
        )

    def linear(self, x: str, columns: int, rows: int, precision: Precision, name: str) -> str:
        if precision is Precision.INT8:
            weights = self.exact(
                self.rng.integers(-127, 128, (rows, columns), dtype=np.int8), f"{self.part}/{name}.weight"
            )
            scales = self.constant(np.full(columns, WEIGHT_SCALE, np.float32), f"{self.part}/{name}.scale")
            zeros = self.exact(np.zeros(columns, np.int8), f"{self.part}/{name}.zero")
            wide = self.node("DequantizeLinear", [weights, scales, zeros], axis=1)
            y = self.node("MatMul", [self.rounded(x), wide])
        elif precision in _FLOAT:
            values = self.rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(rows**-0.5)
            weights = self.exact(values.astype(_NUMPY[precision]), f"{self.part}/{name}.weight")
            y = self.node("MatMul", [self.converted(x, precision), weights])
            if precision is not self.stream:
                y = self.node("Cast", [y], to=_FLOAT[self.stream])
        else:
            raise ArchitectureError(f"TensorRT is measured in {', '.join(map(str, PRECISIONS))}; got {precision}")
        if self.a.norm == "layernorm":
            y = self.node("Add", [y, self.constant(np.zeros(columns, np.float32), f"{self.part}/{name}.bias")])
        return y

    def rounded(self, x: str) -> str:
        """Activations that went through int8, once for all who read them."""
        key = (x, Precision.INT8)
        if key not in self.doubles:
            scale = self.constant(np.float32(ACTIVATION_SCALE), "activation.scale")
            zero = self.exact(np.int8(0), "activation.zero")
            narrow = self.node("QuantizeLinear", [x, scale, zero])
            self.doubles[key] = self.node("DequantizeLinear", [narrow, scale, zero])
        return self.doubles[key]

    def converted(self, x: str, precision: Precision) -> str:
        """Activations in another float, once for all who read them."""
        if precision is self.stream:
            return x
        key = (x, precision)
        if key not in self.doubles:
            self.doubles[key] = self.node("Cast", [x], to=_FLOAT[precision])
        return self.doubles[key]

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        if kind == "ReduceMean":  # an input from opset 18 on
            inputs = [*inputs, self.constant(np.array(attributes.pop("axes")), "axes")]
        return super().node(kind, inputs, **attributes)

    def constant(self, value: NDArray[np.generic] | np.generic, name: str) -> str:
        """Floats in the precision that the network has between its layers."""
        array = np.asarray(value)
        if array.dtype == np.float32 and self.stream is not Precision.FP32:
            array = np.maximum(array, np.float32(LOWEST)).astype(_NUMPY[self.stream])
        return super().constant(array, name)

    def exact(self, value: NDArray[np.generic] | np.generic, name: str) -> str:
        """An initialiser in its own precision."""
        return super().constant(value, name)

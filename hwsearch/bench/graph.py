"""An architecture as an ONNX graph with random weights: what a runtime is timed on. No torch, no exporter.

Written in plain operators at an opset that runtimes of the last years read; fusing them is the runtime's business. An
int8 part is written as ONNX Runtime's own dynamic quantiser writes it: DynamicQuantizeLinear, MatMulInteger, and a
product with the scales.

Everything in the graph is named after the part it belongs to, as "3.softmax/..." in layer 3 or "head/...", so that the
nodes of a runtime's fused graph can be told apart: `parts_of`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwsearch.architecture import Architecture, Layer
from hwsearch.errors import ArchitectureError
from hwsearch.precision import Precision
from hwsearch.workload import Phase, Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 17
IR_VERSION = 8
PARTS = frozenset(
    [
        "embedding",
        "qkv",
        "layout",
        "scores",
        "softmax",
        "values",
        "projection",
        "up",
        "down",
        "norm",
        "last_norm",
        "head",
    ]
)  # of a layer, with its number before it, or of the whole network
_MOVES = frozenset(["Reshape", "Transpose", "Expand", "Slice", "Split", "Concat", "Neg", "Unsqueeze", "Squeeze"])


def build_graph(
    architecture: Architecture, workload: Workload, seed: int = 0, phase: Phase = "prefill"
) -> onnx.ModelProto:
    """One pass of a phase of `workload`: token ids [batch, tokens] in (patches [batch, tokens, patch] of images,
    embeddings [batch, tokens, width] without either), logits or the last hidden states out. Shapes are static.

    Before a generation, the first pass gives logits of the last position alone, and every layer's keys and values. The
    pass of a new token reads those, [batch, kv_heads, cached, head_dim], as many as there are in the middle of the
    generation, and gives them with one more.

    Raises:
        ArchitectureError: a precision that this graph has no operators for, or an encoder that is to generate.
    """
    return GraphBuilder(architecture, workload, seed, phase).model()


def example_input(
    architecture: Architecture, workload: Workload, seed: int = 0, phase: Phase = "prefill"
) -> dict[str, NDArray[np.generic]]:
    """An input of the graph, by name."""
    rng = np.random.default_rng(seed)
    tokens, cached = positions(workload, phase)
    entries: dict[str, NDArray[np.generic]] = {}
    if architecture.vocab:
        entries["input"] = rng.integers(0, architecture.vocab, (workload.batch, tokens))
    else:
        channels = architecture.patch or architecture.width
        entries["input"] = rng.standard_normal((workload.batch, tokens, channels), dtype=np.float32)
    for i, layer in enumerate(architecture.layers if cached else ()):
        shape = (workload.batch, layer.kv_heads, cached, architecture.head_dim)
        entries |= {f"cached.{i}.{part}": rng.standard_normal(shape, dtype=np.float32) for part in "kv"}
    return entries


def positions(workload: Workload, phase: Phase) -> tuple[int, int]:
    """Tokens of one sequence that a pass reads, and those before them whose keys and values are cached."""
    if phase == "prefill":
        return workload.sequence, 0
    return 1, int(workload.context) - 1


def parts_of(graph: onnx.GraphProto) -> list[str]:
    """The part that each node of a runtime's optimised graph belongs to, as "3.qkv" or "head", in the nodes' order.

    By the weights that it reads, else by what it writes, else by who reads that: fusion keeps the names at its edges.
    """
    weights = {tensor.name for tensor in graph.initializer}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)

    def named(names: list[str]) -> str | None:
        return next((part for name in names if (part := _part(name))), None)

    def part_of(node: onnx.NodeProto, depth: int = 8) -> str | None:
        found = named([name for name in node.input if name in weights]) or named(list(node.output))
        if found is None and depth:
            later = (part_of(reader, depth - 1) for name in node.output for reader in readers[name])
            found = next((part for part in later if part), None)
        layer, dot, kind = (found or "").rpartition(".")
        if kind in ("scores", "softmax", "values") and node.op_type in _MOVES:
            return f"{layer}{dot}layout"
        return found

    parts = [part_of(node) for node in graph.node]
    return [part or before or "head" for part, before in zip(parts, [None, *parts], strict=False)]


def _part(name: str) -> str | None:
    part, slash, _ = name.partition("/")
    return part if slash and part.rpartition(".")[2] in PARTS else None


class GraphBuilder:
    """Writes one graph, part by part."""

    def __init__(self, architecture: Architecture, workload: Workload, seed: int = 0, phase: Phase = "prefill") -> None:
        if workload.new_tokens and architecture.block == "encoder":
            raise ArchitectureError(f"an encoder generates nothing; got {architecture.id} for {workload}")
        self.a, self.workload = architecture, workload
        self.tokens, self.cached = positions(workload, phase)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.quantised: dict[str, tuple[str, str, str]] = {}  # activations that have been quantised already
        self.place = ""  # the layer that is being written, as "3."
        self.part = "embedding"  # the part that is being written, as "embedding" or "3.qkv"

    def model(self) -> onnx.ModelProto:
        a, batch, tokens = self.a, self.workload.batch, self.tokens
        if a.vocab:
            self.inputs.append(helper.make_tensor_value_info("input", TensorProto.INT64, [batch, tokens]))
            x = self.node("Gather", [self.random("embedding", a.vocab, a.width), "input"])
        else:
            shape = [batch, tokens, a.patch or a.width]
            self.inputs.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, shape))
            x = "input"
            if a.patch:
                x = self.linear(x, a.width, a.patch, a.embedding_precision, "patches")
                places = self.constant(np.zeros((tokens, a.width), np.float32), "embedding/positions")
                x = self.node("Add", [x, places])
        for i, layer in enumerate(a.layers):
            self.place = f"{i}."
            x = self.layer(x, layer)
        x = self.norm(x, "last") if a.head != "none" or a.norm == "rmsnorm" else x
        self.part = "head"
        if a.head == "lm" and self.workload.new_tokens and tokens > 1:
            x, tokens = self.node("Gather", [x, self.constant(np.array([-1]), "newest")], axis=1), 1
        shape = [batch, tokens, a.width]
        if a.head == "lm":
            x, shape = self.linear(x, a.vocab, a.width, a.head_precision, "head"), [batch, tokens, a.vocab]
        elif a.head == "span":
            x, shape = self.linear(x, 2, a.width, a.head_precision, "head"), [batch, tokens, 2]
        elif a.head == "classify":
            first = self.node("Gather", [x, self.constant(np.array(0), "first")], axis=1)
            pooled = self.node("Tanh", [self.linear(first, a.width, a.width, a.head_precision, "pooler")])
            x, shape = self.linear(pooled, 2, a.width, a.head_precision, "head"), [batch, 2]
        self.nodes.append(helper.make_node("Identity", [x], [f"{self.part}/output"]))
        leave = helper.make_tensor_value_info(f"{self.part}/output", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "architecture", self.inputs, [leave, *self.outputs], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def layer(self, x: str, layer: Layer) -> str:
        """Pre-norm for a root-mean-square norm, post-norm for LayerNorm, as the families have it."""
        if self.a.norm == "rmsnorm":
            x = self.residual(x, self.attention(self.norm(x, "first"), layer))
            return self.residual(x, self.feed_forward(self.norm(x, "second"), layer))
        x = self.norm(self.residual(x, self.attention(x, layer)), "first")
        return self.norm(self.residual(x, self.feed_forward(x, layer)), "second")

    def residual(self, x: str, branch: str) -> str:
        self.part = f"{self.place}norm"
        return self.node("Add", [x, branch])

    def attention(self, x: str, layer: Layer) -> str:
        a, w = self.a, self.workload
        heads = []
        for part, count in (("q", layer.heads), ("k", layer.kv_heads), ("v", layer.kv_heads)):
            self.part = f"{self.place}qkv"
            flat = self.linear(x, count * a.head_dim, a.width, layer.attention, part)
            self.part = f"{self.place}layout"
            split = self.reshape(flat, [w.batch, self.tokens, count, a.head_dim])
            split = self.node("Transpose", [split], perm=[0, 2, 1, 3])
            if part != "v" and a.block == "decoder":
                split = self.rotary(split)
            if part != "q" and w.new_tokens:
                split = self.cache(split, part, layer)
            if part != "q" and layer.heads != layer.kv_heads:
                split = self.repeat(split, layer)
            heads.append(split)
        q, k, v = heads
        k = self.node("Transpose", [k], perm=[0, 1, 3, 2])
        self.part = f"{self.place}scores"
        scores = self.node("MatMul", [q, k])
        scores = self.node("Mul", [scores, self.constant(np.float32(a.head_dim**-0.5), "scale")])
        self.part = f"{self.place}softmax"
        if a.block == "decoder" and self.tokens > 1:
            mask = np.triu(np.full((self.tokens, self.tokens), -1e9, np.float32), 1)
            scores = self.node("Add", [scores, self.constant(mask, "mask")])
        shares = self.node("Softmax", [scores], axis=-1)
        self.part = f"{self.place}values"
        mixed = self.node("MatMul", [shares, v])
        self.part = f"{self.place}layout"
        mixed = self.node("Transpose", [mixed], perm=[0, 2, 1, 3])
        mixed = self.reshape(mixed, [w.batch, self.tokens, layer.heads * a.head_dim])
        self.part = f"{self.place}projection"
        return self.linear(mixed, a.width, layer.heads * a.head_dim, layer.attention, "o")

    def rotary(self, x: str) -> str:
        """Rotary position embedding of [batch, heads, sequence, head_dim], halves rotated against each other."""
        half = self.a.head_dim // 2
        places = np.arange(self.cached, self.cached + self.tokens)
        angle = places[:, None] / 10000 ** (np.arange(half) / half)
        angle = np.concatenate([angle, angle], -1).astype(np.float32)
        first = self.node("Slice", [x, *(self.constant(np.array([v]), f"slice{v}") for v in (0, half, 3))])
        second = self.node("Slice", [x, *(self.constant(np.array([v]), f"slice{v}") for v in (half, 2 * half, 3))])
        turned = self.node("Concat", [self.node("Neg", [second]), first], axis=-1)
        cos, sin = self.constant(np.cos(angle), "cos"), self.constant(np.sin(angle), "sin")
        return self.node("Add", [self.node("Mul", [x, cos]), self.node("Mul", [turned, sin])])

    def cache(self, x: str, part: str, layer: Layer) -> str:
        """Keys or values of the pass behind those that are cached, which are an input, and all of them an output."""
        shape = [self.workload.batch, layer.kv_heads, self.cached, self.a.head_dim]
        if self.cached:
            name = f"cached.{self.place}{part}"
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            x = self.node("Concat", [name, x], axis=2)
        shape[2] += self.tokens
        self.outputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, shape))
        return x

    def repeat(self, x: str, layer: Layer) -> str:
        """Key-value heads once for each query head of their group."""
        batch, group, d = self.workload.batch, layer.heads // layer.kv_heads, self.a.head_dim
        context = self.cached + self.tokens
        x = self.reshape(x, [batch, layer.kv_heads, 1, context, d])
        x = self.node(
            "Expand",
            [x, self.constant(np.array([batch, layer.kv_heads, group, context, d]), f"group{layer.kv_heads}")],
        )
        return self.reshape(x, [batch, layer.heads, context, d])

    def feed_forward(self, x: str, layer: Layer) -> str:
        self.part = f"{self.place}up"
        up = self.linear(x, layer.ffn, self.a.width, layer.feed_forward, "up")
        if self.a.gated_ffn:
            gate = self.linear(x, layer.ffn, self.a.width, layer.feed_forward, "gate")
            inner = self.node("Mul", [self.node("Mul", [gate, self.node("Sigmoid", [gate])]), up])
        else:
            erf = self.node("Erf", [self.node("Div", [up, self.constant(np.float32(np.sqrt(2)), "root")])])
            both = self.node("Mul", [up, self.node("Add", [erf, self.constant(np.float32(1), "one")])])
            inner = self.node("Mul", [both, self.constant(np.float32(0.5), "half")])
        self.part = f"{self.place}down"
        return self.linear(inner, self.a.width, layer.ffn, layer.feed_forward, "down")

    def norm(self, x: str, name: str) -> str:
        self.part = "last_norm" if name == "last" else f"{self.place}norm"
        ones = self.constant(np.ones(self.a.width, np.float32), f"{self.part}/{name}.weight")
        if self.a.norm == "layernorm":
            return self.node(
                "LayerNormalization",
                [x, ones, self.constant(np.zeros(self.a.width, np.float32), f"{self.part}/{name}.bias")],
                axis=-1,
            )
        squares = self.node("Pow", [x, self.constant(np.float32(2), "two")])
        mean = self.node("ReduceMean", [squares], axes=[-1], keepdims=1)
        root = self.node("Sqrt", [self.node("Add", [mean, self.constant(np.float32(1e-6), "epsilon")])])
        return self.node("Mul", [self.node("Div", [x, root]), ones])

    def linear(self, x: str, columns: int, rows: int, precision: Precision, name: str) -> str:
        """[..., rows] x [rows, columns], biases only beside LayerNorm, as the families have it."""
        if precision is Precision.INT8:
            y = self.quantised_product(x, columns, rows, name)
        elif precision is Precision.FP32:
            y = self.node("MatMul", [x, self.random(name, rows, columns)])
        else:
            raise ArchitectureError(f"ONNX Runtime's CPU provider is measured in fp32 and int8; got {precision}")
        if self.a.norm == "layernorm":
            y = self.node("Add", [y, self.constant(np.zeros(columns, np.float32), f"{self.part}/{name}.bias")])
        return y

    def quantised_product(self, x: str, columns: int, rows: int, name: str) -> str:
        if x not in self.quantised:
            outputs = (f"{self.part}/{x}.q", f"{self.part}/{x}.scale", f"{self.part}/{x}.zero")
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], list(outputs)))
            self.quantised[x] = outputs
        q, scale, zero = self.quantised[x]
        values = self.rng.integers(-127, 128, (rows, columns), dtype=np.int8)
        weights = self.constant(values, f"{self.part}/{name}.weight")
        product = self.node(
            "MatMulInteger", [q, weights, zero, self.constant(np.zeros(columns, np.int8), f"{self.part}/{name}.zero")]
        )
        both = self.node("Mul", [scale, self.constant(np.full(columns, 1e-3, np.float32), f"{self.part}/{name}.scale")])
        return self.node("Mul", [self.node("Cast", [product], to=TensorProto.FLOAT), both])

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{self.part}/{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def reshape(self, x: str, shape: list[int]) -> str:
        return self.node("Reshape", [x, self.constant(np.array(shape), "shape" + "x".join(map(str, shape)))])

    def random(self, name: str, rows: int, columns: int) -> str:
        # Uniform, which is drawn several times as fast as normal: many graphs are written to be timed once.
        weights = (self.rng.random((rows, columns), dtype=np.float32) - np.float32(0.5)) * np.float32(
            (12 / rows) ** 0.5
        )
        return self.constant(weights, f"{self.part}/{name}.weight")

    def constant(self, value: NDArray[np.generic] | np.generic, name: str) -> str:
        """An initialiser; one of the same name is the same."""
        if all(known.name != name for known in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

"""Torch on this machine's processor as something to be timed, whole and part by part.

An architecture in plain tensors, attention by `scaled_dot_product_attention` as Transformers has it. Floats only: what
torch itself had of int8 is deprecated in favour of torchao.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hwsearch.architecture import Architecture, Layer
from hwsearch.bench.graph import example_input, positions
from hwsearch.errors import ArchitectureError
from hwsearch.precision import Precision, Scheme
from hwsearch.runtime import Runtime
from hwsearch.workload import Phase, Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FACTS = Runtime(version="", precisions=(Precision.FP32,), fused_attention=True, scheme=Scheme())
Mark = Callable[[str], None]


def version() -> str:
    """Of the torch that is installed; to know it torch is not loaded."""
    from importlib.metadata import version as version_of

    return version_of("torch")


def prepare(
    architecture: Architecture, workload: Workload, threads: int, phase: Phase = "prefill"
) -> Callable[[], object]:
    """A function that runs one pass of a phase, with weights of its own."""
    network = Network(architecture, workload, phase)
    return lambda: network(threads, _unmarked)


def _unmarked(part: str) -> None:
    """A part begins, and nobody wants to know."""


class PartProfile:
    """One architecture that tells what each of its parts takes, by the clock between them.

    Attributes:
        whole: runs a pass without looking into it, as `prepare`.
        parts: of each piece that is timed, in the order they run.
        when: the clock at the end of every pass that counts.
    """

    def __init__(self, architecture: Architecture, workload: Workload, threads: int, phase: Phase) -> None:
        self._network, self._threads = Network(architecture, workload, phase), threads
        self.whole: Callable[[], object] = lambda: self._network(threads, _unmarked)
        self.parts, _ = self._pass()
        self.when: list[float] = []
        self._times: list[NDArray[np.float64]] = []

    def run(self, warm: bool, passes: int) -> None:
        """A pass to warm up where it is wanted, and `passes` more that count."""
        for count in range(-int(warm), passes):
            _, times = self._pass()
            if count >= 0:
                self._times.append(times)
                self.when.append(time.perf_counter())

    def finish(self) -> NDArray[np.float64]:
        """Microseconds of every piece in every pass that counts, [passes, pieces]."""
        return np.array(self._times)

    def _pass(self) -> tuple[list[str], NDArray[np.float64]]:
        parts: list[str] = []
        clock: list[int] = []

        def mark(part: str) -> None:
            parts.append(part)
            clock.append(time.perf_counter_ns())

        self._network(self._threads, mark)
        clock.append(time.perf_counter_ns())
        return parts, np.diff(clock) / 1e3


class Network:
    """One architecture with random weights.

    Args:
        architecture: in fp32.
        workload, phase: a pass of which is run.

    Raises:
        ArchitectureError: a precision that is not run here, or an encoder that is to generate.
    """

    def __init__(self, architecture: Architecture, workload: Workload, phase: Phase) -> None:
        import torch

        if architecture != architecture.in_float(Precision.FP32):
            raise ArchitectureError(f"torch on a processor is measured in fp32; got {architecture.precision_text}")
        if workload.new_tokens and architecture.block == "encoder":
            raise ArchitectureError(f"an encoder generates nothing; got {architecture.id} for {workload}")
        self.a, self.workload = architecture, workload
        self.tokens, self.cached = positions(workload, phase)
        self._generator = torch.Generator().manual_seed(0)
        self._biased = architecture.norm == "layernorm"
        entries = example_input(architecture, workload, phase=phase)
        self._input, self._caches = (
            torch.from_numpy(entries.pop("input")),
            {name.removeprefix("cached."): torch.from_numpy(value) for name, value in entries.items()},
        )
        a = architecture
        self._embedding = self._random(a.vocab, a.width) if a.vocab else None
        self._patches = self._linear(a.width, a.patch) if a.patch else None
        self._layers = [self._layer_weights(layer) for layer in a.layers]
        self._scale, self._shift = torch.ones(a.width), torch.zeros(a.width)
        rows = {"lm": a.vocab, "span": 2, "classify": 2, "none": 0}[a.head]
        self._pooler = self._linear(a.width, a.width) if a.head == "classify" else None
        self._head = self._linear(rows, a.width) if rows else None
        half = a.head_dim // 2
        places = np.arange(self.cached, self.cached + self.tokens)
        angle = places[:, None] / 10000 ** (np.arange(half) / half)
        angle = np.concatenate([angle, angle], -1).astype(np.float32)
        self._cos, self._sin = torch.from_numpy(np.cos(angle)), torch.from_numpy(np.sin(angle))

    def _random(self, *shape: int) -> Tensor:
        import torch

        return torch.randn(shape, generator=self._generator) * 0.05

    def _linear(self, rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
        import torch

        return self._random(rows, columns), torch.zeros(rows) if self._biased else None

    def _layer_weights(self, layer: Layer) -> dict[str, tuple[Tensor, Tensor | None]]:
        a = self.a
        queries, keys = layer.heads * a.head_dim, layer.kv_heads * a.head_dim
        shapes = {"q": (queries, a.width), "k": (keys, a.width), "v": (keys, a.width), "o": (a.width, queries)}
        shapes |= {"up": (layer.ffn, a.width), "down": (a.width, layer.ffn)}
        shapes |= {"gate": (layer.ffn, a.width)} if a.gated_ffn else {}
        return {name: self._linear(*shape) for name, shape in shapes.items()}

    def __call__(self, threads: int, mark: Mark) -> object:
        """One pass; `mark` is told the part that begins."""
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            return self._run(mark)

    def _run(self, mark: Mark) -> object:
        from torch.nn.functional import embedding, linear

        a, x = self.a, self._input
        kept: list[Tensor] = []
        if self._embedding is not None:
            mark("embedding")
            x = embedding(x, self._embedding)
        if self._patches is not None:
            mark("embedding")
            x = linear(x, *self._patches)
        for i, layer in enumerate(a.layers):
            x = self._layer(x, i, layer, mark, kept)
        if a.head != "none" or a.norm == "rmsnorm":
            mark("last_norm")
            x = self._norm(x)
        mark("head")
        if a.head == "lm" and self.workload.new_tokens:
            x = x[:, -1:]
        if self._pooler is not None:
            x = linear(x[:, 0], *self._pooler).tanh()
        return (linear(x, *self._head) if self._head is not None else x), kept

    def _layer(self, x: Tensor, i: int, layer: Layer, mark: Mark, kept: list[Tensor]) -> Tensor:
        """Pre-norm for a root-mean-square norm, post-norm for LayerNorm, as the families have it."""
        if self.a.norm == "rmsnorm":
            mark(f"{i}.norm")
            attended = self._attention(self._norm(x), i, layer, mark, kept)
            mark(f"{i}.norm")
            x = x + attended
            forwarded = self._feed_forward(self._norm(x), i, mark)
            mark(f"{i}.norm")
            return x + forwarded
        attended = self._attention(x, i, layer, mark, kept)
        mark(f"{i}.norm")
        x = self._norm(x + attended)
        forwarded = self._feed_forward(x, i, mark)
        mark(f"{i}.norm")
        return self._norm(x + forwarded)

    def _attention(self, x: Tensor, i: int, layer: Layer, mark: Mark, kept: list[Tensor]) -> Tensor:
        import torch
        from torch.nn.functional import linear, scaled_dot_product_attention

        a, batch, weights = self.a, self.workload.batch, self._layers[i]
        mark(f"{i}.qkv")
        flat = [linear(x, *weights[name]) for name in "qkv"]
        mark(f"{i}.layout")
        q, k, v = (part.view(batch, self.tokens, -1, a.head_dim).transpose(1, 2) for part in flat)
        if a.block == "decoder":
            q, k = self._rotated(q), self._rotated(k)
        if self.workload.new_tokens:
            if self.cached:
                k, v = (torch.cat([self._caches[f"{i}.{part}"], new], 2) for part, new in (("k", k), ("v", v)))
            kept += [k, v]
        if layer.heads != layer.kv_heads:
            group = layer.heads // layer.kv_heads
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mark(f"{i}.attention")
        mixed = scaled_dot_product_attention(q, k, v, is_causal=a.block == "decoder" and self.tokens > 1)
        mark(f"{i}.layout")
        mixed = mixed.transpose(1, 2).reshape(batch, self.tokens, -1)
        mark(f"{i}.projection")
        return linear(mixed, *weights["o"])

    def _rotated(self, x: Tensor) -> Tensor:
        import torch

        first, second = x.chunk(2, -1)
        return x * self._cos + torch.cat([-second, first], -1) * self._sin

    def _feed_forward(self, x: Tensor, i: int, mark: Mark) -> Tensor:
        from torch.nn.functional import gelu, linear, silu

        weights = self._layers[i]
        mark(f"{i}.up")
        inner = linear(x, *weights["up"])
        inner = silu(linear(x, *weights["gate"])) * inner if self.a.gated_ffn else gelu(inner)
        mark(f"{i}.down")
        return linear(inner, *weights["down"])

    def _norm(self, x: Tensor) -> Tensor:
        from torch.nn.functional import layer_norm, rms_norm

        if self.a.norm == "layernorm":
            return layer_norm(x, (self.a.width,), self._scale, self._shift)
        return rms_norm(x, (self.a.width,), self._scale, 1e-6)

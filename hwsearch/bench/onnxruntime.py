"""ONNX Runtime's CPU provider as something to be timed, whole and kernel by kernel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.bench.board.onnxruntime import NodeTimes, keeping, options_of, profiling
from hwsearch.bench.graph import build_graph, example_input, parts_of, positions
from hwsearch.precision import Precision, Scheme
from hwsearch.runtime import Runtime
from hwsearch.workload import Phase, Workload

if TYPE_CHECKING:
    import onnxruntime as ort
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FACTS = Runtime(  # what holds for the CPU provider on any processor
    version="",
    precisions=(Precision.FP32, Precision.INT8),
    fused_attention=False,
    scheme=Scheme("dynamic", "uint8", keeps_float=("embedding", "norm", "softmax", "attention")),
    stored_bits={"int8": 32},
)


def version() -> str:
    """Of the runtime that is installed."""
    import onnxruntime

    return str(onnxruntime.__version__)


def prepare(
    architecture: Architecture, workload: Workload, threads: int, phase: Phase = "prefill"
) -> Callable[[], object]:
    """A function that runs one pass of a phase, with weights of its own."""
    graph = build_graph(architecture, workload, phase=phase)
    session = _session(graph.SerializeToString(), options_of(threads))
    return _pass(session, example_input(architecture, workload, phase=phase))


def prepare_graph(
    path: Path, workload: Workload, vocab: int, threads: int, phase: Phase = "prefill"
) -> Callable[[], object]:
    """A function that runs one pass of an exported graph, which reads token ids and a mask, and where it has them keys
    and values that were computed before, or pixels."""
    session, rng = _session(str(path), options_of(threads)), np.random.default_rng(0)
    first = session.get_inputs()[0]
    if first.name == "pixel_values":
        return _pass(session, {first.name: rng.random((workload.batch, *first.shape[1:]), np.float32)})
    tokens, cached = positions(workload, phase)
    ids = rng.integers(0, vocab, (workload.batch, tokens))
    mask = np.ones((workload.batch, cached + tokens), np.int64)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    for one in session.get_inputs():
        if one.name.startswith("past."):
            _, kv_heads, _, head_dim = one.shape
            kind = np.float16 if one.type == "tensor(float16)" else np.float32
            given[one.name] = rng.standard_normal((workload.batch, kv_heads, cached, head_dim)).astype(kind)
    return _pass(session, {one.name: given[one.name] for one in session.get_inputs()})


def _pass(session: ort.InferenceSession, inputs: dict[str, NDArray[np.generic]]) -> Callable[[], object]:
    """One pass; keys and values stay in tensors of the runtime, as in a generation."""
    import onnxruntime

    outputs = session.get_outputs()
    if len(outputs) == 1:
        return lambda: session.run(None, inputs)
    tensor, binding = onnxruntime.OrtValue, session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, tensor.ortvalue_from_numpy(value))
    for output in outputs:
        if not all(isinstance(size, int) for size in output.shape):
            binding.bind_output(output.name)
            continue
        room = tensor.ortvalue_from_shape_and_type(output.shape, np.float32)
        binding.bind_ortvalue_output(output.name, room)
    return lambda: session.run_with_iobinding(binding)


class PartProfile:
    """One architecture that tells what each of its parts takes, by ONNX Runtime's own profiler.

    The graph is optimised once, and what came of it is run as it is; nodes are known by their place in it. That costs
    some microseconds a node beside the work, so that whole passes are timed without the profiler.

    Attributes:
        whole: runs a pass without looking into it, as `prepare`.
        parts: of each node.
        run, when: as `NodeTimes` has them.
    """

    def __init__(self, architecture: Architecture, workload: Workload, threads: int, phase: Phase = "prefill") -> None:
        import onnx

        self._folder = tempfile.TemporaryDirectory(prefix="hwsearch-")
        optimised = Path(self._folder.name) / "optimised.onnx"
        inputs = example_input(architecture, workload, phase=phase)
        graph = build_graph(architecture, workload, phase=phase).SerializeToString()
        self.whole = _pass(_session(graph, keeping(options_of(threads), optimised)), inputs)
        self.parts = parts_of(onnx.load(optimised, load_external_data=False).graph)
        session = _session(str(optimised), profiling(options_of(threads), optimised))
        for path in optimised.parent.glob("optimised.*"):
            path.unlink()
        self._nodes = NodeTimes(session, _pass(session, inputs))
        self.run, self.when = self._nodes.run, self._nodes.when

    def finish(self) -> Floats:
        """Microseconds of every node in every pass that counts, [passes, nodes], nodes as in `parts`; once, at the
        end."""
        _, times = self._nodes.finish()
        self._folder.cleanup()
        found = np.zeros((len(times), len(self.parts)))
        found[:, : times.shape[1]] = times  # the last nodes may be ones without a kernel
        return found


def _session(model: bytes | str, options: Any) -> ort.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

"""ONNX Runtime's CPU provider as something to be timed, whole and kernel by kernel."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from hwsearch.architecture import Architecture
from hwsearch.bench.graph import build_graph, example_input, parts_of
from hwsearch.device import Runtime
from hwsearch.precision import Precision, Scheme
from hwsearch.workload import Phase, Workload

if TYPE_CHECKING:
    import onnxruntime as ort
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FACTS = Runtime(  # what holds for the CPU provider on any processor
    version="",
    precisions=(Precision.FP32, Precision.INT8),
    fused_attention=False,
    scheme=Scheme(activations="dynamic", activation_type="uint8", weights="tensor"),
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
    session = _session(graph.SerializeToString(), _options(threads))
    return _pass(session, example_input(architecture, workload, phase=phase))


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
        when: the clock at the end of every pass that counts.
    """

    def __init__(self, architecture: Architecture, workload: Workload, threads: int, phase: Phase = "prefill") -> None:
        import onnx
        import onnxruntime

        self._folder = tempfile.TemporaryDirectory(prefix="hwsearch-")
        optimised = Path(self._folder.name) / "optimised.onnx"
        options = _options(threads)
        options.optimized_model_filepath = str(optimised)
        beside = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{beside}file_name", "optimised.bin")
        options.add_session_config_entry(f"{beside}min_size_in_bytes", "1024")
        inputs = example_input(architecture, workload, phase=phase)
        graph = build_graph(architecture, workload, phase=phase).SerializeToString()
        # A session that keeps what it made of its graph runs some percent faster than others: it is not the one timed.
        self.whole = _pass(_session(graph, _options(threads)), inputs)
        _session(graph, options)
        self.parts = parts_of(onnx.load(optimised, load_external_data=False).graph)
        options = _options(threads)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        self._profiled = _session(str(optimised), options)
        for path in optimised.parent.glob("optimised.*"):
            path.unlink()
        self._pass = _pass(self._profiled, inputs)
        self._warm: list[bool] = []
        self.when: list[float] = []

    def run(self, warm: bool, passes: int) -> None:
        """A pass to warm up where it is wanted, and `passes` more that count."""
        for count in range(-int(warm), passes):
            self._pass()
            self._warm.append(count >= 0)
            if count >= 0:
                self.when.append(time.perf_counter())

    def finish(self) -> Floats:
        """Microseconds of every node in every pass that counts, [passes, nodes], nodes as in `parts`; once, at the
        end."""
        path = Path(self._profiled.end_profiling())
        events: list[dict[str, Any]] = msgspec.json.decode(path.read_bytes())
        by_node: dict[int, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                by_node[int(event["args"]["node_index"])].append(float(event["dur"]))
        self._folder.cleanup()
        times = np.array([by_node.get(node, [0.0] * len(self._warm)) for node in range(len(self.parts))]).T
        return np.asarray(times[np.array(self._warm)])


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Many sessions take turns: one whose threads go on spinning after its run would slow the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _session(model: bytes | str, options: Any) -> ort.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

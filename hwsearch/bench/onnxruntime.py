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
    """One pass; keys and values stay with the runtime, as in a generation."""
    import onnxruntime

    names = [output.name for output in session.get_outputs()]
    if len(names) == 1:
        return lambda: session.run(None, inputs)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
    return lambda: session.run_with_ort_values(names, values)


class PartProfile:
    """One architecture that tells what each of its parts takes, by ONNX Runtime's own profiler.

    The graph is optimised once, its nodes are named after their parts, and it is run as it is. That costs some
    microseconds a node beside the work, so that whole passes are timed by `prepare`.

    Attributes:
        parts: of each node.
        when: the clock at the end of every pass that counts.
    """

    def __init__(self, architecture: Architecture, workload: Workload, threads: int, phase: Phase = "prefill") -> None:
        import onnx
        import onnxruntime

        self._folder = tempfile.TemporaryDirectory(prefix="hwsearch-")
        optimised = str(Path(self._folder.name) / "optimised.onnx")
        options = _options(threads)
        options.optimized_model_filepath = optimised
        _session(build_graph(architecture, workload, phase=phase).SerializeToString(), options)
        model = onnx.load(optimised)
        Path(optimised).unlink()
        self.parts = parts_of(model.graph)
        for number, node in enumerate(model.graph.node):
            node.name = str(number)
        options = _options(threads)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        self._profiled: ort.InferenceSession = _session(model.SerializeToString(), options)
        self._pass = _pass(self._profiled, example_input(architecture, workload, phase=phase))
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
            name, ending = event["name"].removesuffix("_kernel_time"), event["name"].endswith("_kernel_time")
            if event.get("cat") == "Node" and ending and name.isdecimal():
                by_node[int(name)].append(float(event["dur"]))
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


def _session(model: bytes, options: Any) -> ort.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

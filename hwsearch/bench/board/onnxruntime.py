"""ONNX Runtime on a board: whole passes, and every node of the optimised graph by its own profiler.

Which part of the network a node belongs to is found out later, where there is an `onnx` package: the optimised graph
travels back without its weights. Nodes are known by their place in it, which the profiler tells of each.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .turns import Passes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}


class OnnxRuntime:
    """One of ONNX Runtime's providers.

    Args:
        name: of the runtime, a key of `PROVIDERS`.
        work: folder for files that only this run needs.
        threads: 0 for the runtime's choice.

    Raises:
        RuntimeError: it is not installed, or lacks the provider.
    """

    def __init__(self, name: str, work: Path, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeError(
                f"ONNX Runtime cannot be imported: {error}. Install it: pip install onnxruntime"
            ) from error
        self._ort: Any = onnxruntime
        self._provider, self._work, self._threads = PROVIDERS[name], work, threads
        if self._provider not in onnxruntime.get_available_providers():
            raise RuntimeError(
                f"this ONNX Runtime has no {self._provider} (it has {', '.join(onnxruntime.get_available_providers())})"
            )
        self.version = str(onnxruntime.__version__)

    def prepare(self, graph: Path, point: Mapping[str, Any], beside: bool = True) -> Passes:
        """A graph that is ready to run; with its nodes' times when `beside` and the provider tells them."""
        inputs = example_input(point)
        if not beside or self._provider != "CPUExecutionProvider":
            session = self._session(graph, options_of(self._threads))
            return Passes(lambda: session.run(None, inputs))
        optimised = self._work / f"{graph.stem}.onnx"
        session = self._session(graph, keeping(options_of(self._threads), optimised))
        profiled = self._session(optimised, profiling(options_of(self._threads), optimised))
        return Model(
            lambda: session.run(None, inputs), NodeTimes(profiled, lambda: profiled.run(None, inputs)), optimised
        )

    def _session(self, graph: Path, options: Any) -> Any:
        providers: list[Any] = [self._provider]
        if self._provider == "TensorrtExecutionProvider":
            # An engine is built once and kept; what TensorRT does not take runs on CUDA.
            cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(self._work), "trt_fp16_enable": "1"}
            providers = [(self._provider, cache), "CUDAExecutionProvider"]
        return self._ort.InferenceSession(str(graph), options, providers=providers)


def options_of(threads: int) -> Any:
    """Of a session with so many threads, 0 for the runtime's choice."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Many sessions take turns: one whose threads go on spinning after its run would slow the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Where weights alone are in eight bits, activations stay as they are; ONNX Runtime would round them by itself.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    return options


def keeping(options: Any, optimised: Path) -> Any:
    """`options` of a session that writes the graph that it made, its weights beside it."""
    options.optimized_model_filepath = str(optimised)
    beside = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{beside}file_name", f"{optimised.stem}.bin")
    options.add_session_config_entry(f"{beside}min_size_in_bytes", "1024")
    return options


def profiling(options: Any, optimised: Path) -> Any:
    """`options` of a session that runs an optimised graph as it is, with the profiler on."""
    import onnxruntime

    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(optimised.with_suffix(""))
    return options


class NodeTimes:
    """What the nodes of a graph take, by ONNX Runtime's profiler.

    Args:
        session: that profiles.
        one_pass: of it.

    Attributes:
        when: the clock at the end of every pass that counts.
    """

    def __init__(self, session: Any, one_pass: Callable[[], object]) -> None:
        self._session, self._pass = session, one_pass
        self._warm: list[bool] = []
        self.when: list[float] = []

    def run(self, warm: bool, passes: int) -> None:
        """A pass to warm up where it is wanted, and `passes` more that count."""
        for count in range(-int(warm), passes):
            self._pass()
            self._warm.append(count >= 0)
            if count >= 0:
                self.when.append(time.perf_counter())

    def finish(self) -> tuple[dict[int, str], np.ndarray[Any, Any]]:
        """The operator of every node that runs a kernel, by its place in the graph, and the microseconds of all places
        in every pass that counts, [passes, places]; once, at the end.

        Raises:
            RuntimeError: the profiler left out runs of a node.
        """
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        operators: dict[int, str] = {}
        times: dict[int, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                node = int(event["args"]["node_index"])
                operators[node] = event["args"]["op_name"]
                times.setdefault(node, []).append(float(event["dur"]))
        if any(len(found) != len(self._warm) for found in times.values()):
            raise RuntimeError("ONNX Runtime's profiler left out runs of a node")
        table = np.zeros((len(self._warm), max(times) + 1))
        for node, found in times.items():
            table[:, node] = found
        return operators, table[np.array(self._warm, bool)]


class Model(Passes):
    """A graph in ONNX Runtime whose nodes are timed beside its passes.

    Args:
        run: one pass.
        nodes: of the graph.
        optimised: what the runtime made of it.
    """

    def __init__(self, run: Callable[[], object], nodes: NodeTimes, optimised: Path) -> None:
        super().__init__(run, look=nodes.run)
        self._nodes, self._optimised = nodes, optimised

    @property
    def when(self) -> list[float]:
        """The clock at the end of every pass whose nodes were timed."""
        return self._nodes.when

    def finish(self) -> dict[str, Any]:
        """What the nodes took, and the optimised graph in the bytes that it has without its weights."""
        operators, times = self._nodes.finish()
        names = [operators.get(node, "") for node in range(times.shape[1])]
        return {"operators": names, "passes": times.tolist(), "graph": self._optimised.read_bytes()}


def example_input(point: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """An input of a point's graph, by name."""
    told = point["input"]
    rng = np.random.default_rng(0)
    if told["kind"] == "int64":
        return {told["name"]: rng.integers(0, told["below"], told["shape"])}
    return {told["name"]: rng.standard_normal(told["shape"]).astype(told["kind"])}

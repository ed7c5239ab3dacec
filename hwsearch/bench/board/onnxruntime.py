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
    from collections.abc import Mapping

PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}


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

    def prepare(self, graph: Path, point: Mapping[str, Any], beside: bool = True) -> Model:
        """A graph that is ready to run; with its nodes' times when `beside` and the provider tells them."""
        options = self.options()
        profiled = beside and self._provider == "CPUExecutionProvider"
        optimised = self._work / f"{graph.stem}.onnx"
        if profiled:
            options.optimized_model_filepath = str(optimised)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", f"{graph.stem}.bin"
            )
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        session = self.session(graph, options)
        return Model(self, session, example_input(point), optimised if profiled else None)

    def options(self) -> Any:
        """As `hwsearch/bench/onnxruntime.py` has them."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def session(self, graph: Path, options: Any) -> Any:
        """A session of this provider."""
        return self._ort.InferenceSession(str(graph), options, providers=[self._provider])

    def profiled(self, optimised: Path) -> Any:
        """A session of a graph that is optimised already, with the profiler on."""
        options = self.options()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(optimised.with_suffix(""))
        return self.session(optimised, options)


class Model(Passes):
    """A graph in ONNX Runtime.

    Args:
        optimised: the graph that the runtime made of it, to be profiled; None for whole passes alone.
    """

    def __init__(
        self, runtime: OnnxRuntime, session: Any, inputs: dict[str, np.ndarray[Any, Any]], optimised: Path | None
    ) -> None:
        super().__init__(lambda: session.run(None, inputs), look=self._look_at_nodes if optimised else None)
        self._inputs, self._optimised = inputs, optimised
        self._profiled: Any = runtime.profiled(optimised) if optimised else None
        self._warm: list[bool] = []
        self.when: list[float] = []

    def _look_at_nodes(self, warm: bool, passes: int) -> None:
        for count in range(-int(warm), passes):
            self._profiled.run(None, self._inputs)
            self._warm.append(count >= 0)
            if count >= 0:
                self.when.append(time.perf_counter())

    def finish(self) -> dict[str, Any]:
        """What the nodes took, and the optimised graph in the bytes that it has without its weights."""
        if self._profiled is None or self._optimised is None:
            return {}
        path = Path(self._profiled.end_profiling())
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
        count = max(times) + 1
        passes = [
            [times[node][i] if node in times else 0.0 for node in range(count)]
            for i, warm in enumerate(self._warm)
            if warm
        ]
        graph = self._optimised.read_bytes()
        return {"operators": [operators.get(node, "") for node in range(count)], "passes": passes, "graph": graph}


def example_input(point: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """An input of a point's graph, by name."""
    told = point["input"]
    rng = np.random.default_rng(0)
    if told["kind"] == "int64":
        return {told["name"]: rng.integers(0, told["below"], told["shape"])}
    return {told["name"]: rng.standard_normal(told["shape"]).astype(told["kind"])}

"""ONNX Runtime's CPU provider as something to be timed."""

from __future__ import annotations

from collections.abc import Callable

from hwsearch.architecture import Architecture
from hwsearch.bench.graph import build_graph, example_input
from hwsearch.workload import Workload


def version() -> str:
    """Of the runtime that is installed."""
    import onnxruntime

    return str(onnxruntime.__version__)


def prepare(architecture: Architecture, workload: Workload, threads: int) -> Callable[[], object]:
    """A function that runs one forward pass, with weights of its own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Many sessions take turns: one whose threads go on spinning after its run would slow the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = build_graph(architecture, workload).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = example_input(architecture, workload)
    return lambda: session.run(None, inputs)

"""A student as what TensorRT is given: the graphs with every precision written in them, for a strongly typed network, a
`trtexec` line, and a script that builds an engine by TensorRT's Python package.

Half precision is float16 tensors, int8 QuantizeLinear and DequantizeLinear with symmetric ranges: the one form that
TensorRT 10 and 11 both read. The scripts were not run by this project: TensorRT is on none of its machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.architecture import Architecture
from hwsearch.errors import ExportError
from hwsearch.export.float_graph import Shape
from hwsearch.export.onnx import write_graphs
from hwsearch.export.parity import Parity
from hwsearch.export.student import TrainedStudent
from hwsearch.files import pretty, write_text
from hwsearch.precision import Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Ends = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # the least, usual and largest shape of an input
SHELL = """\
#!/bin/sh
# An engine of each graph, and what it takes, by the trtexec that comes with TensorRT 10 or 11 (and with JetPack).
PATH="$PATH:/usr/src/tensorrt/bin:/usr/local/tensorrt/bin:/opt/tensorrt/bin"  # where JetPack and installers put it
cd "$(dirname "$0")" || exit
{engines}
"""
ENGINE = "trtexec --onnx={name}.onnx --saveEngine={name}.plan --stronglyTyped{shapes} --noDataTransfers --useCudaGraph"
SHAPES = " \\\n  --minShapes={} \\\n  --optShapes={} \\\n  --maxShapes={} \\\n "
SCRIPT = '''\
"""Build an engine of each graph; needs TensorRT 10 or 11 and its Python package."""
import pathlib

import tensorrt as trt

folder = pathlib.Path(__file__).parent
logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
typed = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)  # 11: always on
for graph, shapes in {engines}.items():
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(folder / f"{{graph}}.onnx")):
        raise SystemExit("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, (least, usual, most) in shapes.items():
        profile.set_shape(name, least, usual, most)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit(f"TensorRT cannot build {{graph}}.onnx")
    (folder / f"{{graph}}.plan").write_bytes(plan)
'''


def write_tensorrt(
    student: TrainedStudent,
    chunks: NDArray[np.int64],
    to: Path,
    run: Shape,
    static: bool = False,
    new_tokens: int = 0,
) -> dict[str, Parity]:
    """Write a student for TensorRT, its graphs checked by ONNX Runtime as `onnx.write_onnx` does.

    Args:
        student: that was trained, its int8 parts with static symmetric ranges.
        chunks: held-out text, as the objective draws it.
        to: folder; appears whole or not at all, an earlier export there is replaced.
        run: batch and sequence that the engine is tuned for: the most it takes, and all it takes where `static`.
        static: shapes are fixed in `model.onnx`.
        new_tokens: that follow a sequence; the engine of `model_with_past.onnx` is tuned for one of them.

    Raises:
        ExportError: a graph does not compute what the student does, or its int8 parts were trained for another scheme.
        RunError: the folder holds something else, or cannot be written.
    """
    scheme, kinds = student.scheme, {module.precision for module in student.quantised.values()}
    if Precision.INT4 in kinds:
        raise ExportError("int4 weights are written for ONNX Runtime alone: --format onnx")
    if Precision.INT8 in kinds and (scheme.activations, scheme.activation_type) != ("static", "int8"):
        raise ExportError(
            "TensorRT's int8 has static symmetric ranges; this student was trained for "
            f"{scheme.activations} {scheme.activation_type}. Search with --runtime tensorrt"
        )
    objective = student.teacher.objective
    least, most = (
        {name: tuple(value.shape) for name, value in objective.blank(*shape).items()} for shape in ((1, 1), run)
    )
    engines: dict[str, dict[str, Ends]]
    engines = {"model": {name: (most[name] if static else least[name], most[name], most[name]) for name in most}}
    if student.architecture.block == "decoder":
        engines["model_with_past"] = _with_past(student.architecture, run, run[1] + max(1, new_tokens))
    lines = [
        ENGINE.format(name=name, shapes="" if static and name == "model" else _shapes(shapes))
        for name, shapes in engines.items()
    ]
    with student.folder(to) as folder:
        found = write_graphs(student, chunks, folder, run if static else None)
        write_text(folder / "parity.json", pretty(found) + "\n")
        write_text(folder / "build.sh", SHELL.format(engines=" &&\n".join(lines)))
        (folder / "build.sh").chmod(0o755)
        write_text(folder / "build.py", SCRIPT.format(engines=engines))
    return found


def _with_past(architecture: Architecture, run: Shape, context: int) -> dict[str, Ends]:
    """The least, usual and largest shape of each input of the graph with cached keys and values, of which there are
    none before a prompt: tuned for a new token behind `context` - 1 others. At each end the mask is as long as what is
    cached and what is new together."""
    (batch, sequence), dim = run, architecture.head_dim
    shapes: dict[str, Ends] = {
        "input_ids": ((1, 1), (batch, 1), (batch, sequence)),
        "attention_mask": ((1, 1), (batch, context), (batch, context - 1 + sequence)),
    }
    for i, layer in enumerate(architecture.layers):
        least, most = ((b, layer.kv_heads, past, dim) for b, past in ((1, 0), (batch, context - 1)))
        shapes |= {f"past.{i}.{part}": (least, most, most) for part in ("key", "value")}
    return shapes


def _shapes(shapes: Mapping[str, Ends]) -> str:
    """As trtexec reads them."""
    return SHAPES.format(
        *(",".join(f"{name}:{'x'.join(map(str, each[i]))}" for name, each in shapes.items()) for i in range(3))
    )

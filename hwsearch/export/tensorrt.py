"""A student as what TensorRT is given: the graphs with every precision written in them, for a strongly typed network, a
`trtexec` line, and a script that builds an engine by TensorRT's Python package.

Half precision is float16 tensors, int8 QuantizeLinear and DequantizeLinear with symmetric ranges: the one form that
TensorRT 10 and 11 both read. The scripts were not run by this project: TensorRT is on none of its machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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

SHELL = """\
#!/bin/sh
# An engine of model.onnx, and what it takes, by the trtexec that comes with TensorRT 10 or 11 (and with JetPack).
PATH="$PATH:/usr/src/tensorrt/bin:/usr/local/tensorrt/bin:/opt/tensorrt/bin"  # where JetPack and installers put it
cd "$(dirname "$0")" &&
trtexec --onnx=model.onnx --saveEngine=model.plan --stronglyTyped{shapes} --noDataTransfers --useCudaGraph
"""
SHAPES = " \\\n  --minShapes={least} \\\n  --optShapes={most} \\\n  --maxShapes={most}"
SCRIPT = '''\
"""Build model.plan from model.onnx; needs TensorRT 10 or 11 and its Python package."""
import pathlib

import tensorrt as trt

folder = pathlib.Path(__file__).parent
logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
typed = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)  # 11: always on
network = builder.create_network(0 if typed is None else 1 << int(typed))
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(str(folder / "model.onnx")):
    raise SystemExit("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
for name, (least, most) in {shapes}.items():
    profile.set_shape(name, least, most, most)
config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
if plan is None:
    raise SystemExit("TensorRT cannot build model.onnx")
(folder / "model.plan").write_bytes(plan)
'''


def write_tensorrt(
    student: TrainedStudent, chunks: NDArray[np.int64], to: Path, run: Shape, static: bool = False
) -> dict[str, Parity]:
    """Write a student for TensorRT, its graphs checked by ONNX Runtime as `onnx.write_onnx` does.

    Args:
        student: that was trained, its int8 parts with static symmetric ranges.
        chunks: held-out token ids, [chunks, sequence + 1]; the last column holds labels alone.
        to: folder; appears whole or not at all, an earlier export there is replaced.
        run: batch and sequence that the engine is tuned for: the most it takes, and all it takes where `static`.
        static: shapes are fixed in `model.onnx`.

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
    shapes = SHAPES.format(least=_shapes(least), most=_shapes(most))
    tuned = {name: (most[name] if static else least[name], most[name]) for name in most}
    with student.folder(to) as folder:
        found = write_graphs(student, chunks, folder, run if static else None)
        write_text(folder / "parity.json", pretty(found) + "\n")
        write_text(folder / "build.sh", SHELL.format(shapes="" if static else shapes))
        (folder / "build.sh").chmod(0o755)
        write_text(folder / "build.py", SCRIPT.format(shapes=tuned))
    return found


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """As trtexec reads them."""
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())

"""A kit: a folder to copy to a board that needs only numpy and the board's runtime.

It holds whole models as ONNX graphs without weights (`weights`), and the script that measures them (`board`). The way
there and back is `ssh`; what comes back is read by `answers`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import onnx
from msgspec.structs import replace

from hwsearch import __version__
from hwsearch.bench import board
from hwsearch.bench.board import manifest as board_manifest
from hwsearch.bench.graph import build_graph
from hwsearch.bench.points import GFLOPS, Ranges, case_of, first_points, reference_model
from hwsearch.bench.tensorrt import PRECISIONS, build_typed_graph
from hwsearch.bench.weights import KINDS, Store, Weights
from hwsearch.errors import CasesError
from hwsearch.files import TEMPORARY, pretty
from hwsearch.latency.cases import Case
from hwsearch.precision import Precision
from hwsearch.profiles import check_name
from hwsearch.runtime import Runtime

FORMAT = board_manifest.FORMAT
BATCH = 10  # models that take turns on the board, all in its memory at once
SECONDS = 3.0  # of timing for a model
GPU_GFLOPS = 2000.0  # to guess a pass on a graphics processor by
BUILDERS = {
    "onnxruntime": build_graph,
    "onnxruntime-cuda": build_typed_graph,
    "onnxruntime-tensorrt": build_typed_graph,
    "tensorrt": build_typed_graph,
}
LAUNCHER = '''"""Measures this kit's models; a second run goes on where the first was cut off. Python 3.8 or later."""

import os
import sys

if sys.version_info < (3, 8):
    sys.exit("this kit needs Python 3.8 or later")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from board.run import main  # noqa: E402

sys.exit(main())
'''
README = """hwsearch kit: {points} models for {runtime} on {device}

1. Copy this folder to the board. It needs Python 3.8 or later, numpy, and {needs}.
2. On the board, with nothing else running and the power mode set:  python3 run.py
   It takes about {minutes:.0f} minutes (TensorRT's building of engines besides) and {mib:.0f} MiB of disk meanwhile.
   Cut off, it goes on with the models that are missing: run it again.
3. Copy the folder `results` back into this folder on the workstation, and there:
   hwsearch profile --device {device} --runtime {runtime} --import FOLDER
From the workstation all three in one: hwsearch profile --device {device} --runtime {runtime} --ssh USER@HOST
"""
NEEDS = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime-gpu",
    "onnxruntime-tensorrt": "onnxruntime-gpu and TensorRT",
    "tensorrt": "TensorRT 10.3 or later (its Python package, or trtexec alone)",
}


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a graph; `below` bounds its integers."""

    name: str
    kind: Literal["float32", "float16", "int64"]
    shape: tuple[int, ...]
    below: int = 0


class Yard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The graph of the reference model."""

    file: str
    sha256: str
    input: Tensor
    output: Tensor


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model to be measured; the latency in its case stands for nothing."""

    id: str
    model: str
    file: str
    sha256: str
    input: Tensor
    output: Tensor
    case: Case


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a kit asks of a board.

    Attributes:
        format: of the kit and its results.
        hwsearch: version that wrote it.
        device, runtime: names, as in the cases.
        facts: of the runtime.
        threads: 0 for all cores.
        seconds: of timing for a model.
        batch: models that take turns.
    """

    format: int
    hwsearch: str
    device: str
    runtime: str
    facts: Runtime
    threads: int
    seconds: float
    batch: int
    weights: Weights
    reference: Yard
    points: tuple[Asked, ...]


def write_kit(
    folder: Path,
    runtime: Runtime,
    device: str,
    name: str,
    ranges: Ranges,
    points: int,
    seed: int = 0,
    precisions: Sequence[Precision] | None = None,
    seconds: float = SECONDS,
    gflops: float | None = None,
    batch: int = BATCH,
) -> Manifest:
    """Write a kit. The same arguments write the same kit, byte for byte.

    Args:
        folder: new or empty.
        runtime: its facts; `threads` of 0 are all of the board's.
        device, name: of the device and the runtime.
        ranges: that the table is to cover.
        points: models.
        seed: of their choice: they are the first batch of `Measuring` with the same seed.
        precisions: the widest first; layers are drawn in the first and the last. By default those of the runtime that
            the graphs have operators for, on a graphics processor from the narrowest float on.
        seconds: of timing for a model.
        gflops: that the board reaches, to guess how deep a model may be.
        batch: models that take turns.

    Raises:
        CasesError: the folder is not empty, or there is no kit for the runtime.
    """
    if name not in BUILDERS:
        raise CasesError(f"a kit measures {', '.join(BUILDERS)}; got runtime {name!r}. Fit timings: --from-cases")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CasesError(f"a kit needs a new or empty folder; {folder} has something in it")
    facts = replace(
        runtime, precisions=tuple(precisions or _precisions(runtime, name)), table="", parameters=None, fit=None
    )
    rate = gflops or (GFLOPS * max(1, runtime.threads) if name == "onnxruntime" else GPU_GFLOPS)
    cases = [
        case_of(device, name, facts, architecture, workload, f"{architecture.id} {workload}")
        for architecture, workload in first_points(ranges, facts.precisions, points, seed, rate)
    ]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
            inside = Path(temporary) / "kit"
            manifest = _write(inside, facts, device, name, cases, seconds, batch)
            inside.replace(folder)  # an empty folder may be in its place
    except OSError as error:
        raise CasesError(f"cannot write the kit {folder}: {error.strerror}") from error
    return manifest


def _precisions(runtime: Runtime, name: str) -> tuple[Precision, ...]:
    have = PRECISIONS if name != "onnxruntime" else (Precision.FP32, Precision.INT8)
    found = [precision for precision in runtime.precisions if precision in have]
    if name != "onnxruntime":
        narrowest = max((p.code for p in found if p.is_float), default=0)
        found = [precision for precision in found if precision.code >= narrowest]
    if not found or not found[0].is_float:
        raise CasesError(f"a kit for {name} needs a float precision among {', '.join(map(str, have))}")
    return tuple(found)


def _write(
    folder: Path, facts: Runtime, device: str, name: str, cases: Sequence[Case], seconds: float, batch: int
) -> Manifest:
    graphs, store = folder / "graphs", Store()
    graphs.mkdir(parents=True)
    yard = reference_model(facts.precisions)
    models = [
        store.strip(BUILDERS[name](architecture, workload))
        for architecture, workload in [yard, *((case.architecture(facts), case.workload) for case in cases)]
    ]
    constants, weights = store.finish()
    (graphs / "constants.bin.gz").write_bytes(constants)
    entries = []
    for number, model in enumerate(models):
        file = graphs / (f"{number:04d}.onnx" if number else "reference.onnx")
        data = model.SerializeToString(deterministic=True)
        file.write_bytes(data)
        entry, leave = model.graph.input[0], model.graph.output[0]
        below = next((t.dims[0] for t in model.graph.initializer if t.name == "embedding/embedding.weight"), 0)
        told = (_tensor(entry, below), _tensor(leave, 0))
        entries.append((f"graphs/{file.name}", hashlib.sha256(data).hexdigest(), *told))
    manifest = Manifest(
        format=FORMAT,
        hwsearch=__version__,
        device=device,
        runtime=name,
        facts=facts,
        threads=facts.threads,
        seconds=seconds,
        batch=batch,
        weights=weights,
        reference=Yard(*entries[0]),
        points=tuple(
            Asked(f"{number:04d}", case.model, *entry, case=case)
            for number, (case, entry) in enumerate(zip(cases, entries[1:], strict=True), 1)
        ),
    )
    (folder / "manifest.json").write_text(pretty(manifest) + "\n", encoding="utf-8")
    (folder / "run.py").write_text(LAUNCHER, encoding="utf-8")
    minutes = len(cases) * (2 * seconds + 3) / 60
    text = README.format(
        points=len(cases),
        runtime=name,
        device=device,
        needs=NEEDS[name],
        minutes=max(1.0, minutes),
        mib=max(1.0, (1 + batch) * weights.bytes / 2**20),
    )
    (folder / "README.txt").write_text(text, encoding="utf-8")
    (folder / "board").mkdir()
    for source in sorted(Path(board.__file__).parent.glob("*.py")):
        shutil.copyfile(source, folder / "board" / source.name)
    return manifest


def _tensor(told: onnx.ValueInfoProto, below: int) -> Tensor:
    kind = told.type.tensor_type
    return Tensor(told.name, KINDS[kind.elem_type], tuple(d.dim_value for d in kind.shape.dim), below)  # type: ignore[arg-type]


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a kit, and its hash.

    Raises:
        CasesError: it is missing or damaged, or of another format.
        ProfileError: no device can be called as it says.
    """
    path = folder / "manifest.json"
    try:
        data = path.read_bytes()
        found = msgspec.json.decode(data, type=Manifest)
    except (OSError, ValueError) as error:  # msgspec's and those of letters that are none
        raise CasesError(f"{path} is not the manifest of a kit that this version reads: {error}") from error
    if found.format != FORMAT or found.runtime not in BUILDERS:
        raise CasesError(f"{path} is of format {found.format} for {found.runtime!r}; write the kit again with --kit")
    check_name(found.device)
    return found, hashlib.sha256(data).hexdigest()

"""What a board measured with a kit, checked against what was asked before any of it is used."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import onnx
from msgspec.structs import replace

from hwsearch.bench.graph import parts_of
from hwsearch.bench.kit import FORMAT, Asked, Manifest, read_manifest
from hwsearch.bench.measuring import Raw
from hwsearch.bench.monitor import Readings, facts_of
from hwsearch.bench.timing import Reference, Samples
from hwsearch.errors import CasesError
from hwsearch.latency.cases import Case
from hwsearch.latency.kernels import kernel_name

LARGEST = 2**28  # bytes of a file of results
T = TypeVar("T")


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the results are results of: `board.json`."""

    format: int
    manifest: str
    board: str
    graphics: str
    system: str
    release: str
    power_mode: str
    cores: int
    saturates: bool
    threads: int
    runtime: str
    runtime_version: str
    interface: Literal["onnxruntime", "tensorrt", "trtexec"]
    python: str
    numpy: str
    date: str
    clocks: dict[str, float]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the board measured of one model.

    Attributes:
        wall, cpu, reference: milliseconds of whole passes.
        operators: of the optimised graph's nodes; empty where the runtime does not tell of them.
        passes: microseconds of every node, [passes, nodes].
        pass_reference: milliseconds of the reference model about each of those passes.
        layers: milliseconds of a runtime's own layers, where it has no graph to give back.
        readings: of the board meanwhile.
    """

    format: int
    manifest: str
    point: str
    model: str
    graph: str
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    reference: tuple[float, ...]
    operators: tuple[str, ...]
    passes: tuple[tuple[float, ...], ...]
    pass_reference: tuple[float, ...]
    layers: dict[str, tuple[float, ...]]
    readings: Readings


class Results(msgspec.Struct, frozen=True):
    """What a board has measured of a kit, checked.

    Attributes:
        manifest: what was asked.
        board: what it was measured on.
        answers: of the models that were measured, in the order of the manifest.
        folder: where the graphs that the runtime made lie, `<point>.onnx`.
    """

    manifest: Manifest
    board: Board
    answers: tuple[tuple[Asked, Answer], ...]
    folder: Path

    @property
    def ran_on(self) -> str:
        """What ran the models: the graphics card of a runtime that needs one, where it is known."""
        graphics = self.board.graphics if self.board.runtime != "onnxruntime" else ""
        return graphics or self.board.board


def read_results(folder: Path, results: Path | None = None) -> Results:
    """What a board has measured of a kit. Models that it has not measured yet are left out.

    Args:
        folder: of the kit, as it was written.
        results: by default those in the kit.

    Raises:
        CasesError: there are none, or they are not results of this kit.
    """
    results = results or folder / "results"
    manifest, digest = read_manifest(folder)
    if not results.is_dir():
        raise CasesError(f"{results} is missing; run `python3 run.py` on the board and copy its folder results back")
    known = {"board.json", *(f"{point.id}.{ending}" for point in manifest.points for ending in ("json", "onnx"))}
    unknown = sorted(path.name for path in results.iterdir() if path.name not in known and path.name[:1] != ".")
    if unknown:
        raise CasesError(
            f"{results / unknown[0]} is no result of this kit; import the folder results as the board wrote it"
        )
    board = _decode(results / "board.json", Board)
    if board.manifest != digest or board.runtime != manifest.runtime:
        raise CasesError(f"{results} belongs to another kit than {folder}; import it with the kit that it was run from")
    answers = []
    for asked in manifest.points:
        path = results / f"{asked.id}.json"
        if path.is_file():
            answer = _decode(path, Answer)
            _check(path, digest, asked, answer)
            answers.append((asked, answer))
    if not answers:
        raise CasesError(f"{results} has no measured models yet; run `python3 run.py` on the board")
    told = [asked.id for asked, answer in answers if answer.passes]
    if told and (silent := [asked.id for asked, _ in answers if asked.id not in told]):
        raise CasesError(
            f"{results / silent[0]}.json has no times of kernels, as others have; delete it on the board and run again"
        )
    return Results(manifest, board, tuple(answers), results)


def measured_of(results: Results) -> tuple[list[Case], list[Raw]]:
    """The models as `Measuring` holds them: cases with the latencies that it would say, and what was timed, without
    kernels where the runtime told none.

    Raises:
        CasesError: a graph that the runtime made is missing, damaged or another's.
    """
    board = results.board
    cases, raws = [], []
    for asked, answer in results.answers:
        raws.append(_raw(results.manifest, asked, answer, results.folder / f"{asked.id}.onnx"))
        cases.append(
            replace(
                asked.case,
                runtime_version=board.runtime_version,
                threads=board.threads,
                power_mode=board.power_mode,
                io="compute",
                source=f"hwsearch kit on {results.ran_on}",
            )
        )
    usual = Reference(lambda: None, known=[spell for raw in raws for spell in raw.reference[::5]]).usual
    latencies = [float(f"{raw.samples.low_ms(usual):.5g}") for raw in raws]
    return [replace(case, latency_ms=ms) for case, ms in zip(cases, latencies, strict=True)], raws


def identity_of(results: Results) -> dict[str, Any]:
    """What identifies the measurement, for `measured.toml`: the board, versions, power mode, clocks, power and
    temperature over all models, as (smallest, middle, largest)."""
    told = {
        name: value
        for name, value in msgspec.to_builtins(results.board).items()
        if name not in ("format", "clocks", "runtime", "runtime_version") and value not in ("", 0)
    }
    return {
        "kind": "measured",
        **told,
        "runtime": results.board.runtime_version,
        "hwsearch": results.manifest.hwsearch,
        "asked": len(results.manifest.points),
        **facts_of([answer.readings for _, answer in results.answers]),
    }


def readings_of(results: Results) -> dict[str, Readings]:
    """Clocks, power, temperature, throttling and energy of every model that was measured, by the case's model."""
    return {asked.model: answer.readings for asked, answer in results.answers}


def _decode(path: Path, kind: type[T]) -> T:
    try:
        if path.stat().st_size > LARGEST:
            raise CasesError(f"{path} is too large for a result")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's and those of letters that are none
        raise CasesError(f"{path} is missing or damaged: {error}; delete it on the board and run again") from error


def _check(path: Path, digest: str, asked: Asked, answer: Answer) -> None:
    """Raise unless the answer is one to what was asked."""
    again = "delete it on the board and run again"
    if (answer.format, answer.manifest, answer.point, answer.model, answer.graph) != (
        *(FORMAT, digest, asked.id, asked.model, asked.sha256),
    ):
        raise CasesError(f"{path} answers another kit or model; {again}")
    sizes = {len(answer.wall), len(answer.cpu), len(answer.reference)}
    if len(sizes) > 1 or max(sizes) < 3:
        raise CasesError(
            f"{path} has {sorted(sizes)} times of a pass; wall, cpu and reference have as many, 3 at least; {again}"
        )
    if not _positive(answer.wall) or not _positive(answer.reference) or not _positive(answer.cpu, zero=True):
        raise CasesError(f"{path} has times that are not positive and finite; {again}")
    width = {len(answer.operators)} if answer.passes else set()
    if {len(one) for one in answer.passes} != width or len(answer.pass_reference) != len(answer.passes):
        raise CasesError(f"{path} has passes with other numbers of nodes than the graph; {again}")
    if not _positive(answer.pass_reference) or not all(_positive(one, zero=True) for one in answer.passes):
        raise CasesError(f"{path} has kernel times that are negative or not finite; {again}")


def _positive(times: Iterable[float], zero: bool = False) -> bool:
    return all(math.isfinite(time) and (time > 0 or (zero and time == 0)) for time in times)


def _raw(manifest: Manifest, asked: Asked, answer: Answer, graph: Path) -> Raw:
    samples = Samples(answer.wall, answer.cpu, answer.reference)
    if not answer.passes:
        return Raw(samples, {}, {}, list(answer.reference))
    parts = _parts(graph, answer.operators)
    architecture = asked.case.architecture(manifest.facts)
    members: dict[str, list[int]] = defaultdict(list)
    try:
        for index, part in enumerate(parts):
            members[kernel_name(architecture, part)].append(index)
    except (ValueError, IndexError) as error:
        raise CasesError(f"{graph} is not a graph of {asked.model}; delete it on the board and run again") from error
    nodes = np.array(answer.passes)
    return Raw(
        samples=samples,
        kernels={kernel: nodes[:, indices].sum(axis=1).tolist() for kernel, indices in members.items()},
        nodes={kernel: len(indices) for kernel, indices in members.items()},
        reference=list(answer.pass_reference),
    )


def _parts(path: Path, operators: Sequence[str]) -> list[str]:
    """The part of each node of the graph that the runtime made."""
    again = "delete its .json on the board and run again"
    if not path.is_file() or path.stat().st_size > LARGEST:
        raise CasesError(f"{path} is missing or too large for a graph without weights; {again}")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        parts = parts_of(model.graph)
    except Exception as error:  # protobuf's own kind, which has no base of use
        raise CasesError(f"{path} is damaged: {error}; {again}") from error
    nodes = model.graph.node
    if len(operators) > len(nodes) or any(
        operator not in ("", node.op_type) for operator, node in zip(operators, nodes, strict=False)
    ):
        raise CasesError(f"{path} is not the graph whose nodes were timed; {again}")
    return parts[: len(operators)]

"""A kit's script: measures the models of a kit on the board that it lies on.

Every model's result is a file, written whole, so that a run that was cut off goes on with the models that are missing.
Models take turns in batches (`turns`), then each runs back to back for a moment while the board is watched (`monitor`).
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import monitor, sensors, trtexec
from .files import write_json, write_whole
from .machine import cores, describe_board
from .manifest import FORMAT, KitError, make_weights, read_manifest
from .onnxruntime import PROVIDERS, OnnxRuntime
from .tensorrt import TensorRT
from .turns import Reference, take_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

WATCH_SECONDS = 2.0  # that a model runs back to back, at most: NVML's power is a mean over up to a second
# What two runs have in common whose results go together.
SAME = (
    "manifest",
    "board",
    "graphics",
    "runtime",
    "runtime_version",
    "interface",
    "threads",
    "power_mode",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing; the exit status."""
    parser = argparse.ArgumentParser(
        description="Measure the models of this kit; a second run goes on with the missing."
    )
    parser.add_argument("--kit", type=Path, default=Path(__file__).resolve().parent.parent, help="folder of the kit")
    kit = parser.parse_args(arguments).kit
    try:
        return measure(kit)
    except (KitError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is measured is kept, run again to go on", file=sys.stderr, flush=True)
        return 130


def measure(kit: Path) -> int:
    """Measure the points of `kit` that have no result yet.

    Raises:
        KitError: a file of the kit is missing or damaged, or results are of another board.
        RuntimeError: the runtime cannot be used.
    """
    manifest = read_manifest(kit)
    results, work = kit / "results", kit / "work"
    for folder in (results, work):
        folder.mkdir(exist_ok=True)
    with (kit / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise KitError(f"another run is at work in {kit}; wait for it to end") from error
        return _measure(kit, manifest, results, work)


def _measure(kit: Path, manifest: dict[str, Any], results: Path, work: Path) -> int:
    for folder in (results, work):
        for left in folder.glob(".*.part"):
            left.unlink()
    points = manifest["points"]
    todo = [point for point in points if not (results / f"{point['id']}.json").is_file()]
    failed: list[str] = []
    if todo:
        sources = sensors.sources()
        try:
            failed = Session(kit, manifest, sources).measure(todo)
        finally:
            for source in sources:
                source.close()
    count = len(points) - len(failed)
    if 2 * count < len(points):
        raise KitError(
            f"{count} of {len(points)} models were measured, too few to go by; first failed {failed[0]}. "
            "Run again: it goes on with the others"
        )
    shutil.rmtree(work)
    weights = kit / "graphs" / manifest["weights"]["file"]
    if weights.exists():
        weights.unlink()
    if failed:
        say(f"{len(failed)} cannot be measured here, first {failed[0]}")
    say(f"{count} of {len(points)} models are measured: {results}")
    return 0


class Session:
    """Measuring on this board, or going on with it.

    Args:
        kit: folder.
        manifest: of the kit.
        sources: of readings.

    Raises:
        KitError: the runtime is not there, or the results that are there are of another board.
        RuntimeError: the runtime cannot be used.
    """

    def __init__(self, kit: Path, manifest: dict[str, Any], sources: list[Any]) -> None:
        self._kit, self._results, self._manifest, self._sources = kit, kit / "results", manifest, sources
        threads = manifest["threads"] or cores()
        self._runtime, interface = open_runtime(manifest, kit / "work", threads)
        cards = [source.name() for source in sources if isinstance(source, sensors.Nvml)]
        self._facts = {
            "format": FORMAT,
            "manifest": manifest["sha256"],
            **describe_board(),
            "graphics": cards[0] if cards else "",
            "threads": threads if manifest["runtime"] == "onnxruntime" else 0,
            "runtime": manifest["runtime"],
            "runtime_version": self._runtime.version,
            "interface": interface,
            "clocks": {},
        }
        check_session(self._results / "board.json", self._facts)
        make_weights(kit, manifest)
        known = manifest["reference"]
        self._yard = self._runtime.prepare(kit / known["file"], known, False)
        self._yard.warm()

    def measure(self, todo: list[dict[str, Any]]) -> list[str]:
        """Measure `todo` in batches, and alone what failed in those: others may have left it no memory; returns what
        could not be measured, and why."""
        runtime, size = f"{self._facts['runtime']} {self._facts['runtime_version']}", self._manifest["batch"]
        say(f"{self._facts['board']}: {runtime}, {len(todo)} of {len(self._manifest['points'])} models to measure")
        begun = time.monotonic()
        later: list[dict[str, Any]] = []
        for start in range(0, len(todo), size):
            batch = todo[start : start + size]
            failed = self._measure(batch)
            later += [point for point in batch if point["id"] in failed]
            gc.collect()
            done = start + len(batch)
            left = (time.monotonic() - begun) / done * (len(todo) - done)
            say(f"{done} of {len(todo)} models, about {left / 60:.0f} min left")
        reasons = []
        for point in later:
            for error in self._measure([point]).values():
                reasons.append(f"{point['model']}: {error}")
                say(f"left out {reasons[-1]}")
            gc.collect()
        return reasons

    def _measure(self, batch: list[dict[str, Any]]) -> dict[str, str]:
        """Measure models in turn; why some could not be, by their id."""
        # Each runtime raises kinds of its own for a graph that it cannot run.
        models: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for point in batch:
            try:
                model = models[point["id"]] = self._runtime.prepare(self._kit / point["file"], point, True)
                model.warm()
            except Exception as error:
                failed[point["id"]] = str(error)
                close(models.pop(point["id"], None))
        if not models:
            return failed
        reference = Reference(self._yard.reference)
        try:
            times = take_turns(models, self._manifest["seconds"] * len(models), reference)
        except Exception as error:  # whose it was is seen when each is tried alone
            for model in models.values():
                close(model)
            return {**failed, **dict.fromkeys(models, str(error))}
        for point in batch:
            if point["id"] in models:
                model = models.pop(point["id"])
                try:
                    readings = self._watch(model)
                    found = model.finish()
                except Exception as error:
                    failed[point["id"]] = str(error)
                    continue
                finally:
                    close(model)
                when = getattr(model, "when", [])
                self._keep(point, times[point["id"]], found, reference.at(when) if when else [], readings)
                # All models' graphs and engines would take many times the disk of one.
                for path in (self._kit / "work").glob(f"{Path(point['file']).stem}[-._]*"):
                    path.unlink()
        return failed

    def _watch(self, model: Any) -> dict[str, Any]:
        """Readings of the board while one model runs; the session's first clocks are kept."""
        stretch = getattr(model, "stretch", None) or monitor.repeat(model.run)
        seconds = min(WATCH_SECONDS, self._manifest["seconds"])
        found = monitor.watch(monitor.Monitor(self._sources), stretch, seconds, self._facts["clocks"])
        if not self._facts["clocks"]:
            self._facts["clocks"] = monitor.clocks_of(found)
            write_json(self._results / "board.json", self._facts)
        return found

    def _keep(
        self,
        point: dict[str, Any],
        times: dict[str, list[float]],
        found: dict[str, Any],
        spells: list[float],
        readings: dict[str, Any],
    ) -> None:
        """Write a model's result."""
        if "graph" in found:
            write_whole(self._results / f"{point['id']}.onnx", found["graph"])
        document = {
            "format": FORMAT,
            "manifest": self._manifest["sha256"],
            "point": point["id"],
            "model": point["model"],
            "graph": point["sha256"],
            **{name: _short(series) for name, series in times.items()},
            "operators": found.get("operators", []),
            "passes": found.get("passes", []),
            "pass_reference": _short(spells),
            "layers": {name: _short(series) for name, series in found.get("layers", {}).items()},
            "readings": readings,
        }
        write_json(self._results / f"{point['id']}.json", document)


def close(model: Any) -> None:
    """Give back the device memory that a model may hold."""
    if hasattr(model, "close"):
        model.close()


def _short(times: list[float]) -> list[float]:
    """Times in six digits."""
    return [float(f"{ms:.6g}") for ms in times]


def open_runtime(manifest: dict[str, Any], work: Path, threads: int) -> tuple[Any, str]:
    """The board's runtime, and by what it is reached.

    Raises:
        KitError: it is not there.
        RuntimeError: it cannot be used.
    """
    name = manifest["runtime"]
    if name in PROVIDERS:
        return OnnxRuntime(name, work, threads), "onnxruntime"
    try:
        return TensorRT(work), "tensorrt"
    except ImportError as error:
        binary = trtexec.find()
        if binary is None:
            raise KitError(
                f"TensorRT's Python package cannot be imported ({error}) and there is no trtexec on PATH or in "
                f"{', '.join(str(Path(place).parent) for place in trtexec.PLACES)}. JetPack: apt install tensorrt"
            ) from error
        return trtexec.Trtexec(binary, work), "trtexec"


def check_session(path: Path, session: dict[str, Any]) -> None:
    """Go on with the session that `path` tells of.

    Raises:
        KitError: it was another board, version or power mode: results of two are not mixed.
    """
    if not path.is_file():
        write_json(path, session)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in SAME if before[name] != session[name]]
        session["clocks"] = before["clocks"]
    except (ValueError, KeyError) as error:
        raise KitError(f"{path} is damaged ({error}); delete the folder {path.parent} to begin again") from error
    if other:
        raise KitError(
            f"{path.parent} was measured with {other[0]} {before[other[0]]!r}, now it is {session[other[0]]!r}; "
            "delete that folder to begin again"
        )


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)

"""TensorRT on a board that has only `trtexec`: every turn is one process of it, and its JSON files hold the times.

`--exportTimes` holds one object a pass, with the GPU's time in "computeMs"; `--exportProfile` one object with a "count"
and then one a layer ("name", "averageMs", from 8.4 on "medianMs"): NVIDIA/TensorRT, samples/common/sampleReporting.cpp,
releases 8.0 to 10.x.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .turns import Pass

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
TURN_SECONDS = 1  # that a turn takes; trtexec takes whole seconds
KEPT = 200  # passes of a turn, the last ones
NEEDED = ("--onnx", "--saveEngine", "--loadEngine", "--exportTimes", "--exportProfile", "--duration", "--iterations")


def read_times(path: Path) -> list[dict[str, float]]:
    """What `--exportTimes` wrote: of every pass "computeMs", the GPU's time, and "enqueueMs", the host's.

    Raises:
        ValueError: the file is not what trtexec writes.
    """
    found = []
    for one in _read(path):
        if "computeMs" not in one:
            raise ValueError(f"{path} has passes without computeMs; is it what trtexec --exportTimes writes?")
        begun, ended = (_finite(one.get(name, 0.0)) for name in ("startEnqMs", "endEnqMs"))
        if begun is None or ended is None:
            raise ValueError(f"{path} has a pass whose startEnqMs or endEnqMs is no time")
        found.append({"computeMs": _positive(path, one["computeMs"]), "enqueueMs": max(0.0, ended - begun)})
    if not found:
        raise ValueError(f"{path} has no passes")
    return found


def read_layers(path: Path) -> dict[str, float]:
    """What `--exportProfile` wrote: milliseconds of a pass by layer, the median where the file has it, else the mean.

    Raises:
        ValueError: the file is not what trtexec writes.
    """
    found: dict[str, float] = {}
    for one in _read(path):
        if "name" in one:
            ms = _finite(one.get("medianMs", one.get("averageMs")))
            if ms is None or ms < 0:
                raise ValueError(f"{path} has a layer without a time: {one['name']!r}")
            found[str(one["name"])] = found.get(str(one["name"]), 0.0) + ms
    if not found:
        raise ValueError(f"{path} has no layers; is it what trtexec --exportProfile writes?")
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{path} is not a list of objects, as trtexec writes it")
    return found


def _positive(path: Path, given: Any) -> float:
    ms = _finite(given)
    if ms is None or ms <= 0:
        raise ValueError(f"{path} has a pass of {str(given)[:40]} ms; times are positive")
    return ms


def _finite(given: Any) -> float | None:
    """A number as such; None of what is none."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return None
    try:
        number = float(given)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def find() -> str | None:
    """The path of trtexec: on PATH, or where JetPack and the containers put it."""
    return shutil.which("trtexec") or next((place for place in PLACES if shutil.which(place)), None)


class Trtexec:
    """TensorRT by its command line.

    Args:
        binary: trtexec.
        work: folder for engines and the timing cache, which a second run finds again.

    Raises:
        RuntimeError: it cannot be run, or lacks an option.
    """

    def __init__(self, binary: str, work: Path) -> None:
        self._binary, self._work = binary, work
        self._help = self._call(["--help"])
        if missing := [option for option in NEEDED if option not in self._help]:
            raise RuntimeError(f"{binary} has no option {missing[0]}; the kit is for TensorRT 10.3 and later")
        self.version = _version(self._help)

    def prepare(self, graph: Path, _point: Mapping[str, Any], beside: bool = True) -> Model:
        """An engine, built unless it was before."""
        plan = self._work / f"{graph.stem}-{self.version}.plan"
        if not plan.is_file():
            part = plan.with_name(f".{plan.name}.part")
            cache = f"--timingCacheFile={self._work / 'timing.cache'}"
            # What a version does not know it is not told: --skipInference was --buildOnly, strong typing is always on
            # in 11.x.
            once = self.known("--skipInference") or self.known("--buildOnly")
            extra = [*once, *self.known("--stronglyTyped"), *self.known(cache)]
            self._call([f"--onnx={graph}", f"--saveEngine={part}", *extra])
            part.replace(plan)
        return Model(self, plan, beside)

    def known(self, option: str) -> list[str]:
        """The option, if this version has it."""
        return [option] if option.split("=")[0] in self._help else []

    def times(self, plan: Path, seconds: int, extra: list[str] | None = None) -> list[dict[str, float]]:
        """Passes of an engine, run for so many seconds."""
        file = self._work / "times.json"
        if file.exists():
            file.unlink()
        options = [f"--duration={seconds}", "--iterations=10", f"--exportTimes={file}", *(extra or [])]
        self._call([f"--loadEngine={plan}", *self.known("--noDataTransfers"), *options])
        return read_times(file)

    def layers(self, plan: Path) -> dict[str, float]:
        """Milliseconds of the engine's layers."""
        file = self._work / "profile.json"
        if file.exists():
            file.unlink()
        self.times(plan, TURN_SECONDS, [f"--exportProfile={file}", *self.known("--separateProfileRun")])
        return read_layers(file)

    def _call(self, options: list[str]) -> str:
        try:
            done = subprocess.run(  # noqa: S603  an argument list, no shell
                [self._binary, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
        except OSError as error:
            raise RuntimeError(f"cannot run {self._binary}: {error.strerror}") from error
        text = done.stdout.decode(errors="replace")
        if done.returncode and options != ["--help"]:
            lines = [line for line in text.splitlines() if "[E]" in line] or text.splitlines() or [""]
            raise RuntimeError(f"trtexec failed with status {done.returncode}: {lines[-1].strip()}")
        return text


class Model:
    """An engine that takes turns, each a process."""

    def __init__(self, runtime: Trtexec, plan: Path, beside: bool) -> None:
        self._runtime, self._plan, self._profiling = runtime, plan, beside

    def warm(self) -> None:
        """See that it runs; trtexec warms up in every process."""
        self.reference()

    def turn(self) -> list[Pass]:
        """The last passes of one process; their CPU time is the host's for handing a pass to the GPU."""
        when = time.perf_counter()  # just after the reference
        found = self._runtime.times(self._plan, TURN_SECONDS)[-KEPT:]
        return [Pass(one["computeMs"], one["enqueueMs"], when) for one in found]

    def reference(self) -> float:
        """Milliseconds of a reference model: the best of a process."""
        return min(one["computeMs"] for one in self._runtime.times(self._plan, TURN_SECONDS))

    def beside(self) -> None:
        """Layers are timed at the end."""

    def stretch(self, seconds: float) -> tuple[int, float]:
        """Run it back to back; returns the passes and the seconds that they took."""
        found = self._runtime.times(self._plan, max(1, math.ceil(seconds)))
        return len(found), sum(one["computeMs"] for one in found) / 1e3

    def finish(self) -> dict[str, Any]:
        """Milliseconds of every layer; none where this version tells of none."""
        if not self._profiling:
            return {}
        try:
            return {"layers": {name: [ms] for name, ms in self._runtime.layers(self._plan).items()}}
        except ValueError:  # whole passes are what is priced by
            return {}


def _version(text: str) -> str:
    """From the banner "&&&& RUNNING TensorRT.trtexec [TensorRT v100300]"; empty where there is none."""
    _, found, rest = text.partition("[TensorRT v")
    digits = rest.split("]")[0] if found else ""
    if not digits.isdigit():
        return ""
    number = int(digits)
    # Up to 8.x four digits, as 8502 for 8.5.2; from 10 on two a part, as 100300 for 10.3.0.
    parts = (
        (number // 10000, number // 100 % 100, number % 100)
        if number >= 100000
        else (number // 1000, number // 100 % 10, number % 100)
    )
    return ".".join(map(str, parts))

"""What a board tells of clocks, power, temperature and throttling: NVML on NVIDIA's graphics cards, tegrastats and
sysfs on Jetson, sysfs alone on other Linux boards. What a board does not tell is left out, never guessed.

A reading is a flat mapping, the unit in the name: "clock_mhz.gpu", "power_w.VDD_GPU_SOC", "temperature_c.cpu-thermal".
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PERIOD = 0.1  # seconds between two readings
CLOCK, POWER, TEMPERATURE = "clock_mhz.", "power_w.", "temperature_c."

# NVML's reasons (nvml.h, nvmlClocksEventReasons) that mean that the card is slower than it could be.
REASONS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
# Rails that carry a whole Jetson module; on AGX Orin it is the sum of three (NVIDIA's developer guide for Jetson Linux,
# "Platform Power and Performance"). VDDQ_VDD2_1V8AO is fed by VIN_SYS_5V0 and counts there.
WHOLE_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")
RAIL_SUMS = (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"))


class Sysfs:
    """The kernel's files.

    Args:
        root: under which `sys` and `proc` are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        devices, classes = root / "sys/devices/system/cpu", root / "sys/class"
        self._cpu = sorted(devices.glob("cpufreq/policy*/scaling_cur_freq"))
        self._cpu = self._cpu or sorted(devices.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._info = root / "proc/cpuinfo"
        self._devfreq = sorted(classes.glob("devfreq/*/cur_freq"))
        self._zones = [
            (_text(zone / "type") or zone.name, zone / "temp")
            for zone in sorted(classes.glob("thermal/thermal_zone*"), key=lambda zone: zone.name)
        ]
        self._rails = []
        for current in sorted(classes.glob("hwmon/hwmon*/curr[123]_input")):
            channel = current.name[4]
            volts, label = current.with_name(f"in{channel}_input"), _text(current.with_name(f"in{channel}_label"))
            if label and volts.is_file() and _text(current.with_name("name")).startswith("ina"):
                self._rails.append((label.replace(" ", "_"), volts, current))

    def read(self) -> dict[str, float]:
        """A reading."""
        found: dict[str, float] = {}
        clocks = [khz / 1e3 for khz in map(_number, self._cpu) if khz] or self._cpuinfo()
        if clocks:
            found[f"{CLOCK}cpu"] = max(clocks)  # clusters that have nothing to do sleep
        for path in self._devfreq:
            hertz = _number(path)
            if hertz:
                found[CLOCK + path.parent.name] = hertz / 1e6
        for name, path in self._zones:
            milli = _number(path)
            if milli is not None and -50e3 < milli < 200e3:
                found[TEMPERATURE + name] = milli / 1e3
        for label, volts, amperes in self._rails:
            mv, ma = _number(volts), _number(amperes)
            if mv is not None and ma is not None:
                found[POWER + label] = mv * ma / 1e6
        return found

    def throttled(self) -> list[str]:
        """The kernel does not tell."""
        return []

    def close(self) -> None:
        """Nothing is held."""

    def _cpuinfo(self) -> list[float]:
        return [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _text(self._info), re.MULTILINE)]


class Nvml:
    """An NVIDIA graphics card through `pynvml` (the package nvidia-ml-py): the one that CUDA takes, the first of those
    that CUDA_VISIBLE_DEVICES names by number or by the beginning of its UUID.

    Raises:
        Exception: the package, the library or a card is missing.
    """

    def __init__(self) -> None:
        self._nvml: Any = importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        self._card = self._named(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0")

    def _named(self, name: str) -> Any:
        nvml = self._nvml
        if name.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(name))
        cards = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        return next(card for card in cards if _decoded(nvml.nvmlDeviceGetUUID(card)).startswith(name))

    def read(self) -> dict[str, float]:
        """A reading; a card leaves out what it does not have."""
        nvml, found = self._nvml, {}
        for name, scale, ask in (
            (f"{CLOCK}gpu", 1.0, lambda: nvml.nvmlDeviceGetClockInfo(self._card, nvml.NVML_CLOCK_SM)),
            (f"{CLOCK}gpu-memory", 1.0, lambda: nvml.nvmlDeviceGetClockInfo(self._card, nvml.NVML_CLOCK_MEM)),
            (f"{POWER}gpu", 1e-3, lambda: nvml.nvmlDeviceGetPowerUsage(self._card)),
            (f"{TEMPERATURE}gpu", 1.0, lambda: nvml.nvmlDeviceGetTemperature(self._card, nvml.NVML_TEMPERATURE_GPU)),
        ):
            value = self._ask(ask)
            if value is not None:
                found[name] = value * scale
        return found

    def throttled(self) -> list[str]:
        """Why the card is slower than it could be, if it is."""
        nvml = self._nvml
        # Renamed in 2023: nvidia-ml-py before 12.535 has the old name alone.
        ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        ask = ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        bits = int(self._ask(lambda: ask(self._card)) or 0)
        return [text for bit, text in REASONS.items() if bits & bit]

    def name(self) -> str:
        """The card's and the driver's version."""
        card, driver = (self._nvml.nvmlDeviceGetName(self._card), self._nvml.nvmlSystemGetDriverVersion())
        return f"{_decoded(card)}, driver {_decoded(driver)}"

    def close(self) -> None:
        """Let NVML go."""
        self._ask(self._nvml.nvmlShutdown)

    def _ask(self, ask: Callable[[], Any]) -> float | None:
        try:
            return ask()  # type: ignore[no-any-return]
        except self._nvml.NVMLError:
            return None


class Tegrastats:
    """A Jetson's own monitor, as a process whose last line is the reading.

    Raises:
        OSError: it cannot be run.
    """

    def __init__(self, binary: str = "tegrastats") -> None:
        self._line = ""
        self._process = subprocess.Popen(  # noqa: S603  an argument list, no shell
            [binary, "--interval", str(int(PERIOD * 1e3))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._line = line.decode(errors="replace")

    def read(self) -> dict[str, float]:
        """A reading."""
        return parse_tegrastats(self._line)

    def throttled(self) -> list[str]:
        """It does not tell."""
        return []

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def parse_tegrastats(line: str) -> dict[str, float]:
    """One line of tegrastats, of JetPack 4 to 7: of each power rail and temperature the first number, which is now; the
    averages behind it are left out."""
    found = {}
    cores = [float(mhz) for mhz in re.findall(r"\d+%@(\d+)", "".join(re.findall(r"CPU \[[^\]]*\]", line)))]
    if cores:
        found[f"{CLOCK}cpu"] = max(cores)
    gpu = re.search(r"GR3D_FREQ \d+%@\[?(\d+)", line)
    if gpu and float(gpu.group(1)) > 0:
        found[f"{CLOCK}gpu"] = float(gpu.group(1))
    for name, degrees in re.findall(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C", line):
        if float(degrees) > -50:  # -256 stands for a part that is off
            found[TEMPERATURE + name.lower()] = float(degrees)
    for name, milliwatts in re.findall(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+(?:mW)?(?=[/\s]|$)", line):
        if name not in ("RAM", "SWAP", "IRAM"):
            found[POWER + name] = float(milliwatts) / 1e3
    return found


def whole_power(reading: Mapping[str, float]) -> float | None:
    """Watts of a Jetson's whole module, or of a graphics card; None where neither is known."""
    for rail in WHOLE_RAILS:
        if POWER + rail in reading:
            return reading[POWER + rail]
    for rails in RAIL_SUMS:
        if all(POWER + rail in reading for rail in rails):
            return sum(reading[POWER + rail] for rail in rails)
    return reading.get(f"{POWER}gpu")


def sources(root: Path = Path("/")) -> list[Any]:
    """What this machine tells: the kernel's files, tegrastats where it is installed, NVML where there is a card."""
    found: list[Any] = []
    binary = shutil.which("tegrastats")
    if binary:
        found.append(Tegrastats(binary))
    found.append(Sysfs(root))
    with suppress(Exception):  # no package, no library, no card: nothing to read
        found.append(Nvml())
    return found


def _decoded(text: str | bytes) -> str:
    """Older packages give bytes."""
    return text.decode() if isinstance(text, bytes) else text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    """A file's number; a sensor that is off gives an error or nothing."""
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

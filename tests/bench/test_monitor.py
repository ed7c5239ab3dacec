"""Readings of a board: made-up kernel files, real lines of tegrastats, a stand-in for NVML, and this machine."""

import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hwsearch.bench.board import monitor, sensors
from hwsearch.bench.monitor import Readings, facts_of, watch


def tree(root: Path, files: dict[str, str]) -> Path:
    """Files under a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


ORIN = {  # as the kernel of JetPack 6 has them
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "2201600\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51968\n",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "",  # off: the kernel gives an error
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon3/in1_input": "19000\n",
    "sys/class/hwmon/hwmon3/curr1_input": "200\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_CV\n",
    "sys/class/hwmon/hwmon3/in2_input": "19000\n",
    "sys/class/hwmon/hwmon3/curr2_input": "100\n",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon3/in3_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr3_input": "1000\n",
    "sys/class/hwmon/hwmon3/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon3/in7_input": "12\n",
}
# NVIDIA's developer forum and guides: Orin with JetPack 7.2, Orin NX with JetPack 5, Nano with JetPack 4, Thor.
LINES = {
    "07-17-2026 15:15:27 RAM 8179/62817MB (lfb 1x4MB) CPU [35%@729,24%@729,27%@1113,off] GR3D_FREQ 32% "
    "cpu@51.968C/51.968C soc2@48.968C/48.968C gpu@47.125C/47.125C tj@51.968C/51.968C "
    "VDD_GPU_SOC 4385mW/3787mW/4385mW VDD_CPU_CV 1196mW/897mW/1196mW VIN_SYS_5V0 5552mW/5274mW/5552mW": (
        {
            "clock_mhz.cpu": 1113.0,
            "temperature_c.cpu": 51.968,
            "temperature_c.soc2": 48.968,
            "temperature_c.gpu": 47.125,
            "temperature_c.tj": 51.968,
            "power_w.VDD_GPU_SOC": 4.385,
            "power_w.VDD_CPU_CV": 1.196,
            "power_w.VIN_SYS_5V0": 5.552,
        },
        11.133,
    ),
    "RAM 2448/15523MB (lfb 2x4MB) SWAP 0/7762MB (cached 0MB) CPU [1%@1984,0%@1984] EMC_FREQ 0%@3199 "
    "GR3D_FREQ 99%@[918,0] VIC_FREQ 729 CV0@-256C CPU@49.5C GPU@-256C "
    "VDD_IN 9801mW/5119mW VDD_CPU_GPU_CV 3300mW/800mW VDD_SOC 1900mW/1500mW": (
        {
            "clock_mhz.cpu": 1984.0,
            "clock_mhz.gpu": 918.0,
            "temperature_c.cpu": 49.5,
            "power_w.VDD_IN": 9.801,
            "power_w.VDD_CPU_GPU_CV": 3.3,
            "power_w.VDD_SOC": 1.9,
        },
        9.801,
    ),
    "RAM 1766/3964MB (lfb 197x4MB) SWAP 0/2048MB (cached 0MB) CPU [24%@1224,15%@1224] EMC_FREQ 0% GR3D_FREQ 0% "
    "PLL@21C CPU@25C PMIC@100C GPU@23.5C AO@33.5C thermal@24.5C "
    "POM_5V_IN 2545/2547 POM_5V_GPU 0/0 POM_5V_CPU 549/529": (
        {
            "clock_mhz.cpu": 1224.0,
            "temperature_c.pll": 21.0,
            "temperature_c.cpu": 25.0,
            "temperature_c.pmic": 100.0,
            "temperature_c.gpu": 23.5,
            "temperature_c.ao": 33.5,
            "temperature_c.thermal": 24.5,
            "power_w.POM_5V_IN": 2.545,
            "power_w.POM_5V_GPU": 0.0,
            "power_w.POM_5V_CPU": 0.549,
        },
        2.545,
    ),
    "05-14-2026 21:36:35 RAM 26063/125772MB (lfb 35x4MB) CPU [2%@972] VDD_GPU -392mW/-392mW "
    "VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW": (
        {
            "clock_mhz.cpu": 972.0,
            "power_w.VDD_CPU_SOC_MSS": 3.924,
            "power_w.VIN_SYS_5V0": 5.064,
            "power_w.VIN": 15.004,
        },
        15.004,
    ),
    "": ({}, None),
}


@pytest.mark.parametrize("line", LINES, ids=["orin", "orin-nx", "nano", "thor", "nothing"])
def test_tegrastats_is_read_in_every_form(line: str) -> None:
    reading, watts = LINES[line]
    found = sensors.parse_tegrastats(line)
    assert found == reading
    assert sensors.whole_power(found) == (None if watts is None else pytest.approx(watts))


def test_the_kernels_files_are_read(tmp_path: Path) -> None:
    found = sensors.Sysfs(tree(tmp_path, ORIN)).read()
    assert found == {
        "clock_mhz.cpu": 2201.6,
        "clock_mhz.17000000.gpu": 1300.5,
        "temperature_c.cpu-thermal": 51.968,
        "power_w.VDD_GPU_SOC": pytest.approx(3.8),
        "power_w.VDD_CPU_CV": pytest.approx(1.9),
        "power_w.VIN_SYS_5V0": pytest.approx(5.0),
    }
    assert sensors.whole_power(found) == pytest.approx(10.7)


def test_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    source = sensors.Sysfs(tmp_path)
    assert source.read() == {}
    tree(tmp_path, {"proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2300.000\nprocessor : 1\ncpu MHz\t\t: 3100.5\n"})
    assert source.read() == {"clock_mhz.cpu": 3100.5}


class Script:
    """A source whose readings are given."""

    def __init__(self, *readings: dict[str, float], reasons: tuple[str, ...] = ()) -> None:
        self.readings, self.reasons = list(readings), list(reasons)

    def read(self) -> dict[str, float]:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def throttled(self) -> list[str]:
        return self.reasons


def taken(source: Script, times: list[float], first: dict[str, float]) -> dict[str, Any]:
    """What a monitor says of readings at `times` that ends at the last of them."""
    clock = iter([*times, times[-1]])
    watched = monitor.Monitor([source], clock=lambda: next(clock))
    for _ in times:
        watched.take()
    return watched.stop(first)


def test_readings_become_smallest_middle_and_largest() -> None:
    source = Script(
        *({"power_w.gpu": watts, "clock_mhz.gpu": mhz} for watts, mhz in [(10, 900), (60, 1500), (70, 1590)])
    )
    found = taken(source, [0.0, 0.6, 1.0], {"clock_mhz.gpu": 1510.0})
    assert found["values"]["power_w.gpu"] == [10, 60, 70]
    assert found["power_w"] == 65  # once it has settled
    assert found["throttled"] == []


def test_a_clock_that_falls_is_throttling_and_so_is_what_nvml_says() -> None:
    source = Script({"clock_mhz.gpu": 1400.0}, reasons=("software power cap",))
    found = taken(source, [0.0, 1.0], {"clock_mhz.gpu": 1510.0, "clock_mhz.cpu": 9.0})
    assert found["throttled"] == ["software power cap", "gpu clock fell from 1510 to 1400 MHz"]
    assert found["power_w"] is None


def pynvml() -> Any:
    """A stand-in with the names of nvidia-ml-py, for a card without a fan of its own, as T4."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0

    def unsupported(*_: object) -> int:
        raise module.NVMLError("Not Supported")

    module.nvmlInit = module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetHandleByIndex = lambda index: ("card", index)
    module.nvmlDeviceGetName = lambda card: b"Tesla T4"
    module.nvmlSystemGetDriverVersion = lambda: "560.35.03"
    module.nvmlDeviceGetClockInfo = lambda card, kind: {1: 1590, 2: 5000}[kind]
    module.nvmlDeviceGetPowerUsage = lambda card: 69500
    module.nvmlDeviceGetTemperature = unsupported
    module.nvmlDeviceGetCurrentClocksEventReasons = lambda card: 0x01 | 0x04 | 0x40
    return module


def test_nvml_is_read_and_what_a_card_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = pynvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    card = sensors.Nvml()
    assert card.read() == {"clock_mhz.gpu": 1590.0, "clock_mhz.gpu-memory": 5000.0, "power_w.gpu": 69.5}
    assert card.throttled() == ["software power cap", "hardware thermal slowdown"]
    assert card.name() == "Tesla T4, driver 560.35.03"
    fake.nvmlDeviceGetCurrentClocksThrottleReasons = fake.__dict__.pop("nvmlDeviceGetCurrentClocksEventReasons")
    assert card.throttled() == ["software power cap", "hardware thermal slowdown"]
    card.close()


@pytest.mark.parametrize(("visible", "index"), [("", 0), ("3", 3), ("2,0", 2), ("GPU-02", 2)])
def test_the_card_is_read_that_cuda_takes(monkeypatch: pytest.MonkeyPatch, visible: str, index: int) -> None:
    asked, fake = list[int](), pynvml()
    fake.nvmlDeviceGetCount = lambda: 4
    fake.nvmlDeviceGetUUID = lambda card: f"GPU-0{card[1]}-11"
    fake.nvmlDeviceGetPowerUsage = lambda card: asked.append(card[1]) or 1000
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sensors.Nvml().read()
    assert asked == [index]


def test_the_stand_in_has_no_name_that_nvml_lacks() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    assert [name for name in vars(pynvml()) if not name.startswith("__") and not hasattr(real, name)] == []


def test_tegrastats_runs_as_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = next(iter(LINES))
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = --interval ] || exit 2\necho '{line}'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    sources = sensors.sources(tree(tmp_path / "root", ORIN))
    try:
        assert isinstance(sources[0], sensors.Tegrastats)
        for _ in range(100):
            if sources[0].read():
                break
            time.sleep(0.05)
        watched = monitor.Monitor(sources)
        watched.take()
        found = watched.stop({})
    finally:
        for source in sources:
            source.close()
    assert found["values"]["power_w.VDD_GPU_SOC"][1] == pytest.approx(3.8)  # the kernel's, which is newer
    assert found["values"]["temperature_c.tj"][1] == 51.968
    assert sources[0]._process.poll() is not None


def test_energy_is_power_times_a_pass() -> None:
    watched = monitor.Monitor([Script({"power_w.VDD_IN": 8.0})])
    found = monitor.watch(watched, lambda seconds: (50, 2.0), 0.05, {})
    assert found["energy_mj"] == pytest.approx(8.0 * 40.0)
    silent = monitor.watch(monitor.Monitor([Script({})]), lambda seconds: (50, 2.0), 0.05, {})
    assert silent["energy_mj"] is None


def test_this_machine_is_watched_while_something_runs(tmp_path: Path) -> None:
    runs = []
    found = watch(lambda: runs.append(time.sleep(0.01)), 0.25, root=tree(tmp_path, ORIN))
    assert len(runs) >= 5
    assert found.samples >= 2
    assert found.values["clock_mhz.cpu"] == (2201.6, 2201.6, 2201.6)
    assert found.power_w == pytest.approx(10.7)
    assert found.energy_mj == pytest.approx(10.7 * 10, rel=0.5)
    again = watch(lambda: time.sleep(0.01), 0.05, first={"clock_mhz.cpu": 4000.0}, root=tmp_path)
    assert again.throttled == ("cpu clock fell from 4000 to 2202 MHz",)
    assert found.clocks == {"clock_mhz.cpu": 2201.6, "clock_mhz.17000000.gpu": 1300.5}
    assert isinstance(watch(lambda: None, 0.01), Readings)  # whatever this machine tells


def test_readings_of_many_models_become_facts() -> None:
    readings = [
        Readings(3, 1.0, {"clock_mhz.cpu": (1.0, 2.0, 3.0), "power_w.gpu": (5.0, 6.0, 7.0)}, ("slow",)),
        Readings(3, 1.0, {"clock_mhz.cpu": (2.0, 4.0, 9.0)}),
    ]
    assert facts_of(readings) == {
        "clocks_mhz": {"cpu": [1.0, 3.0, 9.0]},
        "power_w": {"gpu": [5.0, 6.0, 7.0]},
        "throttled": 1,
    }
    assert facts_of([]) == {}

"""What the board is, and how it is set."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np


def describe_board() -> dict[str, Any]:
    """What the board is, and how it is set."""
    tree, release = Path("/proc/device-tree/model"), Path("/etc/nv_tegra_release")
    return {
        "board": tree.read_text(encoding="utf-8").strip("\0 \n") if tree.is_file() else processor(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "release": release.read_text(encoding="utf-8").splitlines()[0] if release.is_file() else "",
        "power_mode": power_mode(),
        "cores": cores(),
        "saturates": saturates(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def power_mode() -> str:
    """A Jetson's power mode, as "MAXN"; empty elsewhere."""
    binary = shutil.which("nvpmodel")
    if not binary:
        return ""
    done = subprocess.run([binary, "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)  # noqa: S603
    found = re.search(r"NV Power Mode:\s*(\S+)", done.stdout.decode(errors="replace"))
    return found.group(1) if found else ""


def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether integer products overflow 16 bits where weights have all of 8: on x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not cpuinfo.is_file():
        return False
    return "vnni" not in cpuinfo.read_text(encoding="utf-8")


def processor(cpuinfo: Path = Path("/proc/cpuinfo"), tree: Path = Path("/proc/device-tree/model")) -> str:
    """The processor's model; on 64-bit ARM, whose kernel names none, the board's and its cores' by their numbers."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    told = [[part.strip() for part in line.partition(":")[::2]] for line in lines if ":" in line]
    named = [value for name, value in told if name.lower() in ("model name", "hardware")]
    if named:
        return named[0]
    board = tree.read_text(encoding="utf-8").strip("\0 \n") if tree.is_file() else ""
    wanted = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
    kinds = sorted({f"{name[4:]} {value}" for name, value in told if name in wanted})
    return ", ".join([board or platform.processor() or platform.machine(), *kinds])

"""GPUs that students are trained on, and how many fit on one at once. Torch is not asked: its import takes seconds."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from hwsearch.distill.checkpoint import Checkpoint

CONTEXT = 2**30  # bytes of a process on a GPU before it holds anything
PER_WEIGHT = 40  # bytes: itself, its gradient, two moments and average in float32, and as much for what is computed
FREE = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")


def gpus() -> int:
    """GPUs that torch can use here: those that NVIDIA's driver shows to this process, unless torch was built without
    CUDA."""
    if version("torch").endswith("+cpu"):
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) or len(_free())  # which WSL does not have


def at_once(teacher: Checkpoint, free: int | None) -> int:
    """Processes that have room on one GPU, each with a student as large as its teacher; at least one.

    Small students leave a GPU waiting for the next kernel: on an H200 one process took 33 steps a second with a 4 x 96
    in int8, four took 116 and twelve 220; fourteen cores without it took 105 (`benchmarks/sharing.py`).

    Args:
        teacher: that students are cut out of.
        free: bytes of the GPU that has least, None where that is not known.
    """
    if free is None:
        return 1
    return max(1, free // (CONTEXT + PER_WEIGHT * sum(count for _, count in teacher.weights())))


def free_bytes() -> int | None:
    """What is free of the GPU that has least, by the driver's own tool; None where it does not answer."""
    return min(_free(), default=None)


def _free() -> list[int]:
    """Free bytes of each GPU; none where the driver's tool does not answer."""
    try:
        told = subprocess.run(FREE, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
        return [2**20 * int(line) for line in told.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []

"""What a kit asks for: its manifest, its files checked, and the weights that its graphs share, which are made on the
board since they need only be numbers."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .files import sha256

FORMAT = 1
CHUNK = 2**20  # numbers of the weights made at once
SPREAD = 0.05  # standard deviation of float weights


class KitError(Exception):
    """What went wrong, and the way out, on one line."""


def read_manifest(kit: Path) -> dict[str, Any]:
    """The manifest, its files checked; its own hash as "sha256".

    Raises:
        KitError: something is missing or damaged.
    """
    path = kit / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KitError(f"{path} cannot be read: {error}; copy the kit again") from error
    if manifest.get("format") != FORMAT:
        raise KitError(f"this kit has format {manifest.get('format')!r}, run.py reads {FORMAT}; write the kit again")
    files = [manifest["reference"], *manifest["points"], manifest["weights"]["constants"]]
    for one in files:
        file = kit / one["file"]
        if not file.is_file() or sha256(file) != one["sha256"]:
            raise KitError(f"{file} is missing or damaged; copy the kit again")
    return {**manifest, "sha256": sha256(path)}


def make_weights(kit: Path, manifest: dict[str, Any]) -> None:
    """The file of weights that the graphs share: constants that came with the kit, then random numbers of each kind.

    Raises:
        KitError: the disk is too small.
    """
    asked = manifest["weights"]
    path = kit / "graphs" / asked["file"]
    if path.is_file() and path.stat().st_size == asked["bytes"]:
        return
    needed = (1 + manifest["batch"]) * asked["bytes"]  # a runtime keeps its own of each model that takes turns
    if shutil.disk_usage(kit).free < needed + 2**26:
        raise KitError(f"the weights take up to {needed / 2**20:.0f} MiB and {kit} has less; move the kit")
    rng = np.random.default_rng(0)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        with gzip.open(kit / asked["constants"]["file"], "rb") as constants:
            shutil.copyfileobj(constants, file)
        for region in asked["regions"]:
            file.seek(region["offset"])
            left = region["bytes"] // np.dtype(region["kind"]).itemsize
            while left:
                count = min(left, CHUNK)
                if region["kind"] == "int8":
                    numbers = rng.integers(-127, 128, count, dtype=np.int8)
                else:
                    numbers = (rng.standard_normal(count, dtype=np.float32) * SPREAD).astype(region["kind"])
                file.write(numbers.tobytes())
                left -= count
        file.truncate(asked["bytes"])
    part.replace(path)

"""Graphs without their weights: initialisers are taken out of many graphs, to one file that is made on the board.

Constants (a mask, a table of angles) travel once each, by their content. Weights need only be numbers: graphs share a
stretch of random ones for each kind, in which no two tensors of one graph share a place, so that each has memory of its
own as it would have by itself.
"""

from __future__ import annotations

import gzip
import hashlib
from collections import defaultdict
from typing import Literal

import msgspec
import onnx
from onnx import TensorProto

OUTSIDE = 1024  # bytes from which an initialiser leaves its graph
PAGE, LINE = 4096, 64  # alignment of weights (for memory maps) and of constants, bytes
NAME = "weights.bin"  # of the file, beside the graphs
KINDS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.INT64: "int64",
}


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the kit, its path relative to the kit."""

    file: str
    sha256: str


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stretch of the weights' file that the board fills with random numbers, in bytes."""

    kind: Literal["float32", "float16", "int8"]
    offset: int
    bytes: int


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that the board makes beside the graphs: the constants that came with the kit, then the regions."""

    file: str
    bytes: int
    constants: File
    regions: tuple[Region, ...]


class Store:
    """Takes initialisers out of graphs, to one file: constants by their content, weights by their size alone."""

    def __init__(self) -> None:
        self._constants = bytearray()
        self._known: dict[bytes, int] = {}
        self._sizes: dict[str, int] = defaultdict(int)  # of each region
        self._places: list[tuple[TensorProto, str, int, int]] = []  # tensor, region, offset in it, bytes

    def strip(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Take the initialisers out, and name the nodes (ONNX Runtime before 1.20 wants names)."""
        used: dict[str, int] = defaultdict(int)
        for node in model.graph.node:
            node.name = node.output[0]
        for tensor in model.graph.initializer:
            size = len(tensor.raw_data)
            if size < OUTSIDE:
                continue
            if tensor.name.endswith(".weight") and len(tensor.dims) == 2:
                kind = KINDS[tensor.data_type]
                self._places.append((tensor, kind, used[kind], size))
                used[kind] = _aligned(used[kind] + size, PAGE)
            else:
                self._places.append((tensor, "", self._constant(tensor.raw_data), size))
            tensor.ClearField("raw_data")
        for kind, size in used.items():
            self._sizes[kind] = max(self._sizes[kind], size)
        return model

    def _constant(self, data: bytes) -> int:
        key = hashlib.sha256(data).digest()
        if key not in self._known:
            self._known[key] = len(self._constants)
            self._constants += data + bytes(_aligned(len(data), LINE) - len(data))
        return self._known[key]

    def finish(self) -> tuple[bytes, Weights]:
        """Write the places into the graphs; returns the constants, packed, and what the file is to hold."""
        offset = _aligned(len(self._constants), PAGE)
        regions, starts = [], {"": 0}
        for kind, size in sorted(self._sizes.items()):
            regions.append(Region(kind, offset, size))  # type: ignore[arg-type]
            starts[kind], offset = offset, offset + size
        for tensor, kind, inside, size in self._places:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", NAME), ("offset", starts[kind] + inside), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
        packed = gzip.compress(bytes(self._constants), mtime=0)
        constants = File("graphs/constants.bin.gz", hashlib.sha256(packed).hexdigest())
        return packed, Weights(NAME, offset, constants, tuple(regions))


def _aligned(size: int, step: int) -> int:
    return -(-size // step) * step

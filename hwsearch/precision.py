"""The number formats that a layer can run in, and how a runtime quantises to them.

A precision says how many bits a weight and an activation have. What a runtime does to get there (static or dynamic
ranges, signed or unsigned activations, what stays in float) is its `Scheme`: the same int8 is faster or slower than
float, and costs more or less quality, by scheme. A scheme is the one thing that the price wing hands to the quality
wing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal


class Precision(Enum):
    """A number format of a layer's weights and activations; its value is its name in files and on the command line."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"  # weights and activations
    W8A16 = "w8a16"  # weights only
    INT4 = "int4"  # weights only, in groups

    code: int
    weight_bits: float
    activation_bits: int
    is_float: bool

    def __init__(self, name: str) -> None:
        order = ("fp32", "fp16", "int8", "w8a16", "int4")
        self.code = order.index(name)
        # int4 carries one fp16 scale and one 4-bit zero point for each group of 128: 4 + (16 + 4) / 128 bits.
        self.weight_bits = (32, 16, 8, 8, 4 + 20 / 128)[self.code]
        self.activation_bits = (32, 16, 8, 16, 16)[self.code]
        self.is_float = self.code < 2

    def __str__(self) -> str:
        return str(self.value)


PRECISIONS: tuple[Precision, ...] = tuple(Precision)  # by code


@dataclass(frozen=True)
class Scheme:
    """How one runtime quantises a linear layer.

    Attributes:
        activations: ranges fixed by calibration ("static") or taken from each tensor as it passes ("dynamic").
        activation_type: "int8" is symmetric around zero, "uint8" has a zero point.
        weights: one scale for the whole matrix ("tensor") or for each output channel ("channel") of int8 weights.
        weight_bits: of int8 weights beside dynamic activations: 7 where the processor adds two products in 16 bits
            and saturates, which 8 would overflow (x86 without VNNI, microsoft/onnxruntime#6004).
        group: inputs of an output channel that share the scale and zero point of int4 weights.
        keeps_float: parts of the network that stay in float: of "embedding", "head", "norm", "softmax", "attention"
            (the two products inside attention; its four projections are linear layers).
    """

    activations: Literal["static", "dynamic"] = "static"
    activation_type: Literal["int8", "uint8"] = "int8"
    weights: Literal["tensor", "channel"] = "channel"
    weight_bits: Literal[7, 8] = 8
    group: int = 128
    keeps_float: tuple[str, ...] = ("embedding", "head", "norm", "softmax", "attention")

    def saturating(self) -> Scheme:
        """The same on a processor whose products saturate."""
        return replace(self, weight_bits=7) if self.activations == "dynamic" else self

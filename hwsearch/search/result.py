"""One trial's whole record, in plain values: what a study stores, reports show and scripts read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from hwsearch.architecture import Architecture
from hwsearch.distill.job import ProxyScore
from hwsearch.latency.latency import Latency
from hwsearch.precision import Precision
from hwsearch.workload import Workload


class Result(msgspec.Struct, frozen=True):
    """An architecture with its price and, once trained, its score.

    Attributes:
        trial: its number; None for what was made by hand.
        architecture: of the student.
        latency: on the target.
        size_mib: of the stored weights.
        memory_mib: of weights, the widest activations of one pass, and keys and values.
        loss: held-out KL to the teacher after so many `steps`, in nats an answer; None until trained.
        expected_loss: as it would be after as many steps as the furthest trials had; None where it is not of a trial.
        quality, quality_low, quality_high: held-out accuracy and its 90 % interval.
        retention, retention_low, retention_high: of the teacher's accuracy.
        steps, seconds: of training.
        curve: (step, held-out KL).
        metrics: of the task's own field, by name, on *report*.
        predicted: the latency that was estimated before it was measured; None where `latency` is an estimate.
    """

    trial: int | None
    architecture: Architecture
    latency: Latency
    size_mib: float
    memory_mib: float
    loss: float | None = None
    expected_loss: float | None = None
    quality: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None
    retention: float | None = None
    retention_low: float | None = None
    retention_high: float | None = None
    steps: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    metrics: dict[str, float] = {}
    predicted: Latency | None = None

    @property
    def rank(self) -> float | None:
        """The loss by which it is set beside others; None until trained."""
        return self.loss if self.expected_loss is None else self.expected_loss

    def to_json(self) -> dict[str, Any]:
        """The contract's form: the architecture carries its id, depth and parameters."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return {**plain, "architecture": self.architecture.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """Read what `to_json` wrote."""
        architecture = Architecture.from_json(data["architecture"])
        return msgspec.convert({**data, "architecture": msgspec.to_builtins(architecture)}, cls)


def scored(result: Result, score: ProxyScore) -> Result:
    """A priced architecture with its score."""
    names = ("loss", "quality", "quality_low", "quality_high", "retention", "retention_low", "retention_high")
    found = {name: getattr(score, name) for name in (*names, "steps", "seconds", "curve", "metrics")}
    return msgspec.structs.replace(result, expected_loss=None, **found)


def retains_more(first: Result, second: Result) -> bool:
    """Whether one student surely retains more than another: by more than the interval of the difference, as of two
    that err independently. On the same answers they err together rather: it is no narrower than it should be."""
    found = first.retention, first.retention_low, second.retention, second.retention_high
    if None in found:
        return False
    value, low, other, high = map(float, found)  # type: ignore[arg-type]
    return value - other > math.hypot(value - low, high - other)


def each(sizes: Sequence[int]) -> int | str:
    """A size that all layers have, or that of each, as "2/6/3"."""
    return sizes[0] if len(set(sizes)) == 1 else "/".join(map(str, sizes))


def memory_mib(architecture: Architecture, workload: Workload) -> float:
    """Weights, the widest activations of one pass and the keys and values of a generation in MiB: the runtime's own
    share is not counted."""
    tokens = workload.batch * workload.sequence
    wide = max(
        (3 if architecture.gated_ffn else 2) * layer.ffn + layer.heads * architecture.head_dim
        for layer in architecture.layers
    )
    widest = tokens * wide
    if architecture.head == "lm":  # of a prompt that a generation follows the last position alone
        widest = max(widest, (workload.batch if workload.new_tokens else tokens) * architecture.vocab)
    bytes_each = architecture.embedding_precision.activation_bits / 8  # a float: what parts hand on
    activations = (widest + tokens * 2 * architecture.width) * bytes_each / 2**20
    kept = cache_mib(architecture, workload, architecture.kv_precision) if workload.new_tokens else 0.0
    return architecture.size_mib + activations + kept


def cache_mib(architecture: Architecture, workload: Workload, precision: Precision) -> float:
    """Keys and values of a whole generation in MiB, in a precision."""
    channels = sum(2 * layer.kv_heads * architecture.head_dim for layer in architecture.layers)
    context = workload.batch * (workload.sequence + workload.new_tokens)
    return context * channels * precision.weight_bits / 8 / 2**20

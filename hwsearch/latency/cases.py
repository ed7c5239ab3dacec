"""Measured latencies of whole models, one a row of a CSV file: what profiles are fitted on and judged by."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from hwsearch.architecture import LARGEST, Architecture, Block, Head, parse_precisions, uniform_layers
from hwsearch.device import DeviceProfile
from hwsearch.errors import ArchitectureError, CasesError
from hwsearch.precision import Precision
from hwsearch.runtime import Runtime
from hwsearch.workload import PHASES, OpTable, Phase, Workload, concatenate, lower

SHORTEST_MS, LONGEST_MS = 1e-4, 1e9  # beyond which a unit was mistaken


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured latency; an attribute is a column, an empty cell its default. What the columns mean: the README's
    "Cases files". `precision` is as on the command line: one for every layer, or as "int8*6,fp16/int8*2"."""

    device: str
    runtime: str
    layers: int
    width: int
    heads: int
    ffn: int
    precision: str
    latency_ms: float
    runtime_version: str = ""
    threads: int = 0
    power_mode: str = ""
    io: Literal["", "compute", "copies", "server"] = ""
    phase: Literal["total"] | Phase = "total"
    block: Block = "encoder"
    model: str = ""
    kv_heads: int = 0
    head_dim: int = 0
    gated_ffn: Literal[0, 1] = 0
    vocab: int = 0
    head: Head = "none"
    batch: int = 1
    sequence: int = 128
    new_tokens: int = 0
    statistic: str = ""
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        self._plan()
        if min(self.layers, self.width, self.heads, self.ffn, self.batch, self.sequence) < 1:
            raise ValueError("layers, width, heads, ffn, batch and sequence are at least 1")
        if not SHORTEST_MS <= self.latency_ms <= LONGEST_MS:
            raise ValueError(f"latency_ms is from {SHORTEST_MS:g} to {LONGEST_MS:g}; got {self.latency_ms}")
        if min(self.kv_heads, self.head_dim, self.vocab, self.new_tokens, self.threads) < 0:
            raise ValueError("kv_heads, head_dim, vocab, new_tokens and threads are not negative")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads divide heads; got {self.kv_heads} and {self.heads}")
        if self.head == "lm" and not self.vocab:
            raise ValueError("head lm needs a vocab")
        if max(self.width, self.ffn, self.vocab, self.heads, self.head_dim) > LARGEST:
            raise ValueError(f"sizes are {LARGEST:,} at most")
        _ = self.workload

    def _plan(self) -> tuple[tuple[Precision, Precision], ...]:
        """(attention, feed_forward) of each layer."""
        try:
            return parse_precisions(self.precision, self.layers)
        except ArchitectureError as error:
            raise ValueError(str(error)) from None

    @property
    def measured_phase(self) -> Phase:
        """The phase that a pass of it runs: a whole that generates nothing is its first pass."""
        return "decode_token" if self.phase == "decode_token" else "prefill"

    @property
    def label(self) -> str:
        """Its precision in one word: "mixed" where parts differ."""
        parts = self.precisions
        return str(next(iter(parts))) if len(parts) == 1 else "mixed"

    @property
    def precisions(self) -> set[Precision]:
        """Those of its parts."""
        return {part for pair in self._plan() for part in pair}

    @property
    def identity(self) -> str:
        """Which model it is a case of, for leaving a whole model out: its name, or its shape where it has none."""
        return self.model or f"{self.block}-{self.layers}x{self.width}-f{self.ffn}"

    def architecture(self, runtime: Runtime) -> Architecture:
        """The case's network, as `network` has it."""
        return network(
            runtime,
            self._plan(),
            block=self.block,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            ffn=self.ffn,
            gated_ffn=bool(self.gated_ffn),
            vocab=self.vocab,
            head=self.head,
        )

    def ops(self, runtime: Runtime) -> OpTable:
        """The kernels of what was measured, of one architecture: of its phase alone where it has one."""
        table = lower([self.architecture(runtime)], self.workload)
        if self.phase == "total":
            return table
        return replace(table, passes=np.array([[float(self.phase == phase) for phase in PHASES]]))

    @property
    def workload(self) -> Workload:
        """What was run. A prefill is the pass before a generation, so that only its last position gets logits."""
        new_tokens = max(1, self.new_tokens) if self.phase != "total" else self.new_tokens
        return Workload(self.batch, self.sequence, new_tokens)


def network(
    runtime: Runtime,
    plan: tuple[tuple[Precision, Precision], ...],
    *,
    block: Block,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    gated_ffn: bool,
    vocab: int,
    head: Head,
) -> Architecture:
    """A network of a few sizes, with the parts that `runtime` keeps in float in its narrowest float.

    Args:
        runtime: that runs it.
        plan: precisions (attention, feed_forward) of each layer.
        block, width, heads, ffn, gated_ffn, vocab, head: as `Architecture` and `Layer` have them.
        kv_heads: 0 for as many as `heads`.
        head_dim: 0 for an even share of the width.
    """
    parts = [part for pair in plan for part in pair]
    beside, first = runtime.float_beside(*parts), parts[0]
    return Architecture(
        block=block,
        width=width,
        head_dim=head_dim or max(1, width // heads),
        layers=uniform_layers(len(plan), heads, kv_heads or heads, ffn, plan),
        gated_ffn=gated_ffn,
        norm="rmsnorm" if gated_ffn else "layernorm",
        vocab=vocab,
        head=head,
        head_precision=beside if "head" in runtime.scheme.keeps_float else first,
        embedding_precision=beside if "embedding" in runtime.scheme.keeps_float else first,
        kv_precision=beside,
    )


COLUMNS = tuple(field.name for field in msgspec.structs.fields(Case))


def read_cases(path: Path) -> list[Case]:
    """Read a cases file.

    Raises:
        CasesError: it cannot be read, lacks a column, has one that is unknown, or a row is wrong; the line is named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            missing = [
                field.name for field in msgspec.structs.fields(Case) if field.required and field.name not in header
            ]
            unknown = [name for name in header if name not in COLUMNS]
            if missing or unknown:
                raise CasesError(
                    f"{path}: a cases file has the columns {', '.join(COLUMNS)}; missing: {missing}, unknown: {unknown}"
                )
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise CasesError(f"{path} has the column {twice} twice; leave one of them out")
            return [_case(row, f"{path}, line {reader.line_num}") for row in reader]
    except OSError as error:
        raise CasesError(f"cannot read the cases {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CasesError(f"{path} is not a CSV file in UTF-8: {error}") from error


def _case(row: dict[str | None, str | None], place: str) -> Case:
    if None in row or None in row.values():
        raise CasesError(f"{place}: the row does not have as many cells as the header")
    try:
        return msgspec.convert(
            {name: cell.strip() for name, cell in row.items() if name and cell and cell.strip()}, Case, strict=False
        )
    except msgspec.ValidationError as error:
        raise CasesError(f"{place}: {error}") from error


def matches(case: Case, profile: DeviceProfile) -> bool:
    """Whether a case is one of this device."""
    return not mismatch(case, profile)


def mismatch(case: Case, profile: DeviceProfile) -> str:
    """What a case is of that the profile has not; empty where it is a case of this device."""
    if not is_of(case, profile) or case.runtime not in profile.runtimes:
        return f"{case.device}/{case.runtime}"
    runtime = profile.runtimes[case.runtime]
    if foreign := sorted(map(str, case.precisions - set(runtime.precisions))):
        return f"{case.runtime} in {', '.join(foreign)}"
    if runtime.threads and profile.cores and case.threads > profile.cores.value:
        return f"{case.runtime} with {case.threads} threads"
    return ""


def is_of(case: Case, profile: DeviceProfile) -> bool:
    """Whether a case names the device."""
    return case.device in (profile.name, *profile.aliases)


def table_of(profile: DeviceProfile, cases: Sequence[Case]) -> OpTable:
    """The kernels of what each case measured, one architecture a case, of one runtime."""
    return concatenate([case.ops(profile.runtimes[case.runtime]) for case in cases])


def digest(cases: Sequence[Case]) -> str:
    """A hash of the rows, 12 hex digits."""
    return hashlib.sha256(msgspec.json.encode(list(cases))).hexdigest()[:12]

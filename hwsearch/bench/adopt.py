"""What a board measured becomes its device's latency table and profile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from hwsearch import __version__
from hwsearch.bench import onnxruntime
from hwsearch.bench.answers import identity_of, measured_of, read_results, readings_of
from hwsearch.bench.host import fitted
from hwsearch.bench.kit import Manifest
from hwsearch.bench.machine import check_here
from hwsearch.bench.measuring import Measuring, Raw
from hwsearch.bench.points import Ranges
from hwsearch.device import DeviceProfile, PowerMode
from hwsearch.errors import CasesError
from hwsearch.files import pretty, write_text
from hwsearch.latency.cases import Case
from hwsearch.latency.kernels import kernels_of
from hwsearch.latency.points import Point, write_table
from hwsearch.latency.prior import REACHED, REACHED_BANDWIDTH
from hwsearch.latency.refine import fit_or_refine
from hwsearch.precision import Precision, Scheme
from hwsearch.profiles import check_name, full_name, known_profile, own_tables, user_folder, write_profile
from hwsearch.runtime import MEASURED, Figure, Runtime

FACTS = {  # what holds for a runtime on any device that runs it
    "onnxruntime": onnxruntime.FACTS,
    "onnxruntime-cuda": Runtime("", (Precision.FP32, Precision.FP16), fused_attention=False, scheme=Scheme()),
    # Inside a graph it chooses between fp32 and fp16 by itself: fp16 is what it is asked for.
    "onnxruntime-tensorrt": Runtime("", (Precision.FP16,), fused_attention=True, scheme=Scheme()),
    "tensorrt": Runtime("", (Precision.FP32, Precision.FP16, Precision.INT8), fused_attention=True, scheme=Scheme()),
}


def runtime_facts(device: str, name: str, threads: int = 0) -> Runtime:
    """What is known of a board's runtime before anything was measured on it: from the device's profile, or what holds
    for it on any device.

    Raises:
        CasesError: nothing is known.
    """
    check_name(device)
    profile = known_profile(device)
    known = {**FACTS, **(profile.runtimes if profile else {})}
    if name not in known:
        raise CasesError(f"{device!r} has no profile with runtime {name!r}; write its facts in a profile first")
    return replace(known[name], threads=threads)


def adopt_kit(folder: Path, to: Path | None = None) -> tuple[DeviceProfile, Path, int]:
    """Take a kit's results as the table of its device, and fit its profile on them.

    Args:
        folder: of the kit, with the board's results in it.
        to: folder for the table and the profile, by default that of one's own.

    Returns: the profile, its file, and how many models were measured.

    Raises:
        CasesError: the results are missing, damaged or of another kit.
    """
    results = read_results(folder)
    manifest, board, about = results.manifest, results.board, identity_of(results)
    cases, raw = measured_of(results)
    device, name = full_name(manifest.device), manifest.runtime
    table = f"{device}/{name}"
    place = (to.resolve() if to else own_tables()) / table
    known = known_profile(device, to)
    _check(manifest, cases, raw, known)
    on = results.ran_on or device
    facts = known.runtimes.get(name, manifest.facts) if known else manifest.facts
    runtime = replace(
        facts,
        version=cases[0].runtime_version,
        threads=cases[0].threads,
        scheme=facts.scheme.saturating() if board.saturates else facts.scheme,
        table=(str(place) if to else table) if raw[0].kernels else "",
    )
    measuring = Measuring(place, runtime, device, name, Ranges(), about, run=lambda: None, fresh=True)
    measuring.cases, measuring.raw = cases, raw
    measuring.reference = measuring.reference_of(raw)
    points = measuring.points() if raw[0].kernels else [Point(case) for case in cases]
    shown = _facts(device, on, runtime, points, board.cores)
    # A runtime may compute in what none before it did.
    known = replace(known, peaks={**shown.peaks, **known.peaks}) if known else shown
    known = known.with_measured(name, runtime)
    if raw[0].kernels:  # what cannot be fitted takes nothing's place
        profile = fitted(known, measuring)
        measuring.write()
    else:
        profile, _ = fit_or_refine(known, cases, f"{MEASURED} by a kit on {on}", name)
        write_table(place, points, about, {case.model: one for case, one in zip(cases, raw, strict=True)})
    write_text(place / "readings.json", pretty(readings_of(results)) + "\n")
    file = (to or user_folder()) / f"{device}.toml"
    write_profile(profile, file)
    return profile, file, len(cases)


def _check(manifest: Manifest, cases: Sequence[Case], raw: Sequence[Raw], known: DeviceProfile | None) -> None:
    """Raise unless what was measured may take the place of what is known."""
    asked, count = len(manifest.points), len(cases)
    if 2 * count < asked or (raw[0].kernels and count < 2):
        raise CasesError(
            f"{count} of {asked} models were measured, too few to go by; run the kit again, it goes on with the others"
        )
    mode = cases[0].power_mode
    if known and len(known.power_modes) > 1 and mode and known.named_power_mode(mode) is None:
        raise CasesError(
            f"the board was in power mode {mode!r}, which the profile of {known.name!r} does not have (have: "
            f"{', '.join(known.power_modes)}). Set one of them (nvpmodel -m), or add it to the profile"
        )


def _facts(device: str, title: str, runtime: Runtime, points: list[Point], cores: int) -> DeviceProfile:
    """A device that nothing is known of but what its points show: its peaks are what its fastest kernels reached, or
    where the runtime does not tell of kernels, what its fastest pass reached over the share that passes reach."""
    rates, flows = [1e-6], [1e-3]
    for point in points:
        ops = point.case.ops(runtime)
        for kernel in kernels_of(ops, runtime.fused_attention):
            if kernel.name in point.kernels:
                per_us = kernel.terms[0] / point.kernels[kernel.name]
                rates.append(float(per_us[0]) / 1e6)
                flows.append(float(per_us[1]) / 1e3)
        if not point.kernels:
            time = point.case.latency_ms * 1e3
            rates.append(float((ops.flops * ops.runs).sum()) / time / 1e6 / REACHED)
            flows.append(float((ops.bytes * ops.runs).sum()) / time / 1e3 / REACHED_BANDWIDTH)
    source = "reached by the fastest kernel that was measured, or guessed from the fastest pass"
    mode = PowerMode(Figure(1.0, "reference"), Figure(1.0, "reference"))
    return DeviceProfile(
        name=device,
        title=title,
        board_at_hand=True,
        cache_mib=Figure(2.0, "assumed"),
        memory_mib=Figure(4096.0, "assumed: the board did not say"),
        peaks={
            **{str(p): Figure(max(rates), source) for p in runtime.precisions},
            "bandwidth_gbs": Figure(max(flows), source),
        },
        power_modes={"default": mode},
        runtimes={points[0].case.runtime: replace(runtime, borrows=())},
        cores=Figure(cores, "what the kit's process could use") if cores and runtime.threads else None,
    )


def check_kit_here(device: str) -> None:
    """Raise unless a kit for the device may be run on this machine.

    Raises:
        ProfileError: it is another machine, as far as its profile tells.
    """
    if (profile := known_profile(device)) is not None:
        check_here(profile, kit=True)


def kit_name(device: str, name: str, wishes: dict[str, Any]) -> str:
    """A folder's name for a kit that is kept until its results are taken back: the same for the same wishes."""
    digest = hashlib.sha256(msgspec.json.encode([__version__, wishes], order="deterministic")).hexdigest()[:8]
    return f"{device}-{name}-{digest}"

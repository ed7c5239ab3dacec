"""The machine that hwsearch runs on, as a device: measured in under a minute on first use, and remembered.

A dozen whole models, encoders and decoders, fp32 and int8, a few tokens to thousands, are timed in turn; a profile is
fitted on them as on any other cases. What is measured is kept as a latency table with what identifies the machine, so
that another machine, runtime version or number of threads measures anew.
"""

from __future__ import annotations

import csv
import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC
from pathlib import Path

import msgspec
import numpy as np
import platformdirs

from hwsearch import __version__
from hwsearch.bench import onnxruntime
from hwsearch.bench.timing import Samples, take_turns
from hwsearch.device import DeviceProfile, Figure, PowerMode, Runtime
from hwsearch.errors import CasesError
from hwsearch.files import read_or_drop, write_text
from hwsearch.latency.calibrate import fit_device
from hwsearch.latency.cases import COLUMNS, Case, read_cases
from hwsearch.precision import Precision, Scheme

SECONDS = 30.0
Shape = tuple[str, int, int, int, int, int, int, int, int, int]
# (block, layers, width, heads, kv_heads, head_dim, ffn, vocab, batch, sequence): spread over what students look like.
SHAPES = (
    ("decoder", 6, 192, 6, 3, 32, 512, 2048, 8, 128),
    ("decoder", 2, 64, 2, 1, 32, 160, 2048, 64, 128),
    ("decoder", 3, 96, 3, 3, 32, 256, 2048, 16, 128),
    ("decoder", 4, 128, 4, 2, 32, 352, 2048, 1, 128),
    ("decoder", 2, 384, 6, 6, 64, 1024, 2048, 4, 64),
    ("decoder", 4, 160, 5, 5, 32, 448, 2048, 2, 256),
    ("decoder", 1, 128, 4, 2, 32, 384, 2048, 32, 128),
    ("decoder", 6, 64, 4, 4, 32, 192, 2048, 4, 64),
    ("encoder", 4, 256, 4, 4, 64, 1024, 0, 1, 32),
    ("encoder", 2, 512, 8, 8, 64, 2048, 0, 2, 64),
    ("encoder", 6, 128, 4, 4, 32, 512, 0, 4, 256),
    ("encoder", 1, 768, 12, 12, 64, 3072, 0, 1, 128),
    ("encoder", 3, 384, 6, 6, 64, 1536, 0, 8, 64),
    ("encoder", 2, 128, 4, 4, 32, 512, 0, 16, 128),
)


class Machine(msgspec.Struct, frozen=True):
    """What a measurement on this machine is a measurement of.

    Attributes:
        processor: its model.
        cores: that this process may use.
        threads: that the runtime uses.
        runtime: version of ONNX Runtime.
    """

    processor: str
    cores: int
    threads: int
    runtime: str

    @property
    def key(self) -> str:
        """12 hex digits of it."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]


def this_machine(threads: int | None = None) -> Machine:
    """The machine that this process runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return Machine(_processor(), cores, threads or cores, onnxruntime.version())


def host_profile(
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
) -> DeviceProfile:
    """The profile of this machine, measured now unless it was before.

    Args:
        threads: of the runtime; all cores by default.
        say: told what happens.
        progress: told the share of the measurement that is done.

    Raises:
        CasesError: the remembered table is damaged.
    """
    machine = this_machine(threads)
    folder = platformdirs.user_cache_path("hwsearch") / "latency_tables" / "host" / "onnxruntime" / machine.key
    table, fitted = folder / "cases.csv", folder / f"profile-{__version__}.json"  # another version fits otherwise
    if not table.is_file():
        say(
            f"host: measuring {machine.processor}, {machine.threads} threads, ONNX Runtime {machine.runtime}; "
            f"about {SECONDS + 10:.0f} s, once"
        )
        _keep(folder, machine, measure(machine, SECONDS, progress))
    try:
        cases = read_cases(table)
    except CasesError as error:
        raise CasesError(f"{error}. Delete {folder} to measure again") from error
    known = read_or_drop(fitted, lambda path: msgspec.json.decode(path.read_bytes(), type=DeviceProfile))
    if known is not None and fitted.stat().st_mtime_ns >= table.stat().st_mtime_ns:
        return known
    profile = fit_device(facts(machine), cases, "measured on this machine")
    write_text(fitted, msgspec.json.encode(profile).decode())
    return profile


def measure(
    machine: Machine, seconds: float, progress: Callable[[float], None], shapes: Sequence[Shape] | None = None
) -> list[tuple[Case, Samples]]:
    """Timings of whole models of `shapes` (`SHAPES` by default), each in every precision, on this machine."""
    cases: dict[str, Case] = {}
    runs: dict[str, Callable[[], object]] = {}
    for shape in shapes or SHAPES:
        for precision in (Precision.FP32, Precision.INT8):
            case = _case(machine, precision, *shape)
            cases[name := f"{case.model}-{precision}"] = case
            runs[name] = onnxruntime.prepare(case.architecture(_runtime(machine)), case.workload, machine.threads)
    samples = take_turns(runs, seconds, progress)
    return [
        (msgspec.structs.replace(case, latency_ms=samples[name].latency_ms), samples[name])
        for name, case in cases.items()
    ]


def _case(
    machine: Machine,
    precision: Precision,
    block: str,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    batch: int,
    sequence: int,
) -> Case:
    return msgspec.convert(
        {
            "device": "host",
            "runtime": "onnxruntime",
            "runtime_version": machine.runtime,
            "threads": machine.threads,
            "block": block,
            "model": f"{block}-{layers}x{width}-b{batch}x{sequence}",
            "layers": layers,
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "ffn": ffn,
            "gated_ffn": int(block == "decoder"),
            "vocab": vocab,
            "head": "lm" if vocab else "none",
            "batch": batch,
            "sequence": sequence,
            "precision": precision.value,
            "latency_ms": 1.0,
            "statistic": "latency_ms p10",
            "source": "hwsearch, measured on this machine",
        },
        Case,
    )


def _keep(folder: Path, machine: Machine, measured: list[tuple[Case, Samples]]) -> None:
    """The raw samples, what identifies the machine, and last the table that says the measurement is whole."""
    import io
    from datetime import datetime

    import tomlkit

    raw = {f"{case.model}-{case.precision}": samples for case, samples in measured}
    write_text(folder / "samples.json", msgspec.json.encode(raw).decode())
    date = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(
        folder / "measured.toml", tomlkit.dumps({"kind": "measured", "date": date, **msgspec.structs.asdict(machine)})
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case, _ in measured:
        writer.writerow(
            {name: "" if value in ("", None) else value for name, value in msgspec.to_builtins(case).items()}
        )
    write_text(folder / "cases.csv", text.getvalue())


def facts(machine: Machine) -> DeviceProfile:
    """What is known of this machine before any model was timed: peaks from a matrix product and a copy."""
    fp32, bandwidth = _peaks()
    mode = PowerMode(Figure(1.0, "reference"), Figure(1.0, "reference"))
    measured = "measured on this machine"
    peaks = {
        "fp32": Figure(fp32, measured),
        "int8": Figure(2 * fp32, "assumed: twice fp32"),
        "bandwidth_gbs": Figure(bandwidth, measured),
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    return DeviceProfile(
        name="host",
        title=f"this machine: {machine.processor}, {machine.cores} cores",
        board_at_hand=True,
        cache_mib=Figure(_cache_mib(), "sysfs, or assumed: 2 MiB a core"),
        memory_mib=Figure(memory, "sysconf"),
        peaks=peaks,
        power_modes={"default": mode},
        runtimes={"onnxruntime": _runtime(machine)},
        cores=Figure(machine.cores, "what this process may use"),
        note="Measured on first use; delete the cached table to measure again.",
    )


def _runtime(machine: Machine) -> Runtime:
    return Runtime(
        version=machine.runtime,
        precisions=(Precision.FP32, Precision.INT8),
        fused_attention=False,
        scheme=Scheme(activations="dynamic", activation_type="uint8", weights="tensor"),
        stored_bits={"int8": 32},
        alignment=16,
        threads=machine.threads,
    )


def _peaks() -> tuple[float, float]:
    """fp32 rate of a large product in 1e12 operations/s, and the bandwidth of a copy in GB/s."""
    import time

    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    big = np.zeros(2**25, np.float32)
    product, copy = [], []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        product.append(time.perf_counter() - start)
        start = time.perf_counter()
        big.copy()
        copy.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(product) / 1e12, 2 * big.nbytes / min(copy) / 1e9


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cache_mib() -> float:
    """The last-level cache's size; a share of a shared one as large as all L2 together counts where it is larger than
    32 MiB."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="utf-8").strip()
        sizes.append(float(text.rstrip("KM")) / (1024 if text.endswith("K") else 1))
    return min(max(sizes, default=2.0), 32.0)

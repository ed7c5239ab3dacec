"""The latency of one architecture: `hwsearch latency`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hwsearch.cli.device import device_option, find
from hwsearch.cli.output import console, json_option, note, print_json
from hwsearch.cli.types import COUNT, NONE_OR_MORE
from hwsearch.errors import ArchitectureError

if TYPE_CHECKING:
    from hwsearch.architecture import Architecture
    from hwsearch.device import DeviceProfile
    from hwsearch.runtime import Runtime

SHAPE = (
    "block", "layers", "width", "heads", "kv_heads", "head_dim", "ffn", "gated_ffn", "vocab", "head", "precision",
)  # fmt: skip


@click.command()
@device_option
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Sequences at once.")
@click.option("--sequence", type=COUNT, default=128, show_default=True, help="Tokens of one input.")
@click.option("--new-tokens", type=NONE_OR_MORE, default=0, show_default=True, help="Tokens generated after it.")
@click.option("--repeat", type=COUNT, default=1, show_default=True, help="How many in a row.")
@click.option(
    "--architecture",
    "file",
    type=click.Path(path_type=Path),
    help="JSON file of an architecture, in place of the options below.",
)
@click.option("--block", type=click.Choice(["encoder", "decoder"]), default="encoder", show_default=True)
@click.option("--layers", type=click.IntRange(1))
@click.option("--width", type=click.IntRange(1))
@click.option("--heads", type=click.IntRange(1))
@click.option("--kv-heads", type=click.IntRange(1), help="Key and value heads; all heads by default.")
@click.option("--head-dim", type=click.IntRange(1), help="Channels of a head; width / heads by default.")
@click.option("--ffn", type=click.IntRange(1))
@click.option("--gated-ffn", is_flag=True, help="A third feed-forward matrix gates the first.")
@click.option("--vocab", type=click.IntRange(0), default=0, show_default=True)
@click.option("--head", type=click.Choice(["none", "classify", "span", "lm"]), default="none", show_default=True)
@click.option(
    "--precision", help="As int8, int8*6,fp16*2 or int8/fp16*8 (attention/feed-forward); the widest float by default."
)
@click.option("--runtime", help="Runtime on the device; the profile's first by default.")
@click.option("--power-mode", help="The profile's first by default.")
@click.option("--threads", type=click.IntRange(1), help="The profile's by default.")
@json_option
def latency(
    device: str,
    runtime: str | None,
    power_mode: str | None,
    threads: int | None,
    file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """The latency of one architecture on a device, with its interval and where it goes."""
    from hwsearch.latency.estimator import Estimator
    from hwsearch.search.result import memory_mib
    from hwsearch.units import format_ms
    from hwsearch.workload import Workload

    if file and (beside := _given(SHAPE)):
        raise click.UsageError(f"--architecture says all that {', '.join(beside)} would: leave one of them out")
    given = _read(file) if file else None
    missing = [f"--{name}" for name in ("layers", "width", "heads", "ffn") if options[name] is None]
    if given is None and missing:
        raise click.UsageError(f"an architecture needs {', '.join(missing)}, or --architecture FILE.json")
    profile = find(device, threads, runtime, options["new_tokens"])
    target = profile.target(runtime, power_mode, threads)
    workload = Workload(options["batch"], options["sequence"], options["new_tokens"], options["repeat"])
    architecture = given or _build(profile.runtimes[target.runtime], **options)
    _check_precisions(architecture, profile, target.runtime)
    if workload.new_tokens and architecture.block == "encoder":
        raise ArchitectureError("an encoder writes no text: leave --new-tokens out, or give --block decoder")
    found = Estimator(profile, target, workload).one(architecture)
    needed = memory_mib(architecture, workload)
    if needed > profile.memory_mib.value:
        note(f"it does not fit: {needed:.0f} MiB of {profile.memory_mib.value:.0f} MiB that {profile.name} has")
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(f"{architecture.id} on {target}: {workload}")
    interval = f"90 % interval {format_ms(found.low_ms)} to {format_ms(found.high_ms)}"
    out.print(format_ms(found.median_ms), style="bold", end="   ")
    out.print(f"{interval}   {found.certainty}")
    if "decode_token" in found.phases:
        first, each = (format_ms(found.phases[phase]) for phase in ("prefill", "decode_token"))
        out.print(f"first token after {first}, each one after it in {each}")
    from rich.table import Table

    table = Table(box=None, header_style="dim")
    for column in ("where it goes", "time", "share"):
        table.add_column(column, justify="left" if column.startswith("where") else "right", overflow="fold")
    for kind, ms in sorted(found.ops.items(), key=lambda item: -item[1]):
        table.add_row(kind, format_ms(ms), f"{ms / found.median_ms:.0%}")
    out.print(table)


def _given(names: Sequence[str]) -> list[str]:
    """Which of these options stand on the command line."""
    context = click.get_current_context()
    return [f"--{n.replace('_', '-')}" for n in names if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]


def _read(file: Path) -> Architecture:
    import msgspec

    from hwsearch.architecture import Architecture

    try:
        return Architecture.from_json(msgspec.json.decode(file.read_bytes()))
    except OSError as error:
        raise ArchitectureError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ArchitectureError(f"{file} is not JSON: {error}") from error


def _build(runtime: Runtime, **options: Any) -> Architecture:
    from hwsearch.architecture import parse_precisions
    from hwsearch.latency.cases import network

    plan = parse_precisions(options["precision"] or str(runtime.precisions[0]), options["layers"])
    sizes: dict[str, Any] = {
        name: options[name] or 0 for name in ("width", "heads", "kv_heads", "head_dim", "ffn", "vocab")
    }
    kinds = {name: options[name] for name in ("block", "gated_ffn", "head")}
    return network(runtime, plan, **sizes, **kinds)


def _check_precisions(architecture: Architecture, profile: DeviceProfile, name: str) -> None:
    runs = profile.runtimes[name].precisions
    used = {precision for layer in architecture.layers for precision in (layer.attention, layer.feed_forward)}
    beside = (architecture.head_precision, architecture.embedding_precision, architecture.kv_precision)
    used |= {precision for precision in beside if not precision.is_float}
    if foreign := sorted(map(str, used - set(runs))):
        raise ArchitectureError(
            f"{name} on {profile.name} runs {', '.join(map(str, runs))}; the architecture wants {', '.join(foreign)}"
        )

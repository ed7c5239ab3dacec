"""Commands of the price wing: latency, validate, profile, devices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwsearch.cli.device import HOST, find
from hwsearch.cli.output import console, json_option, note, print_json
from hwsearch.cli.types import COUNT, NONE_OR_MORE
from hwsearch.errors import ArchitectureError, HwsearchError

if TYPE_CHECKING:
    from hwsearch.architecture import Architecture
    from hwsearch.device import DeviceProfile, Runtime

device_option = click.option(
    "--device", required=True, help="Name, alias or TOML file of a device; 'hwsearch devices' lists them."
)
runtime_option = click.option("--runtime", help="Runtime on the device; the profile's first by default.")
workload_options = (
    click.option("--batch", type=COUNT, default=1, show_default=True, help="Sequences at once."),
    click.option("--sequence", type=COUNT, default=128, show_default=True, help="Tokens of one input."),
    click.option("--new-tokens", type=NONE_OR_MORE, default=0, show_default=True, help="Tokens generated after it."),
    click.option("--repeat", type=COUNT, default=1, show_default=True, help="How many in a row."),
)


@click.command()
@device_option
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
@runtime_option
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

    profile = find(device, threads, runtime, options["new_tokens"])
    target = profile.target(runtime, power_mode, threads)
    workload = Workload(options["batch"], options["sequence"], options["new_tokens"], options["repeat"])
    architecture = _read(file) if file else _build(profile.runtimes[target.runtime], **options)
    _check_precisions(architecture, profile, target.runtime)
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
        table.add_column(column, justify="left" if column.startswith("where") else "right")
    for kind, ms in sorted(found.ops.items(), key=lambda item: -item[1]):
        table.add_row(kind, format_ms(ms), f"{ms / found.median_ms:.0%}")
    out.print(table)


for option in reversed(workload_options):
    latency = option(latency)


@click.command()
@device_option
@click.option("--cases", "file", type=click.Path(path_type=Path), required=True, help="CSV of measured latencies.")
@click.option(
    "--leave-one-model-out", "unseen", is_flag=True, help="Price each model by a fit on the rows of the others."
)
@json_option
def validate(device: str, file: Path, unseen: bool, as_json: bool) -> None:
    """How wrong is a profile on measured cases?"""
    from hwsearch.latency.cases import read_cases
    from hwsearch.latency.validate import validate as compare

    profile = find(device)
    result = compare(profile, read_cases(file), unseen)
    if not result.rows:
        raise HwsearchError(
            f"{file} has no row of {profile.name!r} and a runtime of its profile ({', '.join(profile.runtimes)}); "
            "nothing to compare"
        )
    if result.skipped:
        names = sorted({f"{case.device}/{case.runtime}" for case in result.skipped})
        note(f"skipped {len(result.skipped)} cases of other devices or unknown runtimes: {', '.join(names)}")
    if as_json:
        print_json(result.to_json())
        return
    from rich.table import Table

    table = Table(title="priced by a fit that has not seen the model" if unseen else None, box=None)
    for column in (
        "device",
        "runtime",
        "precision",
        "n",
        "mean error",
        "within 10 %",
        "rank corr.",
        "in 90 % interval",
        "width",
    ):
        table.add_column(column, justify="left" if column in ("device", "runtime", "precision") else "right")
    rows: list[tuple[tuple[str, str, str], Any]] = list(result.groups().items())
    if (overall := result.scores()) is not None:
        rows.append((("all", "", ""), overall))
    for names_of_group, s in rows:
        numbers = (
            f"{s.mape:.1%}",
            f"{s.within_10:.0%}",
            "" if math.isnan(s.spearman) else f"{s.spearman:.3f}",
            f"{s.coverage_90:.0%}",
            f"{s.width_90:.0%}",
        )
        table.add_row(*names_of_group, str(s.n), *numbers)
    console().print(table)


@click.command()
@click.argument("name", required=False)
@json_option
def devices(name: str | None, as_json: bool) -> None:
    """What is known of each device, and how it is known."""
    from hwsearch.profiles import load_profile, profile_files

    if name is not None:
        found = find(name)
        if as_json:
            print_json(found)
        else:
            _describe(found)
        return
    profiles = [load_profile(path) for path in profile_files()]
    if as_json:
        print_json(profiles)
        return
    from rich.table import Table

    table = Table(box=None)
    for column in ("device", "also", "runtimes (rows measured)", "how it is known"):
        table.add_column(column)
    for found in profiles:
        runtimes = ", ".join(
            f"{name} ({runtime.fit.rows if runtime.fit else 0})" for name, runtime in found.runtimes.items()
        )
        table.add_row(
            found.name,
            ", ".join(found.aliases),
            runtimes,
            _known(found),
        )
    table.add_row(HOST, "", "onnxruntime, pytorch", "measured on first use, in about a minute")
    console().print(table)


def _read(file: Path) -> Architecture:
    import msgspec

    from hwsearch.architecture import Architecture

    try:
        return Architecture.from_json(msgspec.json.decode(file.read_bytes()))
    except OSError as error:
        raise ArchitectureError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise ArchitectureError(f"{file} is not JSON: {error}") from error


def _build(runtime: Runtime, **options: Any) -> Architecture:
    from hwsearch.architecture import parse_precisions
    from hwsearch.latency.cases import network

    missing = [f"--{name}" for name in ("layers", "width", "heads", "ffn") if options[name] is None]
    if missing:
        raise click.UsageError(f"an architecture needs {', '.join(missing)}, or --architecture FILE.json")
    plan = parse_precisions(options["precision"] or str(runtime.precisions[0]), options["layers"])
    sizes: dict[str, Any] = {
        name: options[name] or 0 for name in ("width", "heads", "kv_heads", "head_dim", "ffn", "vocab")
    }
    kinds = {name: options[name] for name in ("block", "gated_ffn", "head")}
    return network(runtime, plan, **sizes, **kinds)


def _check_precisions(architecture: Architecture, profile: DeviceProfile, name: str) -> None:
    runs = profile.runtimes[name].precisions
    used = {precision for layer in architecture.layers for precision in (layer.attention, layer.feed_forward)}
    if foreign := sorted(map(str, used - set(runs))):
        raise ArchitectureError(
            f"{name} on {profile.name} runs {', '.join(map(str, runs))}; the architecture wants {', '.join(foreign)}"
        )


def _known(profile: DeviceProfile) -> str:
    """How a device is known, in a few words."""
    if profile.board_at_hand:
        return "measured on the device"
    if any(runtime.fit and runtime.fit.rows for runtime in profile.runtimes.values()):
        return "published rows, no board at hand"
    return "extrapolated from related devices: no rows of its own"


def _better(profile: DeviceProfile, name: str) -> str:
    """The command that would make a runtime's latencies surer."""
    from hwsearch.cli.profile import WITH_A_KIT

    start = f"hwsearch profile --device {profile.name}"
    if profile.name == HOST:
        return f"{start} --runtime {name} --points 100 --minutes 5"
    if name in WITH_A_KIT:
        return f"{start} --runtime {name} --ssh USER@HOST"
    return f"{start} --runtime {name} --from-cases YOUR-TIMINGS.csv"


def _describe(profile: DeviceProfile) -> None:
    from rich.table import Table

    out = console()
    out.print(profile.title, style="bold", end="  ")
    out.print(", ".join([profile.name, *profile.aliases]))
    if profile.note:
        out.print(profile.note)
    facts = Table(box=None, title="facts", title_justify="left")
    for column in ("", "value", "source"):
        facts.add_column(column)
    for label, figure in (
        ("cache MiB", profile.cache_mib),
        ("memory MiB", profile.memory_mib),
        *((f"peak {k}", v) for k, v in profile.peaks.items()),
    ):
        facts.add_row(label, f"{figure.value:g}", figure.source)
    for mode, speed in profile.power_modes.items():
        sources = " / ".join(dict.fromkeys((speed.compute.source, speed.bandwidth.source)))
        facts.add_row(f"mode {mode}", f"compute x{speed.compute.value:g}, memory x{speed.bandwidth.value:g}", sources)
    out.print(facts)
    out.print(evidence(profile))
    better = Table(box=None, title="what would make it surer", title_justify="left", show_header=False)
    for name in profile.runtimes:
        better.add_row(name, _better(profile, name))
    out.print(better)
    for name, runtime in profile.runtimes.items():
        if runtime.parameters is None:
            continue
        from hwsearch.latency.analytic import figures_of

        table = Table(box=None, title=f"{name} {runtime.version}: {runtime.note}".rstrip(": "), title_justify="left")
        for column in ("parameter", "value", "sd of log", "source"):
            table.add_column(column)
        for parameter, figure in figures_of(runtime.parameters).items():
            table.add_row(parameter, f"{figure.value:.4g}", f"{figure.sd:.2f}", figure.source)
        out.print(table)


def evidence(profile: DeviceProfile) -> Any:
    """A table of what each runtime rests on."""
    from rich.table import Table

    table = Table(box=None, title="evidence", title_justify="left")
    for column in ("runtime", "how", "rows", "models", "mean error on unseen models (rows, in 90 % interval)"):
        table.add_column(column)
    for name, runtime in profile.runtimes.items():
        fit = runtime.fit
        errors = fit.leave_one_model_out if fit else {}
        text = ", ".join(f"{p} {e.mape:.1%} ({e.rows}, {e.coverage:.0%})" for p, e in errors.items())
        models = ", ".join(fit.models) if fit else ""
        how = "measured table" if runtime.table else "modelled"
        if fit and len(fit.models) > 8:
            models = f"{len(fit.models)} models"
        if not (fit and fit.rows):
            how = "extrapolated"
            text, models = f"borrows {', '.join(runtime.borrows) or 'the datasheet'}", "none"
        table.add_row(name, how, str(fit.rows if fit else 0), models, text)
    return table

"""hwsearch profile: what latencies rest on, measured on this machine or fitted on timings of whole models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwsearch.cli.device import HOST, note_modes
from hwsearch.cli.output import console, json_option, note, print_json
from hwsearch.cli.types import Positive, RangeType
from hwsearch.errors import HwsearchError, ProfileError

if TYPE_CHECKING:
    from hwsearch.device import DeviceProfile

WITH_A_KIT = (
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "tensorrt",
)  # runtimes that are measured by a kit, here as on a board


@click.command()
@click.option("--device", default=HOST, show_default=True, help="Name of a device; a new one for a board of your own.")
@click.option(
    "--runtime",
    help="Measured: onnxruntime, pytorch, onnxruntime-cuda, onnxruntime-tensorrt or tensorrt. Or fitted alone.",
)
@click.option(
    "--phase",
    type=click.Choice(["prefill", "decode-token"]),
    default="prefill",
    show_default=True,
    help="What to measure on this machine: the first pass, or a new token of a generation.",
)
@click.option("--threads", type=click.IntRange(1), help="Of the runtime; all cores by default.")
@click.option(
    "--points",
    type=click.IntRange(8),
    default=100,
    show_default=True,
    help="Models to measure; a table of `host` has 32 at least.",
)
@click.option(
    "--minutes",
    type=Positive(),
    default=5.0,
    show_default=True,
    help="That timing takes at most; a kit's own work comes on top.",
)
@click.option("--depth", type=RangeType(), help="Layers of the models, as 1-12.")
@click.option("--width", type=RangeType(), help="Widths, as 64-512.")
@click.option("--sequence", type=RangeType(), help="Tokens of one input, as 16-256.")
@click.option("--batch", type=RangeType(), help="Sequences at once, as 1-64.")
@click.option("--fresh", is_flag=True, help="Measure this machine anew; without it what is there is gone on with.")
@click.option(
    "--from-cases",
    "cases",
    type=click.Path(path_type=Path),
    help="Fit on a CSV of measured latencies of whole models in place of measuring.",
)
@click.option("--kit", type=click.Path(path_type=Path), help="Write a folder to copy to a board, and measure there.")
@click.option(
    "--import", "back", type=click.Path(path_type=Path), help="Take back the results of a kit in the folder of the kit."
)
@click.option("--ssh", metavar="USER@HOST", help="Copy a kit to a board, run it there and take back its results.")
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write to; by default that of your own profiles.")
@json_option
def profile(
    device: str,
    runtime: str | None,
    cases: Path | None,
    kit: Path | None,
    back: Path | None,
    ssh: str | None,
    to: Path | None,
    as_json: bool,
    phase: str,
    fresh: bool,
    **options: Any,
) -> None:
    """Measure this machine or a board, or fit a device's profile on measured latencies of whole models."""
    ways = {"--from-cases": cases, "--kit": kit, "--import": back, "--ssh": ssh}
    if len(given := [way for way, value in ways.items() if value is not None]) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")
    if (phase != "prefill" or fresh) and (given or runtime in WITH_A_KIT):
        wish = "--fresh" if fresh else f"--phase {phase}"
        raise click.UsageError(f"{wish} is for what is measured on this machine, with onnxruntime or pytorch alone")
    if cases is None:
        from hwsearch.profiles import full_name

        device = full_name(device)
    if kit is not None:
        manifest = _write_kit(device, runtime, kit, **options)
        if as_json:
            print_json({"kit": click.format_filename(kit), "device": device, "points": manifest})
        else:
            note(f"{manifest} models in {kit}; its README.txt says what to do on the board")
        return
    if cases is not None:
        fitted, written = _fit(device, runtime, cases, to)
    elif back is not None:
        fitted, written = _take_back(back, to, device, runtime)
    elif ssh is not None:
        fitted, written = _by_kit(device, runtime, ssh, to, **options)
    elif runtime in WITH_A_KIT:
        if device.lower() == HOST:
            raise click.UsageError(f"{runtime} is measured under a name of its own; give this machine one: --device")
        fitted, written = _by_kit(device, runtime, None, to, **options)
    else:
        fitted, written = _measure(device, runtime, to, phase, fresh, **options)
    if as_json:
        fits = {name: r.fit for name, r in fitted.runtimes.items() if r.fit}
        print_json({"profile": click.format_filename(written), "device": fitted.name, "fits": fits})
        return
    from hwsearch.cli.devices import evidence

    console().print(evidence(fitted))
    note(f"written: {written}")


def _fit(device: str, runtime: str | None, file: Path, to: Path | None) -> tuple[DeviceProfile, Path]:
    """The device's profile fitted on a cases file, and where it was written.

    A device without a row in it is refused, unless all its runtimes borrow and rest on no rows of their own: then what
    they borrow is written.
    """
    from msgspec.structs import replace

    from hwsearch.bench.trtexec import names_trtexec, read_trtexec_cases
    from hwsearch.cli.devices import surer
    from hwsearch.latency.cases import is_of, matches, mismatch, read_cases
    from hwsearch.latency.refine import fit_or_refine
    from hwsearch.profiles import find_file, load_profile, save_profile, user_folder

    if device.lower() == HOST:
        raise click.UsageError(f"{HOST!r} is measured, not fitted on cases; name a --device")
    template = find_file(device)
    facts = load_profile(template)
    cases = read_trtexec_cases(file) if file.is_dir() or names_trtexec(file) else read_cases(file)
    if runtime is not None and runtime not in facts.runtimes:
        raise ProfileError(
            f"no runtime {runtime!r} in {template} (have: {', '.join(facts.runtimes)}); add its facts there first"
        )
    asked = facts.runtimes if runtime is None else (runtime,)
    own = [case for case in cases if is_of(case, facts) and case.runtime in asked]
    foreign = [why for case in own if (why := mismatch(case, facts))]
    if foreign:
        names = ", ".join(sorted(set(foreign)))
        note(f"skipped {len(foreign)} rows of what the profile does not have: {names}")
    mine = [case for case in own if matches(case, facts)]
    if twice := len(mine) - len(set(mine)):
        note(f"left out {twice} rows that stand there already: a row counts once")
    note_modes(facts, mine)
    if not mine:
        borrowed = all(found.borrows and not (found.fit and found.fit.rows) for found in facts.runtimes.values())
        if runtime is not None or not borrowed:
            known = runtime or " or ".join(facts.runtimes)
            raise HwsearchError(f"{file} has no row of {facts.name!r} with runtime {known}; nothing to fit")
        note(f"{file} has no row of {facts.name!r}: its runtimes get what they borrow, and nothing else")
    there = {case.runtime for case in mine}
    if tables := sorted(name for name in there if facts.runtimes[name].table):
        raise ProfileError(
            f"{facts.name} is priced by its measured table in {', '.join(tables)}, where rows of whole models change "
            f"nothing: measure more points ({surer(facts, tables[0])}), or name another --runtime"
        )
    fitted, refined = fit_or_refine(facts, cases, file.name, only=runtime)
    note(
        "the rows are beside those that the profile rests on"
        if refined
        else "fitted from the facts alone: the rows are all there are"
    )
    # What was said of runtimes that had no rows holds no more.
    if first := sorted(name for name in there if not (found := facts.runtimes[name].fit) or not found.rows):
        runtimes = {n: replace(r, note="") if n in first else r for n, r in fitted.runtimes.items()}
        fitted = replace(fitted, runtimes=runtimes, note=f"Fitted on timings in {file.name}: {', '.join(first)}.")
    target = (to or user_folder()) / template.name
    save_profile(fitted, template, target)
    return fitted, target


def _measure(
    device: str,
    runtime: str | None,
    to: Path | None,
    phase: str,
    fresh: bool,
    threads: int | None,
    points: int,
    minutes: float,
    **ranges: Any,
) -> tuple[DeviceProfile, Path]:
    """This machine's profile from a measured table, and where it was written."""
    from msgspec.structs import replace

    from hwsearch.bench import host
    from hwsearch.bench.machine import FIRST, this_machine
    from hwsearch.cli.progress import Progress

    name = runtime or FIRST
    machine = this_machine(threads, name)
    wanted = replace(host.RANGES, **{name: ends for name, ends in ranges.items() if ends})
    with Progress() as progress:
        progress.say(
            f"{device}: {machine.processor}, {machine.threads} threads, {name} {machine.runtime}; "
            f"{points} points in {minutes:g} minutes at most"
        )
        progress.stage("measuring", points)
        return host.measure_device(
            machine, device, wanted, points, minutes * 60, to, progress.at, name,
            "decode_token" if phase == "decode-token" else "prefill", fresh, progress.say,
        )  # fmt: skip


def _write_kit(
    device: str, runtime: str | None, folder: Path, threads: int | None, points: int, minutes: float, **ranges: Any
) -> int:
    """Write a kit for a board, and say how many models are in it."""
    from msgspec.structs import replace

    from hwsearch.bench import adopt
    from hwsearch.bench.kit import write_kit
    from hwsearch.bench.points import Ranges

    if device.lower() == HOST:
        raise click.UsageError(f"a kit is for another machine than {HOST!r}; give the board a name with --device")
    name = runtime or "onnxruntime"
    wanted = replace(Ranges(), **{key: ends for key, ends in ranges.items() if ends})
    facts = adopt.runtime_facts(device, name, threads or 0)
    return len(write_kit(folder, facts, device, name, wanted, points, seconds=60 * minutes / points / 2).points)


def _by_kit(
    device: str, runtime: str | None, host: str | None, to: Path | None, **options: Any
) -> tuple[DeviceProfile, Path]:
    """Run a kit and take its results back; the next one measures anew."""
    import shutil

    folder = _run_kit(device, runtime, host, **options)
    found = _take_back(folder, to)
    shutil.rmtree(folder)
    return found


def _run_kit(device: str, runtime: str | None, host: str | None, **options: Any) -> Path:
    """Run a kit, on a board over ssh or here; the folder of the kit, with its results. A call that was cut off goes
    on."""
    import platformdirs

    from hwsearch.bench import adopt
    from hwsearch.bench.carry import check_host, run_here, run_over_ssh
    from hwsearch.cli.progress import Progress

    if host is not None:
        check_host(host)
    if host is None:
        adopt.check_kit_here(device)
    name = adopt.kit_name(device, runtime or "onnxruntime", {**options, "host": host})
    folder = platformdirs.user_cache_path("hwsearch") / "kits" / name
    if not (folder / "manifest.json").is_file():
        _write_kit(device, runtime, folder, **options)
    with Progress() as progress:
        if host is None:
            run_here(folder, progress.say)
        else:
            run_over_ssh(host, folder, progress.say)
    return folder


def _take_back(
    folder: Path, to: Path | None, device: str = HOST, runtime: str | None = None
) -> tuple[DeviceProfile, Path]:
    """What a board measured, as its device's profile and where that was written; `device` and `runtime` as the command
    named them."""
    from hwsearch.bench.adopt import adopt_kit
    from hwsearch.bench.kit import read_manifest
    from hwsearch.profiles import full_name

    manifest, _ = read_manifest(folder)
    if runtime not in (None, manifest.runtime):
        raise click.UsageError(f"the kit measures {manifest.runtime}; got --runtime {runtime}")
    if device not in (HOST, made_for := full_name(manifest.device)):
        raise click.UsageError(f"the kit is for {made_for}; got --device {device}")
    profile, file, count = adopt_kit(folder, to)
    note(f"{count} of {len(manifest.points)} models measured on {profile.name}")
    return profile, file

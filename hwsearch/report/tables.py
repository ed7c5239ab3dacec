"""The answer in a terminal, and every trial in CSV."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hwsearch.files import whole
from hwsearch.latency.latency import Latency, of_one
from hwsearch.report.by_hand import rivals
from hwsearch.report.generation import speeds
from hwsearch.search.outcome import Outcome
from hwsearch.search.result import Result, each
from hwsearch.units import format_metric, format_ms, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    "trial",
    "architecture",
    "depth",
    "width",
    "heads",
    "kv_heads",
    "ffn",
    "precision",
    "parameters",
    "median_ms",
    "low_ms",
    "high_ms",
    "source",
    "extrapolated",
    "loss",
    "expected_loss",
    "quality",
    "quality_low",
    "quality_high",
    "retention",
    "steps",
    "seconds",
    "size_mib",
    "memory_mib",
)


def row_of(result: Result) -> dict[str, Any]:
    """One line of a CSV file, by `COLUMNS`."""
    a, latency = result.architecture, result.latency
    sizes = {name: each([getattr(layer, name) for layer in a.layers]) for name in ("heads", "kv_heads", "ffn")}
    shape = {"depth": a.depth, "width": a.width, **sizes}
    scores = {
        name: getattr(result, name)
        for name in ("loss", "expected_loss", "quality", "quality_low", "quality_high", "retention", "steps", "seconds")
    }
    return {
        "trial": result.trial,
        "architecture": a.id,
        **shape,
        "precision": a.precision_text,
        "parameters": a.parameters,
        "median_ms": latency.median_ms,
        "low_ms": latency.low_ms,
        "high_ms": latency.high_ms,
        "source": latency.source,
        "extrapolated": latency.extrapolated,
        **scores,
        "size_mib": result.size_mib,
        "memory_mib": result.memory_mib,
    }


def write_tables(folder: Path, outcome: Outcome) -> None:
    """trials.csv and pareto.csv."""
    _write(folder / "trials.csv", outcome.trials)
    _write(folder / "pareto.csv", outcome.front)


def _write(path: Path, results: Sequence[Result]) -> None:
    import pandas as pd

    with whole(path) as temporary:
        pd.DataFrame([row_of(result) for result in results], columns=list(COLUMNS)).to_csv(temporary, index=False)


def overrun(latency: Latency, budget_ms: float, phases_ms: Mapping[str, float]) -> str:
    """What a student may take over the tightest of these budgets; empty where it holds them."""
    if latency.filled(budget_ms, phases_ms) <= 1.0:
        return ""
    phase, budget = latency.tightest(budget_ms, phases_ms)
    return f"It takes up to {format_ms(latency.at_most(phase))}{of_one(phase)}: over the budget of {format_ms(budget)}"


def missed_elsewhere(document: dict[str, Any]) -> str:
    """As `overrun`, of the chosen student of a run that is priced for another device than it was searched for."""
    if not (document.get("repriced_from") and document["chosen"]):
        return ""
    latency = msgspec.convert(document["chosen"]["latency"], Latency)
    return overrun(latency, document["budget_ms"], document.get("phases_ms", {}))


def print_summary(document: dict[str, Any], folder: Path | None, out: Console) -> None:
    """What a person acts on."""
    from rich.table import Table

    teacher, chosen = document["teacher"], document["chosen"]
    if chosen is None and document.get("lost"):
        out.print(document["lost"])
    elif chosen is None and document.get("overshot") and not document["finalists"]:
        out.print("No finalist holds the budget as measured; the front below is what there is.")
    elif chosen is None and document["front"]:
        out.print("No finalist keeps the quality that was asked for; the front below is what there is.")
    elif chosen is None:
        out.print("Priced alone: nothing was trained.")
    else:
        latency = chosen["latency"]
        interval = f"90 % interval {format_ms(latency['low_ms'])} to {format_ms(latency['high_ms'])}"
        out.print(f"\n{chosen['architecture']['id']}", style="bold")
        out.print(
            f"{format_ms(latency['median_ms'])} of {format_ms(document['budget_ms'])} ({interval}), {certainty(chosen)}"
        )
        if missed := missed_elsewhere(document):
            out.print(missed, style="bold")
        if chosen["retention_low"] is not None:
            low, high = chosen["retention_low"], chosen["retention_high"]
            kept = f"{chosen['retention']:.1%} (90 % interval {low:.1%} to {high:.1%})"
            out.print(
                f"keeps {kept} of the teacher's {teacher['metric']}, on data that neither training nor choice has seen"
            )
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    metrics = teacher.get("metrics", {})
    columns = ("", "architecture", "latency", "source", "accuracy", "of teacher's", "KL to it", *metrics, "steps")
    _add_columns(table, columns)
    quality = teacher["quality"]
    table.add_row(
        "teacher",
        teacher["architecture"]["id"],
        format_ms(teacher["latency"]["median_ms"]),
        teacher["latency"]["source"],
        _percent(quality),
        "100.0%",
        "0",
        *(format_metric(name, value) for name, value in metrics.items()),
        "",
    )
    rows = [("chosen", chosen)] if chosen and document["baselines"] else []
    for name, result in [*rows, *document["baselines"].items()]:
        table.add_row(
            name,
            result["architecture"]["id"],
            format_ms(result["latency"]["median_ms"]),
            result["latency"]["source"],
            _percent(result["quality"]),
            _percent(result["retention"]),
            "" if result["loss"] is None else f"{result['loss']:.3f}",
            *(format_metric(name, result.get("metrics", {}).get(name)) for name in metrics),
            str(result["steps"]),
        )
    out.print(table)
    for rival in rivals(document):
        out.print(rival, style="bold")
    for speed in speeds(document):
        out.print(
            f"{speed.name}: first token after {format_ms(speed.first_ms)}, each one after it in "
            f"{format_ms(speed.each_ms)}, {speed.tokens_a_second:.3g} tokens a second"
        )
    if document["front"]:
        out.print(_front(document))
    if ran := [f for f in (*document["finalists"], *document.get("overshot", [])) if f["measured_ms"] is not None]:
        out.print(_ran(ran, {finalist["trial"] for finalist in document.get("overshot", [])}))
    if folder is not None:
        counts = document["trials"]
        out.print(
            f"{counts['complete'] + counts['stopped']} students trained, {counts['stopped']} of them stopped before "
            f"the last rung, {counts['infeasible']} priced and refused as too slow or too large, "
            f"{counts['failed']} failed; the last session took {format_seconds(document['seconds'])}"
        )
        student = f"   student: {folder / 'chosen'}" if (folder / "chosen").is_dir() else ""
        out.print(f"report: {folder / 'report.html'}{student}")


def _ran(finalists: Sequence[dict[str, Any]], overshot: Container[int]) -> Any:
    from rich.table import Table

    table = Table(
        box=None, header_style="dim", padding=(0, 2, 0, 0), title="finalists, run on the target", title_justify="left"
    )
    _add_columns(table, ("trial", "architecture", "predicted", "measured", "at most", "inside the budget"))
    for finalist in finalists:
        at_most = finalist["result"]["latency"]["high_ms"]
        table.add_row(
            str(finalist["trial"]),
            finalist["result"]["architecture"]["id"],
            format_ms(finalist["predicted_ms"]),
            format_ms(finalist["measured_ms"]),
            format_ms(at_most),
            "no: replaced by the next" if finalist["trial"] in overshot else "yes",
        )
    return table


def _front(document: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        box=None, header_style="dim", padding=(0, 2, 0, 0), title="front of the short runs", title_justify="left"
    )
    columns = ("trial", "architecture", "latency", "interval", "source", "expected loss", "accuracy", "steps")
    _add_columns(table, columns)
    for result in document["front"]:
        latency = result["latency"]
        interval = f"{format_ms(latency['low_ms'])} to {format_ms(latency['high_ms'])}"
        table.add_row(
            str(result["trial"]),
            result["architecture"]["id"],
            format_ms(latency["median_ms"]),
            interval,
            latency["source"],
            f"{result['expected_loss']:.3f}",
            _percent(result["quality"]),
            str(result["steps"]),
        )
    return table


def _add_columns(table: Any, names: Sequence[str]) -> None:
    """Words stand on the left, numbers on the right."""
    for name in names:
        table.add_column(name, justify="left" if name in ("", "architecture", "source") else "right", overflow="fold")


def certainty(result: dict[str, Any]) -> str:
    """How a result's latency is known."""
    return msgspec.convert(result["latency"], Latency).certainty


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"

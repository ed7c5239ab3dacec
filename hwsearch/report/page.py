"""report.html: one self-contained page that argues for the answer, and against it where the evidence is thin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwsearch.architecture import Architecture
from hwsearch.files import write_text
from hwsearch.report import figures
from hwsearch.report.by_hand import rivals
from hwsearch.report.generation import speeds
from hwsearch.report.tables import certainty, missed_elsewhere
from hwsearch.search.fidelity import by_chance
from hwsearch.search.result import Result
from hwsearch.units import format_metric, format_ms, format_seconds
from hwsearch.workload import Workload


def write_page(path: Path, document: dict[str, Any], trials: Sequence[Result]) -> None:
    """Write the page of a finished run."""
    write_text(path, page(document, trials))


def page(document: dict[str, Any], trials: Sequence[Result]) -> str:
    """The page as HTML; every text from outside is escaped by the template."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(
        ms=format_ms, metric=format_metric, percent=lambda share: "" if share is None else f"{share:.1%}"
    )
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    chosen, baselines = document["chosen"], document["baselines"]
    sensitivity, distilled = document.get("sensitivity"), document.get("distilled")
    workload, repriced = Workload(**document["workload"]), document.get("repriced_from", "")
    return template.render(
        {
            **document,
            "workload": f"{workload}, {workload.tokens:,} tokens",
            "note": document.get("note", ""),
            "repriced_from": repriced,
            "missed": missed_elsewhere(document),
            "lost": document.get("lost", ""),
            "overshot": document.get("overshot", []),
            "students": {"chosen": chosen, **baselines} if chosen else {},
            "rivals": rivals(document),
            "speeds": speeds(document),
            "measured": measured(document),
            "stages": document.get("stages", []),
            "fidelity": document.get("fidelity"),
            "sensitivity": sensitivity,
            "distilled": distilled,
            "uniform": uniform(Architecture.from_json(chosen["architecture"])) if chosen else None,
            "mixtures": sum(uniform(result.architecture) is None for result in trials),
            "known": certainty(chosen) if chosen else "",
            "added": added(sensitivity) if sensitivity else None,
            "agreement": agreement,
            "by_chance": by_chance,
            "missing": document.get("missing_baselines", {}),
            "margin_ms": step_ms(document["budget_ms"]),
            "margin": margin(figures.furthest(document["front"]), step_ms(document["budget_ms"]))
            if not repriced
            else None,
            "duration": format_seconds(document["seconds"]),
            "figures": {
                "pareto": _drawn(figures.pareto(document, trials), first=True),
                "time": _drawn(figures.where_time_goes(document)),
                "precision": _drawn(figures.precisions(chosen["architecture"])) if chosen else "",
                "sensitivity": _drawn(figures.sensitivity(sensitivity)) if sensitivity else "",
                "distilled": _drawn(figures.distilled(distilled)) if distilled else "",
                "curves": _drawn(figures.curves(document, trials)),
            },
        }
    )


def uniform(architecture: Architecture) -> str | None:
    """The precision that all layers have, and what a head has that differs; None where layers differ."""
    found = {precision for layer in architecture.layers for precision in (layer.attention, layer.feed_forward)}
    if len(found) > 1:
        return None
    (own,), head = found, architecture.head_precision
    return str(own) if architecture.head != "lm" or head is own else f"{own}, beside a head in {head}"


def added(sensitivity: dict[str, Any]) -> float:
    """The KL that the chosen precisions cause, part by part, added up."""
    own = (part["options"].get(part["precision"]) for part in sensitivity["parts"])
    return float(sum(option["measured"] for option in own if option))


def agreement(tau: float | None, low: float | None, high: float | None) -> str:
    """A rank correlation with its interval."""
    return "" if tau is None else f"{tau:.2f} ({low:.2f} to {high:.2f})"


def measured(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The finalists that were run on the target, those that did not hold the budget included."""
    finalists = [*document["finalists"], *document.get("overshot", [])]
    return [finalist for finalist in finalists if finalist["measured_ms"] is not None]


def step_ms(budget_ms: float) -> float:
    """A round number of milliseconds that matters beside a budget: the 1, 2 or 5 of a decade next to 3 % of it."""
    import numpy as np

    around = np.log10(0.03 * budget_ms)
    rounds = np.log10([1, 2, 5, 10])
    decade = np.floor(around)
    return float(10 ** (decade + rounds[np.abs(rounds - (around - decade)).argmin()]))


def margin(front: Sequence[dict[str, Any]], ms: float) -> float | None:
    """Points of accuracy that another `ms` buy: the slope of a line through the upper half of the front."""
    edge = front[len(front) // 2 :] if len(front) > 3 else front
    if len(edge) < 2:
        return None
    import numpy as np

    latency = [result["latency"]["median_ms"] for result in edge]
    slope = np.polyfit(latency, [result["quality"] for result in edge], 1)[0]
    return float(100 * ms * slope)


def _drawn(figure: Any, first: bool = False) -> Any:
    """A figure as HTML that the template takes as it is; the first brings the drawing code along."""
    from markupsafe import Markup

    html = figure.to_html(full_html=False, include_plotlyjs=first, config={"displayModeBar": False, "responsive": True})
    return Markup(html)  # noqa: S704 - plotly's own output, whose data is JSON with < and > escaped

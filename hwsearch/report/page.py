"""report.html: one self-contained page that argues for the answer, and against it where the evidence is thin."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hwsearch.files import write_text
from hwsearch.search.result import Result
from hwsearch.units import format_ms, format_seconds

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .3rem; }
.lead { font-size: 1.1rem; } .muted { color: #616e7c; } .warn { background: #fff4e6; border-left: 4px solid #d9480f; padding: .5rem 1rem; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #cbd2d9; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { background: #f5f7fa; padding: .1rem .3rem; border-radius: 3px; }
"""


def write_page(path: Path, document: dict[str, Any], trials: Sequence[Result], note: str = "") -> None:
    """Write the page of a finished run; `note` is what the device's profile says of itself."""
    write_text(path, page(document, trials, note))


def page(document: dict[str, Any], trials: Sequence[Result], note: str = "") -> str:
    """The page as HTML."""
    from hwsearch.report import figures

    chosen = document["chosen"]
    sections = [_lead(document, note)]
    sections.append(_section("Latency against quality", figures.pareto(document, trials), _margin(document), first=True))
    sections.append(_section("Beside students made by hand", None, _comparison(document)))
    sections.append(_section("Where the milliseconds go", figures.where_time_goes(document), _certainty(document)))
    if chosen:
        text = "Quantised parts are those that lose least for it, by the teacher's own sensitivity."
        sections.append(_section("Precision, layer by layer", figures.precisions(chosen["architecture"]), text))
    sections.append(_section("Learning curves", figures.curves(document, trials), "Short runs rank candidates; finalists go on from them."))
    sections.append(_section("How this was made", None, _provenance(document)))
    title = escape(f"{document['device']}: {format_ms(document['budget_ms'])}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>hwsearch · {title}</title><style>{STYLE}</style></head>
<body>{"".join(sections)}</body></html>
"""


def _lead(document: dict[str, Any], note: str) -> str:
    chosen, target = document["chosen"], document["target"]
    where = escape(f"{target['device']}, {target['runtime']} {target['version']}, {target['power_mode']}")
    text = f"<h1>{where}: {escape(format_ms(document['budget_ms']))}</h1><p class='muted'>{escape(_workload(document['workload']))}</p>"
    if chosen is None:
        return text + "<p class='warn'>No student meets what was asked for.</p>"
    latency = chosen["latency"]
    text += (
        f"<p class='lead'><b>{escape(chosen['architecture']['id'])}</b> takes {format_ms(latency['median_ms'])} "
        f"(90 % interval {format_ms(latency['low_ms'])} to {format_ms(latency['high_ms'])})"
    )
    if chosen["retention_low"] is not None:
        text += (
            f" and keeps <b>{chosen['retention']:.1%}</b> ({chosen['retention_low']:.1%} to {chosen['retention_high']:.1%}) of the teacher's "
            "next-token accuracy, on text that neither training nor choice has seen"
        )
    text += ".</p>"
    better = [name for name, r in document["baselines"].items() if r["quality"] > chosen["quality"]]
    if better:
        text += f"<p class='warn'>Made by hand is better here: {escape(', '.join(better))}.</p>"
    if latency["extrapolated"]:
        text += (
            f"<p class='warn'>The latency is an estimate outside the shapes that were measured on this device ({latency['covered']:.0%} of the "
            f"time lies inside them). {escape(note)}</p>"
        )
    return text


def _margin(document: dict[str, Any]) -> str:
    """What another 10 ms would buy, from the last two of the front."""
    edge = document["front"]
    if len(edge) < 2:
        return ""
    before, last = edge[-2], edge[-1]
    gained, paid = last["quality"] - before["quality"], last["latency"]["median_ms"] - before["latency"]["median_ms"]
    rate = 100 * gained / paid * 10 if paid > 0 else 0.0
    return (
        f"At the budget's edge another 10 ms buys about {rate:.2f} points of accuracy (from the last two of the front, after the short run). "
        "Point at a mark for its architecture."
    )


def _comparison(document: dict[str, Any]) -> str:
    teacher, rows = document["teacher"], []
    rows.append(("teacher", teacher["architecture"]["id"], teacher["latency"], teacher["quality"], None, None, 1.0, ""))
    students = {"chosen": document["chosen"], **document["baselines"]} if document["chosen"] else {}
    for name, r in students.items():
        rows.append((name, r["architecture"]["id"], r["latency"], r["quality"], r["quality_low"], r["quality_high"], r["retention"], r["steps"]))
    lines = []
    for name, identity, latency, quality, low, high, kept, steps in rows:
        interval = "" if low is None else f" ({low:.1%} to {high:.1%})"
        accuracy = "" if quality is None else f"{quality:.1%}{interval}"
        retained = "" if kept is None else f"{kept:.1%}"
        lines.append(
            f"<tr><td>{escape(name)}</td><td><code>{escape(identity)}</code></td><td class='number'>{format_ms(latency['median_ms'])}</td>"
            f"<td class='number'>{accuracy}</td><td class='number'>{retained}</td><td class='number'>{steps}</td></tr>"
        )
    head = "".join(f"<th class='{kind}'>{name}</th>" for name, kind in (("", ""), ("architecture", ""), ("latency", "number"),
                   ("accuracy on <i>report</i>", "number"), ("of the teacher's", "number"), ("steps", "number")))  # fmt: skip
    return f"<table><tr>{head}</tr>{''.join(lines)}</table><p class='muted'>All trained alike, for the same steps.</p>"


def _certainty(document: dict[str, Any]) -> str:
    chosen = document["chosen"]
    latency = chosen["latency"] if chosen else document["teacher"]["latency"]
    return f"Source: {escape(latency['source'])}. {latency['covered']:.0%} of the time lies inside shapes measured on this device and runtime."


def _provenance(document: dict[str, Any]) -> str:
    counts, seconds = document["trials"], format_seconds(document["seconds"])
    versions = ", ".join(f"{escape(name)} {escape(number)}" for name, number in document["versions"].items())
    return (
        f"<p>{counts['complete']} students trained, {counts['infeasible']} priced and too slow, {counts['failed']} failed, in {seconds}. "
        "Trials are compared on <i>select</i>; <i>report</i> was looked at once, after the choice. Intervals are 90 %: of a latency, doubt about "
        f"the median; of an accuracy, bootstrap over chunks of text.</p><p class='muted'>{versions}; study {escape(document['study'])}</p>"
    )


def _section(title: str, figure: Any, text: str, first: bool = False) -> str:
    drawn = figure.to_html(full_html=False, include_plotlyjs=first, config={"displayModeBar": False, "responsive": True}) if figure is not None else ""
    body = text if text.startswith("<") else f"<p class='muted'>{text}</p>" if text else ""
    return f"<h2>{escape(title)}</h2>{drawn}{body}"


def _workload(workload: dict[str, Any]) -> str:
    from hwsearch.workload import Workload

    job = Workload(**workload)
    return f"{job}, {job.tokens:,} tokens"

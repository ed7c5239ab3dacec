"""The report's figures, each from the summary's own values. Text from outside is escaped: plotly reads a hover text as
HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from hwsearch.search.result import Result, each
from hwsearch.units import format_ms

INK, MUTED, ACCENT, HAND, TEACHER, BUDGET = "#1f2933", "#9aa5b1", "#0b7285", "#d9480f", "#5f3dc4", "#c92a2a"
KIND_COLOURS = {
    "qkv": "#1864ab",
    "attention": "#4dabf7",
    "projection": "#a5d8ff",
    "up": "#2b8a3e",
    "down": "#8ce99a",
    "norm": "#e599f7",
    "last_norm": "#cc5de8",
    "embedding": "#ffd43b",
    "patches": "#ffe066",
    "head": "#ff922b",
    "cast": "#f03e3e",
    "overhead": "#ced4da",
}
# Plotly's own ticks say 2 where they mean 200, and lie over one another where a decade is short.
TICKS = [float(f"{digits}e{power}") for power in range(-6, 10) for digits in (1, 1.5, 2, 3, 5, 7)]
LOGARITHMIC: dict[str, Any] = {"type": "log", "tickformat": "~g", "tickvals": TICKS}
PRECISION_COLOURS = {"fp32": "#a5d8ff", "fp16": "#74c0fc", "int8": "#ffd43b", "w8a16": "#ffe066", "int4": "#ffa94d"}


def describe(result: dict[str, Any]) -> str:
    """A result as hover text."""
    a, latency = result["architecture"], result["latency"]
    heads, kv_heads, ffn = (each([layer[name] for layer in a["layers"]]) for name in ("heads", "kv_heads", "ffn"))
    lines = [
        f"<b>{escape(a['id'])}</b>",
        f"{a['depth']} layers x {a['width']}, {heads} heads ({kv_heads} key-value), feed-forward {ffn}",
        f"{a['parameters'] / 1e3:.0f} k parameters, {result['size_mib']:.2f} MiB",
        f"{format_ms(latency['median_ms'])} ({format_ms(latency['low_ms'])} to {format_ms(latency['high_ms'])}), "
        f"{escape(latency['source'])}",
    ]
    if result["quality"] is not None:
        lines.append(f"accuracy {result['quality']:.1%}, KL {result['loss']:.3f}, {result['steps']} steps")
    return "<br>".join(lines)


def pareto(document: dict[str, Any], trials: Sequence[Result]) -> go.Figure:
    """Latency against accuracy: trials, front, finalists, chosen, hand-made, teacher, budget."""
    figure = go.Figure()
    everyone = [result.to_json() for result in trials]
    lengths = sorted({result.steps for result in trials})
    for steps in lengths:
        symbol = "circle" if steps == lengths[-1] else "circle-open"
        _points(figure, [r for r in everyone if r["steps"] == steps], f"{steps} steps (select)", MUTED, symbol, 8)
    edge = furthest(document["front"])
    figure.add_scatter(
        x=[r["latency"]["median_ms"] for r in edge],
        y=[_percent(r["quality"]) for r in edge],
        mode="lines",
        name=f"front after {lengths[-1]} steps" if lengths else "front",
        line={"color": MUTED, "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )
    _points(figure, [f["result"] for f in document["finalists"]], "finalists, long run (select)", ACCENT, "circle", 10)
    _points(
        figure,
        list(document["baselines"].values()),
        "made by hand (report)",
        HAND,
        "diamond",
        11,
        list(document["baselines"]),
    )
    if document["chosen"]:
        _points(figure, [document["chosen"]], "chosen (report)", ACCENT, "star", 18)
    teacher = document["teacher"]
    if teacher["quality"] is not None:
        latency = teacher["latency"]
        figure.add_scatter(
            x=[latency["median_ms"]],
            y=[_percent(teacher["quality"])],
            mode="markers",
            name=f"teacher in {teacher['precision']}",
            marker={"color": TEACHER, "symbol": "square", "size": 12},
            error_x=_interval(
                [latency["high_ms"] - latency["median_ms"]], [latency["median_ms"] - latency["low_ms"]], TEACHER
            ),
            hovertext=f"teacher<br>{format_ms(latency['median_ms'])}<br>accuracy {teacher['quality']:.1%}",
            hoverinfo="text",
        )
    budget = document["budget_ms"]
    figure.add_shape(type="line", x0=budget, x1=budget, y0=0, y1=1, yref="paper", line={"color": BUDGET, "width": 2})
    # On a logarithmic axis plotly wants an annotation's place as an exponent.
    figure.add_annotation(
        x=math.log10(budget),
        y=0.02,
        yref="paper",
        text=f"budget {format_ms(budget)}",
        showarrow=False,
        xanchor="left",
        xshift=4,
        font={"color": BUDGET},
    )
    figure.update_xaxes(title="latency of the workload, ms (bars: 90 % interval)", **LOGARITHMIC)
    figure.update_yaxes(title=f"{teacher['metric']}, % (bars: 90 % interval)")
    return _styled(figure, 520)


def furthest(front: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a front, the students that were trained furthest: accuracies after other steps do not compare."""
    most = max((r["steps"] for r in front), default=0)
    return [r for r in front if r["steps"] == most]


def where_time_goes(document: dict[str, Any]) -> go.Figure:
    """Milliseconds by kind of kernel for the chosen student and those beside it."""
    rows = {"teacher": document["teacher"]["latency"]}
    rows |= {name: r["latency"] for name, r in reversed(list(document["baselines"].items()))}
    if document["chosen"]:
        rows["chosen"] = document["chosen"]["latency"]
    figure = go.Figure()
    for kind, colour in KIND_COLOURS.items():
        values = [latency["ops"].get(kind, 0.0) for latency in rows.values()]
        if any(values):
            figure.add_bar(
                y=[escape(name) for name in rows],
                x=values,
                orientation="h",
                name=kind,
                marker_color=colour,
                hovertemplate="%{y}: " + kind + " %{x:.3g} ms<extra></extra>",
            )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="ms")
    return _styled(figure, 120 + 60 * len(rows))


def precisions(architecture: dict[str, Any]) -> go.Figure:
    """The precision of each part of each layer, and of a language model's head."""
    names = list(PRECISION_COLOURS)
    layers = architecture["layers"]
    head = [architecture["head_precision"]] if architecture["head"] == "lm" else []
    labels = [[layer[part] for layer in layers] + head for part in ("feed_forward", "attention")]
    scale = [(i / (len(names) - 1), PRECISION_COLOURS[name]) for i, name in enumerate(names)]
    figure = go.Figure(
        go.Heatmap(
            z=[[names.index(label) for label in row] for row in labels],
            text=labels,
            texttemplate="%{text}",
            zmin=0,
            zmax=len(names) - 1,
            x=[f"layer {i}" for i in range(len(layers))] + ["head"] * len(head),
            y=["feed-forward", "attention"],
            colorscale=scale,
            showscale=False,
            xgap=3,
            ygap=3,
            hovertemplate="%{x}, %{y}: %{text}<extra></extra>",
        )
    )
    return _styled(figure, 200)


def sensitivity(found: dict[str, Any]) -> go.Figure:
    """What quantising each part of the chosen student loses and saves, by precision."""
    from plotly.subplots import make_subplots

    parts = found["parts"]
    places = [part["part"] if part["layer"] is None else f"{part['layer']} {part['part']}" for part in parts]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for name in dict.fromkeys(name for part in parts for name in part["options"]):
        options = [part["options"][name] for part in parts]
        solid = [1.0 if part["precision"] == name else 0.35 for part in parts]
        style = {"color": PRECISION_COLOURS[name], "opacity": solid, "line": {"color": INK, "width": 1}}
        for row, key in ((1, "measured"), (2, "saves_ms")):
            figure.add_bar(
                x=places, y=[option[key] for option in options], name=name, marker=style, row=row, col=1,
                legendgroup=name, showlegend=row == 1, hovertemplate=f"%{{x}} in {name}: %{{y:.3g}}<extra></extra>",
            )  # fmt: skip
        figure.add_scatter(
            x=places, y=[option["estimated"] for option in options], mode="markers", name=f"{name}, estimated",
            marker={"symbol": "x-thin", "size": 9, "line": {"color": INK, "width": 2}}, row=1, col=1,
            hovertemplate=f"%{{x}} in {name}, estimated: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(title="loses, nats", row=1, col=1)
    figure.update_yaxes(title="saves, ms", row=2, col=1)
    return _styled(figure, 420)


def curves(document: dict[str, Any], trials: Sequence[Result]) -> go.Figure:
    """Held-out KL by training step of every trial and finalist."""
    figure = go.Figure()
    for i, result in enumerate(trials):
        steps, losses = zip(*result.curve, strict=True) if result.curve else ((), ())
        figure.add_scatter(
            x=steps,
            y=losses,
            mode="lines+markers",
            line={"color": MUTED, "width": 1},
            marker={"size": 4},
            name="trials",
            legendgroup="trials",
            showlegend=i == 0,
            hovertext=escape(result.architecture.id),
            hoverinfo="text+y",
        )
    for i, finalist in enumerate(document["finalists"]):
        points = finalist["result"]["curve"]
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[loss for _, loss in points],
            mode="lines+markers",
            name="finalists",
            legendgroup="finalists",
            showlegend=i == 0,
            line={"color": ACCENT, "width": 2},
            hovertext=escape(finalist["result"]["architecture"]["id"]),
            hoverinfo="text+y",
        )
    figure.update_xaxes(title="training steps", **LOGARITHMIC)
    figure.update_yaxes(title="held-out KL to the teacher, nats", **LOGARITHMIC)
    return _styled(figure, 380)


def distilled(found: dict[str, Any]) -> go.Figure:
    """Held-out KL by training step of the full distillation."""
    points = [(step, loss) for step, loss in found["after"]["curve"] if step]
    figure = go.Figure()
    figure.add_scatter(
        x=[step for step, _ in points], y=[loss for _, loss in points], mode="lines", line={"color": ACCENT, "width": 2}
    )
    figure.update_xaxes(title="training steps", **LOGARITHMIC)
    figure.update_yaxes(title="held-out KL to the teacher, nats", **LOGARITHMIC)
    return _styled(figure, 300)


def _points(
    figure: go.Figure,
    results: Sequence[dict[str, Any]],
    name: str,
    colour: str,
    symbol: str,
    size: int,
    labels: Sequence[str] = (),
) -> None:
    results = [result for result in results if result["quality"] is not None]
    if not results:
        return
    latencies = [result["latency"] for result in results]
    hover = [describe(result) for result in results]
    if labels:
        hover = [f"{escape(label)}<br>{text}" for label, text in zip(labels, hover, strict=True)]
    up, down = (
        [_percent(abs((r[f"quality_{side}"] or r["quality"]) - r["quality"])) for r in results]
        for side in ("high", "low")
    )
    figure.add_scatter(
        x=[latency["median_ms"] for latency in latencies],
        y=[_percent(result["quality"]) for result in results],
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": size, "line": {"width": 1.5, "color": colour}},
        error_x=_interval(
            [x["high_ms"] - x["median_ms"] for x in latencies],
            [x["median_ms"] - x["low_ms"] for x in latencies],
            colour,
        ),
        error_y=_interval(up, down, colour),
        hovertext=hover,
        hoverinfo="text",
    )


def _interval(up: Sequence[float], down: Sequence[float], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": list(up),
        "arrayminus": list(down),
        "color": colour,
        "thickness": 0.8,
        "width": 3,
    }


def _percent(share: float) -> float:
    return 100 * share


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        font={"color": INK, "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    return figure

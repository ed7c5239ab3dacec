"""The report: complete, self-contained, and deaf to what strangers write into names."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from hwsearch.architecture import Architecture
from hwsearch.precision import Precision
from hwsearch.report.generation import speeds
from hwsearch.report.page import margin, page, step_ms, uniform
from hwsearch.report.tables import COLUMNS, print_summary, write_tables
from hwsearch.search.elsewhere import reprice
from hwsearch.search.null import TEACHER
from hwsearch.search.outcome import Outcome
from hwsearch.search.plan import Plan, Wishes
from hwsearch.units import parse_budget
from hwsearch.workload import Workload
from tests.search.test_engine import search

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Outcome]:
    document, outcome = search(tmp_path_factory.mktemp("report") / "run")
    assert outcome is not None
    return document, outcome


class Tags(HTMLParser):
    """Collects tags and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def read(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    return parser


def test_the_page_is_whole_and_loads_nothing(found: tuple[dict[str, Any], Outcome]) -> None:
    document, outcome = found
    html = page({**document, "note": "No board was at hand."}, outcome.trials).replace("\\u002f", "/")
    tags = read(html)
    assert tags.links == []
    assert html.count("Plotly.newPlot(") >= 4
    for text in (
        document["chosen"]["architecture"]["id"],
        "every other layer",
        "uniform width",
        "No board was at hand.",
        "budget 500 ms",
    ):
        assert text in html
    for result in outcome.trials:
        assert result.architecture.id in html  # every trial on hover


SENSITIVITY = {
    "joint": 0.0042,
    "parts": [
        {"layer": 0, "part": part, "precision": precision,
         "options": {"int8": {"measured": 0.003, "estimated": 0.0028, "saves_ms": 12.0}}}
        for part, precision in (("attention", "int8"), ("feed-forward", "fp16"))
    ],
}  # fmt: skip


def test_what_each_part_costs_and_buys_is_shown(found: tuple[dict[str, Any], Outcome]) -> None:
    document, outcome = found
    html = page({**document, "sensitivity": SENSITIVITY}, outcome.trials)
    assert "by 0.0042 nats from its own in float" in html
    assert "part by part it adds up to 0.003." in html  # the part that is in int8, not the other
    assert "loses, nats" in html
    assert "One precision in all layers, int8" in html
    assert "loses, nats" not in page(document, outcome.trials)


def test_what_is_said_of_precisions_is_so(found: tuple[dict[str, Any], Outcome]) -> None:
    document, outcome = found
    chosen = Architecture.from_json(document["chosen"]["architecture"])
    assert uniform(chosen) == "int8, beside a head in fp16"
    assert uniform(chosen.with_precision(Precision.FP16)) == "fp16"
    first, *others = chosen.layers
    mixed = msgspec.structs.replace(chosen, layers=(msgspec.structs.replace(first, attention=Precision.FP16), *others))
    assert uniform(mixed) is None
    assert uniform(msgspec.structs.replace(chosen, head_precision=Precision.INT8)) == "int8"
    alike = [result for result in outcome.trials if uniform(result.architecture)]
    assert "no student that was tried has several in its layers" in page(document, alike)
    assert "no mixture that was tried did better" in page(
        document, [*alike, msgspec.structs.replace(alike[0], architecture=mixed)]
    )


FIDELITY = {
    "candidates": 12,
    "band": 5,
    "full_steps": 1066,
    "ceiling": 0.97,
    "lengths": [
        {"steps": 160, "cost_share": 0.15, "passes": True, "tau": 0.91, "tau_low": 0.85, "tau_high": 0.96,
         "tau_band": None, "tau_band_low": None, "tau_band_high": None}
    ],
    "baselines": {
        "parameters": {"tau": 0.4, "tau_low": 0.2, "tau_high": 0.6, "tau_band": -0.1, "tau_band_low": -0.4,
                       "tau_band_high": 0.2}
    },
}  # fmt: skip


def test_the_page_says_how_far_short_runs_may_be_trusted(found: tuple[dict[str, Any], Outcome]) -> None:
    document, outcome = found
    alone, judged = page(document, outcome.trials), page({**document, "fidelity": FIDELITY}, outcome.trials)
    stages = document["stages"]
    assert [(stage["steps"], stage["further_steps"]) for stage in stages] == [(160, 373), (373, 1066)]
    assert stages[0]["students"] > stages[1]["students"] == 3
    short = stages[0]["scores"]["short run"]
    assert f"{short['tau']:.2f} ({short['low']:.2f} to {short['high']:.2f})" in alone
    assert "<code>hwsearch fidelity</code> does" in alone
    assert "0.91 (0.85 to 0.96)" in judged
    assert "-0.10 (-0.40 to 0.20)" in judged
    assert "<code>hwsearch fidelity</code> does" not in judged
    assert "How far the short runs" not in page({**document, "stages": []}, outcome.trials)


def test_text_from_outside_is_escaped_everywhere(found: tuple[dict[str, Any], Outcome]) -> None:
    document, outcome = found
    evil = {
        **document,
        "study": EVIL,
        "target": {**document["target"], "device": EVIL, "runtime": EVIL, "version": EVIL, "power_mode": EVIL},
        "baselines": {EVIL: next(iter(document["baselines"].values()))},
        "versions": {EVIL: EVIL},
        "missing_baselines": {EVIL: EVIL},
    }
    evil["chosen"] = {**document["chosen"], "architecture": {**document["chosen"]["architecture"], "id": EVIL}}
    evil |= {"note": EVIL, "repriced_from": EVIL}
    wrong = {**FIDELITY, "baselines": {EVIL: FIDELITY["baselines"]["parameters"]}, "candidates": EVIL}  # type: ignore[index]
    clean, dirty = (
        read(page({**document, "fidelity": FIDELITY}, outcome.trials)),
        read(page({**evil, "fidelity": wrong}, outcome.trials)),
    )
    assert dirty.tags.count("script") == clean.tags.count("script")
    assert "img" not in dirty.tags
    assert EVIL not in page({**evil, "fidelity": wrong}, outcome.trials)


def test_another_device_has_no_edge_of_the_budget_and_may_miss_it(found: tuple[dict[str, Any], Outcome]) -> None:
    document, outcome = found
    there = {**document, "repriced_from": "t4"}
    late = {**there, "budget_ms": 0.9 * document["chosen"]["latency"]["high_ms"]}
    assert "At the budget's edge" in page(document, outcome.trials)
    assert "At the budget's edge" not in page(there, outcome.trials)
    slow = {**document["chosen"]["latency"], "phases": {"prefill": 1.0, "decode_token": 4.0}}
    token = {**there, "chosen": {**document["chosen"], "latency": slow}, "phases_ms": {"decode_token": 4.0}}
    cases = (document, there, late, token)
    assert ["over the budget of" in page(one, outcome.trials) for one in cases] == [False, False, True, True]
    assert "of one decode token: over the budget of 4.00 ms" in page(token, outcome.trials)


def test_a_search_without_an_answer_has_a_page(found: tuple[dict[str, Any], Outcome]) -> None:
    document, outcome = found
    html = page({**document, "chosen": None, "baselines": {}}, outcome.trials)
    assert "No finalist keeps what was asked for" in html


def test_hand_made_winners_are_named(found: tuple[dict[str, Any], Outcome]) -> None:
    document, outcome = found
    better = {
        name: {**result, "retention": 1.5, "retention_low": 1.45} for name, result in document["baselines"].items()
    }
    html = page({**document, "baselines": better}, outcome.trials)
    assert html.count("Made by hand is better here") == 2
    chosen = document["chosen"]
    kept, low, high = (chosen[name] for name in ("retention", "retention_low", "retention_high"))
    little = {**chosen, "retention": (kept + high) / 2, "loss": 2 * chosen["loss"]}
    html = page({**document, "baselines": {"every other layer": little}}, outcome.trials)
    assert "by less than these answers can tell: every other layer. Its KL" in html
    assert "Made by hand is better here" not in html
    nearer = {**chosen, "retention": (kept + low) / 2, "loss": chosen["loss"] / 2}
    html = page({**document, "baselines": {"uniform width": nearer}}, outcome.trials)
    assert "Made by hand is better here: uniform width" in html  # as the choice tells near equals apart


def test_the_margin_is_the_slope_of_the_front() -> None:
    edge = [{"latency": {"median_ms": 100.0 + 10 * i}, "quality": 0.5 + 0.002 * i} for i in range(3)]
    assert margin(edge, 10.0) == pytest.approx(0.2)
    assert margin(edge, 50.0) == pytest.approx(1.0)
    assert margin(edge[:1], 10.0) is None


@pytest.mark.parametrize(("slower", "says"), [(0.01, "buys about"), (-0.01, "more time bought no")])
def test_time_that_buys_nothing_is_not_sold(found: tuple[dict[str, Any], Outcome], slower: float, says: str) -> None:
    document, outcome = found
    chosen = document["chosen"]
    latency = {**chosen["latency"], "median_ms": 1.1 * chosen["latency"]["median_ms"]}
    front = [chosen, {**chosen, "latency": latency, "quality": chosen["quality"] + slower}]
    assert says in " ".join(page({**document, "front": front}, outcome.trials).split())


@pytest.mark.parametrize(("budget_ms", "step"), [(280.0, 10.0), (24_600.0, 1000.0), (0.5, 0.02), (150.0, 5.0)])
def test_the_margin_is_told_of_a_step_that_suits_the_budget(budget_ms: float, step: float) -> None:
    assert step_ms(budget_ms) == pytest.approx(step)


def test_tables_hold_every_trial(found: tuple[dict[str, Any], Outcome], tmp_path: Path) -> None:
    import pandas as pd

    document, outcome = found
    write_tables(tmp_path, outcome)
    trials, front = pd.read_csv(tmp_path / "trials.csv"), pd.read_csv(tmp_path / "pareto.csv")
    assert list(trials.columns) == list(COLUMNS)
    assert list(trials["trial"]) == [r.trial for r in outcome.trials]
    assert list(front["architecture"]) == [r["architecture"]["id"] for r in document["front"]]
    assert front["expected_loss"].is_monotonic_decreasing
    assert front["median_ms"].is_monotonic_increasing


def test_the_terminal_says_what_a_person_acts_on(found: tuple[dict[str, Any], Outcome], tmp_path: Path) -> None:
    document, _ = found
    out = io.StringIO()
    print_summary(document, tmp_path, Console(file=out, width=200))
    text = out.getvalue()
    assert document["chosen"]["architecture"]["id"] in text
    assert re.search(r"keeps \d+\.\d% \(90 % interval", text)
    assert "report.html" in text


def test_a_generation_is_told_token_by_token(tmp_path: Path) -> None:
    workload = Workload(batch=4, sequence=100, new_tokens=28)
    document, outcome = search(tmp_path / "run", budget="0.9x", workload=workload, trials=3)
    assert outcome is not None
    found = {speed.name: speed for speed in speeds(document)}
    assert set(found) == {"teacher", "chosen", *document["baselines"]}
    chosen, latency = found["chosen"], document["chosen"]["latency"]
    assert chosen.tokens_a_second == pytest.approx(4 * 1e3 / latency["phases"]["decode_token"])
    assert chosen.first_ms == latency["phases"]["prefill"]
    architecture = document["chosen"]["architecture"]
    heads = sum(layer["kv_heads"] for layer in architecture["layers"])
    # 4 sequences of 128 tokens, two bytes for each channel of a key and a value
    assert chosen.cache_mib["fp16"] == pytest.approx(4 * 128 * 2 * heads * architecture["head_dim"] * 2 / 2**20)
    assert chosen.cache_mib["int8"] == chosen.cache_mib["fp16"] / 2
    assert "Token by token" in page(document, outcome.trials)
    out = io.StringIO()
    print_summary(document, None, Console(file=out, width=200))
    assert "tokens a second" in out.getvalue()


def test_nothing_is_told_of_tokens_where_none_are_written(found: tuple[dict[str, Any], Outcome]) -> None:
    assert speeds(found[0]) == []
    assert "Token by token" not in page(found[0], found[1].trials)


def test_the_front_has_a_price_on_another_device(found: tuple[dict[str, Any], Outcome]) -> None:
    from hwsearch.profiles import find_profile

    document, outcome = found
    t4 = find_profile("t4")
    moved, trials = reprice(document, outcome.trials, t4, t4.target())
    assert moved["device"] == "t4"
    assert len(trials) == len(outcome.trials)
    assert [r.loss for r in trials] == [r.loss for r in outcome.trials]
    assert [r.latency.median_ms for r in trials] != [r.latency.median_ms for r in outcome.trials]
    assert "Searched on jetson-agx-orin-64gb" in page(moved, trials)
    # The same as a search there would say.
    plan = Plan(Wishes(parse_budget("500ms"), Workload(64, 128, 0, 256)), t4, t4.target(), TEACHER)
    assert moved["teacher"]["latency_fp32"] == msgspec.to_builtins(plan.teacher_latency_fp32)
    assert moved["teacher"]["latency"] == msgspec.to_builtins(plan.teacher_latency)
    fresh = [plan.priced(r.architecture, r.trial) for r in trials]
    assert [(r.size_mib, r.memory_mib) for r in trials] == [(r.size_mib, r.memory_mib) for r in fresh]
    assert moved["missing_baselines"] == {}
    assert moved["stages"] == []
    headed = [
        msgspec.structs.replace(r, architecture=msgspec.structs.replace(r.architecture, head_precision=Precision.INT8))
        for r in outcome.trials
    ]
    _, moved_heads = reprice(document, headed, t4, t4.target())  # whose TensorRT keeps heads in float
    assert [r.latency for r in moved_heads] == [r.latency for r in trials]
    pi = find_profile("arm-cpu")
    floats, _ = reprice(document, outcome.trials, pi, pi.target())
    assert {layer["feed_forward"] for r in floats["front"] for layer in r["architecture"]["layers"]} <= {"fp32", "int8"}


def test_it_says_which_split_the_teacher_was_judged_on(found: tuple[dict[str, Any], Outcome]) -> None:
    from hwsearch.profiles import find_profile

    document, outcome = found
    t4 = find_profile("t4")
    for chosen, split in ((document["chosen"], "report"), (None, "select")):
        own = {**document, "chosen": chosen, "baselines": document["baselines"] if chosen else {}}
        for one in (own, reprice(own, outcome.trials, t4, t4.target())[0]):
            assert f"accuracy on <i>{split}</i>" in page(one, outcome.trials)


def test_a_student_that_cannot_run_elsewhere_is_said_to(found: tuple[dict[str, Any], Outcome]) -> None:
    from hwsearch.profiles import find_profile

    document, outcome = found
    orin = find_profile("jetson-orin")
    assert outcome.chosen is not None
    assert "int8" in outcome.chosen.architecture.precision_text
    floats = [r for r in outcome.trials if "int8" not in r.architecture.precision_text]
    moved, trials = reprice(document, outcome.trials, orin, orin.target("pytorch"))
    assert len(trials) == len(floats)
    assert moved["chosen"] is None
    assert "cannot run here" in page(moved, trials)
    out = io.StringIO()
    print_summary(moved, None, Console(file=out, width=200))
    assert "cannot run here" in out.getvalue()


def test_every_kind_of_kernel_has_its_colour() -> None:
    from hwsearch.report.figures import KIND_COLOURS
    from hwsearch.workload import KINDS

    assert set(KIND_COLOURS) == {*KINDS, "overhead"}

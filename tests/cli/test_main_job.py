"""The main job as the README has it, with few trials and short ones: embedded teacher, its text, the bulk workload."""

import json
from pathlib import Path

from tests.cli.test_cli import run


def test_the_main_job_small(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--device", "jetson-orin", "--budget", "280ms", "--trials", "3", "--steps", "8", "--out", str(out)]
    status, text, err = run(*arguments, "--json")
    assert status == 0, err
    assert err.startswith("workload: 256 x (batch 64 x 128 tokens), 2,097,152 tokens")
    summary = json.loads(text)
    assert summary["device"] == "jetson-agx-orin-64gb"
    assert summary["budget_ms"] == 280
    assert summary["teacher"]["latency"]["median_ms"] > 280
    assert summary["trials"]["complete"] + summary["trials"]["stopped"] == 3
    chosen = summary["chosen"]
    assert chosen["latency"]["high_ms"] <= 280
    assert chosen["steps"] == 53
    # 53 steps do not make a good student, but one cut out of its teacher starts far above chance (1 of 2,048).
    assert 0.1 < chosen["quality"] < summary["teacher"]["quality"]
    assert chosen["quality_low"] < chosen["quality"] < chosen["quality_high"]
    assert set(summary["baselines"]) == {"every other layer", "uniform width"}
    assert {path.name for path in out.iterdir()} >= {
        "study.db", "trials.csv", "pareto.csv", "summary.json", "report.html", "chosen",
    }  # fmt: skip
    status, text, _ = run(*arguments)
    assert status == 0
    assert chosen["architecture"]["id"] in text
    assert "90 % interval" in text

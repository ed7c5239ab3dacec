"""The main job as the README has it, with few trials and short ones: embedded teacher, its text, the bulk workload."""

import json
import shutil
from pathlib import Path

from hwsearch.search.finished import finished
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


def test_the_main_job_of_a_classifier(tiny_classifier: Path, labelled_file: Path, tmp_path: Path) -> None:
    """Another task from end to end: search, fidelity, the exported student and what it says."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = tmp_path / "run"
    task = ["--teacher", str(tiny_classifier), "--data", str(labelled_file), "--sequence", "24"]
    arguments = ["--device", "graviton3", "--budget", "0.8x", "--trials", "3", "--steps", "6", "--out", str(out), *task]
    status, text, err = run(*arguments, "--json")
    assert status == 0, err
    summary = json.loads(text)
    # Eight tenths of the time of one text are no student's here: texts are judged as many at once as are searched for.
    assert "64 sequences at once are searched for" in err
    assert finished(out).spec.together == summary["workload"]["batch"] == 64
    assert summary["teacher"]["metric"] == "accuracy"
    chosen = summary["chosen"]["architecture"]
    assert (chosen["block"], chosen["head"]) == ("encoder", "classify")
    assert chosen["width"] == chosen["layers"][0]["heads"] * chosen["head_dim"]
    assert "next-token" not in (out / "report.html").read_text()
    model = AutoModelForSequenceClassification.from_pretrained(out / "chosen")
    tokens = AutoTokenizer.from_pretrained(out / "chosen")("def point4", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
    assert logits.shape == (1, 3)
    assert model.config.id2label[0] == "red"
    other = tmp_path / "other"
    shutil.copytree(tiny_classifier, other)
    twin = AutoModelForSequenceClassification.from_pretrained(other)
    twin.classifier.bias.data.add_(1)
    twin.save_pretrained(other)
    for command in (("export", "--format", "huggingface"), ("distill", "--steps", "30")):
        status, _, err = run(command[0], str(out), *command[1:], "--to", str(tmp_path / "to"), "--teacher", str(other))
        assert status == 1, err
        assert "the run was begun with another teacher" in err
    status, text, err = run("fidelity", str(out), "--candidates", "8", "--full-steps", "40", "--json")
    assert status == 0, err
    judged = json.loads(text)
    assert judged["candidates"] == 8
    assert {"parameters", "depth", "zero steps"} <= set(judged["baselines"])


def test_a_dry_run_prices_the_teacher_trains_nothing_and_says_what_export_cannot_write(tmp_path: Path) -> None:
    arguments = ["--device", "jetson-orin", "--budget", "280ms", "--out", str(tmp_path / "run")]
    status, text, err = run(*arguments, "--precision", "fp16,int4", "--dry-run", "--json")
    assert status == 0, err
    assert "int4 is priced for tensorrt, but export writes it for onnxruntime alone" in err
    summary = json.loads(text)
    assert summary["chosen"] is None
    assert summary["teacher"]["latency"]["median_ms"] > 280
    assert summary["trials"]["complete"] == 0


def test_a_class_that_the_teacher_does_not_know_is_one_clear_line(tiny_classifier: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.csv"
    data.write_text("text,label\n" + "some words,pink\n" * 300)
    status, _, err = run(
        "--device", "t4", "--budget", "0.5x", "--teacher", str(tiny_classifier), "--data", str(data), "--sequence", "24"
    )
    assert status == 1
    assert "row 1: the teacher knows no class 'pink' (knows: red, green, blue); another column: --label-column" in err


def test_the_main_job_of_an_image_classifier(text_file: Path, image_folder: Path, tmp_path: Path) -> None:
    """Its tokens are known without being asked for; the student, its graph and the script beside that run."""
    import subprocess
    import sys

    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from tests.checkpoints import save_checkpoint

    teacher, out = save_checkpoint(tmp_path / "teacher", "vit", text_file), tmp_path / "run"
    task = ["--teacher", str(teacher), "--data", str(image_folder), "--batch", "16"]
    arguments = ["--device", "graviton3", "--budget", "0.5x", "--trials", "3", "--steps", "6", "--out", str(out), *task]
    status, text, err = run(*arguments, "--json")
    assert status == 0, err
    summary = json.loads(text)
    assert summary["workload"]["sequence"] == 17
    assert summary["chosen"]["architecture"]["patch"] == 192
    assert 0 < summary["chosen"]["latency"]["ops"]["patches"] < summary["chosen"]["latency"]["median_ms"]
    processor = AutoImageProcessor.from_pretrained(out / "chosen")
    model = AutoModelForImageClassification.from_pretrained(out / "chosen")
    with torch.no_grad():
        logits = model(**processor(Image.new("RGB", (50, 40)), return_tensors="pt")).logits
    assert logits.shape == (1, 3)
    status, text, err = run("export", str(out), "--format", "onnx", "--to", str(tmp_path / "graphs"), "--json")
    assert status == 0, err
    script = [sys.executable, str(tmp_path / "graphs" / "run.py")]
    assert subprocess.run(script, capture_output=True, text=True, check=True).stdout.startswith("16 x images: ")
    status, _, err = run(*arguments[:-2], "--batch", "16", "--sequence", "128", "--out", str(tmp_path / "other"))
    assert status == 1
    assert "reads an image as 17 tokens; --sequence asks for 128" in err

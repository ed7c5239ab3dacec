"""The teacher that ships: what its card says is so, and the script that rebuilds it works."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hwsearch.distill.checkpoint import embedded_teacher
from hwsearch.distill.data import standard_library, token_stream
from hwsearch.distill.teacher import load_teacher
from hwsearch.embedded_teacher import train

CARD = (embedded_teacher() / "README.md").read_text(encoding="utf-8")


def shares(row: str) -> list[float]:
    """The figures of a row of the card's table, select and report."""
    line = next(line for line in CARD.splitlines() if line.startswith(f"| {row}"))
    return [float(figure.rstrip("% ")) for figure in line.split("|")[2:4]]


def test_the_card_holds_the_bars() -> None:
    for own, trigram in zip(shares("next-token accuracy"), shares("of a back-off trigram"), strict=True):
        assert own >= trigram + 10
    steps, gain = re.search(r"([\d,]+) steps of", CARD), re.search(r"by ([\d.]+)%", CARD)
    assert steps is not None
    assert gain is not None
    assert int(steps[1].replace(",", "")) >= 2000
    assert float(gain[1]) < 1.0
    history = json.loads((embedded_teacher() / "history.json").read_text())
    losses = {point["step"]: point["select_loss"] for point in history}
    last = max(losses)
    before = losses[min(losses, key=lambda step: abs(step - 0.8 * last))]
    assert 1 - losses[last] / before == pytest.approx(float(gain[1]) / 100, abs=6e-5)


def test_the_shipped_weights_are_as_good_as_the_card_says() -> None:
    """On a part of *select*, and on the standard library of the Python that runs this, hence the tolerance."""
    teacher = load_teacher(None)
    assert teacher.model.config.model_type == "llama"
    assert all(path.suffix != ".pt" for path in embedded_teacher().iterdir())
    texts = standard_library().texts["select"]
    stream = token_stream(texts[:: max(1, len(texts) // 12)], teacher.processor)
    _, accuracy = train.evaluate(teacher.model, stream, 128)  # type: ignore[arg-type]
    assert accuracy == pytest.approx(shares("next-token accuracy")[0] / 100, abs=0.08)


def test_tokens_come_back_as_text() -> None:
    tokenizer = load_teacher(None).processor
    for text in ("def f(x):\n        return x[1:]  # ok\n", "α = 'naïve'\t\n\n", "0x1F600 😀"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_trigram_model_backs_off() -> None:
    seen = np.array([5, 6, 7, 5, 6, 7, 5, 6, 9, 9, 9, 9])
    # Every chunk's first token has no trigram behind it; 5 6 -> 7 twice, 9 once; 4 was never seen: 9 is the commonest.
    held_out = np.array([*([5, 6, 7] * train.CHUNK)[: train.CHUNK], 4])
    right = train.CHUNK - 1  # all but the last, whose next token is 4
    assert train.trigram_accuracy(seen, held_out) == right / train.CHUNK


def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BATCH", 2)
    monkeypatch.setattr(train, "SEQUENCE", 16)
    monkeypatch.setattr(train, "EVERY", 3)
    tokens = np.random.default_rng(0).integers(0, 64, 2000)
    streams = {"train": tokens, "select": tokens[:600], "report": tokens[:600]}
    whole = train.Training(streams, tmp_path / "whole.pt", 6, False)  # type: ignore[arg-type]
    whole.run()
    stopped = train.Training(streams, tmp_path / "state.pt", 3, False)  # type: ignore[arg-type]
    stopped.run()
    resumed = train.Training(streams, tmp_path / "state.pt", 6, False)  # type: ignore[arg-type]
    assert resumed.step == 3
    resumed.run()
    assert [point["step"] for point in resumed.history] == [3, 6]
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


def test_the_rate_warms_up_and_falls_to_its_floor() -> None:
    rates = [train.rate_at(step, train.STEPS) for step in range(train.STEPS)]
    assert max(rates) == pytest.approx(train.RATE, rel=1e-3)
    assert rates[0] < rates[train.WARM_UP // 2] < rates[train.WARM_UP]
    assert rates[-1] == pytest.approx(train.FLOOR * train.RATE)

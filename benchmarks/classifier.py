"""Does the short run rank the students of another teacher and task as full training does? A small BERT classifier.

The teacher is made here, once: six layers of 192 channels, trained on short pieces of the standard library's source to
tell which of twenty packages each is from. Its students are then judged by `hwsearch fidelity`'s own measurement, for
a T4: 24 of them, ten within 10 % of one latency.

python benchmarks/classifier.py [--candidates 24] [--full-steps 1024]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from hwsearch.distill.data import module_of
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.workers import Workers, ffn_dimensions_of
from hwsearch.profiles import find_profile
from hwsearch.search.fidelity import measure
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.trainer import complete, result_of
from hwsearch.units import Budget
from hwsearch.workload import Workload

WORK = platformdirs.user_cache_path("hwsearch") / "classifier"
PACKAGES, TEXTS, LINES = 20, 1200, 5
SEQUENCE, STEPS, BATCH, RATE = 64, 3000, 32, 5e-4


def pieces() -> dict[str, list[str]]:
    """Texts of a few lines by package: the twenty with most of them."""
    import sysconfig

    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if {"site-packages", "dist-packages"} & set(relative.parts):
            continue
        try:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (UnicodeDecodeError, OSError):
            continue
        found[module_of(relative)] += ["\n".join(lines[i : i + LINES]) for i in range(0, len(lines), LINES)]
    most = sorted(found, key=lambda name: (-len(found[name]), name))[:PACKAGES]
    rng = np.random.default_rng(0)
    return {name: [found[name][i] for i in rng.permutation(len(found[name]))[:TEXTS]] for name in sorted(most)}


def make(folder: Path) -> None:
    """The texts as a table, a tokenizer and the teacher."""
    import pandas as pd
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from hwsearch.distill.rows import draw_texts, labelled_texts

    texts = pieces()
    table = pd.DataFrame([(text, name) for name, own in texts.items() for text in own], columns=["text", "label"])
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "texts.csv", index=False)
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[PAD]", "[CLS]", "[UNK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(table["text"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", unk_token="[UNK]")
    names = {name: i for i, name in enumerate(texts)}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4096, hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768,
        max_position_embeddings=128, label2id=names, id2label={i: name for name, i in names.items()},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    corpus = labelled_texts(folder / "texts.csv", None, "text", "label", names)
    assert corpus.labels is not None
    drawn = {
        split: draw_texts(corpus.texts[split], corpus.labels[split], fast, 10**6, SEQUENCE, 0) for split in corpus.texts
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    train, rng = drawn["train"], np.random.default_rng(0)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 200, (STEPS - step) / (0.5 * STEPS))
        rows = torch.from_numpy(train[rng.integers(0, len(train), BATCH)])
        ids = rows[:, :-1]
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=rows[:, -1]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"teacher: step {step} of {STEPS}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--full-steps", type=int, default=1024)
    options = parser.parse_args()
    if not (WORK / "tokenizer.json").is_file():
        make(WORK)
    profile = find_profile("t4")
    target = profile.target()
    workload = Workload(batch=256, sequence=SEQUENCE)  # far from the launch floor, where every student would be alike
    spec = TaskSpec(
        teacher=str(WORK), data=str(WORK / "texts.csv"), sequence=SEQUENCE,
        scheme=profile.runtimes[target.runtime].scheme,
    )  # fmt: skip
    workers = Workers(spec)
    try:
        facts = complete(workers, result_of(workers.open()), Told())
        plan = Plan(Wishes(budget=Budget(share=0.25), workload=workload), profile, target, facts.architecture)
        found: dict[str, Any] = measure(
            plan, facts, spec, workers, Told(), WORK / "students", options.candidates, options.full_steps, True,
            ffn_dimensions_of,
        )  # fmt: skip
    finally:
        workers.close()
    rows = found.pop("rows")
    print(json.dumps({"teacher_accuracy": facts.quality, **found, "curves": [row["curve"] for row in rows]}))


class Told:
    """Progress on stderr, a line for each tenth."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def stage(self, name: str, total: float) -> None:
        self.name, self.total, self.last = name, total, -1

    def at(self, done: float, total: float | None = None, note: str = "") -> None:
        if (tenth := int(10 * done / (total or self.total))) > self.last:
            self.last = tenth
            print(f"{self.name}: {10 * tenth} % {note}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

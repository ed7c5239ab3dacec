"""Fine-tune an encoder as a classifier of short texts: a teacher to compress.

python tune.py --model ./all-MiniLM-L6-v2 --data train.csv --eval test.csv --to teacher
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 32
POOL = 8  # batches among whose texts the lengths are sorted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="CSV with columns text and label")
    parser.add_argument("--eval", type=Path, required=True, help="likewise")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--tokens", type=int, default=64, help="of a text, at most")
    options = parser.parse_args()
    torch.manual_seed(0)
    train, held_out = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (options.data, options.eval))
    names = sorted(train["label"].unique())
    if strange := sorted(set(held_out["label"]) - set(names)):
        parser.error(f"{options.eval} has labels that {options.data} does not have: {', '.join(strange)}")
    numbers = {name: i for i, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(names), id2label=dict(enumerate(names)), label2id=numbers
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    steps = options.epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, max(0.0, 1 - step / steps))
    )

    def batches(table: pd.DataFrame, shuffle: bool) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """Texts of about one length together."""
        order = torch.randperm(len(table)) if shuffle else torch.arange(len(table))
        for pool in order.split(BATCH * POOL):
            rows = table.iloc[pool.numpy()].sort_values("text", key=lambda column: column.str.len())
            for start in range(0, len(rows), BATCH):
                part = rows.iloc[start : start + BATCH]
                given = tokenizer(
                    list(part["text"]), return_tensors="pt", padding=True, truncation=True, max_length=options.tokens
                )
                yield given, torch.tensor([numbers[label] for label in part["label"]])

    for epoch in range(options.epochs):
        model.train()
        for given, labels in batches(train, shuffle=True):
            loss = torch.nn.functional.cross_entropy(model(**given).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            hits = sum(
                int((model(**given).logits.argmax(-1) == labels).sum())
                for given, labels in batches(held_out, shuffle=False)
            )
        print(f"epoch {epoch + 1}: {hits / len(held_out):.1%} of {options.eval.name}", flush=True)
    model.save_pretrained(options.to)
    tokenizer.save_pretrained(options.to)


if __name__ == "__main__":
    main()

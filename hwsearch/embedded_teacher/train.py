"""Rebuild the embedded teacher: python -m hwsearch.embedded_teacher.train --to DIR

A Llama of 2.8 M parameters and a byte-level BPE of 2,048, trained on the *train* modules of the standard library. The
run is checkpointed and goes on where it stopped; when it is done, the checkpoint, the tokenizer and the card are
written.

AdamW with betas of GPT-3 (Brown et al. 2020, arXiv:2005.14165), cosine decay of the rate to a hundredth over nine
tenths of the run (Hoffmann et al. 2022, arXiv:2203.15556: as long as the run itself), the last tenth at that rate.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hwsearch.distill.data import SPLITS, Corpus, Split, standard_library, token_stream
from hwsearch.files import pretty, whole, write_text
from hwsearch.units import format_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.int64]

END_OF_TEXT = "<|endoftext|>"
# The pre-tokenizer of Qwen2 (Transformers, Apache-2.0), where a run of indentation stays one piece.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONFIG: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
STEPS, BATCH, SEQUENCE = 12_000, 24, 256
RATE, FLOOR, WARM_UP, DECAY = 3e-3, 0.01, 300, 0.9  # DECAY: share of the run after which the rate stays at FLOOR x RATE
EVERY = 400  # steps between checkpoints
CHUNK = 128  # tokens that held-out text is cut into, as the default workload has it


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """A byte-level BPE learnt on the train split."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.texts["train"], trainer)
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONFIG["max_position_embeddings"], **ends
    )


def rate_at(step: int, steps: int) -> float:
    """The learning rate of a step."""
    if step < WARM_UP:
        return RATE * (step + 1) / WARM_UP
    share = min(1.0, (step - WARM_UP) / (steps - WARM_UP) / DECAY)
    return RATE * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * share)))


class Training:
    """A model in training.

    Args:
        streams: tokens of each split, [tokens].
        state: file that the run goes on from and is checkpointed to.
        steps: of the whole run.
        fast: compile the step, where there is a C++ compiler.
    """

    def __init__(self, streams: Mapping[Split, Tokens], state: Path, steps: int, fast: bool) -> None:
        torch.manual_seed(0)
        self.streams, self.path, self.steps = streams, state, steps
        self.train = torch.from_numpy(streams["train"])
        self.model = LlamaForCausalLM(LlamaConfig(**CONFIG))
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in self.model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
        self.step, self.history = 0, list[dict[str, float]]()
        if state.is_file():
            stored = torch.load(state, weights_only=True)
            self.model.load_state_dict(stored["model"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.step, self.history = stored["step"], stored["history"]
        self.model.train()
        self._forward: Any = torch.compile(self.model) if fast else self.model

    def run(self) -> None:
        """Train to the end, with a checkpoint and a line of progress every few hundred steps."""
        started, first = time.perf_counter(), self.step
        while self.step < self.steps:
            loss = self._advance()
            if self.step % EVERY == 0 or self.step == self.steps:
                nats, accuracy = evaluate(self.model, self.streams["select"], 512)
                point = {"step": self.step, "train_loss": loss, "select_loss": nats, "select_accuracy": accuracy}
                self.history.append(point)
                self._keep()
                pace = (time.perf_counter() - started) / (self.step - first)
                left = format_seconds(pace * (self.steps - self.step))
                print(f"step {self.step}: loss {nats:.4f}, accuracy {accuracy:.4f}, {left} left", file=sys.stderr)

    def _advance(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.steps)
        generator = torch.Generator().manual_seed(self.step)
        starts = torch.randint(0, len(self.train) - SEQUENCE - 1, (BATCH,), generator=generator)
        windows = torch.stack([self.train[start : start + SEQUENCE + 1] for start in starts.tolist()])
        logits = self._forward(input_ids=windows[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _keep(self) -> None:
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with whole(self.path) as temporary:
            torch.save({**parts, "step": self.step, "history": self.history}, temporary)


def chunked(stream: Tokens, count: int | None = None) -> tuple[Tokens, Tokens]:
    """Inputs and next tokens, [chunks, CHUNK] each; `count` of the chunks, evenly spread, or all."""
    total = (len(stream) - 1) // CHUNK
    inputs = stream[: total * CHUNK].reshape(total, CHUNK)
    labels = stream[1 : total * CHUNK + 1].reshape(total, CHUNK)
    chosen = np.linspace(0, total - 1, min(count or total, total)).astype(int)
    return inputs[chosen], labels[chosen]


def evaluate(model: LlamaForCausalLM, stream: Tokens, count: int | None = None) -> tuple[float, float]:
    """Nats a token and next-token accuracy over held-out chunks."""
    inputs, labels = (torch.from_numpy(part) for part in chunked(stream, count))
    model.eval()
    nats, hits = 0.0, 0
    with torch.no_grad():
        for i in range(0, len(inputs), 64):
            logits, wanted = model(input_ids=inputs[i : i + 64]).logits, labels[i : i + 64]
            nats += float(nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"))
            hits += int((logits.argmax(-1) == wanted).sum())
    model.train()
    return nats / labels.numel(), hits / labels.numel()


def trigram_accuracy(train: Tokens, held_out: Tokens) -> float:
    """Next-token accuracy of a back-off trigram model on the same held-out chunks, each seeing only its own chunk.

    The most frequent successor of the last two tokens in the train split, where they were seen; else of the last one;
    else the most frequent token.
    """
    vocab = CONFIG["vocab_size"]

    def best_successors(contexts: Tokens, successors: Tokens) -> dict[int, int]:
        pairs, counts = np.unique(contexts * vocab + successors, return_counts=True)
        order = np.argsort(counts, kind="stable")  # the most frequent of a context comes last and stays
        return dict(zip((pairs[order] // vocab).tolist(), (pairs[order] % vocab).tolist(), strict=True))

    bigrams = best_successors(train[:-1], train[1:])
    trigrams = best_successors(train[:-2] * vocab + train[1:-1], train[2:])
    common = Counter(train.tolist()).most_common(1)[0][0]
    inputs, labels = chunked(held_out)
    hits = 0
    for row, wanted in zip(inputs.tolist(), labels.tolist(), strict=True):
        for i, token in enumerate(row):
            context = row[i - 1] * vocab + token if i else -1
            hits += trigrams.get(context, bigrams.get(token, common)) == wanted[i]
    return hits / labels.size


CARD = """---
license: apache-2.0
---
# The embedded teacher

A Llama of {parameters:.2f} M parameters (6 layers x 192, 6 heads, 3 key-value heads, feed-forward 512, tied embeddings)
with a byte-level BPE of 2,048, trained by hwsearch on the source code of the Python {python} standard library with its
`test` package: {train:.1f} M tokens, split by module into train, select and report. Nothing else was seen.

| held-out modules, chunks of {chunk} tokens | select | report |
|---|---|---|
| next-token accuracy | {select_accuracy:.1%} | {report_accuracy:.1%} |
| of a back-off trigram model, same tokens | {select_trigram:.1%} | {report_trigram:.1%} |
| bits per byte | {select_bits:.3f} | {report_bits:.3f} |
| tokens | {select_tokens:,} | {report_tokens:,} |

{steps:,} steps of {batch} x {sequence} tokens, AdamW, cosine decay. The last fifth of the steps lowered the held-out
loss on *select* by {gain:.2%} ({before:.4f} to {after:.4f} nats a token). `history.json` has the whole curve.

Rebuild it: `python -m hwsearch.embedded_teacher.train --to DIR` (about 3 hours on two cores; goes on where it stopped).
"""


def write_card(folder: Path, model: LlamaForCausalLM, corpus: Corpus, training: Training) -> None:
    """README.md and history.json: what the teacher is and how good."""
    values: dict[str, Any] = {}
    for split in SPLITS[1:]:
        stream = training.streams[split]
        nats, accuracy = evaluate(model, stream)
        size = sum(len(text.encode()) for text in corpus.texts[split])
        values |= {
            f"{split}_accuracy": accuracy,
            f"{split}_trigram": trigram_accuracy(training.streams["train"], stream),
            f"{split}_bits": nats / math.log(2) * len(stream) / size,
            f"{split}_tokens": len(stream),
        }
    losses = {int(point["step"]): point["select_loss"] for point in training.history}
    before, after = losses[min(losses, key=lambda step: abs(step - 0.8 * training.steps))], losses[max(losses)]
    text = CARD.format(
        parameters=model.num_parameters() / 1e6,
        python=".".join(map(str, sys.version_info[:2])),
        train=len(training.streams["train"]) / 1e6,
        chunk=CHUNK,
        steps=training.steps,
        batch=BATCH,
        sequence=SEQUENCE,
        gain=1 - after / before,
        before=before,
        after=after,
        **values,
    )
    write_text(folder / "README.md", text)
    write_text(folder / "history.json", pretty(training.history))


@click.command()
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Folder of the checkpoint.")
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--fast", is_flag=True, help="Compile the step; needs a C++ compiler.")
def main(to: Path, steps: int, threads: int, fast: bool) -> None:
    """Train the embedded teacher, or go on with it, and write checkpoint, tokenizer and card."""
    torch.set_num_threads(threads)
    corpus = standard_library()
    if (to / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(to)
    else:
        tokenizer = train_tokenizer(corpus)
        tokenizer.save_pretrained(to)
    streams = {split: token_stream(corpus.texts[split], tokenizer) for split in SPLITS}
    training = Training(streams, to / "training.pt", steps, fast)
    training.run()
    # What is judged is what is shipped: the weights rounded to fp16.
    training.model.half().save_pretrained(to)
    shipped = training.model.float()
    write_card(to, shipped, corpus, training)


if __name__ == "__main__":
    main()

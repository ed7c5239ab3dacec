"""Rebuild the embedded teacher: python -m hwsearch.embedded_teacher.train --to DIR.

A Llama of 2.8 M parameters and a byte-level BPE of 2,048, trained on the *train* modules of the standard library. The run is
checkpointed every few hundred steps and goes on where it stopped. AdamW, cosine decay to a tenth (Hoffmann et al. 2022,
arXiv:2203.15556, schedule length equal to the run's).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hwsearch.distill.data import SPLITS, Corpus, standard_library, token_stream

END_OF_TEXT = "<|endoftext|>"
# The pre-tokenizer of Qwen2 (Transformers, Apache-2.0), where a run of indentation stays one piece.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONFIG = {
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


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """A byte-level BPE learnt on the train split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.texts["train"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONFIG["max_position_embeddings"],
    )


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, stream: np.ndarray, sequence: int, chunks: int | None) -> tuple[float, float]:
    """Mean nats and accuracy of the next token over non-overlapping chunks of `sequence` tokens."""
    count = (len(stream) - 1) // sequence
    inputs = torch.from_numpy(stream[: count * sequence].reshape(count, sequence))
    labels = torch.from_numpy(stream[1 : count * sequence + 1].reshape(count, sequence))
    if chunks is not None and chunks < count:
        chosen = torch.linspace(0, count - 1, chunks).long()
        inputs, labels = inputs[chosen], labels[chosen]
    model.eval()
    nats, hits = 0.0, 0
    for i in range(0, len(inputs), 64):
        logits = model(input_ids=inputs[i : i + 64]).logits
        nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[i : i + 64].flatten(), reduction="sum"))
        hits += int((logits.argmax(-1) == labels[i : i + 64]).sum())
    model.train()
    return nats / labels.numel(), hits / labels.numel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.to.mkdir(parents=True, exist_ok=True)
    state_path = args.to / "training.pt"

    corpus = standard_library()
    if (args.to / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.to)
    else:
        tokenizer = train_tokenizer(corpus)
        tokenizer.save_pretrained(args.to)
    streams = {split: token_stream(corpus.texts[split], tokenizer) for split in SPLITS}
    print({split: len(stream) for split, stream in streams.items()}, flush=True)
    train = torch.from_numpy(streams["train"])

    model = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="sdpa"))
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=args.rate, betas=(0.9, 0.95)
    )
    step, history = 0, []
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, history = state["step"], state["history"]
    model.train()
    run = torch.compile(model) if args.compile else model
    warm_up = 300
    started, first = time.perf_counter(), step
    while step < args.steps:
        share = (step - warm_up) / (args.steps - warm_up)
        share = min(1.0, share / 0.9)
        rate = args.rate * (step + 1) / warm_up if step < warm_up else args.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        starts = torch.randint(0, len(train) - args.sequence - 1, (args.batch,), generator=generator)
        windows = torch.stack([train[s : s + args.sequence + 1] for s in starts.tolist()])
        logits = run(input_ids=windows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 400 == 0 or step == args.steps:
            nats, accuracy = evaluate(model, streams["select"], 128, 512)
            history.append({"step": step, "train_loss": loss.item(), "select_loss": nats, "select_accuracy": accuracy})
            pace = (time.perf_counter() - started) / (step - first)
            print(json.dumps(history[-1]), f"{pace:.3f} s/step, {pace * (args.steps - step) / 60:.0f} min left", flush=True)
            temporary = state_path.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "history": history}, temporary)
            os.replace(temporary, state_path)
    print("done")


if __name__ == "__main__":
    main()

"""What a narrower student begins with and comes to at the recipe's rate: held-out KL on *select*, by steps.

Without a teacher, a small GPT-2 is trained on the standard library first. At commit b7beb85 GPT-2 and ViT kept
channels in place of directions, at fdf33e3 BERT too: there this script, put beside the others, gives what the rotation
is compared with.

python benchmarks/rotation.py [--teacher DIR --data FILE --sequence 64] [--marks 0,100,400]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from head_start import student_of
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hwsearch.distill.checkpoint import embedded_teacher
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.proxy import Student
from hwsearch.distill.workshop import Workshop

SHARES = ((0.67, 0.92), (1.0, 0.75), (1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.17, 0.34))  # of depth, of everything else
RATE, STEPS, BATCH = 2e-3, 1200, 16  # of the GPT-2
SIZES = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_inner": 512, "n_positions": 128}


def train(folder: Path, sequence: int) -> None:
    """A GPT-2 with the embedded teacher's tokenizer."""
    chunks = torch.from_numpy(Workshop(TaskSpec(sequence=sequence)).tokens["train"])
    tokenizer = AutoTokenizer.from_pretrained(embedded_teacher())
    torch.manual_seed(0)
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "bos_token_id", "eos_token_id"), 0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **SIZES, **still))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.05)
    for _ in range(STEPS):
        some = chunks[torch.randint(len(chunks), (BATCH,))]
        optimizer.zero_grad()
        model(input_ids=some, labels=some).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--sequence", type=int, default=64)
    parser.add_argument("--marks", default="0,100,400")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as name:
        teacher, data = (str(Path(path).resolve()) if path else "" for path in (options.teacher, options.data))
        if not teacher:
            train(Path(name), options.sequence)
        workshop = Workshop(TaskSpec(teacher=teacher or name, data=data, sequence=options.sequence))
        task, rows = workshop.task, []
        for shares in SHARES:
            student = Student(task, student_of(workshop.facts().architecture, *shares))
            curve = {}
            for steps in map(int, options.marks.split(",")):
                student.train(steps)
                curve[steps] = round(student.score(task.select).loss, 4)
            rows.append({"architecture": student.architecture.id, "kl": curve})
            print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps({"teacher": task.select.teacher_quality, "rows": rows}))


if __name__ == "__main__":
    main()

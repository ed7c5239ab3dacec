"""A decoder of 100 million parameters on a machine without a GPU: slicing, a short run, export, and the memory of it.

A Qwen 2 with random weights and the embedded teacher's tokenizer stands for a checkpoint of that size: its vocabulary
is 32,000 all the same. The least that a search may be is run on it, and its student exported in both forms.

python benchmarks/large.py [--device arm-cpu] [--sequence 64]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from main_job import watch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from hwsearch.distill.checkpoint import embedded_teacher

LIMIT_MIB = 12 * 1024
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 2560,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="arm-cpu")
    parser.add_argument("--sequence", type=int, default=64)
    options = parser.parse_args()
    environment = {**os.environ, "COLUMNS": "200"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
        parameters = sum(weight.numel() for weight in model.parameters())
        model.save_pretrained(folder / "teacher")
        AutoTokenizer.from_pretrained(embedded_teacher()).save_pretrained(folder / "teacher")
        del model
        hwsearch = [sys.executable, "-m", "hwsearch"]
        commands = {
            "search": [
                *hwsearch, "--device", options.device, "--budget", "0.4x", "--teacher", str(folder / "teacher"),
                "--sequence", str(options.sequence), "--trials", "1", "--steps", "4", "--out", str(folder / "run"),
            ],
            "export": [*hwsearch, "export", str(folder / "run"), "--to", str(folder / "student")],
            "export --format onnx": [
                *hwsearch, "export", str(folder / "run"), "--format", "onnx", "--to", str(folder / "graphs")
            ],
        }  # fmt: skip
        found = {}
        for what, command in commands.items():
            _, seconds, peak = watch(command, environment, folder)
            found[what] = {"seconds": round(seconds), "mib": round(peak)}
            print(what, found[what], file=sys.stderr, flush=True)
        chosen = json.loads((folder / "run" / "summary.json").read_text())["chosen"]["architecture"]["id"]
    passes = all(one["mib"] <= LIMIT_MIB for one in found.values())
    print(json.dumps({"parameters": parameters, "chosen": chosen, **found, "passes": passes}))


if __name__ == "__main__":
    main()

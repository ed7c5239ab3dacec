"""What tests share: folders of their own for everything that is remembered, and small real things to work on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything of hwsearch asks for them, and for the processes that tests start.
_HOME = tempfile.TemporaryDirectory(prefix="hwsearch-tests-")
os.environ["XDG_CACHE_HOME"] = str(Path(_HOME.name) / "cache")
os.environ["XDG_DATA_HOME"] = str(Path(_HOME.name) / "data")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

TEXT = """def add(first, second):
    return first + second


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y


"""


@pytest.fixture(scope="session", autouse=True)
def _home() -> Iterator[None]:
    yield
    _HOME.cleanup()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of plain text, long enough to be split."""
    path = tmp_path_factory.mktemp("text") / "code.txt"
    path.write_text("".join(TEXT.replace("Point", f"Point{i}").replace("add", f"add{i % 7}") for i in range(900)))
    return path


def save_tokenizer(folder: Path, text_file: Path, **special: str) -> None:
    """A byte-level tokenizer of 320 tokens, <end> and `special` ones among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>", *special.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(text_file)], trainer)
    ends = {"eos_token": "<end>", "pad_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends, **special).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A checkpoint of the Llama family with random weights, and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("teacher")
    save_tokenizer(folder, text_file)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=16,
        intermediate_size=128,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A checkpoint of the BERT family with random weights that tells texts of three classes apart, and a tokenizer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    save_tokenizer(folder, text_file)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        id2label={0: "red", 1: "green", 2: "blue"},
        label2id={"red": 0, "green": 1, "blue": 2},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tagged_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of words with a class each."""
    import json

    path = tmp_path_factory.mktemp("tagged") / "words.jsonl"
    with path.open("w") as file:
        for i in range(400):
            words = [f"{name}{i * j % 97}" for j, name in enumerate(("point", "first", "return", "class")[: 2 + i % 3])]
            tags = [("red", "green", "blue")[len(word) % 3] for word in words]
            file.write(json.dumps({"tokens": words, "tags": tags}) + "\n")
    return path


@pytest.fixture(scope="session")
def labelled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of texts with a class each."""
    import csv

    path = tmp_path_factory.mktemp("labelled") / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(600):
            words = " ".join(f"{name}{i * i % 97}" for name in ("point", "first", "return", "class")[: 1 + i % 4])
            writer.writerow([f"def {words}, {i}", ("red", "green", "blue")[i % 3]])
    return path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images for each class, told apart by their colour."""
    import numpy as np
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for i in range(110):
            pixels = rng.integers(0, 200, (40, 36, 3), np.uint8)
            pixels[..., channel] += 40
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder

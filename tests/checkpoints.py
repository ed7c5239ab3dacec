"""Small checkpoints of every type of teacher."""

from pathlib import Path
from typing import Any

from hwsearch.distill.families.tasks import TASKS, TaskName
from tests.conftest import save_tokenizer

SIZES = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 128}
KV = {"num_key_value_heads": 3, "head_dim": 16}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0, "pad_token_id": 0}
DISTIL = {"dim": 96, "n_layers": 3, "n_heads": 6, "hidden_dim": 128}
SEES = {"image_size": 32, "patch_size": 8}
# By type, what it is for, and its sizes.
CHECKPOINTS: dict[str, tuple[TaskName, dict[str, Any]]] = {
    "llama": ("text-generation", {**SIZES, **KV, "tie_word_embeddings": True, "mlp_bias": True}),
    "mistral": ("text-generation", {**SIZES, **KV, "sliding_window": None}),
    "qwen2": ("text-generation", {**SIZES, **KV, "tie_word_embeddings": True}),
    "qwen3": ("text-generation", {**SIZES, **KV}),
    "gpt2": ("text-generation", {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_inner": 128, "n_positions": 64}),
    "bert": ("text-classification", SIZES),
    "bert tags": ("token-classification", SIZES),
    "bert masks": ("fill-mask", SIZES),
    "bert embeds": ("sentence-similarity", SIZES),
    "roberta": ("text-classification", {**SIZES, "pad_token_id": 1}),
    "roberta masks": ("fill-mask", {**SIZES, "pad_token_id": 1}),
    "roberta embeds": ("sentence-similarity", {**SIZES, "pad_token_id": 1}),
    "xlm-roberta": ("text-classification", {**SIZES, "pad_token_id": 1}),
    "xlm-roberta tags": ("token-classification", {**SIZES, "pad_token_id": 1}),
    "distilbert": ("text-classification", DISTIL),
    "distilbert tags": ("token-classification", DISTIL),
    "distilbert masks": ("fill-mask", DISTIL),
    "distilbert embeds": ("sentence-similarity", DISTIL),
    "vit": ("image-classification", {**SIZES, **SEES}),
    "deit": ("image-classification", {**SIZES, **SEES, "architectures": ["DeiTForImageClassification"]}),
    "modernbert": ("text-classification", {**SIZES, "local_attention": 16}),
    "modernbert tags": ("token-classification", {**SIZES, "local_attention": 16}),
    "modernbert masks": ("fill-mask", {**SIZES, "local_attention": 16}),
    "modernbert embeds": ("sentence-similarity", {**SIZES, "local_attention": 16}),
}
NAMES = ("red", "green", "blue")


def save_checkpoint(folder: Path, name: str, text_file: Path) -> Path:
    """One with random weights, biases and norms too, and a tokenizer or image processor."""
    import torch
    import transformers

    task, entries = CHECKPOINTS[name]
    kind: Any = getattr(transformers, TASKS[task].auto_class)
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    reads = {} if task == "image-classification" else {**ENDS, "vocab_size": 352}
    entries = {**reads, "initializer_range": 0.2, **labels, **entries}
    model = kind.from_config(transformers.AutoConfig.for_model(name.split()[0], **entries))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn(weight.shape))
    if task == "image-classification":
        size = {"height": SEES["image_size"], "width": SEES["image_size"]}
        transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    else:
        save_tokenizer(folder, text_file, mask_token="<mask>")
    model.save_pretrained(folder)
    return folder

"""Small checkpoints of every type of teacher."""

from pathlib import Path
from typing import Any

from tests.conftest import save_tokenizer

SIZES = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 128}
KV = {"num_key_value_heads": 3, "head_dim": 16}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0, "pad_token_id": 0}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("ForCausalLM", {**SIZES, **KV, "tie_word_embeddings": True}),
    "mistral": ("ForCausalLM", {**SIZES, **KV, "sliding_window": None}),
    "qwen2": ("ForCausalLM", {**SIZES, **KV, "tie_word_embeddings": True}),
    "qwen3": ("ForCausalLM", {**SIZES, **KV}),
    "gpt2": ("LMHeadModel", {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_inner": 128, "n_positions": 64}),
    "bert": ("ForSequenceClassification", SIZES),
    "roberta": ("ForSequenceClassification", {**SIZES, "pad_token_id": 1}),
    "xlm-roberta": ("ForSequenceClassification", {**SIZES, "pad_token_id": 1}),
    "distilbert": ("ForSequenceClassification", {"dim": 96, "n_layers": 3, "n_heads": 6, "hidden_dim": 128}),
    "modernbert": ("ForSequenceClassification", {**SIZES, "local_attention": 16}),
}


def save_checkpoint(folder: Path, model_type: str, text_file: Path) -> Path:
    """One with random weights, biases and norms too, and a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    end, entries = CHECKPOINTS[model_type]
    kind = AutoModelForSequenceClassification if "Classification" in end else AutoModelForCausalLM
    torch.manual_seed(0)
    entries = {**ENDS, "vocab_size": 352, "initializer_range": 0.2, "num_labels": 3, **entries}
    model = kind.from_config(AutoConfig.for_model(model_type, **entries))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn(weight.shape))
    save_tokenizer(folder, text_file)
    model.save_pretrained(folder)
    return folder

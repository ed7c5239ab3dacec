"""GPT-2: learned positions, query, key and value in one matrix, and matrices that have the input first."""

from __future__ import annotations

from hwsearch.distill.families.family import Family, Top

GPT2 = Family(
    model_types=("gpt2",),
    base="transformer",
    tops={"LMHeadModel": Top("text-generation")},
    block="decoder",
    norm="layernorm",
    gated_ffn=False,
    rotates=True,
    own_head_dim=False,
    layers="transformer.h",
    attention=("attn.c_attn", "attn.c_proj"),
    feed_forward=("mlp.c_fc", "mlp.c_proj"),
    reads={"attn.c_attn": "ln_1", "mlp.c_fc": "ln_2", "lm_head": "transformer.ln_f"},
    shared={
        "transformer.wte.weight": ("vocab", "width"),
        "transformer.wpe.weight": ("whole", "width"),
        "transformer.ln_f.weight": ("width",),
        "transformer.ln_f.bias": ("width",),
        "lm_head.weight": ("vocab", "width"),
    },
    layer={
        "ln_1.weight": ("width",),
        "ln_1.bias": ("width",),
        "attn.c_attn.weight": ("width", "qkv"),
        "attn.c_attn.bias": ("qkv",),
        "attn.c_proj.weight": ("head", "width"),
        "attn.c_proj.bias": ("width",),
        "ln_2.weight": ("width",),
        "ln_2.bias": ("width",),
        "mlp.c_fc.weight": ("width", "ffn"),
        "mlp.c_fc.bias": ("ffn",),
        "mlp.c_proj.weight": ("ffn", "width"),
        "mlp.c_proj.bias": ("width",),
    },
    transposed=True,
    entries={"width": "n_embd", "depth": "n_layer", "heads": "n_head", "ffn": "n_inner"},
)

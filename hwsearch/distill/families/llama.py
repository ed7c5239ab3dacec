"""Llama, and what shares its layout: Mistral, SmolLM, Qwen 2 with biases and Qwen 3 with norms of its own."""

from __future__ import annotations

from hwsearch.distill.families.family import Family, Top

LLAMA = Family(
    model_types=("llama", "qwen2", "qwen3", "mistral"),
    base="model",
    tops={"ForCausalLM": Top("text-generation")},
    block="decoder",
    norm="rmsnorm",
    gated_ffn=True,
    rotates=True,
    own_head_dim=True,
    layers="model.layers",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    feed_forward=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    reads={
        "self_attn.q_proj": "input_layernorm",
        "self_attn.k_proj": "input_layernorm",
        "self_attn.v_proj": "input_layernorm",
        "mlp.gate_proj": "post_attention_layernorm",
        "mlp.up_proj": "post_attention_layernorm",
        "lm_head": "model.norm",
    },
    shared={
        "model.embed_tokens.weight": ("vocab", "width"),
        "model.norm.weight": ("width",),
        "lm_head.weight": ("vocab", "width"),
    },
    layer={
        "input_layernorm.weight": ("width",),
        "self_attn.q_proj.weight": ("head", "width"),
        "self_attn.q_proj.bias": ("head",),
        "self_attn.q_norm.weight": ("whole",),
        "self_attn.k_norm.weight": ("whole",),
        "self_attn.k_proj.weight": ("kv_head", "width"),
        "self_attn.k_proj.bias": ("kv_head",),
        "self_attn.v_proj.weight": ("kv_head", "width"),
        "self_attn.v_proj.bias": ("kv_head",),
        "self_attn.o_proj.weight": ("width", "head"),
        "self_attn.o_proj.bias": ("width",),
        "post_attention_layernorm.weight": ("width",),
        "mlp.gate_proj.weight": ("ffn", "width"),
        "mlp.gate_proj.bias": ("ffn",),
        "mlp.up_proj.weight": ("ffn", "width"),
        "mlp.up_proj.bias": ("ffn",),
        "mlp.down_proj.weight": ("width", "ffn"),
        "mlp.down_proj.bias": ("width",),
    },
)

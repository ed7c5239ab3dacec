"""ModernBERT: norms before the parts, query, key and value in one matrix, gate and value in another."""

from __future__ import annotations

from hwsearch.distill.families.family import Axis, Family, Top

POOLED: dict[str, tuple[Axis, ...]] = {
    "head.dense.weight": ("pooled", "width"),
    "head.dense.bias": ("pooled",),
    "head.norm.weight": ("pooled",),
    "head.norm.bias": ("pooled",),
    "classifier.weight": ("whole", "pooled"),
    "classifier.bias": ("whole",),
}
CLASSIFIER = {"head.dense": "head.dense", "classifier": "classifier"}

MODERNBERT = Family(
    model_types=("modernbert",),
    base="model",
    tops={
        "ForSequenceClassification": Top("text-classification", POOLED, CLASSIFIER),
        "ForTokenClassification": Top("token-classification", POOLED, CLASSIFIER),
        "ForMaskedLM": Top(
            "fill-mask",
            {
                "head.dense.weight": ("pooled", "width"),
                "head.dense.bias": ("pooled",),
                "head.norm.weight": ("pooled",),
                "head.norm.bias": ("pooled",),
                "decoder.weight": ("vocab", "pooled"),
                "decoder.bias": ("vocab",),
            },
            {"head.dense": "head.dense", "decoder": "decoder"},
        ),
        "Model": Top("sentence-similarity"),
    },
    block="encoder",
    norm="layernorm",
    gated_ffn=True,
    rotates=False,
    own_head_dim=False,
    layers="model.layers",
    attention=("attn.Wqkv", "attn.Wo"),
    feed_forward=("mlp.Wi", "mlp.Wo"),
    reads={"attn.Wqkv": "attn.Wqkv", "mlp.Wi": "mlp.Wi"},
    shared={
        "model.embeddings.tok_embeddings.weight": ("vocab", "width"),
        "model.embeddings.norm.weight": ("width",),
        "model.embeddings.norm.bias": ("width",),
        "model.final_norm.weight": ("width",),
        "model.final_norm.bias": ("width",),
    },
    layer={
        "attn_norm.weight": ("width",),
        "attn_norm.bias": ("width",),
        "attn.Wqkv.weight": ("qkv", "width"),
        "attn.Wqkv.bias": ("qkv",),
        "attn.Wo.weight": ("width", "head"),
        "attn.Wo.bias": ("width",),
        "mlp_norm.weight": ("width",),
        "mlp_norm.bias": ("width",),
        "mlp.Wi.weight": ("gate_up", "width"),
        "mlp.Wi.bias": ("gate_up",),
        "mlp.Wo.weight": ("width", "ffn"),
        "mlp.Wo.bias": ("width",),
    },
)

"""DistilBERT: BERT's layers by other names."""

from __future__ import annotations

from hwsearch.distill.families.bert import TAGGER
from hwsearch.distill.families.family import Family, Top

DISTILBERT = Family(
    model_types=("distilbert",),
    base="distilbert",
    tops={
        "ForSequenceClassification": Top(
            "text-classification",
            {
                "pre_classifier.weight": ("pooled", "width"),
                "pre_classifier.bias": ("pooled",),
                "classifier.weight": ("whole", "pooled"),
                "classifier.bias": ("whole",),
            },
            {"pre_classifier": "pre_classifier", "classifier": "classifier"},
        ),
        "ForTokenClassification": TAGGER,
        "ForMaskedLM": Top(
            "fill-mask",
            {
                "vocab_transform.weight": ("pooled", "width"),
                "vocab_transform.bias": ("pooled",),
                "vocab_layer_norm.weight": ("pooled",),
                "vocab_layer_norm.bias": ("pooled",),
                "vocab_projector.weight": ("vocab", "pooled"),
                "vocab_projector.bias": ("vocab",),
            },
            {"vocab_transform": "vocab_transform", "vocab_projector": "vocab_projector"},
        ),
        "Model": Top("sentence-similarity"),
    },
    block="encoder",
    norm="layernorm",
    gated_ffn=False,
    rotates=True,
    own_head_dim=False,
    layers="distilbert.transformer.layer",
    attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
    feed_forward=("ffn.lin1", "ffn.lin2"),
    reads={
        "attention.q_lin": "attention.q_lin",
        "attention.k_lin": "attention.q_lin",
        "attention.v_lin": "attention.q_lin",
        "ffn.lin1": "ffn.lin1",
    },
    shared={
        "distilbert.embeddings.word_embeddings.weight": ("vocab", "width"),
        "distilbert.embeddings.position_embeddings.weight": ("whole", "width"),
        "distilbert.embeddings.LayerNorm.weight": ("width",),
        "distilbert.embeddings.LayerNorm.bias": ("width",),
    },
    layer={
        "attention.q_lin.weight": ("head", "width"),
        "attention.q_lin.bias": ("head",),
        "attention.k_lin.weight": ("head", "width"),
        "attention.k_lin.bias": ("head",),
        "attention.v_lin.weight": ("head", "width"),
        "attention.v_lin.bias": ("head",),
        "attention.out_lin.weight": ("width", "head"),
        "attention.out_lin.bias": ("width",),
        "sa_layer_norm.weight": ("width",),
        "sa_layer_norm.bias": ("width",),
        "ffn.lin1.weight": ("ffn", "width"),
        "ffn.lin1.bias": ("ffn",),
        "ffn.lin2.weight": ("width", "ffn"),
        "ffn.lin2.bias": ("width",),
        "output_layer_norm.weight": ("width",),
        "output_layer_norm.bias": ("width",),
    },
    behind=("distilbert.embeddings.LayerNorm", "sa_layer_norm", "output_layer_norm"),
    entries={"width": "dim", "depth": "n_layers", "heads": "n_heads", "ffn": "hidden_dim"},
)

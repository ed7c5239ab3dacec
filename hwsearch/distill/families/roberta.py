"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's layers, a classifier without a pooler, positions counted from the padding
on."""

from __future__ import annotations

from hwsearch.distill.families.bert import ATTENTION, BEHIND, EMBEDDINGS, FEED_FORWARD, LAYER, READS, TAGGER
from hwsearch.distill.families.family import Family, Top

ROBERTA = Family(
    model_types=("roberta", "xlm-roberta", "camembert"),
    base="roberta",
    tops={
        "ForSequenceClassification": Top(
            "text-classification",
            {
                "classifier.dense.weight": ("pooled", "width"),
                "classifier.dense.bias": ("pooled",),
                "classifier.out_proj.weight": ("whole", "pooled"),
                "classifier.out_proj.bias": ("whole",),
            },
            {"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.out_proj"},
        ),
        "ForTokenClassification": TAGGER,
        "ForMaskedLM": Top(
            "fill-mask",
            {
                "lm_head.dense.weight": ("pooled", "width"),
                "lm_head.dense.bias": ("pooled",),
                "lm_head.layer_norm.weight": ("pooled",),
                "lm_head.layer_norm.bias": ("pooled",),
                "lm_head.decoder.weight": ("vocab", "pooled"),
                "lm_head.decoder.bias": ("vocab",),
                "lm_head.bias": ("vocab",),
            },
            {"lm_head.dense": "lm_head.dense", "lm_head.decoder": "lm_head.decoder"},
        ),
        "Model": Top("sentence-similarity"),
    },
    block="encoder",
    norm="layernorm",
    gated_ffn=False,
    rotates=True,
    own_head_dim=False,
    layers="roberta.encoder.layer",
    attention=ATTENTION,
    feed_forward=FEED_FORWARD,
    reads=READS,
    shared={f"roberta.embeddings.{name}": axes for name, axes in EMBEDDINGS.items()},
    layer=LAYER,
    behind=("roberta.embeddings.LayerNorm", *BEHIND),
    positions_behind_padding=True,
)

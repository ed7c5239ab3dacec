"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's layers, a classifier without a pooler, positions counted from the padding
on."""

from __future__ import annotations

from hwsearch.distill.families.bert import ATTENTION, EMBEDDINGS, FEED_FORWARD, LAYER, READS
from hwsearch.distill.families.family import Family

ROBERTA = Family(
    model_types=("roberta", "xlm-roberta", "camembert"),
    tasks={"ForSequenceClassification": "classify"},
    block="encoder",
    norm="layernorm",
    gated_ffn=False,
    rotates=False,
    own_head_dim=False,
    layers="roberta.encoder.layer",
    attention=ATTENTION,
    feed_forward=FEED_FORWARD,
    reads=READS | {"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.out_proj"},
    shared={f"roberta.embeddings.{name}": axes for name, axes in EMBEDDINGS.items()}
    | {
        "classifier.dense.weight": ("pooled", "width"),
        "classifier.dense.bias": ("pooled",),
        "classifier.out_proj.weight": ("whole", "pooled"),
        "classifier.out_proj.bias": ("whole",),
    },
    layer=LAYER,
    first_position=2,
)

"""BERT, and the sentence encoders made of it (MiniLM, BGE, E5)."""

from __future__ import annotations

from hwsearch.distill.families.family import Axis, Family

LAYER: dict[str, tuple[Axis, ...]] = {
    "attention.self.query.weight": ("head", "width"),
    "attention.self.query.bias": ("head",),
    "attention.self.key.weight": ("head", "width"),
    "attention.self.key.bias": ("head",),
    "attention.self.value.weight": ("head", "width"),
    "attention.self.value.bias": ("head",),
    "attention.output.dense.weight": ("width", "head"),
    "attention.output.dense.bias": ("width",),
    "attention.output.LayerNorm.weight": ("width",),
    "attention.output.LayerNorm.bias": ("width",),
    "intermediate.dense.weight": ("ffn", "width"),
    "intermediate.dense.bias": ("ffn",),
    "output.dense.weight": ("width", "ffn"),
    "output.dense.bias": ("width",),
    "output.LayerNorm.weight": ("width",),
    "output.LayerNorm.bias": ("width",),
}
EMBEDDINGS: dict[str, tuple[Axis, ...]] = {
    "word_embeddings.weight": ("vocab", "width"),
    "position_embeddings.weight": ("whole", "width"),
    "token_type_embeddings.weight": ("whole", "width"),
    "LayerNorm.weight": ("width",),
    "LayerNorm.bias": ("width",),
}
ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
FEED_FORWARD = ("intermediate.dense", "output.dense")
READS = {"attention.self": "attention.self.query", "intermediate": "intermediate.dense"}

BERT = Family(
    model_types=("bert",),
    tasks={"ForSequenceClassification": "classify"},
    block="encoder",
    norm="layernorm",
    gated_ffn=False,
    rotates=False,
    own_head_dim=False,
    layers="bert.encoder.layer",
    attention=ATTENTION,
    feed_forward=FEED_FORWARD,
    reads=READS | {"bert.pooler": "bert.pooler.dense", "classifier": "classifier"},
    shared={f"bert.embeddings.{name}": axes for name, axes in EMBEDDINGS.items()}
    | {
        "bert.pooler.dense.weight": ("pooled", "width"),
        "bert.pooler.dense.bias": ("pooled",),
        "classifier.weight": ("whole", "pooled"),
        "classifier.bias": ("whole",),
    },
    layer=LAYER,
)

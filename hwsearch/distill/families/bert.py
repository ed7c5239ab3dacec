"""BERT, and the sentence encoders made of it (MiniLM, BGE, E5)."""

from __future__ import annotations

from hwsearch.distill.families.family import Axis, Family, Top

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
BEHIND = ("attention.output.LayerNorm", "output.LayerNorm")
READS = {"attention.self": "attention.self.query", "intermediate": "intermediate.dense"}

TAGGER = Top(
    "token-classification",
    {"classifier.weight": ("whole", "width"), "classifier.bias": ("whole",)},
    {"classifier": "classifier"},
)

BERT = Family(
    model_types=("bert",),
    base="bert",
    tops={
        "ForSequenceClassification": Top(
            "text-classification",
            {
                "bert.pooler.dense.weight": ("pooled", "width"),
                "bert.pooler.dense.bias": ("pooled",),
                "classifier.weight": ("whole", "pooled"),
                "classifier.bias": ("whole",),
            },
            {"bert.pooler": "bert.pooler.dense", "classifier": "classifier"},
        ),
        "ForTokenClassification": TAGGER,
        "ForMaskedLM": Top(
            "fill-mask",
            {
                "cls.predictions.transform.dense.weight": ("pooled", "width"),
                "cls.predictions.transform.dense.bias": ("pooled",),
                "cls.predictions.transform.LayerNorm.weight": ("pooled",),
                "cls.predictions.transform.LayerNorm.bias": ("pooled",),
                "cls.predictions.decoder.weight": ("vocab", "pooled"),
                "cls.predictions.decoder.bias": ("vocab",),
                "cls.predictions.bias": ("vocab",),
            },
            {
                "cls.predictions.transform.dense": "cls.predictions.transform.dense",
                "cls.predictions.decoder": "cls.predictions.decoder",
            },
        ),
        "Model": Top("sentence-similarity"),
    },
    block="encoder",
    norm="layernorm",
    gated_ffn=False,
    rotates=True,
    own_head_dim=False,
    layers="bert.encoder.layer",
    attention=ATTENTION,
    feed_forward=FEED_FORWARD,
    reads=READS,
    shared={f"bert.embeddings.{name}": axes for name, axes in EMBEDDINGS.items()},
    layer=LAYER,
    behind=("bert.embeddings.LayerNorm", *BEHIND),
)

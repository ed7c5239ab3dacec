"""ViT and DeiT: an image's patches for tokens, norms before the parts, a class read off the first position."""

from __future__ import annotations

from hwsearch.distill.families.family import Axis, Family, Top

LAYER: dict[str, tuple[Axis, ...]] = {
    "layernorm_before.weight": ("width",),
    "layernorm_before.bias": ("width",),
    "attention.q_proj.weight": ("head", "width"),
    "attention.q_proj.bias": ("head",),
    "attention.k_proj.weight": ("head", "width"),
    "attention.k_proj.bias": ("head",),
    "attention.v_proj.weight": ("head", "width"),
    "attention.v_proj.bias": ("head",),
    "attention.o_proj.weight": ("width", "head"),
    "attention.o_proj.bias": ("width",),
    "layernorm_after.weight": ("width",),
    "layernorm_after.bias": ("width",),
    "mlp.fc1.weight": ("ffn", "width"),
    "mlp.fc1.bias": ("ffn",),
    "mlp.fc2.weight": ("width", "ffn"),
    "mlp.fc2.bias": ("width",),
}


def _family(name: str, positions: tuple[str, ...]) -> Family:
    """One of the two, with the positions that stand before the patches."""
    shared: dict[str, tuple[Axis, ...]] = {
        f"{name}.embeddings.patch_embeddings.projection.weight": ("width", "whole", "whole", "whole"),
        f"{name}.embeddings.patch_embeddings.projection.bias": ("width",),
        f"{name}.layernorm.weight": ("width",),
        f"{name}.layernorm.bias": ("width",),
    }
    before = ("position_embeddings", *positions)
    shared |= {f"{name}.embeddings.{entry}": ("whole", "whole", "width") for entry in before}
    return Family(
        model_types=(name,),
        base=name,
        tops={
            "ForImageClassification": Top(
                "image-classification",
                {"classifier.weight": ("whole", "width"), "classifier.bias": ("whole",)},
                {"classifier": f"{name}.layernorm"},
            ),
        },
        block="encoder",
        norm="layernorm",
        gated_ffn=False,
        rotates=True,
        own_head_dim=False,
        layers=f"{name}.layers",
        attention=("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
        feed_forward=("mlp.fc1", "mlp.fc2"),
        reads={
            "attention.q_proj": "layernorm_before",
            "attention.k_proj": "layernorm_before",
            "attention.v_proj": "layernorm_before",
            "mlp.fc1": "layernorm_after",
        },
        shared=shared,
        layer=LAYER,
        before_patches=len(positions),
    )


VIT = _family("vit", ("cls_token",))
DEIT = _family("deit", ("cls_token", "distillation_token"))

"""Checkpoints of the public DynRefer release under this package's names.

Such a checkpoint holds what was trained: the fusion of the views, the heads, the Q-Former and the projection. The image tower,
its norm and the query tokens are BLIP-2's, the text tower is EVA-CLIP's (eva_clip_psz14.pt), the language model is its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evcap.weights.blip2 import LAVIS, Layout, Placed, check_shapes, gather, reason_to_leave_out, renamed

PROJECTIONS = ("t5_proj", "llm_proj")  # of the release with Flan-T5 and with Vicuna
TEXT_LAYERS = "text_tower.text_model.encoder.layers.{n}"
TEXT_PROJECTION = "text_tower.text_projection.weight"


def head(theirs: str, ours: str) -> Layout:
    """A query decoder with its projections."""
    layer, to = f"{theirs}_head.encoder.layer.{{n}}", f"{ours}.decoder.layers.{{n}}"
    return {
        f"{theirs}_vision_proj.": f"{ours}.vision.",
        f"{theirs}_text_proj.": f"{ours}.text.",
        f"{theirs}_fc.": f"{ours}.score.",
        f"{layer}.crossattention.self.": f"{to}.cross_attention.",
        f"{layer}.crossattention.output.dense.": f"{to}.cross_attention.out.",
        f"{layer}.crossattention.output.LayerNorm.": f"{to}.cross_attention.norm.",
        f"{layer}.intermediate.dense.": f"{to}.feed_forward.up.",
        f"{layer}.output.dense.": f"{to}.feed_forward.down.",
        f"{layer}.output.LayerNorm.": f"{to}.feed_forward.norm.",
    }


def text_tower(theirs: str) -> Layout:
    """A text tower in open_clip's layout."""
    layer, outer = f"{theirs}.transformer.resblocks.{{n}}", "text_tower.text_model"
    return {
        f"{theirs}.token_embedding.": f"{outer}.embeddings.token_embedding.",
        f"{theirs}.positional_embedding": f"{outer}.embeddings.position_embedding.weight",
        f"{theirs}.ln_final.": f"{outer}.final_layer_norm.",
        f"{theirs}.text_projection": TEXT_PROJECTION,
        f"{layer}.ln_1.": f"{TEXT_LAYERS}.layer_norm1.",
        f"{layer}.ln_2.": f"{TEXT_LAYERS}.layer_norm2.",
        f"{layer}.attn.in_proj_weight": f"{TEXT_LAYERS}.self_attn.in_proj_weight",
        f"{layer}.attn.in_proj_bias": f"{TEXT_LAYERS}.self_attn.in_proj_bias",
        f"{layer}.attn.out_proj.": f"{TEXT_LAYERS}.self_attn.out_proj.",
        f"{layer}.mlp.c_fc.": f"{TEXT_LAYERS}.mlp.fc1.",
        f"{layer}.mlp.c_proj.": f"{TEXT_LAYERS}.mlp.fc2.",
    }


DYNREFER: Layout = {
    **LAVIS,
    "cvem_align.value_proj.": "view_fusion.align.value.",
    "cvem_align.offset_mask_dw.": "view_fusion.align.context.",
    "cvem_align.offset_mask.": "view_fusion.align.offsets.",
    "cvem_align.output_proj.": "view_fusion.align.out.",
    "cvem_mlp.": "view_fusion.mlp.",
    **head("tag", "tag_head"),
    **head("attr", "region_text_head"),
    "attr_t": "region_text_head.log_scale",
    "attr_b": "region_text_head.bias",
    "cem_memory": "control_embedding",
    **text_tower("text_encoder"),
    **text_tower("text"),  # as EVA-CLIP's own file has it
}


def read_dynrefer(sources: Sequence[str | Path], wanted: Mapping[str, torch.Tensor], projection: str = "t5_proj") -> Placed:
    """The release's tensors for the names of `wanted` (values give the shapes), as `gather` takes them from its files.

    projection: which of `PROJECTIONS` becomes the model's. Raises EvcapError for a file that cannot be read, and for the first
    tensor that is missing or of another shape.
    """
    theirs = dict(_as_stored(name, like) for name, like in wanted.items())
    found = gather(sources, theirs, lambda name: our_name(name, projection), lambda name: _reason(name, projection))
    check_shapes(found.tensors, theirs, found.origin, ", ".join(map(str, sources)))
    for name in [name for name in found.tensors if name not in wanted]:
        for part, tensor in zip("qkv", found.tensors.pop(name).chunk(3), strict=True):
            found.tensors[name.replace("in_proj_", f"{part}_proj.")] = tensor.contiguous()
    if TEXT_PROJECTION in found.tensors:
        found.tensors[TEXT_PROJECTION] = found.tensors[TEXT_PROJECTION].T.contiguous()
    return found


def _as_stored(name: str, like: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Name and shape of the tensor that holds this one: the text tower's query, key and value are joined, and it multiplies its
    projection from the other side."""
    if name == TEXT_PROJECTION:
        return name, like.new_empty(like.shape[::-1], device="meta")
    joined = re.sub(r"(text_tower\..*\.)[qkv]_proj\.", r"\1in_proj_", name)
    return joined, like if joined == name else like.new_empty((3 * like.shape[0], *like.shape[1:]), device="meta")


def our_name(name: str, projection: str = "t5_proj") -> str | None:
    """The name here of a tensor of the release, None for one that has none."""
    return renamed(name, DYNREFER | {f"{projection}.": "projection."})


def _reason(name: str, projection: str) -> str:
    """Why a tensor of the release is left out."""
    if re.match(r"(clip|att|ov)_embeds$", name):
        return "features of texts, which the text tower gives"
    if name.endswith("logit_scale"):
        return "for comparing texts with images"
    return "not asked for" if our_name(name, projection) else reason_to_leave_out(name)

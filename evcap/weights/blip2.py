"""BLIP-2's frozen image tower and Q-Former under this package's names, out of transformers' or LAVIS' layout, and back.

A layout is a table of name prefixes, theirs -> ours; `{n}` stands for the number of a layer (facts: arXiv 2301.12597;
LAVIS keeps the tower in eva_vit_g.pth, the rest in blip2_pretrained*.pth; transformers keeps both in one folder).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evcap.errors import EvcapError
from evcap.weights.checkpoints import read_tensors

if TYPE_CHECKING:
    from evcap.model.evcap import QueryEncoder

Layout = dict[str, str]
Tensors = dict[str, torch.Tensor]


def bert_layers(theirs: str, ours: str, attention: str = "attention.self") -> Layout:
    """The parts of a BERT-like layer; `attention`: where its query, key and value lie."""
    return {
        f"{theirs}.{{n}}.{attention}.": f"{ours}.{{n}}.self_attention.",
        f"{theirs}.{{n}}.attention.output.dense.": f"{ours}.{{n}}.self_attention.out.",
        f"{theirs}.{{n}}.attention.output.LayerNorm.": f"{ours}.{{n}}.self_attention.norm.",
        f"{theirs}.{{n}}.cross{attention}.": f"{ours}.{{n}}.cross_attention.",
        f"{theirs}.{{n}}.crossattention.output.dense.": f"{ours}.{{n}}.cross_attention.out.",
        f"{theirs}.{{n}}.crossattention.output.LayerNorm.": f"{ours}.{{n}}.cross_attention.norm.",
        f"{theirs}.{{n}}.intermediate_query.dense.": f"{ours}.{{n}}.query_feed_forward.up.",
        f"{theirs}.{{n}}.output_query.dense.": f"{ours}.{{n}}.query_feed_forward.down.",
        f"{theirs}.{{n}}.output_query.LayerNorm.": f"{ours}.{{n}}.query_feed_forward.norm.",
    }


def bert_text_branch(theirs: str, ours: str) -> Layout:
    """BERT's own feed-forward, which the appended positions of the name fusion pass."""
    return {
        f"{theirs}.{{n}}.intermediate.dense.": f"{ours}.{{n}}.text_feed_forward.up.",
        f"{theirs}.{{n}}.output.dense.": f"{ours}.{{n}}.text_feed_forward.down.",
        f"{theirs}.{{n}}.output.LayerNorm.": f"{ours}.{{n}}.text_feed_forward.norm.",
    }


TRANSFORMERS: Layout = {
    "query_tokens": "image_qformer.queries",
    "qformer.layernorm.": "image_qformer.query_norm.",
    **bert_layers("qformer.encoder.layer", "image_qformer.layers", "attention.attention"),
    "vision_model.": "backbone.network.",
}
LAVIS: Layout = {
    "query_tokens": "image_qformer.queries",
    "Qformer.bert.embeddings.LayerNorm.": "image_qformer.query_norm.",
    **bert_layers("Qformer.bert.encoder.layer", "image_qformer.layers"),
    "ln_vision.": "backbone.network.post_layernorm.",
    "visual_encoder.cls_token": "backbone.network.embeddings.class_embedding",
    "visual_encoder.pos_embed": "backbone.network.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.": "backbone.network.embeddings.patch_embedding.",
    "visual_encoder.blocks.{n}.norm1.": "backbone.network.encoder.layers.{n}.layer_norm1.",
    "visual_encoder.blocks.{n}.norm2.": "backbone.network.encoder.layers.{n}.layer_norm2.",
    "visual_encoder.blocks.{n}.attn.q_bias": "backbone.network.encoder.layers.{n}.self_attn.q_bias",
    "visual_encoder.blocks.{n}.attn.v_bias": "backbone.network.encoder.layers.{n}.self_attn.v_bias",
    "visual_encoder.blocks.{n}.attn.qkv.": "backbone.network.encoder.layers.{n}.self_attn.qkv.",
    "visual_encoder.blocks.{n}.attn.proj.": "backbone.network.encoder.layers.{n}.self_attn.projection.",
    "visual_encoder.blocks.{n}.mlp.": "backbone.network.encoder.layers.{n}.mlp.",
}
OURS: Layout = {
    "image_qformer.": "image_qformer.",
    "image_qformer.door.": "image_qformer.query_norm.",  # as older versions wrote it
    "backbone.network.": "backbone.network.",
}

# what may stand in such files beside the wanted tensors; the first pattern that fits gives the reason
LEFT_OUT = {
    r".*position_ids": "a constant, 0, 1, 2, ...",
    r"visual_encoder\.blocks\.\d+\..*": "a block behind the last that BLIP-2 reads",
    r"visual_encoder\.(norm|fc_norm|head|rel_pos_bias|mask_token|lm_head|logit_scale).*": "EVA's own head",
    r"(Qformer\.bert|qformer)\.encoder\.layer\.\d+\.(intermediate|output)\..*": "text branch of the Q-Former",
    r"(Qformer\.bert\.embeddings|qformer\.embeddings|embeddings)\..*": "text embeddings of the Q-Former",
    r"Qformer\.cls\..*|(itm_head|vision_proj|text_proj|vision_projection|text_projection)\..*|temp": "a head of pretraining",
    r"(t5_proj|opt_proj|llm_proj|llama_proj|language_projection)\..*": "projection into another language model",
    r"(t5_model|opt_model|llm_model|llama_model|language_model)\..*": "the language model beside BLIP-2",
}


@dataclass
class Placed:
    """Tensors under this package's names, {our name: what it is called where}, and {name in a file: why it is left out}."""

    tensors: Tensors = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def renamed(name: str, layout: Layout) -> str | None:
    """`name` by a layout, None for a name that it does not cover."""
    layer = re.search(r"\.(\d+)\.", name)
    pattern = name if layer is None else f"{name[: layer.start()]}.{{n}}.{name[layer.end() :]}"
    fitting = [old for old in layout if pattern == old or (old.endswith(".") and pattern.startswith(old))]
    if not fitting:
        return None
    old = max(fitting, key=len)
    return (layout[old] + pattern[len(old) :]).replace("{n}", layer[1] if layer else "")


def our_name(name: str) -> str | None:
    """The name here of a tensor of BLIP-2 in transformers' layout, in LAVIS', or as this package writes it."""
    for layout in (LAVIS, TRANSFORMERS, OURS):
        if found := renamed(full_name(name), layout):
            return found
    return None


def full_name(name: str) -> str:
    """LAVIS' name of a tensor whose file holds the tower alone (eva_vit_g.pth), where the names have no first part."""
    alone = re.match(r"(cls_token|pos_embed|patch_embed\.|blocks\.|norm\.|fc_norm\.|head\.|rel_pos_bias\.|mask_token)", name)
    return f"visual_encoder.{name}" if alone else name


def reason_to_leave_out(name: str) -> str:
    return next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, full_name(name))), "not known to evcap")


def read_blip2(sources: Sequence[str | Path], wanted: Mapping[str, torch.Tensor]) -> Placed:
    """BLIP-2's tensors for the names of `wanted` (values give the shapes), as `gather` takes them from its sources.

    Raises EvcapError for a source that cannot be read, and for the first tensor that is missing or of another shape.
    """
    found = gather(sources, wanted, our_name, reason_to_leave_out)
    check_shapes(found.tensors, wanted, found.origin, ", ".join(map(str, sources)))
    return found


def gather(
    sources: Sequence[str | Path],
    wanted: Mapping[str, torch.Tensor],
    place: Callable[[str], str | None],
    reason: Callable[[str], str],
) -> Placed:
    """What several sources hold of the names of `wanted`. Where a tensor stands in two of them, the first one counts.

    place: a tensor's name in a source -> its name here, None for none. reason: why a source's tensor is left out that is not
    wanted. What an earlier source gave is not read again. Shapes are not looked at. Raises EvcapError as `read_tensors`.
    """
    found = Placed()

    def whole(name: str) -> str | None:
        """The name here of the tensor that this one is, or becomes a part of."""
        ours = place(name)
        return ours and re.sub(r"[qv]_bias$", "qkv.bias", ours)

    for source in sources:
        tensors, others = read_tensors(source, lambda n: whole(n) in wanted and whole(n) not in found.tensors)
        taken = {place(name): tensor for name, tensor in tensors.items()}
        join_biases(taken)
        found.origin |= {place(name): f"{source}: tensor '{name}'" for name in tensors}
        found.left_out |= {n: "an earlier source has it" if whole(n) in found.tensors else reason(n) for n in others}
        found.tensors |= taken
    return found


def join_biases(tensors: Tensors) -> None:
    """In place: the tower's separate query and value biases (LAVIS) become one bias whose key part is zero."""
    for name in [n for n in tensors if n.endswith(".q_bias")]:
        query, value = tensors.pop(name), tensors.pop(name.replace("q_bias", "v_bias"), None)
        if value is None:
            raise EvcapError(f"the tower has '{name}' and no v_bias beside it; get a whole checkpoint")
        tensors[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])


def check_shapes(
    given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], origin: Mapping[str, str], where: str
) -> None:
    """Raises EvcapError for the first wanted tensor that is not given, or has another shape. origin: what to call each."""
    for name, like in wanted.items():
        shape = tuple(like.shape)
        if name not in given:
            hint = "; LAVIS keeps the image tower in a file of its own, eva_vit_g.pth" if name.startswith("backbone.") else ""
            raise EvcapError(f"{where}: no tensor for '{name}' {shape}{hint}")
        if tuple(given[name].shape) != shape:
            what = origin.get(name, f"{where}: tensor '{name}'")
            raise EvcapError(f"{what} is {tuple(given[name].shape)}, expected {shape}; the file fits another preset")


def frozen_tensors(model: QueryEncoder) -> Tensors:
    """The tensors of a model that BLIP-2 gives: the image tower and the image Q-Former."""
    return {name: t for name, t in model.state_dict().items() if name.startswith(("backbone.", "image_qformer."))}


def load_blip2(model: QueryEncoder, sources: Sequence[str | Path], dtype: torch.dtype) -> Placed:
    """Put BLIP-2's tensors into a model whose tower may still be on the meta device. The tower becomes `dtype`.

    The Q-Former stays float32: it is small, and memory keys come from it. Raises EvcapError as `read_blip2`.
    """
    placed = read_blip2(sources, frozen_tensors(model))
    tower = {k: v.to(dtype) for k, v in placed.tensors.items() if k.startswith("backbone.")}
    rest = {k: v.float() for k, v in placed.tensors.items() if not k.startswith("backbone.")}
    model.load_state_dict(tower | rest, strict=False, assign=True)
    return placed


def to_transformers(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """This package's names of the tower and the Q-Former -> transformers' names."""
    backward = {ours: theirs for theirs, ours in TRANSFORMERS.items()}
    return {renamed(name, backward): tensor for name, tensor in tensors.items()}

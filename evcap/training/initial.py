"""First tensors for training with BLIP-2: a name fusion from BERT or drawn at random (the release's way), a new projection."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from evcap.config import Preset
from evcap.model.build import skeleton
from evcap.model.evcap import trained_parts
from evcap.model.name_fusion import NameFusion
from evcap.weights.blip2 import Tensors, bert_layers, bert_text_branch, check_shapes, read_blip2, renamed
from evcap.weights.checkpoints import read_tensors

BERT_STD = 0.02  # of BERT's weights at their start
TOKEN_TYPES = "embeddings.token_type.weight"

_BERT = {
    "bert.embeddings.word_embeddings.": "embeddings.word.",
    "bert.embeddings.position_embeddings.": "embeddings.position.",
    "bert.embeddings.token_type_embeddings.": "embeddings.token_type.",
    "bert.embeddings.LayerNorm.": "embeddings.norm.",
    **bert_layers("bert.encoder.layer", "qformer.layers"),
    **bert_text_branch("bert.encoder.layer", "qformer.layers"),
}


def first_tensors(preset: Preset, bert: str | Path | None, seed: int) -> Tensors:
    """`trained_parts` to begin training with, float32. The query tokens are BLIP-2's (`preset.blip2`).

    bert: folder, hub name or file of BERT-base uncased, or LAVIS' blip2_pretrained.pth, whose Q-Former began as BERT and
    read text too; what has the fusion's shape is taken (token type 0, that of all names, with the positions), cross-attention
    to names is drawn. None = all is drawn as the EVCap release draws its fusion. Raises EvcapError as `read_tensors` and
    `read_blip2` do.
    """
    torch.manual_seed(seed)
    fusion = _drawn_fusion(preset)
    if bert is not None:
        _load_bert(fusion, bert)
    projection = nn.Linear(preset.image_qformer.width, preset.language.hidden)
    wanted = trained_parts(skeleton(preset))
    queries = {"image_qformer.queries": wanted["image_qformer.queries"]}
    tensors = read_blip2(preset.blip2, queries).tensors
    tensors |= {f"fusion.{k}": v for k, v in fusion.state_dict().items()}
    tensors |= {f"projection.{k}": v for k, v in projection.state_dict().items()}
    check_shapes(tensors, wanted, {}, f"preset '{preset.name}'")
    return {name: tensors[name].float() for name in wanted}


def _drawn_fusion(preset: Preset) -> NameFusion:
    fusion = NameFusion(preset)
    for table in (fusion.embeddings.word, fusion.embeddings.position):
        nn.init.normal_(table.weight, std=BERT_STD)
    return fusion


@torch.no_grad()
def _load_bert(fusion: NameFusion, source: str | Path) -> None:
    """Copy BERT's embeddings, self-attention and feed-forwards. Both feed-forwards start as BERT's one where it has one."""
    own = fusion.state_dict()
    tensors, _ = read_tensors(source, lambda name: _place(name) is not None)
    given = {_place(name): tensor for name, tensor in tensors.items()}
    types = given.pop(TOKEN_TYPES, None)
    for name, tensor in list(given.items()):  # a Q-Former has a feed-forward for queries of its own, BERT has not
        given.setdefault(name.replace("text_feed_forward", "query_feed_forward"), tensor)
    given = {name: tensor for name, tensor in given.items() if name in own and "cross_attention" not in name}
    word = given.get("embeddings.word.weight")
    if word is not None and len(word) < len(own["embeddings.word.weight"]):  # LAVIS added [DEC] behind BERT's word pieces
        extra = len(own["embeddings.word.weight"]) - len(word)
        given["embeddings.word.weight"] = torch.cat([word, word.mean(0, keepdim=True).expand(extra, -1)])
    expected = {name: tensor for name, tensor in own.items() if "cross_attention" not in name and name != "qformer.queries"}
    check_shapes(given, expected, {}, str(source))
    if types is not None:  # LAVIS' Q-Former has none
        check_shapes({TOKEN_TYPES: types[:1]}, {TOKEN_TYPES: expected["embeddings.position.weight"][:1]}, {}, str(source))
        given["embeddings.position.weight"] = given["embeddings.position.weight"] + types[0]
    fusion.load_state_dict(given, strict=False)


def _place(name: str) -> str | None:
    """Name in the fusion of a tensor of BERT, whose folders leave "bert." out or say gamma and beta at times, or of LAVIS."""
    plain = (
        name.removeprefix("Qformer.").replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    )
    return renamed(plain if plain.startswith("bert.") else f"bert.{plain}", _BERT)

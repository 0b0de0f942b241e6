"""The parts of the release that a recording holds weights of, with its sizes, on the CPU."""

from __future__ import annotations

import torch
from torch import nn

from evcap.config import QFormerConfig
from evcap.errors import EvcapError
from evcap.model.qformer import QFormer
from evcap.model.towers import build_backbone
from evcap.parity.dynrefer.recording import Recording
from evcap.parity.towers import set_norms, tower_config
from evcap.regions.heads import RegionTextHead, TagHead
from evcap.regions.model import learns
from evcap.regions.perceptual_hash import BLOCK, SIDE
from evcap.regions.roi import SAMPLES
from evcap.regions.text_tower import build_text_tower
from evcap.regions.view_fusion import ViewFusion
from evcap.regions.views import CANDIDATES
from evcap.weights.dynrefer import our_name, read_dynrefer

# what the release has no setting for, and evcap neither
CONSTANTS = {
    "hash_resize": SIDE,
    "hash_block": BLOCK,
    "candidates": len(CANDIDATES),
    "roi_sampling_ratio": SAMPLES,
    "roi_aligned": False,
}
DEFORMABLE = {"stride": 1, "dilation": 1, "offset_scale": 1.0}


def check_constants(meta: dict) -> None:
    """Raises EvcapError for a recording of another method than the one that is built here."""
    constants, deformable = meta["constants"], meta["constants"]["dcn"]
    wanted = CONSTANTS | {f"dcn.{name}": value for name, value in DEFORMABLE.items()}
    wanted["dcn.pad"] = deformable["kernel"] // 2
    for name, value in wanted.items():
        found = deformable[name[4:]] if name.startswith("dcn.") else constants[name]
        if found != value:
            raise EvcapError(f"the recording has {name} {found}, evcap {value}")


class RegionParts(nn.Module):
    """Parts that a recording has no weights of are None. They carry the names of `evcap.weights.dynrefer`."""

    def __init__(self, recording: Recording):
        super().__init__()
        meta, held = recording.meta, {(our_name(name) or "").split(".")[0] for name in recording.state}
        sizes = meta["sizes"]
        self.backbone = _tower(meta) if "backbone" in held else None
        self.image_qformer = _qformer(meta) if "image_qformer" in held else None
        deformable = meta["constants"]["dcn"]
        self.view_fusion = ViewFusion(
            sizes["width"], sizes["num_views"], prefix=1, groups=deformable["groups"], kernel=deformable["kernel"]
        )
        widths = sizes["q_hidden"], sizes["txt"]["embed_dim"], _decoder(meta)
        self.tag_head, self.region_text_head = TagHead(*widths), RegionTextHead(*widths)
        self.text_tower = _text_tower(meta) if "text_tower" in held else None
        hidden = sizes["t5"]["d_model"]
        self.projection = nn.Linear(sizes["q_hidden"], hidden) if "projection" in held else None
        self.control_embedding = nn.Parameter(torch.zeros(hidden)) if "control_embedding" in held else None
        self.grid = (sizes["image"] // sizes["patch"],) * 2
        self.load_state_dict(read_dynrefer([recording.state_file], self.state_dict()).tensors)
        self.eval()


def _tower(meta: dict) -> nn.Module:
    sizes, eps = meta["sizes"], meta["eps"]
    tower = build_backbone(tower_config(sizes, sizes["vit_heads"]))
    set_norms(tower, eps["vit_norm"], eps["ln_vision"])
    return tower


def _qformer(meta: dict) -> QFormer:
    sizes = meta["sizes"]
    config = QFormerConfig(
        width=sizes["q_hidden"],
        layers=sizes["q_layers"],
        heads=sizes["q_heads"],
        intermediate=sizes["q_inter"],
        cross_attention_every=sizes["q_freq"],
        layer_norm_eps=meta["eps"]["qformer_norm"],
    )
    return QFormer(config, sizes["num_query"], sizes["width"])


def _decoder(meta: dict) -> QFormerConfig:
    head, width = meta["constants"]["head"], meta["sizes"]["embed"]
    eps = meta["eps"]["head_norm"]
    return QFormerConfig(width, head["layers"], head["heads"], 4 * width, layer_norm_eps=eps)


def _text_tower(meta: dict) -> nn.Module:
    text = meta["sizes"]["txt"]
    return build_text_tower(
        width=text["width"],
        layers=text["layers"],
        heads=text["heads"],
        context=text["context_length"],
        vocabulary=text["vocab_size"],
        features=text["embed_dim"],
        layer_norm_eps=meta["eps"]["text_norm"],
    )


def groups(recording: Recording) -> dict[str, bool]:
    """Whether the same groups of parameters train as in the release, of those that the recording has weights of, and whether
    what of the fusion begins at zero does here."""
    meta = recording.meta
    held = {name.split(".")[0] for name in recording.state}
    trained = {name.split(".")[0] for name in recording.state if _learns(our_name(name))}
    fresh = dict(ViewFusion(8, 2).named_parameters(prefix="view_fusion"))
    zero = [not fresh[our_name(name)].any() for name in meta["zero_at_init"] if our_name(name) in fresh]
    recording.used |= {"trainable_groups", "zero_at_init"}
    return {"trainable_groups": trained == held & set(meta["trainable_groups"]), "zero_at_init": bool(zero) and all(zero)}


def _learns(name: str | None) -> bool:
    """Whether what has this name here is trained."""
    return name is not None and not name.startswith("backbone.") and learns(name)

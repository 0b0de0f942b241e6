"""RoI-align, the alignment and the whole visual path; every step is fed with what the recording gave it."""

from __future__ import annotations

import torch

from evcap.parity.dynrefer.model import RegionParts
from evcap.parity.dynrefer.recording import Output, Recording
from evcap.regions.roi import roi_align
from evcap.regions.view_fusion import deformable_sum


def text(recording: Recording, model: RegionParts) -> dict[str, Output]:
    """Features of texts, by themselves and as the state holds them."""

    def features(tokens: str) -> torch.Tensor:
        return model.text_tower(recording[f"text.{tokens}"]).text_embeds

    return {
        "text.output": features("tokens"),
        "state.clip_embeds": features("tag_tokens"),
        "state.att_embeds": features("attribute_tokens"),
        "state.ov_embeds": features("class_tokens"),
    }


def roi(recording: Recording, model: RegionParts) -> dict[str, Output]:
    maps, boxes = recording["roi.features"][recording["roi.index"]], recording["roi.boxes"]
    grid = tuple(recording["roi.output"].shape[2:])
    return {"roi.output": roi_align(maps, boxes / recording.meta["sizes"]["patch"], grid)}


def align(recording: Recording, model: RegionParts) -> dict[str, Output]:
    module, maps, reference = model.view_fusion.align, recording["align.input"], recording["align.ref"]
    grid = maps.shape[2:]
    depthwise = recording["align.dw"].flatten(2).transpose(1, 2)
    numbers = recording["align.offset_mask"].flatten(1, 2)
    core = deformable_sum(recording["align.value"], numbers, grid, module.groups, module.kernel)
    return {
        "align.value": module.value(maps.flatten(2).transpose(1, 2)),
        "align.dw": module.context(torch.cat([maps, reference], dim=1)),
        "align.offset_mask": module.offsets(depthwise).unflatten(1, grid),
        "align.core": core.unflatten(1, grid),
        "align.output": module(maps, reference),
    }


def visual(recording: Recording, model: RegionParts) -> dict[str, Output]:
    fusion, grid, size = model.view_fusion, model.grid, recording.meta["sizes"]["image"]
    boxes, views = recording["views.boxes"], fusion.views
    tokens = recording["visual.tokens"].unflatten(0, (-1, views))
    pooled = recording["visual.roi"].flatten(2).transpose(1, 2).unflatten(0, (-1, views))
    aligned = fusion.aligned(pooled, grid)
    sequence = torch.cat([tokens[:, :, :1], aligned], dim=2).flatten(0, 1)
    outputs = {
        "visual.roi": _maps(fusion.pooled(tokens, boxes, grid, size).flatten(0, 1), grid),
        "visual.aligned": _maps(aligned[:, 1:].transpose(0, 1).flatten(0, 1), grid),  # regions fastest
        "visual.sequence": sequence,
        "visual.fused": fusion(tokens, boxes, grid, size),
    }
    if model.backbone is not None and "views.images" in recording.tensors:
        outputs["visual.tokens"] = model.backbone(recording["views.images"].flatten(0, 1))
    if model.image_qformer is not None:
        outputs["visual.x_v"] = model.image_qformer(recording["visual.fused"])
    return {name: output for name, output in outputs.items() if name in recording.tensors}


def _maps(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)


def region_features(recording: Recording, model: RegionParts) -> torch.Tensor:
    """From the crops to the query features of the regions, nothing taken from the recording on the way."""
    images = recording["views.images"]
    tokens = model.backbone(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    fused = model.view_fusion(tokens, recording["views.boxes"], model.grid, recording.meta["sizes"]["image"])
    return model.image_qformer(fused)

"""Which encoder made query features and memory keys, as a short hash."""

from __future__ import annotations

import torch

from evcap.config import fingerprinted
from evcap.model.evcap import QueryEncoder, adapted_parts
from evcap.model.vision import VisionEncoder
from evcap.weights.wheels import fingerprint


def encoder_fingerprint(model: QueryEncoder) -> str:
    """Short hash of what is trained or set on the way from pixels to memory keys: the image Q-Former, adapted blocks of the
    tower, the vision settings."""
    norms = {} if model.patch_norm is None else model.patch_norm.state_dict()
    # the names under which tensors were hashed when the first memories were made
    tensors = {k.replace("query_norm.", "door."): v.to(torch.float16) for k, v in model.image_qformer.state_dict().items()}
    tensors.update({f"door.{k}": v.to(torch.float16) for k, v in norms.items()})
    if isinstance(model.backbone, VisionEncoder):
        tensors.update({f"tower.{k}": v.to(torch.float16) for k, v in model.backbone.identifying().items()})
    for name, part in adapted_parts(model).items():
        tensors.update({f"tower.{name}.{k}": v.to(torch.float16) for k, v in part.state_dict().items()})
    return fingerprint(tensors, fingerprinted(model.preset.vision))

"""Trained tensors as they ship: matrices in 8 bits with a scale for each row, the rest in float16.

Half the size of float16. A number is off by at most 1/254 of its row's largest, so captions may differ in a word from those of
the run that the tensors are from; docs/embedded.md says by how much.
"""

from __future__ import annotations

from pathlib import Path

import torch

from evcap.errors import EvcapError
from evcap.weights.wheels import read_safetensors, write_safetensors

SCALE = ":scale"  # behind a matrix's name: that of its rows' scales, (rows,) float32
LEAST = 4096  # numbers of a matrix for which 8 bits are worth a tensor of scales


def write_shipped(tensors: dict[str, torch.Tensor], path: str | Path, earlier: str | Path | None = None) -> None:
    """Write trained tensors for a package. Raises EvcapError for one that holds other than finite numbers.

    earlier: a file of this function. What it holds alike, to float16, is taken from it and not rounded a second time: so a
    memory made with the encoder in it fits the new file too.
    """
    known = read_trained(earlier) if earlier else {}
    verbatim = read_safetensors(earlier) if earlier else {}
    packed = {}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise EvcapError(f"tensor '{name}' holds numbers that are not finite; the run that made it has failed")
        if name in known and torch.equal(known[name].half(), tensor.half()):
            packed |= {key: verbatim[key] for key in (name, name + SCALE) if key in verbatim}
        elif tensor.ndim < 2 or tensor.numel() < LEAST:
            packed[name] = tensor.half() if tensor.is_floating_point() else tensor
        else:
            rows = tensor.float().flatten(1)
            scale = rows.abs().amax(1) / 127
            packed[name] = (rows / scale.clamp_min(1e-30)[:, None]).round().to(torch.int8).view(tensor.shape)
            packed[name + SCALE] = scale
    write_safetensors(packed, path)


def read_trained(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a run, or of `write_shipped`, whose matrices are float32 again. Raises EvcapError for a damaged file."""
    tensors = read_safetensors(path)
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            continue
        scale = tensors.get(name + SCALE)
        if scale is None:
            found[name] = tensor
        elif scale.shape != tensor.shape[:1] or scale.dtype != torch.float32 or tensor.dtype != torch.int8:
            raise EvcapError(f"{path} is damaged: the scales of '{name}' do not fit it; get a fresh copy")
        else:
            found[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
    return found

"""RoI-align for boxes and maps of any shape (Mask R-CNN, arXiv 1703.06870), and the bilinear weights that it is made of.

Written out: torchvision, which has it, does not import beside every build of torch. Bilinear sampling works on rows and columns
apart, so that all samples of a box are one product from each side of its map; gradients reach the map and the box.
"""

from __future__ import annotations

import torch

SAMPLES = 2  # a bin is the mean of so many samples each way


def bilinear_weights(places: torch.Tensor, size: int) -> torch.Tensor:
    """Places (...) on an axis of `size` cells, 0 the middle of the first -> weights of the cells (...,size), 0 outside.

    On the middle of a cell the gradient is that towards the next one, as it is of other bilinear samplers.
    """
    below = places.floor()
    share = (places - below)[..., None]
    cells = torch.arange(size, device=places.device, dtype=places.dtype) - below[..., None]
    return torch.where(cells == 0, 1 - share, torch.where(cells == 1, share, 0))


def roi_align(maps: torch.Tensor, boxes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Maps (N,C,h,w) and a box in each, (N,4) x1,y1,x2,y2 float32 in cells of its map -> (N,C,rows,columns) of `grid`.

    The release's (torchvision's) with sampling_ratio 2 and aligned=False: a cell's value lies at its upper left corner, and a
    side of less than a cell counts as one.
    """
    rows, columns = grid
    across = _axis_weights(boxes[:, 0], boxes[:, 2], maps.shape[3], columns)
    down = _axis_weights(boxes[:, 1], boxes[:, 3], maps.shape[2], rows)
    down, across = (weights[:, None].to(maps.dtype) for weights in (down, across))
    return down @ maps @ across.transpose(-1, -2)


def _axis_weights(first: torch.Tensor, last: torch.Tensor, size: int, bins: int) -> torch.Tensor:
    """Of one axis of N boxes: what each of `size` cells weighs in each bin, (N,bins,size)."""
    steps = (torch.arange(bins * SAMPLES, device=first.device, dtype=first.dtype) + 0.5) / (bins * SAMPLES)
    places = first[:, None] + (last - first).clamp_min(1)[:, None] * steps
    counts = (places >= -1) & (places <= size)  # further out there is nothing, nearer the border goes on
    weights = bilinear_weights(places.clamp(0, size - 1), size) * counts[..., None]
    return weights.unflatten(1, (bins, SAMPLES)).mean(2)

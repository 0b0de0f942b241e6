"""Several views of each region -> the patch tokens of one image: RoI-align, deformable alignment, fusion (DynRefer 2025)."""

from __future__ import annotations

import torch
from torch import nn

from evcap.regions.roi import bilinear_weights, roi_align


class DeformableAlign(nn.Module):
    """Moves the features of a view to where the region's own view has them: deformable sampling (DCNv4, arXiv 2401.06197).

    Around each cell `kernel` x `kernel` points, moved by predicted offsets, are read and added with predicted weights, which
    nothing normalises; outside the map is 0. Channels form `groups`, each with points of its own. There is no residual, and the
    first outputs of a new module are 0: offsets and weights start there, as in the release.
    """

    def __init__(self, width: int, inner: int | None = None, groups: int = 4, kernel: int = 3):
        """width: channels C of the maps. inner: channels that are sampled, C unless told; fewer make a smaller module."""
        super().__init__()
        inner = inner or width
        if inner % groups or not kernel % 2:
            raise ValueError(f"{inner} channels in {groups} groups with kernel {kernel}: groups of one size, an odd kernel")
        self.groups, self.kernel = groups, kernel
        self.value = nn.Linear(width, inner)
        # of the joined maps, so that each half of the outputs sees one of the two maps: as in the release
        self.context = nn.Conv2d(2 * width, width, 3, padding=1, groups=width)
        numbers = groups * kernel**2 * 3
        self.offsets = nn.Linear(width, -(-numbers // 8) * 8)  # the last few fill up a multiple of 8 and are not used
        self.out = nn.Linear(inner, width)
        for linear in (self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
        for zero in (self.value.bias, self.out.bias, self.offsets.weight, self.offsets.bias):
            nn.init.zeros_(zero)

    def forward(self, maps: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Maps of a view and of the region's own view, both (N,C,h,w) -> (N,C,h,w)."""
        context = self.context(torch.cat([maps, reference], dim=1)).flatten(2).transpose(1, 2)  # (N,P,C)
        value = self.value(maps.flatten(2).transpose(1, 2))
        sampled = deformable_sum(value, self.offsets(context), maps.shape[2:], self.groups, self.kernel)
        return self.out(sampled).transpose(1, 2).unflatten(2, maps.shape[2:])


def deformable_sum(value: torch.Tensor, numbers: torch.Tensor, grid: tuple[int, int], groups: int, kernel: int) -> torch.Tensor:
    """Values (N,P,C) of a grid (rows, columns) and the numbers (N,P,n) of its points -> weighted sums (N,P,C).

    numbers: for each group first the (dx,dy) of its points, then their weights; points go by columns. A point's share in every
    cell is a product of two bilinear weights, so that the sum over points and cells is one matrix for each group.
    """
    rows, columns = grid
    points = kernel**2
    numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))  # bfloat16 knows places to a sixteenth of a cell
    numbers = numbers[..., : groups * points * 3].unflatten(2, (groups, points * 3)).transpose(1, 2)  # (N,G,P,27)
    moves, weights = numbers[..., : 2 * points].unflatten(3, (points, 2)), numbers[..., 2 * points :]
    steps = torch.arange(kernel, device=value.device, dtype=numbers.dtype) - kernel // 2
    y, x = (torch.arange(n, device=value.device, dtype=numbers.dtype) for n in (rows, columns))
    around_x = x.repeat(rows)[:, None] + steps.repeat_interleave(kernel)  # (P,points)
    around_y = y.repeat_interleave(columns)[:, None] + steps.repeat(kernel)
    across = bilinear_weights(around_x + moves[..., 0], columns)  # (N,G,P,points,columns)
    down = bilinear_weights(around_y + moves[..., 1], rows) * weights[..., None]
    shares = (down.transpose(-1, -2) @ across).flatten(3).to(value.dtype)  # (N,G,P,cells)
    mixed = shares @ value.unflatten(2, (groups, -1)).transpose(1, 2)  # (N,G,P,C/G)
    return mixed.transpose(1, 2).flatten(2)


class ViewFusion(nn.Module):
    """Patch tokens of V views of each region -> patch tokens of as many places as one view has, for the Q-Former.

    The first view is the region itself. Class tokens, `prefix` of each view, lie on no grid and are fused as they are.
    """

    def __init__(
        self,
        width: int,
        views: int,
        prefix: int = 0,
        hidden: int | None = None,
        inner: int | None = None,
        align: bool = True,
        groups: int = 4,
        kernel: int = 3,
        residual: bool = False,
    ):
        """width: channels C of patch tokens. hidden: between the two linear maps, C unless told. inner, groups, kernel: see
        `DeformableAlign`, which align=False leaves out. residual: what is fused is added to the region's own view, nothing at
        first, so that what comes behind may stay as it is; the release has none."""
        super().__init__()
        self.views, self.prefix, self.residual = views, prefix, residual
        self.align = DeformableAlign(width, inner, groups, kernel) if align and views > 1 else None
        self.mlp = nn.Sequential(nn.Linear(views * width, hidden or width), nn.ReLU(), nn.Linear(hidden or width, width))
        if residual:
            nn.init.zeros_(self.mlp[2].weight)
            nn.init.zeros_(self.mlp[2].bias)

    def forward(self, tokens: torch.Tensor, boxes: torch.Tensor, grid: tuple[int, int], size: int) -> torch.Tensor:
        """Patch tokens (R,V,prefix+P,C) of views that were resized to size x size pixels -> (R,prefix+P,C).

        boxes (R,V,4): the region inside each view, in those pixels. grid: rows and columns of the P places.
        """
        if tokens.shape[1] != self.views:
            raise ValueError(f"{tokens.shape[1]} views of a region, expected {self.views}")
        sequence = torch.cat([tokens[:, :, : self.prefix], self.aligned(self.pooled(tokens, boxes, grid, size), grid)], dim=2)
        fused = self.mlp(sequence.transpose(1, 2).flatten(2))
        return sequence[:, 0] + fused if self.residual else fused

    def pooled(self, tokens: torch.Tensor, boxes: torch.Tensor, grid: tuple[int, int], size: int) -> torch.Tensor:
        """The region out of each view by RoI-align: as in `forward` -> (R,V,P,C)."""
        rows, columns = grid
        maps = tokens[:, :, self.prefix :].flatten(0, 1).transpose(1, 2).unflatten(2, grid)
        cells = boxes.flatten(0, 1) * (boxes.new_tensor([columns, rows, columns, rows]) / size)
        found = roi_align(maps, cells, grid)
        return found.flatten(2).transpose(1, 2).unflatten(0, tokens.shape[:2])

    def aligned(self, pooled: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Pooled views (R,V,P,C), all but the first aligned with it."""
        if self.align is None:
            return pooled
        others = self.views - 1
        maps = pooled.transpose(2, 3).unflatten(3, grid)  # (R,V,C,h,w)
        reference = maps[:, :1].expand(-1, others, -1, -1, -1)
        moved = self.align(maps[:, 1:].flatten(0, 1), reference.flatten(0, 1))
        return torch.cat([pooled[:, :1], moved.flatten(2).transpose(1, 2).unflatten(0, (-1, others))], dim=1)

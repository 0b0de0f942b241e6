"""RoI-align against a loop from torchvision's definition, the deformable sum against grid_sample and a loop, fusion's parts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_evcap
from torch import nn

from evcap.regions.roi import roi_align
from evcap.regions.view_fusion import DeformableAlign, ViewFusion, deformable_sum

sides = st.integers(1, 6)
seeds = st.integers(0, 2**31)


def sample(channel, y, x):
    """One bilinear sample, 0 outside."""
    rows, columns = channel.shape
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < rows and 0 <= column < columns:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * channel[row, column].item()
    return total


def plain_roi(channel, box, grid):
    """torchvision's roi_align, sampling_ratio 2, aligned False, box in cells."""
    rows, columns = channel.shape
    x1, y1, x2, y2 = box
    height, width = max(y2 - y1, 1.0) / grid[0], max(x2 - x1, 1.0) / grid[1]
    out = torch.zeros(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            for sub in range(4):
                y = y1 + (i + (sub // 2 + 0.5) / 2) * height
                x = x1 + (j + (sub % 2 + 0.5) / 2) * width
                if -1 <= y <= rows and -1 <= x <= columns:
                    out[i, j] += sample(channel, min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)) / 4
    return out


@given(sides, sides, sides, sides, seeds)
def test_roi_align_is_its_loop(rows, columns, down, across, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, rows, columns, generator=generator)
    corners = (torch.rand(2, 4, generator=generator) * 2 - 0.5) * torch.tensor(
        [columns, rows] * 2
    )  # some swapped, some outside
    found = roi_align(maps, corners, (down, across))
    for each, box, result in zip(maps, corners.tolist(), found, strict=True):
        expected = torch.stack([plain_roi(channel, box, (down, across)) for channel in each])
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_the_whole_view_is_moved_by_half_a_cell():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    found = roi_align(ramp, torch.tensor([[0.0, 0.0, 16.0, 16.0]]), (16, 16))
    torch.testing.assert_close(found[0, 0, 3], torch.cat([torch.arange(15) + 0.5, torch.tensor([15.0])]))


def test_gradients_of_roi_align_reach_map_and_box():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.3, 0.2, 3.1, 4.4], [1.1, 0.7, 2.9, 2.6]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, b: roi_align(m, b, (3, 2)), (maps, boxes))


def by_grid_sample(value, numbers, grid, groups, kernel):
    """The same sum by torch's own sampler, point by point."""
    rows, columns = grid
    count, places, width = value.shape
    points = kernel**2
    maps = value.transpose(1, 2).reshape(count * groups, width // groups, rows, columns)
    numbers = numbers[..., : groups * points * 3].view(count, places, groups, points * 3).transpose(1, 2)
    numbers = numbers.reshape(count * groups, rows, columns, points * 3)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    total = 0
    for point in range(points):
        px = x + point // kernel - kernel // 2 + numbers[..., 2 * point]
        py = y + point % kernel - kernel // 2 + numbers[..., 2 * point + 1]
        where = torch.stack([(2 * px + 1) / columns - 1, (2 * py + 1) / rows - 1], dim=-1)
        read = nn.functional.grid_sample(maps, where, padding_mode="zeros", align_corners=False)
        total = total + read * numbers[..., 2 * points + point][:, None]
    return total.view(count, width, places).transpose(1, 2)


@given(sides, sides, st.integers(1, 3), st.sampled_from([1, 3, 5]), seeds)
def test_the_deformable_sum_is_that_of_grid_sample(rows, columns, groups, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(2, rows * columns, groups * 2, generator=generator, dtype=torch.float64)
    numbers = torch.randn(2, rows * columns, groups * kernel**2 * 3 + 5, generator=generator, dtype=torch.float64) * 2
    found = deformable_sum(value, numbers, (rows, columns), groups, kernel)
    torch.testing.assert_close(found, by_grid_sample(value, numbers, (rows, columns), groups, kernel))


def test_the_deformable_sum_is_its_loop():
    """Written from the description: point k of a cell lies at (x + k // 3 - 1 + dx, y + k % 3 - 1 + dy)."""
    generator = torch.Generator().manual_seed(3)
    rows, columns, groups = 3, 4, 2
    value, numbers = (torch.randn(1, 12, n, generator=generator) for n in (4, 56))
    found = deformable_sum(value, numbers, (rows, columns), groups, 3)[0]
    for cell in range(12):
        y, x = divmod(cell, columns)
        for channel in range(4):
            own = numbers[0, cell, 27 * (channel // 2) :].tolist()
            plane = value[0, :, channel].view(rows, columns)
            total = sum(
                own[18 + k] * sample(plane, y + k % 3 - 1 + own[2 * k + 1], x + k // 3 - 1 + own[2 * k]) for k in range(9)
            )
            assert found[cell, channel].item() == pytest.approx(total, abs=1e-4)


def test_gradients_on_the_middle_of_cells_are_those_of_grid_sample():
    """Where training begins, all offsets are 0. On this grid grid_sample's own coordinates are exact."""
    generator = torch.Generator().manual_seed(5)
    value = torch.randn(1, 16, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    numbers = torch.randn(1, 16, 2, 27, generator=generator, dtype=torch.float64)
    numbers[..., :18] = 0
    numbers = numbers.flatten(2).requires_grad_()
    mix = torch.randn(1, 16, 4, generator=generator, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((sums(value, numbers, (4, 4), 2, 3) * mix).sum(), (value, numbers))
        for sums in (deformable_sum, by_grid_sample)
    )
    torch.testing.assert_close(ours, theirs)


def test_places_are_exact_in_bfloat16():
    """Only the values are rounded: on a wide map bfloat16 would move the points themselves."""
    generator = torch.Generator().manual_seed(7)
    value = torch.randn(1, 400, 4, generator=generator)
    numbers = torch.randn(1, 400, 54, generator=generator)
    maps, boxes = value.transpose(1, 2).reshape(1, 4, 2, 200), torch.tensor([[150.3, 0.1, 199.2, 1.7]])
    for exact, rounded in (
        (deformable_sum(value, numbers, (2, 200), 2, 3), deformable_sum(value.bfloat16(), numbers, (2, 200), 2, 3)),
        (roi_align(maps, boxes, (2, 9)), roi_align(maps.bfloat16(), boxes, (2, 9))),
    ):
        assert rounded.dtype == torch.bfloat16
        assert (exact - rounded).abs().max() < 0.02 * exact.abs().max()


def test_a_new_alignment_gives_nothing_and_learns_from_its_weights_first():
    torch.manual_seed(0)
    align = DeformableAlign(8)
    maps, reference = torch.randn(2, 2, 8, 3, 5)
    out = align(maps, reference)
    assert (out == 0).all()
    (out * torch.randn(out.shape)).sum().backward()
    learning = {name for name, tensor in align.named_parameters() if tensor.grad.abs().max() > 0}
    assert learning == {"offsets.weight", "offsets.bias", "out.bias"}
    assert not align.offsets.bias.grad[:108].view(4, 27)[:, :18].any() and not align.offsets.bias.grad[108:].any()


@pytest.mark.parametrize(("views", "prefix", "grid"), [(1, 0, (3, 3)), (2, 1, (2, 5)), (3, 0, (4, 3)), (4, 2, (1, 1))])
def test_views_become_the_patch_tokens_of_one_image(views, prefix, grid):
    torch.manual_seed(1)
    places = prefix + grid[0] * grid[1]
    fusion = ViewFusion(8, views, prefix, hidden=12, inner=4).eval()
    randomise(fusion)
    tokens, boxes = torch.randn(5, views, places, 8), torch.rand(5, views, 4).cumsum(-1) * 20
    fused = fusion(tokens, boxes, grid, 64)
    assert fused.shape == (5, places, 8)
    torch.testing.assert_close(fusion(tokens[2:3], boxes[2:3], grid, 64), fused[2:3])  # regions do not see one another
    # class tokens meet those of the other views alone
    heads = fusion.mlp(tokens[:, :, :prefix].transpose(1, 2).flatten(2))
    torch.testing.assert_close(fused[:, :prefix], heads)
    with pytest.raises(ValueError, match="expected"):
        fusion(torch.cat([tokens, tokens], 1), boxes, grid, 64)


def test_without_alignment_the_views_are_pooled_and_joined():
    torch.manual_seed(2)
    grid = (3, 4)
    fusion = ViewFusion(8, 3, 1, align=False)
    assert not [name for name, _ in fusion.named_parameters() if name.startswith("align")]
    tokens, boxes = torch.randn(2, 3, 13, 8), torch.rand(2, 3, 4).cumsum(-1) * 20
    joined = []
    for view in range(3):
        maps = tokens[:, view, 1:].transpose(1, 2).reshape(2, 8, *grid)
        pooled = roi_align(maps, boxes[:, view] * torch.tensor([4, 3, 4, 3]) / 60, grid)
        joined.append(torch.cat([tokens[:, view, :1], pooled.flatten(2).transpose(1, 2)], dim=1))
    torch.testing.assert_close(fusion(tokens, boxes, grid, 60), fusion.mlp(torch.cat(joined, dim=-1)))


def test_the_first_view_is_the_reference_and_passes_as_it_is():
    torch.manual_seed(3)
    fusion = ViewFusion(8, 2)
    randomise(fusion)
    pooled = torch.randn(1, 2, 6, 8)
    aligned = fusion.aligned(pooled, (2, 3))
    assert torch.equal(aligned[:, 0], pooled[:, 0])
    own, other = (pooled[:, n].transpose(1, 2).reshape(1, 8, 2, 3) for n in (0, 1))
    torch.testing.assert_close(aligned[:, 1], fusion.align(other, own).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("inner", "kernel"), [(6, 3), (8, 2)])
def test_channels_in_uneven_groups_and_even_kernels_are_refused(inner, kernel):
    with pytest.raises(ValueError, match="groups of one size"):
        DeformableAlign(8, inner, kernel=kernel)


def randomise(module: nn.Module) -> None:
    """What starts at zero would hide what it multiplies."""
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.normal_(std=0.5)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(2, 2), (3, 5)])
def test_fused_tokens_enter_the_chain_as_those_of_an_image(grid):
    """A tower without class token."""
    model = tiny_evcap()
    fusion = ViewFusion(20, 3)
    tokens, boxes = (
        torch.randn(2, 3, grid[0] * grid[1], 20),
        torch.tensor([[[0.0, 0, 64, 64], [8, 8, 40, 50], [0, 9, 9, 33]]] * 2),
    )
    fused = fusion(tokens, boxes, grid, 64)
    assert model.query_features(fused, grid).shape == model.query_features(tokens[:, 0], grid).shape

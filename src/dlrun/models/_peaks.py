"""Objects as the peaks of a heatmap: the map drawn from boxes, its loss, and peaks read back as boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# B batch, C classes, K boxes, D detections, H W cells of the map


class Centers(NamedTuple):
    """The boxes of a batch as the map sees them, in cells.

    middle, size: [B, K, 2] as (x, y) and (width, height).   cell: int64 [B, K], the number of the cell the middle is
    in, row by row.   label: int64 [B, K], 0 where there is no box.   there: bool [B, K].
    """

    middle: Tensor
    size: Tensor
    cell: Tensor
    label: Tensor
    there: Tensor


def centers(boxes_BK4: Tensor, labels_BK: Tensor, stride: int, height: int, width: int) -> Centers:
    """Boxes in pixels of the image to cells of a map of height x width. A label below 0 or an empty box is none."""
    corners = boxes_BK4.float() / stride
    low, high = corners[..., :2], corners[..., 2:]
    size, middle = high - low, (low + high) / 2
    last = torch.tensor([width - 1, height - 1], device=boxes_BK4.device)
    column, row = middle.floor().long().clamp(min=0).minimum(last).unbind(-1)
    there = (labels_BK >= 0) & (size > 0).all(-1)
    return Centers(middle, size, row * width + column, labels_BK.clamp(min=0), there)


def heatmap(found: Centers, num_classes: int, height: int, width: int) -> Tensor:
    """[B, C, H, W]: 1 in the cell of each box's middle, falling off around it as a Gaussian; 0 far from any.

    Where Gaussians of a class overlap, the larger value counts. Drawn as outer products, without a loop over boxes.
    Source: Zhou et al. 2019, "Objects as Points", section 3; the deviation is a third of the radius, as in its code.
    """
    deviation_BK1 = ((2 * radius(found.size) + 1) / 6)[..., None]
    columns = torch.arange(width, device=found.cell.device)
    rows = torch.arange(height, device=found.cell.device)
    across_BKW = _bell(columns - (found.cell % width)[..., None], deviation_BK1)
    down_BKH = _bell(rows - (found.cell // width)[..., None], deviation_BK1) * found.there[..., None]
    bells_BKHW = down_BKH[..., :, None] * across_BKW[..., None, :]
    drawn = bells_BKHW.new_zeros(len(found.cell), num_classes, height, width)
    return drawn.scatter_reduce(1, found.label[..., None, None].expand_as(bells_BKHW), bells_BKHW, "amax")


def _bell(distance: Tensor, deviation: Tensor) -> Tensor:
    return torch.exp(-(distance**2) / (2 * deviation**2))


def radius(size_BK2: Tensor, overlap: float = 0.7) -> Tensor:
    """How far, [B, K], both corners of a box may move in any direction so that it keeps this overlap (IoU) with itself.

    The smallest of three: one corner moves in and the other out; both move in; both move out.
    Source: Law and Deng 2018, "CornerNet", section 3.2 (with the roots of the quadratic equations written out).
    """
    sides, area = size_BK2.sum(-1), size_BK2.prod(-1)
    shifted = (sides - (sides**2 - 4 * area * (1 - overlap) / (1 + overlap)).clamp(min=0).sqrt()) / 2
    smaller = (sides - (sides**2 - 4 * area * (1 - overlap)).clamp(min=0).sqrt()) / 4
    larger = ((sides**2 + 4 * area * (1 - overlap) / overlap).sqrt() - sides) / 4
    return torch.stack([shifted, smaller, larger]).amin(0)


def focal_loss(logits_BCHW: Tensor, target_BCHW: Tensor, num_boxes: Tensor) -> Tensor:
    """Penalty-reduced logistic loss of every cell, over the number of boxes.

    A cell that is no middle counts less the nearer it is to one: (1 - target)^4.
    Source: Zhou et al. 2019, "Objects as Points", eq. 1, with alpha 2 and beta 4.
    """
    logits = logits_BCHW.float()
    probability = logits.sigmoid()
    is_middle = target_BCHW == 1
    hit = (1 - probability) ** 2 * F.logsigmoid(logits)
    miss = (1 - target_BCHW) ** 4 * probability**2 * F.logsigmoid(-logits)
    return -torch.where(is_middle, hit, miss).sum() / num_boxes


def at_cells(map_BNHW: Tensor, cell_BK: Tensor) -> Tensor:
    """[B, K, N]: what a map says in these cells."""
    flat_BNP = map_BNHW.flatten(2)
    return flat_BNP.gather(2, cell_BK[:, None].expand(-1, flat_BNP.shape[1], -1)).transpose(1, 2).float()


class Peaks(NamedTuple):
    """The highest peaks of a heatmap. score: [B, D].   label: int64 [B, D], -1 where there is none.   cell: [B, D]."""

    score: Tensor
    label: Tensor
    cell: Tensor


def peaks(logits_BCHW: Tensor, most: int) -> Peaks:
    """The cells that are the largest of their 3 x 3 neighbours, highest first, whatever their class; D = most.

    Source: Zhou et al. 2019, "Objects as Points", section 4: peaks stand in for suppression by overlap.
    """
    scores_BCHW = logits_BCHW.float().sigmoid()
    is_peak = F.max_pool2d(scores_BCHW, 3, stride=1, padding=1) == scores_BCHW
    cells = scores_BCHW[0, 0].numel()
    flat = (scores_BCHW * is_peak).flatten(1)
    score, index = flat.topk(min(most, flat.shape[1]))
    score, index = (F.pad(values, (0, most - values.shape[1])) for values in (score, index))
    return Peaks(score, torch.where(score > 0, index // cells, -1), index % cells)

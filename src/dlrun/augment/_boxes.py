"""Boxes of pixels: one for each picture of a batch, or those around its things (the field "boxes")."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.contracts import Batch

# B pictures, K boxes of the fullest; left, top, right, bottom


def inside(top_B: Tensor, bottom_B: Tensor, left_B: Tensor, right_B: Tensor, height: int, width: int) -> Tensor:
    """bool [B, H, W]: pixels with top <= row < bottom and left <= column < right."""
    rows_H = torch.arange(height, device=top_B.device)
    columns_W = torch.arange(width, device=top_B.device)
    in_rows_BH = (rows_H >= top_B.unsqueeze(1)) & (rows_H < bottom_B.unsqueeze(1))
    in_columns_BW = (columns_W >= left_B.unsqueeze(1)) & (columns_W < right_B.unsqueeze(1))
    return in_rows_BH.unsqueeze(2) & in_columns_BW.unsqueeze(1)


def moved(batch: Batch, boxes_BK4: Tensor, min_visible: float) -> Batch:
    """The batch with its boxes at new places: cut off at the border of the picture, and left out where less than this
    share of their area is still in it. Those that remain come first, as before; the rest is zeros, labelled -1.
    """
    height, width = batch["image"].shape[-2:]
    labels_BK = batch["box_labels"]
    limit_4 = torch.tensor([width, height, width, height], dtype=boxes_BK4.dtype, device=boxes_BK4.device)
    cut_BK4 = torch.minimum(boxes_BK4.clamp(min=0), limit_4)
    area_BK = _area(cut_BK4)
    is_kept_BK = (labels_BK >= 0) & (area_BK > 0) & (area_BK >= min_visible * _area(boxes_BK4))
    order_BK = torch.argsort((~is_kept_BK).to(torch.uint8), dim=1, stable=True)
    is_kept_BK = is_kept_BK.gather(1, order_BK)
    boxes = cut_BK4.gather(1, order_BK.unsqueeze(2).expand(-1, -1, 4)) * is_kept_BK.unsqueeze(2)
    changed = {"boxes": boxes, "box_labels": labels_BK.gather(1, order_BK).masked_fill(~is_kept_BK, -1)}
    if "box_crowd" in batch:
        changed["box_crowd"] = batch["box_crowd"].gather(1, order_BK) & is_kept_BK
    return batch | changed


def _area(boxes_BK4: Tensor) -> Tensor:
    left, top, right, bottom = boxes_BK4.unbind(2)
    return (right - left).clamp(min=0) * (bottom - top).clamp(min=0)

"""Boxes of pixels, one for each picture of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def inside(top_B: Tensor, bottom_B: Tensor, left_B: Tensor, right_B: Tensor, height: int, width: int) -> Tensor:
    """bool [B, H, W]: pixels with top <= row < bottom and left <= column < right."""
    rows_H = torch.arange(height, device=top_B.device)
    columns_W = torch.arange(width, device=top_B.device)
    in_rows_BH = (rows_H >= top_B.unsqueeze(1)) & (rows_H < bottom_B.unsqueeze(1))
    in_columns_BW = (columns_W >= left_B.unsqueeze(1)) & (columns_W < right_B.unsqueeze(1))
    return in_rows_BH.unsqueeze(2) & in_columns_BW.unsqueeze(1)

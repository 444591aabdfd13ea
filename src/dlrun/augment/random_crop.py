"""Pad pictures on every side and cut out their own size at a random place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dlrun.augment._checks import picture_shape, within
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws

# B batch, C channels, H height, W width


def build(spec: DataSpec, *, padding: int = 4, fill: int = 0) -> Augmentation:
    """Each picture is shifted by its own draw, at most by the padding, in both directions.

    Settings:
        padding: pixels added on every side, at least 1.
        fill: value of the added pixels, 0 to 255.
    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    _, height, width = picture_shape(spec, "random_crop")
    within("random_crop", "padding", padding, 1, min(height, width))
    within("random_crop", "fill", fill, 0, 255)

    def random_crop(batch: Batch, draws: Draws) -> Batch:
        offsets_B2 = draws.integers(0, 2 * padding + 1, 2)
        padded = functional.pad(batch["image"], [padding] * 4, value=fill)
        return batch | {"image": windows(padded, offsets_B2[:, 0], offsets_B2[:, 1], height, width)}

    return random_crop


def windows(image: Tensor, top_B: Tensor, left_B: Tensor, height: int, width: int) -> Tensor:
    """[B, C, height, width] cut out of [B, C, H, W] at these corners, in the memory format of image.

    One gather of whole rows out of a view of all windows; no index for each pixel.
    """
    batch, channels = image.shape[:2]
    at_B = torch.arange(batch, device=image.device)
    if channels > 1 and image.is_contiguous(memory_format=torch.channels_last):
        rows_BHWC = image.permute(0, 2, 3, 1).reshape(batch, image.shape[2], -1)
        views = rows_BHWC.unfold(1, height, 1).unfold(2, width * channels, channels)
        return views[at_B, top_B, left_B].reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    views = image.unfold(2, height, 1).unfold(3, width, 1)
    return views[at_B, :, top_B, left_B]

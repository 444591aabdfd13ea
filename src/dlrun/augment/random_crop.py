"""Pad pictures on every side and cut out their own size at a random place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dlrun.augment._boxes import moved
from dlrun.augment._checks import picture_shape, within
from dlrun.contracts import IGNORED, Augmentation, Batch, DataSpec
from dlrun.randomness import Draws

# B batch, C channels, H height, W width


def build(spec: DataSpec, *, padding: int = 4, fill: int = 0, min_visible: float = 0.3) -> Augmentation:
    """Each picture is shifted by its own draw, at most by the padding, in both directions; masks and boxes with it.

    Settings:
        padding: pixels added on every side, at least 1.
        fill: value of the added pixels, 0 to 255; in a mask they are ignored.
        min_visible: a box of which less than this share is left in the picture is dropped, 0 to 1.
    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    _, height, width = picture_shape(spec, "random_crop")
    within("random_crop", "padding", padding, 1, min(height, width))
    within("random_crop", "fill", fill, 0, 255)
    within("random_crop", "min_visible", min_visible, 0, 1)

    def random_crop(batch: Batch, draws: Draws) -> Batch:
        offsets_B2 = draws.integers(0, 2 * padding + 1, 2)
        padded = functional.pad(batch["image"], [padding] * 4, value=fill)
        batch = batch | {"image": windows(padded, offsets_B2[:, 0], offsets_B2[:, 1], height, width)}
        shift_B2 = offsets_B2 - padding
        if "mask" in batch:
            batch = batch | {"mask": _shifted(batch["mask"], shift_B2, height, width, padding)}
        if "boxes" in batch:
            batch = moved(batch, batch["boxes"] - shift_B2.flip(1).repeat(1, 2).unsqueeze(1), min_visible)
        return batch

    return random_crop


def _shifted(mask_BHW: Tensor, shift_B2: Tensor, height: int, width: int, most: int) -> Tensor:
    """Masks moved up and left as pictures of height x width were, to the nearest of their own pixels."""
    rows, columns = mask_BHW.shape[1:]
    pad_y, pad_x = -(-most * rows // height), -(-most * columns // width)
    padded = functional.pad(mask_BHW, [pad_x, pad_x, pad_y, pad_y], value=IGNORED)
    top_B = _nearest(shift_B2[:, 0], rows, height) + pad_y
    left_B = _nearest(shift_B2[:, 1], columns, width) + pad_x
    return windows(padded.unsqueeze(1), top_B, left_B, rows, columns).squeeze(1)


def _nearest(shift_B: Tensor, size: int, of: int) -> Tensor:
    """A shift of so many of `of` pixels in pixels of which there are `size`, halves rounded up."""
    return torch.div(2 * shift_B * size + of, 2 * of, rounding_mode="floor")


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

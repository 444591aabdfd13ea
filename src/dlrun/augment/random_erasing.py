"""Overwrite a random rectangle of a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlrun.augment._boxes import inside
from dlrun.augment._checks import ordered_pair, picture_shape, within
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws, hash_integers, key

_TRIES = 10  # rectangles drawn for each picture; the first that fits is used


def build(
    spec: DataSpec,
    *,
    probability: float = 0.5,
    scale: tuple = (0.02, 0.4),
    ratio: tuple = (0.3, 3.3),
    fill: int | None = None,
) -> Augmentation:
    """Each picture has its own rectangle, or none.

    Settings:
        probability: of a rectangle being erased, 0 to 1.
        scale: least and largest area of the rectangle, as a share of the picture, 0 to 1.
        ratio: least and largest height over width of the rectangle; drawn evenly on a log scale.
        fill: value of erased pixels, 0 to 255; random for each pixel unless set.
    Source: Zhong et al. 2020, "Random Erasing Data Augmentation", algorithm 1 (RE-R unless fill is set;
        the ratio is drawn on a linear scale there).
    """
    channels, height, width = picture_shape(spec, "random_erasing")
    within("random_erasing", "probability", probability, 0, 1)
    scale = ordered_pair("random_erasing", "scale", scale, 0, 1)
    ratio = ordered_pair("random_erasing", "ratio", ratio, 1e-3, 1e3)
    if fill is not None:
        within("random_erasing", "fill", fill, 0, 255)

    def random_erasing(batch: Batch, draws: Draws) -> Batch:
        image = batch["image"]
        is_erased = draws.flags(probability)
        erased_BHW = _rectangles(draws, height, width, scale, ratio) & is_erased.reshape(-1, 1, 1)
        if fill is None:
            content = _noise(draws, channels, height, width).to(image.dtype)
        else:
            content = torch.full((), fill, dtype=image.dtype, device=image.device)
        return batch | {"image": torch.where(~erased_BHW.unsqueeze(1), image, content)}

    return random_erasing


def _noise(draws: Draws, channels: int, height: int, width: int) -> Tensor:
    """uint8 [B, C, H, W]: each pixel drawn evenly. A key for each picture, then eight pixels of each hash:
    a draw for each pixel would take most of the time of a small model's step."""
    words = -(-channels * height * width // 8)
    high_B, low_B = draws.integers(0, 1 << 24, 2).unbind(1)
    keys_B = ((high_B << 24) + low_B) << 20
    hashes = hash_integers(keys_B.unsqueeze(1) + torch.arange(words, device=keys_B.device), key("erased"))
    bytes_BP = hashes.view(torch.uint8)[:, : channels * height * width]
    return bytes_BP.reshape(len(keys_B), channels, height, width)


def _rectangles(draws: Draws, height: int, width: int, scale: tuple, ratio: tuple) -> Tensor:
    """bool [B, H, W]: the first rectangle drawn for each picture that fits into it; nothing if none does."""
    u_BT4 = draws.uniform(_TRIES, 4)
    area_BT = (scale[0] + (scale[1] - scale[0]) * u_BT4[..., 0]) * (height * width)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratio_BT = torch.exp(low + (high - low) * u_BT4[..., 1])
    rows_BT = (area_BT * ratio_BT).sqrt().round().clamp(min=1)
    columns_BT = (area_BT / ratio_BT).sqrt().round().clamp(min=1)
    fits_BT = (rows_BT <= height) & (columns_BT <= width)
    first_B1 = fits_BT.to(torch.int8).argmax(1, keepdim=True)
    rows_B, columns_B = rows_BT.gather(1, first_B1)[:, 0], columns_BT.gather(1, first_B1)[:, 0]
    u_B14 = u_BT4.gather(1, first_B1.unsqueeze(2).expand(-1, 1, 4))
    top_B = (u_B14[:, 0, 2] * (height - rows_B + 1)).floor().clamp(max=height - 1)
    left_B = (u_B14[:, 0, 3] * (width - columns_B + 1)).floor().clamp(max=width - 1)
    inside_BHW = inside(top_B, top_B + rows_B, left_B, left_B + columns_B, height, width)
    return inside_BHW & fits_BT.any(1).reshape(-1, 1, 1)

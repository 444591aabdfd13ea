"""Change brightness, contrast, saturation and hue of pictures at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlrun.augment._checks import picture_shape, within
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws

# B batch, C channels

# Y, I and Q of red, green and blue (NTSC, as ITU-R BT.601 weighs them); hue is an angle in the plane of I and Q.
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def build(
    spec: DataSpec,
    *,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    hue: float = 0.0,
) -> Augmentation:
    """Each picture is changed by its own draws. Pictures without colour keep their (lack of) saturation and hue.

    All four are linear in the pixels, so they are one matrix for each picture, and pixels are cut off to 0..255
    once, at the end; torchvision's ColorJitter cuts off after each of its four passes.

    Settings:
        brightness: the factor on pixels is drawn from 1 - this to 1 + this; 0 to 1.
        contrast: the same of the distance from the picture's mean grey.
        saturation: the same of the distance of each pixel from its own grey.
        hue: largest turn of the colours to either side, as a share of the full circle, 0 to 0.5.
    """
    channels, _, _ = picture_shape(spec, "color_jitter")
    for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        within("color_jitter", name, value, 0, 1)
    within("color_jitter", "hue", hue, 0, 0.5)
    is_colour = channels == 3 and bool(saturation or hue)

    def color_jitter(batch: Batch, draws: Draws) -> Batch:
        image = batch["image"]
        change_B4 = 2 * draws.uniform(4) - 1
        bright_B, contrast_B = 1 + brightness * change_B4[:, 0], 1 + contrast * change_B4[:, 1]
        factor_B, offset_B = bright_B * contrast_B, torch.zeros_like(bright_B)
        if contrast:
            offset_B = bright_B * (1 - contrast_B) * _mean_grey(image)
        if is_colour:
            turned_B33 = _colours(1 + saturation * change_B4[:, 2], 2 * math.pi * hue * change_B4[:, 3])
            changed = _mapped(image, factor_B.reshape(-1, 1, 1) * turned_B33, offset_B)
        else:
            changed = image.float() * factor_B.reshape(-1, 1, 1, 1) + offset_B.reshape(-1, 1, 1, 1)
        changed = changed.clamp_(0, 255)
        return batch | {"image": changed.round_().to(torch.uint8) if image.dtype == torch.uint8 else changed}

    return color_jitter


def _mean_grey(image: Tensor) -> Tensor:
    """float32 [B]: the mean of a picture's greys. Sums of bytes are whole, so equal in any order of summing."""
    height, width = image.shape[-2:]
    if image.dtype == torch.uint8:
        whole = torch.int32 if height * width < 1 << 23 else torch.int64
        mean_BC = image.sum((2, 3), dtype=whole).float() / (height * width)
    else:
        mean_BC = image.mean((2, 3))
    if mean_BC.shape[1] != 3:
        return mean_BC.mean(1)
    return (mean_BC * torch.tensor(_YIQ[0], device=image.device)).sum(1)


def _colours(saturation_B: Tensor, angle_B: Tensor) -> Tensor:
    """[B, 3, 3]: the grey of a pixel as it is, and its distance from grey scaled and turned."""
    to_yiq = torch.tensor(_YIQ, dtype=torch.float64)
    to_grey = torch.ones(3, 1, dtype=torch.float64) @ to_yiq[:1]
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    turn = torch.linalg.inv(to_yiq)[:, 1:] @ quarter @ to_yiq[1:]
    grey, colour, turn = (part.float().to(angle_B.device) for part in (to_grey, torch.eye(3) - to_grey, turn))
    cos, sin = torch.cos(angle_B).reshape(-1, 1, 1), torch.sin(angle_B).reshape(-1, 1, 1)
    return grey + saturation_B.reshape(-1, 1, 1) * (cos * colour + sin * turn)


def _mapped(image: Tensor, matrix_B33: Tensor, offset_B: Tensor) -> Tensor:
    """float32 pixels, each the matrix times its channels plus the offset, in the memory format of image."""
    source, result = image.float(), torch.empty_like(image, dtype=torch.float32)
    columns = matrix_B33.unsqueeze(-1).unsqueeze(-1).unbind(2)
    torch.mul(source[:, :1], columns[0], out=result)
    result.addcmul_(source[:, 1:2], columns[1]).addcmul_(source[:, 2:3], columns[2])
    return result.add_(offset_B.reshape(-1, 1, 1, 1))

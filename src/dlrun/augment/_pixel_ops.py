"""The operations of the AutoAugment family on batches of uint8 pictures, each picture with its own magnitude.

Magnitudes mean what they mean in the papers: shear a slope, translation pixels, rotation degrees; brightness,
colour, contrast and sharpness are the distance from 1 of the enhancement factor (0 changes nothing, -1 removes
it); posterize the bits kept, solarize the value from which pixels are inverted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# N pictures, C channels, H height, W width


def warp(image: Tensor, inverse_N23: Tensor, fill: int) -> Tensor:
    """Each output pixel at (x, y) is the input pixel nearest to inverse @ (x, y, 1), else fill.

    Coordinates are in pixels from the top left corner of the picture, so centres lie at 0.5, 1.5, …
    """
    count, _, height, width = image.shape
    x_HW = torch.arange(width, device=image.device).add(0.5).expand(height, width)
    y_HW = torch.arange(height, device=image.device).add(0.5).unsqueeze(1).expand(height, width)
    out_3P = torch.stack([x_HW, y_HW, torch.ones_like(x_HW)]).reshape(3, -1)
    size_2 = torch.tensor([width, height], device=image.device, dtype=torch.float32)
    grid = (inverse_N23 @ out_3P).transpose(1, 2) * (2 / size_2) - 1
    grid = grid.reshape(count, height, width, 2)
    sampled = functional.grid_sample(image.float() - fill, grid, mode="nearest", align_corners=False)
    return (sampled + fill).to(torch.uint8)


def _inverse(image: Tensor, *rows: Tensor | float) -> Tensor:
    """[N, 2, 3] from its six entries, each a number or [N]."""
    one = torch.ones(len(image), device=image.device)
    return torch.stack([one * entry for entry in rows], 1).reshape(-1, 2, 3)


def shear_x(image: Tensor, slope_N: Tensor) -> Tensor:
    """Inverse matrices: rows slide along x, more the lower they are."""
    return _inverse(image, 1, slope_N, 0, 0, 1, 0)


def shear_y(image: Tensor, slope_N: Tensor) -> Tensor:
    """Inverse matrices: columns slide along y, more the further right they are."""
    return _inverse(image, 1, 0, 0, slope_N, 1, 0)


def translate_x(image: Tensor, pixels_N: Tensor) -> Tensor:
    """Inverse matrices of a shift by whole pixels to the left."""
    return _inverse(image, 1, 0, pixels_N.trunc(), 0, 1, 0)


def translate_y(image: Tensor, pixels_N: Tensor) -> Tensor:
    """Inverse matrices of a shift by whole pixels upwards."""
    return _inverse(image, 1, 0, 0, 0, 1, pixels_N.trunc())


def rotate(image: Tensor, degrees_N: Tensor) -> Tensor:
    """Inverse matrices of a turn to the left about the centre."""
    middle_y, middle_x = image.shape[2] / 2, image.shape[3] / 2
    cos_N, sin_N = torch.cos(torch.deg2rad(degrees_N)), torch.sin(torch.deg2rad(degrees_N))
    shift_x_N = middle_x - cos_N * middle_x + sin_N * middle_y
    shift_y_N = middle_y - sin_N * middle_x - cos_N * middle_y
    return _inverse(image, cos_N, -sin_N, shift_x_N, sin_N, cos_N, shift_y_N)


def identity(image: Tensor, _: Tensor) -> Tensor:
    """The pictures as they are."""
    return image


def brightness(image: Tensor, change_N: Tensor) -> Tensor:
    """Away from or towards black."""
    return _blend(image, torch.zeros((), device=image.device), change_N)


def color(image: Tensor, change_N: Tensor) -> Tensor:
    """Away from or towards grey; grey pictures stay as they are."""
    return _blend(image, _grey(image), change_N) if image.shape[1] == 3 else image


def contrast(image: Tensor, change_N: Tensor) -> Tensor:
    """Away from or towards the picture's mean grey."""
    return _blend(image, _grey(image).mean((1, 2, 3), keepdim=True), change_N)


def sharpness(image: Tensor, change_N: Tensor) -> Tensor:
    """Away from or towards a smoothed picture; the border, which has no smooth value, stays."""
    channels = image.shape[1]
    if min(image.shape[2:]) < 3:
        return image
    weights = torch.ones(3, 3, device=image.device)
    weights[1, 1] = 5
    kernel = (weights / weights.sum()).expand(channels, 1, 3, 3)
    smooth = image.float()
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(smooth, kernel, groups=channels).round()
    return _blend(image, smooth, change_N)


def posterize(image: Tensor, bits_N: Tensor) -> Tensor:
    """The highest bits of every pixel."""
    dropped_N = 8 - bits_N.round().to(torch.int64)
    mask_N = (255 << dropped_N) & 255
    return image & mask_N.to(torch.uint8).reshape(-1, 1, 1, 1)


def solarize(image: Tensor, threshold_N: Tensor) -> Tensor:
    """Pixels at or above the threshold inverted."""
    return torch.where(image >= threshold_N.reshape(-1, 1, 1, 1), 255 - image, image)


def autocontrast(image: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to 0..255; a constant one stays."""
    low, high = image.amin((2, 3), keepdim=True).float(), image.amax((2, 3), keepdim=True).float()
    stretched = (image.float() - low) * (255 / (high - low))
    return torch.where(high > low, stretched.clamp(0, 255), image.float()).to(torch.uint8)


def equalize(image: Tensor, _: Tensor) -> Tensor:
    """Each channel's values spread so that their histogram is as even as can be.

    As PIL does it: a step of all but the last value's pixels over 255, and a table of sums over that step.
    """
    count, channels, height, width = image.shape
    flat = image.reshape(count * channels, -1).to(torch.int64)
    ones = torch.ones((), dtype=torch.int64, device=image.device).expand_as(flat)
    histogram = torch.zeros(len(flat), 256, dtype=torch.int64, device=image.device).scatter_add_(1, flat, ones)
    last = histogram.gather(1, flat.amax(1, keepdim=True))
    step = (height * width - last) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    spread = torch.where(step > 0, table.gather(1, flat), flat)
    return spread.to(torch.uint8).reshape(image.shape)


def _blend(image: Tensor, other: Tensor, change_N: Tensor) -> Tensor:
    """other + (1 + change) * (image - other), cut off to 0..255."""
    factor = 1 + change_N.reshape(-1, 1, 1, 1)
    return (other + factor * (image.float() - other)).clamp(0, 255).to(torch.uint8)


def _grey(image: Tensor) -> Tensor:
    """float [N, 1, H, W]: whole values of luma as ITU-R BT.601 weighs it."""
    if image.shape[1] != 3:
        return image.float()
    red, green, blue = image.float().unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor().unsqueeze(1)


# Inverse matrices of pictures, so that all geometric operations of a batch are one resampling.
GEOMETRIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
}
# New pixels of pictures.
PHOTOMETRIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": identity,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}

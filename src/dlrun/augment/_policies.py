"""Random operations on a batch: every picture draws its own, and pictures with the same one are done together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dlrun.augment._pixel_ops import GEOMETRIC, PHOTOMETRIC, warp
from dlrun.randomness import Draws

NUM_LEVELS = 31  # strengths 0..30, as in both papers


class Strength(NamedTuple):
    """What levels 0 and 30 of an operation mean (linear between), and whether a draw decides the sign."""

    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False


Space = dict[str, Strength]  # operation -> strength; one is drawn, all equally often


def draw_and_apply(image: Tensor, space: Space, level_B: Tensor, draws: Draws, fill: int) -> Tensor:
    """uint8 [B, C, H, W] with one operation of the space, drawn for each picture, at its level (0..30)."""
    names = sorted(space, key=lambda name: name not in GEOMETRIC)
    chosen_B = draws.integers(0, len(names))
    sign_B = torch.where(draws.flags(0.5), -1.0, 1.0)
    order_B = torch.argsort(chosen_B, stable=True)
    counts = torch.bincount(chosen_B, minlength=len(names)).tolist()  # on a GPU this waits for the device, once
    share_B, sign_B = (level_B / (NUM_LEVELS - 1))[order_B], sign_B[order_B]
    magnitudes = [
        (weakest + (strongest - weakest) * share) * (sign if signed else 1)
        for (weakest, strongest, signed), share, sign in zip(
            map(space.__getitem__, names), share_B.split(counts), sign_B.split(counts), strict=True
        )
    ]
    result = torch.empty_like(image)
    result[order_B] = apply(names, image[order_B].split(counts), magnitudes, fill)
    return result


def apply(names: Sequence[str], pictures: Sequence[Tensor], magnitudes: Sequence[Tensor], fill: int) -> Tensor:
    """One operation for each group of pictures, the geometric ones first: they are one resampling together."""
    groups = [group for group in zip(names, pictures, magnitudes, strict=True) if len(group[1])]
    turned = [(some, GEOMETRIC[name](some, size)) for name, some, size in groups if name in GEOMETRIC]
    done = [warp(torch.cat([some for some, _ in turned]), torch.cat([at for _, at in turned]), fill)] if turned else []
    done += [PHOTOMETRIC[name](some, size) for name, some, size in groups if name in PHOTOMETRIC]
    return torch.cat(done) if done else pictures[0]


def as_uint8(image: Tensor) -> Tensor:
    """Pixels as bytes: a mixing augmentation before may have made floats of them."""
    return image if image.dtype == torch.uint8 else image.round().clamp(0, 255).to(torch.uint8)

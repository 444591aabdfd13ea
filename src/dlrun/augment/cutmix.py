"""Paste a box of another picture of the batch, and weigh the two labels by area."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.augment._boxes import inside
from dlrun.augment._checks import picture_shape, within
from dlrun.augment._mixing import beta, check, mixed
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws


def build(spec: DataSpec, *, alpha: float = 1.0, probability: float = 1.0) -> Augmentation:
    """Each picture has its own box; the area kept is drawn from Beta(alpha, alpha), less where the box is cut off at
    the border. A batch that is mixed already is left alone.

    Settings:
        alpha: of the distribution of the area kept, above 0; 1 draws every share equally often.
        probability: of a batch being mixed, 0 to 1.
    Source: Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features", section 3.1.
    """
    _, height, width = picture_shape(spec, "cutmix")
    check(spec, "cutmix", alpha)
    within("cutmix", "probability", probability, 0, 1)

    def cutmix(batch: Batch, draws: Draws) -> Batch:
        if "mix" in batch or draws.one() >= probability:
            return batch
        image, partners_B = batch["image"], draws.partners()
        side_B = torch.sqrt(1 - beta(draws, alpha))
        centre_B2 = draws.uniform(2)
        top_B, bottom_B = _span(centre_B2[:, 0], side_B, height)
        left_B, right_B = _span(centre_B2[:, 1], side_B, width)
        pasted_BHW = inside(top_B, bottom_B, left_B, right_B, height, width)
        own_B = 1 - (bottom_B - top_B) * (right_B - left_B) / (height * width)
        return mixed(batch, torch.where(~pasted_BHW.unsqueeze(1), image, image[partners_B]), partners_B, own_B)

    return cutmix


def _span(centre_B: Tensor, side_B: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First pixel, and the one after the last, of a side of this share of size; cut off at the border."""
    length_B, middle_B = (side_B * size).floor(), (centre_B * size).floor()
    first_B = middle_B - (length_B / 2).floor()
    return first_B.clamp(0, size), (first_B + length_B).clamp(0, size)

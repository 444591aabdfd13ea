"""RandAugment: several operations at one common strength, drawn for each picture."""

from __future__ import annotations

import torch

from dlrun.augment._checks import free_of_places, picture_shape, within
from dlrun.augment._policies import Space, Strength, as_uint8, draw_and_apply
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws


def build(spec: DataSpec, *, num_ops: int = 2, magnitude: int = 9, fill: int = 0) -> Augmentation:
    """Operations are drawn with replacement out of fourteen, each with its own sign.

    Settings:
        num_ops: operations on each picture, one after the other, at least 1.
        magnitude: their strength, 0 to 30.
        fill: value of pixels that come from outside the picture, 0 to 255.
    Source: Cubuk et al. 2020, "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space".
    """
    _, height, width = picture_shape(spec, "rand_augment")
    free_of_places(spec, "rand_augment")
    within("rand_augment", "num_ops", num_ops, 1, 20)
    within("rand_augment", "magnitude", magnitude, 0, 30)
    within("rand_augment", "fill", fill, 0, 255)
    space = _space(height, width)

    def rand_augment(batch: Batch, draws: Draws) -> Batch:
        image = as_uint8(batch["image"])
        level_B = torch.full((len(image),), magnitude, device=image.device)
        for _ in range(num_ops):
            image = draw_and_apply(image, space, level_B, draws, fill)
        return batch | {"image": image}

    return rand_augment


def _space(height: int, width: int) -> Space:
    """The ranges of AutoAugment (Cubuk et al. 2019), enhancement in both directions."""
    shear, enhance = Strength(0, 0.3, True), Strength(0, 0.9, True)
    return {
        "identity": Strength(),
        "shear_x": shear,
        "shear_y": shear,
        "translate_x": Strength(0, width * 150 / 331, True),
        "translate_y": Strength(0, height * 150 / 331, True),
        "rotate": Strength(0, 30, True),
        "brightness": enhance,
        "color": enhance,
        "contrast": enhance,
        "sharpness": enhance,
        "posterize": Strength(8, 4),
        "solarize": Strength(255, 0),
        "autocontrast": Strength(),
        "equalize": Strength(),
    }

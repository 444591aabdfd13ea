"""TrivialAugment: one operation at a random strength, drawn for each picture; nothing to tune."""

from __future__ import annotations

from dlrun.augment._checks import free_of_places, picture_shape, within
from dlrun.augment._policies import NUM_LEVELS, Space, Strength, as_uint8, draw_and_apply
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws

_ENHANCE = Strength(0, 0.99, True)
# The paper's wide space.
_SPACE: Space = {
    "identity": Strength(),
    "shear_x": Strength(0, 0.99, True),
    "shear_y": Strength(0, 0.99, True),
    "translate_x": Strength(0, 32, True),
    "translate_y": Strength(0, 32, True),
    "rotate": Strength(0, 135, True),
    "brightness": _ENHANCE,
    "color": _ENHANCE,
    "contrast": _ENHANCE,
    "sharpness": _ENHANCE,
    "posterize": Strength(8, 2),
    "solarize": Strength(255, 0),
    "autocontrast": Strength(),
    "equalize": Strength(),
}


def build(spec: DataSpec, *, fill: int = 0) -> Augmentation:
    """Operation, strength and sign are each drawn evenly.

    Settings:
        fill: value of pixels that come from outside the picture, 0 to 255.
    Source: Müller and Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation".
    """
    picture_shape(spec, "trivial_augment")
    free_of_places(spec, "trivial_augment")
    within("trivial_augment", "fill", fill, 0, 255)

    def trivial_augment(batch: Batch, draws: Draws) -> Batch:
        level_B = draws.integers(0, NUM_LEVELS)
        return batch | {"image": draw_and_apply(as_uint8(batch["image"]), _SPACE, level_B, draws, fill)}

    return trivial_augment

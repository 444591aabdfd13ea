"""Mirror pictures left to right."""

from __future__ import annotations

import torch

from dlrun.augment._checks import picture_shape, within
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws


def build(spec: DataSpec, *, probability: float = 0.5) -> Augmentation:
    """Each picture is mirrored by its own draw.

    Settings:
        probability: of being mirrored, 0 to 1.
    """
    picture_shape(spec, "flip")
    within("flip", "probability", probability, 0, 1)

    def flip(batch: Batch, draws: Draws) -> Batch:
        image = batch["image"]
        is_flipped = draws.flags(probability).reshape(-1, 1, 1, 1)
        return batch | {"image": torch.where(is_flipped, image.flip(-1), image)}

    return flip

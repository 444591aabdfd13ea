"""Mirror pictures left to right, and top to bottom where asked."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.augment._checks import of_targets, picture_shape, within
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws


def build(
    spec: DataSpec, *, probability: float = 0.5, vertical: float = 0.0, negate: list | None = None
) -> Augmentation:
    """Each picture is mirrored by its own draws, its masks and boxes with it.

    Settings:
        probability: of being mirrored left to right, 0 to 1.
        vertical: probability of being mirrored top to bottom, 0 to 1.
        negate: names of target columns that change their sign with left and right (a steering angle).
    """
    picture_shape(spec, "flip")
    within("flip", "probability", probability, 0, 1)
    within("flip", "vertical", vertical, 0, 1)
    sign_T = 1 - 2 * of_targets(spec, dict.fromkeys(negate, 1.0), "flip.negate") if negate else None

    def flip(batch: Batch, draws: Draws) -> Batch:
        is_flipped_B = draws.flags(probability)
        batch = _mirrored(batch, is_flipped_B, -1)
        if sign_T is not None and spec.target in batch:
            target = batch[spec.target]
            opposite = (target.reshape(len(target), -1) * sign_T.to(target)).reshape(target.shape)
            batch = batch | {spec.target: _where(is_flipped_B, opposite, target)}
        return _mirrored(batch, draws.flags(vertical), -2) if vertical else batch

    return flip


def _mirrored(batch: Batch, is_flipped_B: Tensor, dim: int) -> Batch:
    """The pictures of these rows turned around along a dimension (-1: left to right), and what lies in them."""
    fields = {name: batch[name] for name in ("image", "mask") if name in batch}
    changed = {name: _where(is_flipped_B, field.flip(dim), field) for name, field in fields.items()}
    if "boxes" in batch:
        boxes_BK4, size = batch["boxes"], batch["image"].shape[dim]
        low, high = (0, 2) if dim == -1 else (1, 3)
        turned_BK4 = boxes_BK4.clone()
        turned_BK4[..., low], turned_BK4[..., high] = size - boxes_BK4[..., high], size - boxes_BK4[..., low]
        is_box_BK = (batch["box_labels"] >= 0) & is_flipped_B.unsqueeze(1)
        changed["boxes"] = torch.where(is_box_BK.unsqueeze(2), turned_BK4, boxes_BK4)
    return batch | changed


def _where(is_chosen_B: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(is_chosen_B.reshape(-1, *[1] * (then.dim() - 1)), then, otherwise)

"""Mirror pictures left to right, and top to bottom where asked."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.augment._checks import picture_shape, within
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.errors import DlrunError, did_you_mean
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
    sign_T = _signs(spec, negate) if negate else None

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


def _signs(spec: DataSpec, negate: list) -> Tensor:
    """-1 for each target that is named, 1 for the others. Raises DlrunError for a name that is no target."""
    if "targets" not in spec.sizes:
        raise DlrunError(
            f"data.augment.flip.negate: {negate} are no targets; this data predicts '{spec.target}'",
            "leave it out of data.augment.flip",
        )
    names = spec.labels or tuple(str(index) for index in range(spec.sizes["targets"]))
    for name in negate:
        if name not in names:
            raise DlrunError(f"data.augment.flip.negate: no target '{name}'", did_you_mean(str(name), names))
    return torch.tensor([-1.0 if name in negate else 1.0 for name in names])

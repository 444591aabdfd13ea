"""Blend each picture with another of the batch, and their labels in the same proportion."""

from __future__ import annotations

import torch

from dlrun.augment._checks import picture_shape, within
from dlrun.augment._mixing import beta, check, mixed
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws


def build(spec: DataSpec, *, alpha: float = 0.2, probability: float = 1.0) -> Augmentation:
    """Each picture has its own share, drawn from Beta(alpha, alpha). A batch that is mixed already is left alone.

    Settings:
        alpha: strength, above 0; 0.2 mostly keeps one of the two, 1 draws every share equally often.
        probability: of a batch being mixed, 0 to 1; at 0.5 with cutmix after it, each mixes half of the batches.
    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", section 2.
    """
    picture_shape(spec, "mixup")
    check(spec, "mixup", alpha)
    within("mixup", "probability", probability, 0, 1)

    def mixup(batch: Batch, draws: Draws) -> Batch:
        if "mix" in batch or draws.one() >= probability:
            return batch
        own_B, partners_B = beta(draws, alpha), draws.partners()
        image = batch["image"].float()
        return mixed(batch, torch.lerp(image[partners_B], image, own_B.reshape(-1, 1, 1, 1)), partners_B, own_B)

    return mixup

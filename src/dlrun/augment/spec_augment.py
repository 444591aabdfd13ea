"""Hide stretches of time and of frequency of a spectrogram (SpecAugment)."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.augment._checks import within
from dlrun.augment._sound import sample_rate
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.errors import DlrunError
from dlrun.randomness import Draws


def build(
    spec: DataSpec,
    *,
    time_masks: int = 2,
    time_width: float = 0.1,
    band_masks: int = 2,
    band_width: float = 0.2,
) -> Augmentation:
    """Stretches of each example are set to the mean; how long each is, is drawn evenly from 0 to its width.

    Settings:
        time_masks: stretches of frames in each example, at least 0.
        time_width: most of an example's frames that one hides, as a share of them, 0 to 1.
        band_masks: stretches of mel bands, at least 0.
        band_width: most of the bands that one hides, as a share of them, 0 to 1.
    Source: Park et al. 2019, "SpecAugment", section 2, without time warping.
    """
    sample_rate(spec, "spec_augment")
    if "spectrogram" not in spec.inputs:
        raise DlrunError("data.augment.spec_augment hides frames; this data has samples", "data.features=log_mel")
    for setting, count in (("time_masks", time_masks), ("band_masks", band_masks)):
        if count < 0:
            raise DlrunError(f"data.augment.spec_augment.{setting}: {count} is not at least 0")
    within("spec_augment", "time_width", time_width, 0, 1)
    within("spec_augment", "band_width", band_width, 0, 1)

    def spec_augment(batch: Batch, draws: Draws) -> Batch:
        # The frames are not made yet: Inputs.prepare makes them, and takes the masks into account.
        masks = {"masked_frames": _stretches(draws, time_masks, time_width)} if time_masks else {}
        masks |= {"masked_bands": _stretches(draws, band_masks, band_width)} if band_masks else {}
        return batch | masks

    return spec_augment


def _stretches(draws: Draws, count: int, most: float) -> Tensor:
    """float32 [B, count, 2]: where each begins and how long it is, as shares of the whole; all lie inside."""
    u_BM2 = draws.uniform(count, 2)
    length_BM = u_BM2[..., 0] * most
    return torch.stack([u_BM2[..., 1] * (1 - length_BM), length_BM], dim=2)

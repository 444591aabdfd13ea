"""What augmentations of sound share: samples as floats, where an example ends, and what they ask of the data."""

# B batch, S samples

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.contracts import Batch, DataSpec
from dlrun.errors import DlrunError

_FULL = 32768  # stored samples are int16


def sample_rate(spec: DataSpec, name: str) -> int:
    """Hz. Raises DlrunError for data that is no sound."""
    if spec.assets.get("kind") != "audio":
        raise DlrunError(
            f"data.augment.{name} changes sound; this data has {', '.join(spec.inputs)}", "leave it out of data.augment"
        )
    return int(spec.assets["spectrogram"]["rate"])


def samples(batch: Batch) -> Tensor:
    """float32 [B, S] of -1..1."""
    audio_BS = batch["audio"]
    return audio_BS if audio_BS.is_floating_point() else audio_BS.float() / _FULL


def is_sample(batch: Batch) -> Tensor:
    """bool [B, S]: the places before each example's end."""
    places_S = torch.arange(batch["audio"].shape[1], device=batch["audio"].device)
    return places_S < batch["audio_lengths"][:, None]

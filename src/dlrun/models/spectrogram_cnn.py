"""Small convolutional network for sound: stages over frames and mel bands, then the mean and maximum over time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _frames, _layers, _text

# B batch, C channels, T frames, F bands, D features, K classes


class SpectrogramCnn(nn.Module):
    """Stages that halve time and bands, a layer over the bands that are left, pooling over time, a linear head."""

    def __init__(self, stages: list[_frames.ConvBlock], between: nn.Linear, dropout: float, head: nn.Linear) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.between = between
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, spectrogram_BTF: Tensor, frames_B: Tensor) -> Tensor:
        """Logits [B, K]; the frames after an example's last have no part in them."""
        x_BCTF = _frames.masked(spectrogram_BTF[:, None], frames_B)
        for stage in self.stages:
            x_BCTF = stage(x_BCTF, frames_B)
            x_BCTF, frames_B = _frames.halved(x_BCTF, frames_B, in_time=True, in_bands=True)
        x_BTD = self.between(x_BCTF.permute(0, 2, 1, 3).flatten(2)).relu()
        is_frame_BT = _text.is_token(x_BTD, frames_B)
        pooled = [_text.pooled(x_BTD, is_frame_BT, kind) for kind in ("mean", "max")]
        return self.head(self.dropout(torch.cat(pooled, dim=1)))


def build(
    spec: DataSpec,
    *,
    channels: tuple[int, ...] = (24, 48, 96),
    convolutions: int = 1,
    kernel: int = 3,
    width: int = 128,
    dropout: float = 0.3,
    norm: Literal["batch", "group", "none"] = "batch",
    init: Literal["kaiming", "xavier", "orthogonal", "lecun", "default"] = "kaiming",
) -> nn.Module:
    """A convolutional network for recordings of any length.

    Settings:
    channels: width of each stage, one number a stage; every stage halves frames and bands
    convolutions: convolutions in each stage, at least 1
    kernel: side of the convolutions, odd
    width: units that the bands of a frame are gathered into, before time is pooled
    dropout: share of pooled features set to zero before the head while training, in [0, 1)
    norm: normalisation before every activation
    init: how weights start; default leaves them as torch made them
    """
    bands = _frames.num_features(spec, "spectrogram_cnn")
    sizes = _layers.positive_integers("channels", channels)
    _layers.require(bool(sizes), "channels", list(sizes), "at least one stage")
    _layers.require(convolutions >= 1, "convolutions", convolutions, "an integer of at least 1")
    _layers.require(kernel >= 1 and kernel % 2 == 1, "kernel", kernel, "an odd number")
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    stages = []
    for before, after in zip((1, *sizes), sizes, strict=False):
        stages.append(_frames.ConvBlock(before, after, convolutions, kernel, norm))
        bands = (bands + 1) // 2
    between, head = nn.Linear(sizes[-1] * bands, width), nn.Linear(2 * width, spec.num_outputs)
    return _layers.initialise(SpectrogramCnn(stages, between, dropout, head), init, "relu")

"""The input pipeline of a run on sound, rebuilt from its DataSpec alone: recordings to samples, samples to frames."""

# B batch, S samples, T frames, F numbers of a frame, M masks

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import Batch, DataSpec, Row, Split
from dlrun.data._ragged import Ragged
from dlrun.data._sound import BadSound, read
from dlrun.data._whisper_frames import Frames, frames_from
from dlrun.errors import DlrunError, Exit, did_you_mean
from dlrun.randomness import permutation

_FULL = 32768
_SAMPLE, _AT_ONCE = 1000, 16  # training rows that mean and deviation are measured on, and how many at once
_LEAST_DEVIATION = 1e-3


class SoundInputs:
    """New recordings by the name of their column; stored samples become a spectrogram where the batch is."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.spectrogram = frames_from(spec.assets["spectrogram"])
        self.mean_F, self.std_F = (torch.tensor(spec.assets[name], dtype=torch.float32) for name in ("mean", "std"))

    def encode(self, rows: Sequence[Row]) -> Batch:
        """ "audio" int16 [B, S] and "audio_lengths". Raises DlrunError naming the row that cannot be read."""
        column, sounds = self.spec.assets["audio_column"], []
        for index, row in enumerate(rows):
            name = column if column in row else "audio"
            if name not in row:
                raise DlrunError(f"row {index} has no '{column}'", did_you_mean(column, map(str, row)))
            try:
                sounds.append(read(row[name], self.spectrogram.rate))
            except BadSound as error:
                raise DlrunError(f"row {index}: {error}", code=Exit.DATA) from error
        audio = Ragged.of(sounds, dtype=torch.int16)
        return {
            "id": torch.arange(len(rows)),
            "audio": audio.padded(torch.arange(len(rows))),
            "audio_lengths": audio.lengths_N,
        }

    def prepare(self, batch: Batch) -> Batch:
        """spectrogram float32 [B, T, F], normalised, 0 after an example's last frame; frames int64 [B], how many.
        Of a run on samples: samples float32 [B, S], each recording of mean 0 and deviation 1, and lengths.

        masked_frames, masked_bands float [B, M, 2] (see augment/spec_augment.py) are set to 0, the mean.
        """
        kept = {name: field for name, field in batch.items() if name not in ("audio", "audio_lengths", *_MASKS)}
        if self.spec.inputs[0] == "samples":
            return kept | {"samples": _standardised(batch), "lengths": batch["audio_lengths"]}
        frames_B = self.spectrogram.frames(batch["audio_lengths"])
        x_BTF = self.spectrogram(as_floats(batch["audio"]))
        x_BTF = self._normalised(x_BTF, _before(frames_B, x_BTF.shape[1]))
        for name, axis in zip(_MASKS, (1, 2), strict=True):
            if name in batch:
                sizes_B = frames_B if axis == 1 else torch.full_like(frames_B, x_BTF.shape[2])
                x_BTF = x_BTF.masked_fill(_masked(batch[name], sizes_B, x_BTF.shape[axis]).unsqueeze(3 - axis), 0.0)
        return kept | {"spectrogram": x_BTF, "frames": frames_B}

    def _normalised(self, x_BTF: Tensor, is_frame_BT: Tensor) -> Tensor:
        there_BT1 = is_frame_BT[..., None]
        if self.spec.assets["normalise"] == "recording":
            count_B11 = is_frame_BT.sum(1)[:, None, None]
            mean = x_BTF.masked_fill(~there_BT1, 0.0).sum(1, keepdim=True) / count_B11
            squares = (x_BTF - mean).square().masked_fill(~there_BT1, 0.0).sum(1, keepdim=True)
            std = (squares / count_B11).sqrt().clamp(min=_LEAST_DEVIATION)
        else:
            mean, std = self.mean_F.to(x_BTF.device), self.std_F.to(x_BTF.device)
        return ((x_BTF - mean) / std).masked_fill(~there_BT1, 0.0)


_MASKS = ("masked_frames", "masked_bands")


def as_floats(audio_BS: Tensor) -> Tensor:
    """Stored samples as floats of -1..1; floats are what an augmentation made of them already."""
    return audio_BS if audio_BS.is_floating_point() else audio_BS.float() / _FULL


def _standardised(batch: Batch) -> Tensor:
    """float32 [B, S]: as wav2vec 2.0 wants its recordings; 0 after an example's last sample."""
    audio_BS, lengths_B1 = as_floats(batch["audio"]), batch["audio_lengths"][:, None]
    is_there_BS = _before(lengths_B1[:, 0], audio_BS.shape[1])
    mean_B1 = audio_BS.masked_fill(~is_there_BS, 0.0).sum(1, keepdim=True) / lengths_B1
    changes_BS = (audio_BS - mean_B1).masked_fill(~is_there_BS, 0.0)
    return changes_BS / (changes_BS.square().sum(1, keepdim=True) / lengths_B1 + 1e-7).sqrt()


def _before(lengths_B: Tensor, longest: int) -> Tensor:
    return torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]


def _masked(masks_BM2: Tensor, sizes_B: Tensor, longest: int) -> Tensor:
    """bool [B, longest]: places in any stretch (where it begins, and how long it is, as shares of an example)."""
    scaled_BM2 = (masks_BM2 * sizes_B[:, None, None]).round()
    first_BM1, length_BM1 = scaled_BM2[..., :1], scaled_BM2[..., 1:]
    places_L = torch.arange(longest, device=masks_BM2.device)
    return ((places_L >= first_BM1) & (places_L < first_BM1 + length_BM1)).any(1)


def moments(train: Split, spectrogram: Frames, seed: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of each number of a frame, over the frames of the training rows or of a sample of them."""
    rows = permutation(len(train), seed, "statistics")[:_SAMPLE].sort().values
    count, total_F, squares_F = 0, torch.zeros(spectrogram.size).double(), torch.zeros(spectrogram.size).double()
    for block in rows.split(_AT_ONCE):
        batch = train.gather(block)
        x_BTF = spectrogram(as_floats(batch["audio"])).double()
        x_NF = x_BTF[_before(spectrogram.frames(batch["audio_lengths"]), x_BTF.shape[1])]
        count, total_F, squares_F = count + len(x_NF), total_F + x_NF.sum(0), squares_F + x_NF.square().sum(0)
    mean_F = total_F / count
    std_F = (squares_F / count - mean_F.square()).clamp(min=0).sqrt().clamp(min=_LEAST_DEVIATION)
    return np.round(mean_F.numpy(), 6).tolist(), np.round(std_F.numpy(), 6).tolist()

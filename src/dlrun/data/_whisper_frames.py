"""The frames that published Whisper weights were trained on."""

# B batch, S samples, T frames, P frequencies of a spectrum, M mel bands

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from dlrun.data._spectrogram import Spectrogram
from dlrun.errors import DlrunError

_LEAST_POWER = 1e-10
_LINEAR_TO, _LINEAR_MELS = 1000.0, 15.0  # Slaney's scale: straight up to so many Hz, which are so many mel
_MELS_A_NEPER = 27 / math.log(6.4)  # and logarithmic above


@dataclass(frozen=True)
class WhisperFrames:
    """Log-mel spectra as Radford et al. 2022 have them; their code, and librosa's mel filters, are the source.

    Frames are centred on every tenth millisecond, the first on the first sample, beyond which the sound is mirrored.
    Behind an example all is silence. (Theirs is mirrored at 30 s, too: within 13 ms of that the two differ.)
    """

    bands: int
    rate: ClassVar[int] = 16000
    window: ClassVar[int] = 400
    hop: ClassVar[int] = 160

    @staticmethod
    def of_settings(rate: int, window_ms: float, hop_ms: float, bands: int) -> WhisperFrames:
        """Raises: DlrunError for what Whisper was not trained on."""
        given = {"sample_rate": (rate, 16000), "window_ms": (window_ms, 25), "hop_ms": (hop_ms, 10)}
        for name, (value, expected) in given.items():
            if value != expected:
                raise DlrunError(
                    f"data.{name}: {value:g} does not go with data.features=whisper", f"data.{name}={expected}"
                )
        if not 1 <= bands <= 128:
            raise DlrunError(f"data.bands: {bands} is not in 1..128", "data.bands=80")
        return WhisperFrames(bands)

    @property
    def size(self) -> int:
        """Numbers of a frame."""
        return self.bands

    def frames(self, lengths: Tensor) -> Tensor:
        """Those that reach into so many samples."""
        return (lengths + self.window // 2 + self.hop - 1) // self.hop

    @cached_property
    def filters(self) -> Tensor:
        """float32 [P, M]: triangles of equal width in Slaney's mel, and of equal area in Hz."""
        mels = torch.linspace(0, _mel(self.rate / 2), self.bands + 2, dtype=torch.float64)
        above = _LINEAR_TO * ((mels - _LINEAR_MELS) / _MELS_A_NEPER).exp()
        edges = torch.where(mels < _LINEAR_MELS, mels * _LINEAR_TO / _LINEAR_MELS, above)
        hertz_P1 = torch.linspace(0, self.rate / 2, self.window // 2 + 1, dtype=torch.float64)[:, None]
        rising = (hertz_P1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - hertz_P1) / (edges[2:] - edges[1:-1])
        return (torch.minimum(rising, falling).clamp(min=0) * 2 / (edges[2:] - edges[:-2])).float()

    @cached_property
    def _hann(self) -> Tensor:
        return torch.hann_window(self.window, periodic=True)

    def __call__(self, sound_BS: Tensor) -> Tensor:
        """float32 [B, T, M]: (4 + x) / 4, where x is the decimal logarithm of the power in each band, or 8 below the
        largest of the example where it is lower than that. sound_BS: floats of -1..1, 0 behind an example."""
        half = self.window // 2
        count = int(self.frames(torch.tensor(sound_BS.shape[1])))
        long = half + 1 + (count - 1) * self.hop  # as far as the last frame reaches, and enough to be mirrored
        sound_BS = torch.nn.functional.pad(sound_BS.float(), (0, max(0, long - sound_BS.shape[1])))
        windows_BTW = torch.nn.functional.pad(sound_BS[:, None], (half, 0), mode="reflect")[:, 0]
        windows_BTW = windows_BTW.unfold(1, self.window, self.hop)[:, :count] * self._hann.to(sound_BS.device)
        spectra_BTP = torch.fft.rfft(windows_BTW)
        power_BTP = spectra_BTP.real.square() + spectra_BTP.imag.square()
        log_BTM = (power_BTP @ self.filters.to(sound_BS.device)).clamp(min=_LEAST_POWER).log10()
        return (torch.maximum(log_BTM, log_BTM.amax((1, 2), keepdim=True) - 8) + 4) / 4

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a spec's assets."""
        return {"scale": "whisper", "rate": self.rate, "bands": self.bands}


Frames = Spectrogram | WhisperFrames


def frames_from(stored: dict[str, Any]) -> Frames:
    """The inverse of both kinds' `to_json`."""
    return WhisperFrames(stored["bands"]) if stored.get("scale") == "whisper" else Spectrogram(**stored)


def _mel(hertz: float) -> float:
    """Of what is above the straight part of the scale."""
    return _LINEAR_MELS + _MELS_A_NEPER * math.log(hertz / _LINEAR_TO)

"""Log-mel spectra and cepstra of a batch of sounds, computed where the batch is."""

# B batch, S samples, T frames, W samples of a window, P frequencies of a spectrum, M mel bands, C coefficients

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from dlrun.errors import DlrunError

_LEAST_POWER = 1e-8  # about -80 dB of a full sine in one band: silence is a number, and stays below all sound


@dataclass(frozen=True)
class Spectrogram:
    """What frames are and what is said of each; see `speech.build`.

    window, hop: samples.   bands: mel bands.   coefficients: of the cepstrum; 0 for the log-mel spectrum itself.
    low, high: Hz, where the first band begins and the last ends.
    """

    rate: int
    window: int
    hop: int
    bands: int
    coefficients: int = 0
    low: float = 20.0
    high: float = 0.0

    @staticmethod
    def of_settings(
        kind: Literal["log_mel", "mfcc"], rate: int, window_ms: float, hop_ms: float, bands: int, coefficients: int
    ) -> Spectrogram:
        """Raises: DlrunError naming the setting that is out of its range."""
        for name, value in (("sample_rate", rate), ("window_ms", window_ms), ("hop_ms", hop_ms), ("bands", bands)):
            if not value > 0:
                raise DlrunError(f"data.{name}: {value} is not above 0")
        if kind == "mfcc" and not 1 <= coefficients <= bands:
            raise DlrunError(
                f"data.coefficients: {coefficients} is not between 1 and the {bands} bands",
                f"data.coefficients={bands}",
            )
        window, hop = round(rate * window_ms / 1000), round(rate * hop_ms / 1000)
        if hop < 1 or window < 2:
            raise DlrunError(f"data.hop_ms: {hop_ms} ms at {rate} Hz is under one sample", "try data.hop_ms=10")
        made = Spectrogram(rate, window, hop, bands, coefficients if kind == "mfcc" else 0)
        if bool((made.filters.sum(0) == 0).any()):
            raise DlrunError(
                f"data.bands: {bands} bands at {rate} Hz are narrower than the {rate / made.points:.0f} Hz between two "
                f"frequencies of a window of {window_ms} ms",
                f"try data.bands={max(1, bands // 2)}, or a longer window",
            )
        return made

    @property
    def size(self) -> int:
        """Numbers of a frame."""
        return self.coefficients or self.bands

    @property
    def points(self) -> int:
        """Samples of the Fourier transform: the power of two that holds a window."""
        return 1 << (self.window - 1).bit_length()

    def frames(self, lengths: Tensor) -> Tensor:
        """Whole windows in so many samples; a shorter sound has one, filled up with zeros."""
        return 1 + (lengths - self.window).clamp(min=0) // self.hop

    @cached_property
    def filters(self) -> Tensor:
        """float32 [P, M]: triangles, of equal width in mel, whose peak is 1.

        mel(f) = 2595 log10(1 + f / 700); band m rises from point m to point m + 1 of M + 2 and falls to point m + 2.
        Source: Davis and Mermelstein 1980, with O'Shaughnessy's scale, as HTK has it.
        """
        high = self.high or self.rate / 2
        low_mel, high_mel = (2595 * math.log10(1 + hertz / 700) for hertz in (self.low, high))
        mels = torch.linspace(low_mel, high_mel, self.bands + 2, dtype=torch.float64)
        edges = 700 * (10 ** (mels / 2595) - 1)
        hertz_P1 = torch.linspace(0, self.rate / 2, self.points // 2 + 1, dtype=torch.float64)[:, None]
        rising = (hertz_P1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - hertz_P1) / (edges[2:] - edges[1:-1])
        return torch.minimum(rising, falling).clamp(min=0).float()

    @cached_property
    def cosines(self) -> Tensor:
        """float32 [M, C]: the orthonormal cosine transform II of the bands, its first coefficients."""
        bands = torch.arange(self.bands, dtype=torch.float64)[:, None]
        orders = torch.arange(self.coefficients, dtype=torch.float64)
        cosines = torch.cos(math.pi / self.bands * (bands + 0.5) * orders) * math.sqrt(2 / self.bands)
        cosines[:, 0] /= math.sqrt(2)
        return cosines.float()

    @cached_property
    def _hann(self) -> Tensor:
        return torch.hann_window(self.window, periodic=True)

    def __call__(self, sound_BS: Tensor) -> Tensor:
        """float32 [B, T, M or C]: the natural logarithm of the power in each band, or the cepstrum of that.

        Each frame has the mean of its window taken off. sound_BS: floats of -1..1.
        """
        if (short := self.window - sound_BS.shape[1]) > 0:
            sound_BS = torch.nn.functional.pad(sound_BS, (0, short))
        windows_BTW = sound_BS.float().unfold(1, self.window, self.hop)
        windows_BTW = (windows_BTW - windows_BTW.mean(2, keepdim=True)) * self._hann.to(sound_BS.device)
        spectra_BTP = torch.fft.rfft(windows_BTW, n=self.points)
        power_BTP = spectra_BTP.real.square() + spectra_BTP.imag.square()
        power_BTM = power_BTP @ self.filters.to(sound_BS.device)
        log_BTM = power_BTM.clamp(min=_LEAST_POWER).log()
        return log_BTM @ self.cosines.to(sound_BS.device) if self.coefficients else log_BTM

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a spec's assets."""
        names = ("rate", "window", "hop", "bands", "coefficients", "low", "high")
        return {name: getattr(self, name) for name in names}

"""Sound at another rate: a windowed sinc, one filter for each place between two old samples."""

# S samples, P phases (new samples for each group of old ones), K taps

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from dlrun.errors import DlrunError

_ZEROS = 16  # zero crossings of the sinc on each side: transition of about 1/16 of the lower rate
_ROLL_OFF = 0.945  # the cut lies so far below half the lower rate that the transition ends near it
_MOST_TAPS = 1 << 24  # of all phases together; rates with a small common divisor need too many


def resampled(sound_S: Tensor, rate: int, new_rate: int) -> Tensor:
    """float32 [S new_rate / rate, rounded up]: band-limited, so nothing above half the new rate folds back.

    y(t) = sum_s x_s h(t - s), with h(t) = f sinc(f t) w(t), f the cut as a share of half the old rate, and w a Hann
    window over 16 zero crossings on each side. Source: Smith, "Digital Audio Resampling Home Page", 2002.
    Raises: DlrunError if a rate is not above 0, or the two have so small a divisor that the filters would not fit.
    """
    if rate == new_rate:
        return sound_S
    filters_PK, step, reach = _filters(rate, new_rate)
    length = -(-len(sound_S) * new_rate // rate)
    padded_S = torch.nn.functional.pad(sound_S, (reach, reach + step))
    windows_NK = padded_S.unfold(0, filters_PK.shape[1], step)
    return (windows_NK @ filters_PK.T).reshape(-1)[:length]


def check_rates(rate: int, new_rate: int) -> None:
    """Raises: DlrunError for rates that `resampled` cannot turn one into the other."""
    if rate < 1 or new_rate < 1:
        raise DlrunError(f"a rate of {rate} Hz cannot be resampled to {new_rate} Hz: rates are above 0")
    divisor = math.gcd(rate, new_rate)
    taps = (2 * _reach(rate // divisor, new_rate // divisor) + rate // divisor) * (new_rate // divisor)
    if taps > _MOST_TAPS:
        raise DlrunError(
            f"a rate of {rate} Hz cannot be resampled to {new_rate} Hz: their greatest common divisor, {divisor}, "
            "is too small"
        )


def _reach(old: int, new: int) -> int:
    """Old samples that a filter reaches to each side."""
    return math.ceil(_ZEROS * old / (min(old, new) * _ROLL_OFF))


@lru_cache(maxsize=16)
def _filters(rate: int, new_rate: int) -> tuple[Tensor, int, int]:
    """Filters [P, K], how many old samples they move on after P new ones, and their reach to each side."""
    check_rates(rate, new_rate)
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor
    cut = min(1.0, new / old) * _ROLL_OFF
    reach = _reach(old, new)
    places_P1 = torch.arange(new, dtype=torch.float64)[:, None] * old / new
    times_PK = torch.arange(-reach, old + reach, dtype=torch.float64) - places_P1
    near_PK = (times_PK * cut / _ZEROS).clamp(-1, 1)
    window_PK = torch.cos(near_PK * math.pi / 2) ** 2
    filters_PK = cut * torch.sinc(cut * times_PK) * window_PK
    return filters_PK.float(), old, reach

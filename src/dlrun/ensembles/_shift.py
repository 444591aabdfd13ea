"""Inputs that are no longer like those of the training split: a copy of a batch, one change a modality."""

# B batch, C channels, H height, W width, F features, M categories, S samples, T places or frames

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from dlrun.contracts import Batch
from dlrun.errors import DlrunError
from dlrun.randomness import Draws, permutation

_NOISE = 0.1  # standard deviation of a pixel's noise, as a share of the whole range
_REPLACED = 0.5  # share of tokens and of categories that are another example's


def shifted(batch: Batch, seed: int) -> Batch:
    """The batch, not yet prepared, with other inputs: pictures noisy and blurred; numbers, series and sound with noise
    as large as their own deviation; half of all tokens and categories exchanged for those of others.

    The noise depends on the seed and an example's id alone, so that members who read it alike get the same.
    Raises: DlrunError where there is no field that is known.
    """
    draws = Draws(batch["id"], seed=seed, epoch=0)
    changed = {name: change(batch, draws) for name, change in _CHANGES.items() if name in batch}
    if not changed:
        raise DlrunError(
            f"ensemble.shift: nothing is known of changing {', '.join(name for name in batch if name != 'id')}",
            f"it changes {', '.join(_CHANGES)}; leave ensemble.shift out",
        )
    return {**batch, **changed}


def _normal(draws: Draws, *shape: int) -> Tensor:
    """[B, *shape], standard normal (Box and Muller 1958)."""
    radius = (-2 * (1 - draws.uniform(*shape)).log()).sqrt()
    return radius * (2 * math.pi * draws.uniform(*shape)).cos()


def _image(batch: Batch, draws: Draws) -> Tensor:
    """Blurred over 3 x 3 pixels by a binomial kernel, then noisy."""
    image_BCHW = batch["image"].float()
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    channels = image_BCHW.shape[1]
    kernel_C133 = torch.outer(kernel, kernel).expand(channels, 1, 3, 3)
    blurred_BCHW = conv2d(pad(image_BCHW, (1, 1, 1, 1), mode="replicate"), kernel_C133, groups=channels)
    noisy_BCHW = blurred_BCHW + 255 * _NOISE * _normal(draws, *image_BCHW.shape[1:])
    return noisy_BCHW.round().clamp(0, 255).to(batch["image"].dtype)


def _numbers(batch: Batch, draws: Draws) -> Tensor:
    numbers_BF = batch["numbers"]
    return numbers_BF + numbers_BF.std(0, correction=0) * _normal(draws, *numbers_BF.shape[1:])


def _categories(batch: Batch, draws: Draws) -> Tensor:
    codes_BM = batch["categories"]
    others_BM = codes_BM[permutation(len(codes_BM), "shift", draws.seed)]
    return torch.where(draws.uniform(*codes_BM.shape[1:]) < _REPLACED, others_BM, codes_BM)


def _series(batch: Batch, draws: Draws) -> Tensor:
    series_BTC = batch["series"]
    return series_BTC + series_BTC.std((0, 1), correction=0) * _normal(draws, *series_BTC.shape[1:])


def _tokens(batch: Batch, draws: Draws) -> Tensor:
    """A replacement is drawn among all tokens of all texts, so that frequent ones stay frequent."""
    tokens_BT = batch["tokens"]
    pool = tokens_BT[tokens_BT != 0]
    if not len(pool):
        return tokens_BT
    is_replaced_BT = (draws.uniform(*tokens_BT.shape[1:]) < _REPLACED) & (tokens_BT != 0)
    return torch.where(is_replaced_BT, pool[draws.integers(0, len(pool), *tokens_BT.shape[1:])], tokens_BT)


def _audio(batch: Batch, draws: Draws) -> Tensor:
    """Noise as loud as the recording: a signal-to-noise ratio of 0 dB."""
    audio_BS = batch["audio"].float()
    is_there_BS = torch.arange(audio_BS.shape[1]) < batch["audio_lengths"][:, None]
    power_B1 = (audio_BS**2).sum(1, keepdim=True) / batch["audio_lengths"][:, None].clamp(min=1)
    noisy_BS = audio_BS + power_B1.sqrt() * _normal(draws, audio_BS.shape[1])
    noisy_BS = noisy_BS.round().clamp(-32768, 32767).to(batch["audio"].dtype)
    return torch.where(is_there_BS, noisy_BS, batch["audio"])


_CHANGES: dict[str, Callable[[Batch, Draws], Tensor]] = {
    "image": _image,
    "numbers": _numbers,
    "categories": _categories,
    "series": _series,
    "tokens": _tokens,
    "audio": _audio,
}

"""Add white noise to sound, some decibels below it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlrun.augment._checks import ordered_pair, within
from dlrun.augment._sound import is_sample, sample_rate, samples
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws, hash_integers, key


def build(spec: DataSpec, *, probability: float = 0.5, decibels: tuple = (10.0, 30.0)) -> Augmentation:
    """Noise of its own for each example, or none.

    Settings:
        probability: of an example getting noise, 0 to 1.
        decibels: least and largest ratio of the power of an example to that of its noise, -20 to 100; drawn evenly.
    """
    sample_rate(spec, "noise")
    within("noise", "probability", probability, 0, 1)
    low, high = ordered_pair("noise", "decibels", decibels, -20, 100)

    def noise(batch: Batch, draws: Draws) -> Batch:
        is_noisy_B = draws.flags(probability)
        decibels_B = low + (high - low) * draws.uniform()
        audio_BS, there_BS = samples(batch), is_sample(batch)
        power_B = audio_BS.square().masked_fill(~there_BS, 0.0).sum(1) / batch["audio_lengths"].clamp(min=1)
        scale_B = (power_B * 10 ** (-decibels_B / 10)).sqrt() * is_noisy_B
        added_BS = scale_B[:, None] * _white(draws, audio_BS.shape[1])
        return batch | {"audio": audio_BS + added_BS.masked_fill(~there_BS, 0.0)}

    return noise


def _white(draws: Draws, count: int) -> Tensor:
    """float32 [B, count] of variance 1, drawn evenly: a key for each example, then four numbers of each hash. A
    number is a function of its example and its place, so it does not change with how far the batch is padded."""
    high_B, low_B = draws.integers(0, 1 << 24, 2).unbind(1)
    keys_B = ((high_B << 24) + low_B) << 15
    words = -(-count // 4)
    hashes = hash_integers(keys_B[:, None] + torch.arange(words, device=keys_B.device), key("noise"))
    return hashes.view(torch.int16)[:, :count].float() * (math.sqrt(3) / 32768)

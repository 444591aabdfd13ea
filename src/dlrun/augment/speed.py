"""Play sound faster or slower: tempo and pitch change together."""

from __future__ import annotations

import math

import torch

from dlrun.augment._checks import ordered_pair, within
from dlrun.augment._sound import sample_rate, samples
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws


def build(spec: DataSpec, *, probability: float = 1.0, factor: tuple = (0.9, 1.1)) -> Augmentation:
    """Each example has a speed of its own; samples between samples are interpolated linearly.

    Settings:
        probability: of an example's speed being changed, 0 to 1.
        factor: least and largest speed, 0.5 to 2; drawn evenly. Above 1 the example gets shorter.
    Source: Ko et al. 2015, "Audio Augmentation for Speech Recognition".
    """
    sample_rate(spec, "speed")
    within("speed", "probability", probability, 0, 1)
    low, high = ordered_pair("speed", "factor", factor, 0.5, 2)

    def speed(batch: Batch, draws: Draws) -> Batch:
        is_changed_B = draws.flags(probability)
        factor_B = torch.where(is_changed_B, low + (high - low) * draws.uniform(), 1.0)
        audio_BS, lengths_B = samples(batch), batch["audio_lengths"]
        longest = math.ceil(audio_BS.shape[1] / min(low, 1.0))  # no example is asked, so the device is not waited for
        after_B = ((lengths_B - 1).clamp(min=0) / factor_B).floor().to(torch.int64) + 1
        at_BS = torch.arange(longest, device=audio_BS.device) * factor_B[:, None]
        first_BS = at_BS.floor().to(torch.int64).clamp(max=audio_BS.shape[1] - 1)
        second_BS = torch.minimum(first_BS + 1, (lengths_B - 1).clamp(min=0)[:, None])
        part_BS = at_BS - first_BS
        between_BS = audio_BS.gather(1, first_BS) * (1 - part_BS) + audio_BS.gather(1, second_BS) * part_BS
        is_there_BS = torch.arange(longest, device=audio_BS.device) < after_B[:, None]
        return batch | {"audio": between_BS.masked_fill(~is_there_BS, 0.0), "audio_lengths": after_B}

    return speed

"""Move sound in time, with silence where it came from."""

from __future__ import annotations

import torch

from dlrun.augment._checks import within
from dlrun.augment._sound import is_sample, sample_rate, samples
from dlrun.contracts import Augmentation, Batch, DataSpec
from dlrun.randomness import Draws


def build(spec: DataSpec, *, most_ms: float = 50.0) -> Augmentation:
    """Each example begins earlier or later; what is moved over an end is lost.

    Settings:
        most_ms: milliseconds that an example is moved at most, either way; drawn evenly.
    """
    rate = sample_rate(spec, "time_shift")
    within("time_shift", "most_ms", most_ms, 0, 60_000)

    def time_shift(batch: Batch, draws: Draws) -> Batch:
        audio_BS, there_BS = samples(batch), is_sample(batch)
        shift_B = ((2 * draws.uniform() - 1) * (most_ms * rate / 1000)).round().to(torch.int64)
        from_BS = torch.arange(audio_BS.shape[1], device=audio_BS.device) - shift_B[:, None]
        is_there_BS = (from_BS >= 0) & (from_BS < batch["audio_lengths"][:, None]) & there_BS
        moved_BS = audio_BS.gather(1, from_BS.clamp(0, audio_BS.shape[1] - 1))
        return batch | {"audio": moved_BS.masked_fill(~is_there_BS, 0.0)}

    return time_shift

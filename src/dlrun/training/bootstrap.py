"""Training examples drawn with replacement, as bagging wants them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.contracts import Batch, Split, WithLengths
from dlrun.randomness import key


@dataclass
class Resampled:
    """As many rows of a split as it has, some of them several times; a row keeps its id."""

    split: Split
    rows_N: Tensor
    in_memory: bool

    def __len__(self) -> int:
        return len(self.rows_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """See Split."""
        return self.split.gather(self.rows_N[rows_B])


@dataclass
class ResampledTexts(Resampled):
    """The same of rows that differ in length."""

    lengths: Tensor


def resampled(split: Split, seed: int | None) -> Split:
    """The split drawn with replacement; itself without a seed."""
    if seed is None:
        return split
    generator = torch.Generator().manual_seed(key("bootstrap", seed) & 0x7FFF_FFFF_FFFF_FFFF)
    rows_N = torch.randint(len(split), (len(split),), generator=generator)
    if isinstance(split, WithLengths):
        return ResampledTexts(split, rows_N, split.in_memory, split.lengths[rows_N])
    return Resampled(split, rows_N, split.in_memory)

"""Keyed randomness: every draw is a pure function of integers, so nothing has to be carried or saved.

The order of an epoch is f(seed, epoch); an augmentation draw is f(seed, epoch, example, stream, draw);
a mixing partner is f(seed, step, position). A resumed run therefore sees the same numbers at any
number of workers, and on any device.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Constants of the splitmix64 finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
# number generators"), as signed 64-bit integers because torch has no unsigned arithmetic.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_MASK_64 = (1 << 64) - 1


def key(*parts: int | str) -> int:
    """One signed 64-bit key from any integers and words, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_integers(x: Tensor, seed: int) -> Tensor:
    """Mix int64 counters with a key into uniformly spread int64 values of the same shape."""
    x = x * _GOLDEN + seed
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(counters: Tensor, seed: int) -> Tensor:
    """float32 in [0, 1) for each int64 counter, equal on every device."""
    return _shift_right(hash_integers(counters, seed), 40).to(torch.float32) * (1.0 / (1 << 24))


def permutation(size: int, *parts: int | str) -> Tensor:
    """A permutation of range(size), int64, that depends on the key parts alone."""
    generator = torch.Generator().manual_seed(key(*parts) & _MASK_64)
    return torch.randperm(size, generator=generator)


class Draws:
    """The random numbers of one batch: a new draw at every call, a pure function of what keys it.

    ids_B: int64 row numbers of the examples, so that a draw belongs to an example and not to
    its place in a batch. `partners` alone depends on the step and the position.
    """

    def __init__(self, ids_B: Tensor, *, seed: int, epoch: int, step: int = 0, stream: int = 0) -> None:
        self.ids_B = ids_B
        self.seed, self.epoch, self.step, self.stream = seed, epoch, step, stream
        self._calls = 0

    def for_stream(self, stream: int) -> Draws:
        """Independent draws for the same examples (one stream for each augmentation of a list)."""
        return Draws(self.ids_B, seed=self.seed, epoch=self.epoch, step=self.step, stream=stream)

    def _key(self, *parts: int | str) -> int:
        self._calls += 1
        return key(self.seed, self.stream, self._calls, *parts)

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] float32 in [0, 1), on the device of the ids."""
        count = 1
        for size in shape:
            count *= size
        offsets = torch.arange(count, device=self.ids_B.device)
        counters = self.ids_B.reshape(-1, 1) * count + offsets
        return uniform(counters, self._key("example", self.epoch)).reshape(len(self.ids_B), *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """[B, *shape] int64 in [low, high)."""
        return low + (self.uniform(*shape) * (high - low)).to(torch.int64).clamp_(max=high - low - 1)

    def flags(self, probability: float) -> Tensor:
        """[B] bool, each True with this probability."""
        return self.uniform() < probability

    def partners(self) -> Tensor:
        """[B] int64: for each position of the batch another position to mix with (a permutation)."""
        return permutation(len(self.ids_B), self._key("partners", self.step)).to(self.ids_B.device)

    def one(self) -> float:
        """One float in [0, 1) for the whole batch, keyed by the step."""
        return float(uniform(torch.tensor([self.step]), self._key("batch"))[0])

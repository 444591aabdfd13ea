"""Rows of like length in one batch, so that little of it is padding."""

# N rows, K full batches of B rows

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.contracts import Split, WithLengths
from dlrun.randomness import permutation

_POOL = 50  # batches that are sorted together: more would waste still less, and part rows of unlike length more


def bucketed(order_N: Tensor, lengths_N: Tensor, batch_size: int, *key: int | str) -> Tensor:
    """The same rows in another order, a pure function of the first and of the key.

    The order is cut into pools of 50 batches, each pool is sorted by length and cut into batches, and the batches are
    shuffled. Rows that fill no batch stay where they were, at the end, whatever their lengths: none is favoured.
    """
    full = len(order_N) // batch_size
    body, rest = order_N[: full * batch_size], order_N[full * batch_size :]
    pools = [pool[torch.argsort(lengths_N[pool], stable=True)] for pool in body.split(_POOL * batch_size)]
    if not pools:
        return order_N
    batches_KB = torch.cat(pools).reshape(full, batch_size)
    return torch.cat([batches_KB[permutation(full, "buckets", *key)].flatten(), rest])


def longest_first(split: Split) -> Tensor:
    """The rows of a split in the order they are evaluated in: as they are, or by length where they differ in it.

    The longest come first: if the memory does not last, that shows at once.
    """
    if isinstance(split, WithLengths):
        return torch.argsort(split.lengths, descending=True, stable=True)
    return torch.arange(len(split))

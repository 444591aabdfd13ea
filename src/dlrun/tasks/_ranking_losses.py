"""Losses of ranking: one item that was right, against others that were drawn."""

# M places with a target, n negatives, I items

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

DRAWS = 3  # of a negative that the user had, before it is let be


def bpr(positive_M: Tensor, negatives_Mn: Tensor) -> Tensor:
    """-log sigmoid(positive - negative), mean over negatives, [M] (Rendle et al. 2009, "BPR", section 4.1)."""
    return -logsigmoid(positive_M[:, None] - negatives_Mn).mean(1)


def bce(positive_M: Tensor, negatives_Mn: Tensor) -> Tensor:
    """-log sigmoid(positive) - sum log(1 - sigmoid(negative)), [M] (Kang and McAuley 2018, section III-F)."""
    return -logsigmoid(positive_M) - logsigmoid(-negatives_Mn).sum(1)


def softmax(positive_M: Tensor, negatives_Mn: Tensor) -> Tensor:
    """Cross-entropy of the right one among itself and the negatives, [M]."""
    logits = torch.cat([positive_M[:, None], negatives_Mn], 1)
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device), reduction="none")


def uniform_items(shape: tuple[int, ...], num_items: int, device: torch.device) -> Tensor:
    """Ids from 1, each as likely as any."""
    return torch.randint(1, num_items + 1, shape, device=device)


def log_uniform_items(shape: tuple[int, ...], num_items: int, device: torch.device) -> Tensor:
    """Ids from 1, the first, which are the most frequent, the likeliest: P(i) = log((i + 1) / i) / log(I + 1)."""
    share = torch.rand(shape, device=device, dtype=torch.float64)
    return torch.exp(share * math.log(num_items + 1)).long().clamp(1, num_items)


def log_uniform_chance(items: Tensor, num_items: int) -> Tensor:
    """log P(i) of `log_uniform_items`, float32."""
    ids = items.clamp(min=1).float()
    return torch.log(torch.log1p(1 / ids) / math.log(num_items + 1))

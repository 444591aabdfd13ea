"""What the models of text share: which places are tokens, and sums over them alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrun.models import _layers

# B batch, T places, D features


def is_token(tokens: Tensor, lengths_B: Tensor) -> Tensor:
    """bool [B, T]: the places before each row's length. A row without tokens has one, so that nothing divides by 0.

    tokens: [B, T] or [B, T, features]; only its size matters.
    """
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths_B.clamp(min=1)[:, None]


def lengths_of(tokens_BT: Tensor) -> Tensor:
    """int64 [B]: of rows that are padded with 0 after their last token."""
    places_T = torch.arange(1, tokens_BT.shape[1] + 1, device=tokens_BT.device)
    return (places_T * (tokens_BT != 0)).amax(1)


def pooled(x_BTD: Tensor, is_token_BT: Tensor, pooling: str) -> Tensor:
    """[B, D]: the "mean", "sum" or "max" over each row's tokens; what stands elsewhere has no part in it."""
    there_BT1 = is_token_BT[..., None]
    if pooling == "max":
        return x_BTD.masked_fill(~there_BT1, float("-inf")).amax(1)
    total_BD = x_BTD.masked_fill(~there_BT1, 0.0).sum(1)
    return total_BD if pooling == "sum" else total_BD / there_BT1.sum(1)


def embedding(vocabulary: int, width: int, std: float) -> nn.Embedding:
    """Vectors of the tokens, from a normal distribution."""
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    _layers.require(std > 0, "embedding_std", std, "a number above 0")
    layer = nn.Embedding(vocabulary, width)
    nn.init.normal_(layer.weight, std=std)
    return layer

"""SASRec: self-attention over what a user had before (Kang and McAuley 2018)."""

# B batch, T places of a history, D width, H heads

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, _recommender, _transformer


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); a place sees itself and what came before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = _transformer.FeedForward(width, width, "relu", True, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, seen_B1TT: Tensor) -> Tensor:
        """[B, T, D]. seen_B1TT: bool, which places each place looks at."""
        q, k, v = (
            _transformer.in_heads(part, self.heads) for part in self.qkv(self.attention_norm(x_BTD)).chunk(3, -1)
        )
        dropout = self.attention_dropout if self.training else 0.0
        y_BTD = _transformer.joined(F.scaled_dot_product_attention(q, k, v, attn_mask=seen_B1TT, dropout_p=dropout))
        x_BTD = x_BTD + self.dropout(self.out(y_BTD))
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class SasRec(nn.Module):
    """Vectors of items and of places, blocks, a norm; the score of an item is the product with its own vector."""

    def __init__(self, items: nn.Embedding, positions: nn.Embedding, dropout: float, blocks: list[Block]) -> None:
        super().__init__()
        self.items, self.positions = items, positions
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(items.embedding_dim)

    def forward(self, user_B: Tensor, history_BT: Tensor, items: Tensor) -> Tensor:
        """Scores in the form of items: [B, C], [B, T, C], or [I] (then [B, I]). The user is not looked at."""
        return _recommender.products(self.read(history_BT), self.items(items), items)

    def read(self, history_BT: Tensor) -> Tensor:
        """[B, T, D], what is expected after each place. Places are counted from the latest."""
        if history_BT.shape[1] == 0:  # of a row without any history nothing is expected
            return self.positions.weight.new_zeros(len(history_BT), 1, self.items.embedding_dim)
        history_BT = history_BT[:, -self.positions.num_embeddings :]
        length = history_BT.shape[1]
        is_there_BT = history_BT > 0
        x_BTD = self.items(history_BT) * math.sqrt(self.items.embedding_dim)
        x_BTD = self.dropout(x_BTD + self.positions.weight[:length].flip(0))
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=x_BTD.device).tril()
        # Padding sees itself, since attention to nothing is not a number.
        itself_TT = torch.eye(length, dtype=torch.bool, device=x_BTD.device)
        seen_BTT = (causal_TT & is_there_BT[:, None]) | itself_TT
        for block in self.blocks:
            x_BTD = block(x_BTD, seen_BTT[:, None])
        return self.norm(x_BTD)


def build(
    spec: DataSpec, *, depth: int = 2, width: int = 50, heads: int = 1, dropout: float = 0.5, std: float = 0.02
) -> nn.Module:
    """SASRec; its defaults are the paper's for sparse data.

    Settings:
    depth: number of blocks, at least 1
    width: numbers of a vector, a multiple of heads
    heads: of attention, at least 1
    dropout: share of vectors, attention and units set to zero while training, in [0, 1)
    std: deviation that vectors start with, above 0
    """
    _layers.require(depth >= 1, "depth", depth, "an integer of at least 1")
    _transformer.check_heads(width, heads)
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    _layers.require(std > 0, "std", std, "a number above 0")
    given = _recommender.facts(spec)
    if "history" not in spec.sizes:
        raise DlrunError("this model reads what a user had before; this data has no histories", "data.history=50")
    items = _recommender.embedding(given.num_items, width, std)
    positions = nn.Embedding(spec.size("history"), width)
    nn.init.normal_(positions.weight, std=std)
    return SasRec(items, positions, dropout, [Block(width, heads, dropout) for _ in range(depth)])

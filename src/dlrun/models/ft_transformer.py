"""FT-Transformer: every column of a table is a token of a transformer (Gorishniy et al. 2021, section 3.3)."""

# B batch, F numbers of a row, M categories of a row, T tokens (1 + F + M), D width, H heads, K outputs

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _tabular, _transformer


class Tokenizer(nn.Module):
    """A token for the row as a whole, then x_j w_j + b_j of each number and e_j + b_j of each category."""

    def __init__(self, given: _tabular.Facts, width: int) -> None:
        super().__init__()
        self.row = nn.Parameter(_small(1, width))
        self.numbers = nn.Parameter(_small(given.num_numbers, width))
        self.bias = nn.Parameter(_small(given.num_numbers + len(given.cardinalities), width))
        self.categories = _tabular.Categories(given.cardinalities, width) if given.cardinalities else None

    def forward(self, numbers_BF: Tensor, categories_BM: Tensor) -> Tensor:
        """[B, T, D]."""
        columns = [numbers_BF[:, :, None] * self.numbers]
        if self.categories is not None:
            columns.append(self.categories(categories_BM))
        tokens_BTD = torch.cat(columns, dim=1) + self.bias
        return torch.cat([self.row.expand(tokens_BTD.shape[0], 1, -1), tokens_BTD], dim=1)


def _small(rows: int, width: int) -> Tensor:
    return torch.empty(rows, width).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) with ReGLU: relu(gate) * up (Shazeer 2020, eq. 6)."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropouts: tuple[float, float, float], is_first: bool
    ) -> None:
        super().__init__()
        self.heads, (self.attention_dropout, hidden_dropout, residual_dropout) = heads, dropouts
        # The first norm is left out, which the authors found to be easier to train.
        self.attention_norm = nn.Identity() if is_first else nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.hidden_dropout, self.residual_dropout = nn.Dropout(hidden_dropout), nn.Dropout(residual_dropout)

    def forward(self, x_BTD: Tensor, only_first: bool = False) -> Tensor:
        """[B, T, D]; only_first: the token of the row alone asks, [B, 1, D], as no other is looked at any more."""
        normed_BTD = self.attention_norm(x_BTD)
        key, value = self.key_value(normed_BTD).chunk(2, dim=-1)
        query = self.query(normed_BTD[:, :1] if only_first else normed_BTD)
        x_BTD = x_BTD[:, :1] if only_first else x_BTD
        q, k, v = (_transformer.in_heads(part, self.heads) for part in (query, key, value))
        dropout = self.attention_dropout if self.training else 0.0
        seen = _transformer.joined(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout))
        x_BTD = x_BTD + self.residual_dropout(self.out(seen))
        normed_BTD = self.feed_forward_norm(x_BTD)
        hidden = self.hidden_dropout(F.relu(self.gate(normed_BTD)) * self.up(normed_BTD))
        return x_BTD + self.residual_dropout(self.down(hidden))


class FtTransformer(nn.Module):
    """Tokens of columns, blocks, and head(relu(norm(token of the row)))."""

    def __init__(self, spec: DataSpec, width: int, blocks: list[Block]) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(_tabular.facts(spec), width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = _tabular.Head(width, spec)

    def forward(self, numbers_BF: Tensor, categories_BM: Tensor) -> Tensor:
        """[B, K]."""
        x_BTD = self.tokenizer(numbers_BF, categories_BM)
        for index, block in enumerate(self.blocks, start=1):
            x_BTD = block(x_BTD, only_first=index == len(self.blocks))
        return self.head(F.relu(self.norm(x_BTD[:, 0])))


def build(
    spec: DataSpec,
    *,
    depth: int = 3,
    width: int = 192,
    heads: int = 8,
    hidden_factor: float = 1.333,
    attention_dropout: float = 0.2,
    dropout: float = 0.1,
    residual_dropout: float = 0.0,
) -> nn.Module:
    """The FT-Transformer; its defaults are the paper's.

    Settings:
    depth: number of blocks, at least 1
    width: numbers of a token, a multiple of heads
    heads: of attention, at least 1
    hidden_factor: units of a feed-forward layer are so many times the width
    attention_dropout: share of attention set to zero while training, in [0, 1)
    dropout: share of the feed-forward units set to zero while training, in [0, 1)
    residual_dropout: share of what a layer adds that is set to zero while training, in [0, 1)
    """
    _layers.require(depth >= 1, "depth", depth, "an integer of at least 1")
    _transformer.check_heads(width, heads)
    hidden = round(hidden_factor * width)
    _layers.require(hidden >= 1, "hidden_factor", hidden_factor, "a number that leaves at least one unit")
    dropouts = (attention_dropout, dropout, residual_dropout)
    for name, value in zip(("attention_dropout", "dropout", "residual_dropout"), dropouts, strict=True):
        _layers.require(0 <= value < 1, name, value, "a number in [0, 1)")
    return FtTransformer(spec, width, [Block(width, heads, hidden, dropouts, at == 0) for at in range(depth)])

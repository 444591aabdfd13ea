"""ResNet for tables: blocks of two linear layers beside a skip connection (Gorishniy et al. 2021, section 3.2)."""

# B batch, F numbers of a row, M categories of a row, D width, K outputs

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _tabular


class Block(nn.Module):
    """x + dropout(linear(dropout(relu(linear(norm(x))))))."""

    def __init__(self, width: int, hidden: int, norm: str, dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.norm = _layers.norm_1d(norm, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = nn.ReLU()
        self.dropout, self.residual_dropout = nn.Dropout(dropout), nn.Dropout(residual_dropout)

    def forward(self, x_BD: Tensor) -> Tensor:
        y_BD = self.dropout(self.activation(self.up(self.norm(x_BD))))
        return x_BD + self.residual_dropout(self.down(y_BD))


class TabularResNet(nn.Module):
    """A linear layer, blocks, then head(relu(norm(x)))."""

    def __init__(self, spec: DataSpec, embedding_width: int, width: int, norm: str, blocks: list[Block]) -> None:
        super().__init__()
        self.row = _tabular.Flat(_tabular.facts(spec), embedding_width)
        self.first = nn.Linear(self.row.width, width)
        self.blocks = nn.Sequential(*blocks)
        self.norm = _layers.norm_1d(norm, width)
        self.activation = nn.ReLU()
        self.head = _tabular.Head(width, spec)

    def forward(self, numbers_BF: Tensor, categories_BM: Tensor) -> Tensor:
        """[B, K]."""
        x_BD = self.blocks(self.first(self.row(numbers_BF, categories_BM)))
        return self.head(self.activation(self.norm(x_BD)))


def build(
    spec: DataSpec,
    *,
    depth: int = 2,
    width: int = 192,
    hidden_factor: float = 2.0,
    embedding_width: int = 8,
    norm: Literal["batch", "layer", "none"] = "batch",
    dropout: float = 0.2,
    residual_dropout: float = 0.0,
) -> nn.Module:
    """The tabular ResNet.

    Settings:
    depth: number of blocks, at least 0
    width: units between the blocks, at least 1
    hidden_factor: units inside a block are so many times the width
    embedding_width: numbers that stand for a category, at least 1
    norm: normalisation at the start of a block
    dropout: share of a block's inner units set to zero while training, in [0, 1)
    residual_dropout: share of what a block adds that is set to zero while training, in [0, 1)
    """
    _layers.require(depth >= 0, "depth", depth, "an integer of at least 0")
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    _layers.require(
        hidden_factor * width >= 1, "hidden_factor", hidden_factor, "a number that leaves at least one unit"
    )
    for name, value in (("dropout", dropout), ("residual_dropout", residual_dropout)):
        _layers.require(0 <= value < 1, name, value, "a number in [0, 1)")
    _tabular.check_width(embedding_width)
    blocks = [Block(width, int(hidden_factor * width), norm, dropout, residual_dropout) for _ in range(depth)]
    return TabularResNet(spec, embedding_width, width, norm, blocks)

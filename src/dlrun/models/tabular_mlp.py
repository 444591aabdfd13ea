"""Multi-layer perceptron on a table: numbers and embeddings of categories, end to end."""

# B batch, F numbers of a row, M categories of a row, D width, K outputs

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _tabular


class TabularMlp(nn.Module):
    """Embeddings, hidden layers, head."""

    def __init__(self, spec: DataSpec, embedding_width: int, sizes: tuple[int, ...], norm: str, dropout: float) -> None:
        super().__init__()
        self.row = _tabular.Flat(_tabular.facts(spec), embedding_width)
        layers: list[nn.Module] = []
        for before, after in zip((self.row.width, *sizes), sizes, strict=False):
            layers += [nn.Linear(before, after), _layers.norm_1d(norm, after), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        _layers.initialise(self.hidden, "kaiming", "relu")
        self.head = _tabular.Head((self.row.width, *sizes)[-1], spec)

    def forward(self, numbers_BF: Tensor, categories_BM: Tensor) -> Tensor:
        """[B, K]."""
        return self.head(self.hidden(self.row(numbers_BF, categories_BM)))


def build(
    spec: DataSpec,
    *,
    depth: int = 2,
    width: int = 256,
    widths: tuple[int, ...] | None = None,
    embedding_width: int = 8,
    norm: Literal["none", "batch", "layer"] = "none",
    dropout: float = 0.1,
) -> nn.Module:
    """A stack of fully connected layers with ReLU.

    Settings:
    depth: number of hidden layers, at least 0
    width: units of each hidden layer, at least 1
    widths: units of each hidden layer, one number a layer, e.g. [512,256,128]; replaces depth and width
    embedding_width: numbers that stand for a category, at least 1
    norm: normalisation before the activation
    dropout: share of hidden units set to zero while training, in [0, 1)
    """
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    _layers.require(depth >= 0, "depth", depth, "an integer of at least 0")
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    _tabular.check_width(embedding_width)
    sizes = _layers.positive_integers("widths", widths) if widths is not None else (width,) * depth
    return TabularMlp(spec, embedding_width, sizes, norm, dropout)

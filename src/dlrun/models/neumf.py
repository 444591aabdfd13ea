"""NeuMF: a weighted product of vectors beside a perceptron on a second pair of them (He et al. 2017)."""

# B batch, D width, I items of all rows

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _recommender

_AT_ONCE = 1 << 18  # pairs of user and item: a perceptron on all items of many users would not fit


class NeuMf(nn.Module):
    """head([user * item, perceptron([user', item'])]) plus the mean of the ratings."""

    mean: Tensor

    def __init__(
        self, given: _recommender.Facts, width: int, widths: tuple[int, ...], std: float, dropout: float
    ) -> None:
        super().__init__()
        self.users, self.items = (
            _recommender.embedding(count, width, std) for count in (given.num_users, given.num_items)
        )
        deep = widths[0] // 2
        self.deep_users, self.deep_items = (
            _recommender.embedding(count, deep, std) for count in (given.num_users, given.num_items)
        )
        layers: list[nn.Module] = []
        for before, after in zip((2 * deep, *widths[1:]), widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        _layers.initialise(self.hidden, "kaiming", "relu")
        self.head = nn.Linear(width + (widths[-1] if len(widths) > 1 else 2 * deep), 1)
        self.register_buffer("mean", torch.tensor(given.mean_rating), persistent=False)

    def forward(self, user_B: Tensor, history_BT: Tensor, items: Tensor) -> Tensor:
        """Scores in the form of items: [B, C], [B, T, C], or [I] (then [B, I]). The history is not looked at."""
        if items.dim() == 1:
            parts = items.split(max(1, _AT_ONCE // max(1, len(user_B))))
            return torch.cat([self._scores(user_B, part) for part in parts], dim=1)
        return self._scores(user_B, items)

    def _scores(self, user_B: Tensor, items: Tensor) -> Tensor:
        product = _recommender.beside(self.users(user_B), items) * self.items(items)
        user_D = _recommender.beside(self.deep_users(user_B), items)
        deep = self.hidden(torch.cat([user_D, self.deep_items(items).expand_as(user_D)], dim=-1))
        return self.head(torch.cat([product, deep], dim=-1))[..., 0] + self.mean


def build(
    spec: DataSpec,
    *,
    width: int = 32,
    widths: tuple[int, ...] = (64, 32, 16),
    std: float = 0.1,
    dropout: float = 0.0,
) -> nn.Module:
    """Generalised matrix factorisation and a perceptron, trained together.

    Settings:
    width: numbers of a vector on the side of products, at least 1
    widths: units of the perceptron, the first of them shared by the vectors of user and item, e.g. [64,32,16]
    std: deviation that vectors start with, above 0
    dropout: share of hidden units set to zero while training, in [0, 1)
    """
    _recommender.check_width(width)
    sizes = _layers.positive_integers("widths", widths)
    _layers.require(
        len(sizes) > 0 and sizes[0] % 2 == 0, "widths", list(widths), "a list that begins with an even number"
    )
    _layers.require(std > 0, "std", std, "a number above 0")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    return NeuMf(_recommender.facts(spec), width, sizes, std, dropout)

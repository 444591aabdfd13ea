"""Two towers: a perceptron for users and one for items, from ids, features and history, whose products score."""

# B batch, T places of a history, D width

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _recommender, _tabular

_FEATURES = "features.safetensors"  # of the data's files: numbers and categories of users and items by id


class Tower(nn.Module):
    """The vector of an id, and what is known of it, through a perceptron."""

    numbers: Tensor
    codes: Tensor

    def __init__(
        self, count: int, known: dict[str, Tensor], cardinalities: list[int], hidden: tuple[int, ...], width: int,
        extra: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ids = _recommender.embedding(count, width, 0.1)
        numbers = known.get("numbers", torch.zeros(count + 1, 0))
        self.register_buffer("numbers", numbers, persistent=False)
        self.register_buffer("codes", known.get("categories", torch.zeros(count + 1, 0).long()), persistent=False)
        self.row = _tabular.Flat(_tabular.Facts(numbers.shape[1], tuple(cardinalities)), _FEATURE_WIDTH)
        layers: list[nn.Module] = []
        sizes = (width + self.row.width + extra, *hidden)
        for before, after in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], width))

    def forward(self, ids: Tensor, *beside: Tensor) -> Tensor:
        """Vectors of ids of any form, and then D; beside: further numbers of the same form."""
        flat = ids.reshape(-1)
        known = self.row(self.numbers[flat], self.codes[flat]).view(*ids.shape, -1)
        return self.layers(torch.cat([self.ids(ids), known, *beside], dim=-1))


_FEATURE_WIDTH = 8  # numbers that stand for a category


class TwoTower(nn.Module):
    """cosine(user, item) / temperature, plus the mean of the ratings."""

    mean: Tensor

    def __init__(self, users: Tower, items: Tower, history: int, temperature: float, mean_rating: float) -> None:
        super().__init__()
        self.users, self.items, self.history, self.temperature = users, items, history, temperature
        self.register_buffer("mean", torch.tensor(mean_rating), persistent=False)

    def forward(self, user_B: Tensor, history_BT: Tensor, items: Tensor) -> Tensor:
        """Scores in the form of items: [B, C], [B, T, C], or [I] (then [B, I])."""
        if not self.history:
            query = self.users(user_B)
        elif items.dim() == 3:
            query = self.users(user_B[:, None].expand_as(history_BT), self.means(history_BT))
        else:
            query = self.users(user_B, self.means(history_BT)[:, -1])
        vectors = F.normalize(self.items(items), dim=-1)
        said = _recommender.products(F.normalize(query, dim=-1), vectors, items)
        return said / self.temperature + self.mean

    def means(self, history_BT: Tensor) -> Tensor:
        """[B, T, D]: at each place the mean of the vectors up to it; of nothing, zero."""
        is_there_BT = (history_BT > 0).float()
        sums_BTD = (self.items.ids(history_BT) * is_there_BT[..., None]).cumsum(1)
        return sums_BTD / is_there_BT.cumsum(1).clamp(min=1)[..., None]


def build(spec: DataSpec, *, width: int = 64, hidden: tuple[int, ...] = (128,), temperature: float = 0.1) -> nn.Module:
    """Two perceptrons on what is known of a user and of an item.

    Settings:
    width: numbers of a vector, at least 1
    hidden: units of the layers inside each tower, e.g. [128,64]; [] for none
    temperature: what the cosine is divided by, above 0
    """
    _recommender.check_width(width)
    _layers.require(temperature > 0, "temperature", temperature, "a number above 0")
    sizes = _layers.positive_integers("hidden", hidden) if len(hidden) else ()
    given, history = _recommender.facts(spec), spec.sizes.get("history", 0)
    known = load(spec.files[_FEATURES]) if _FEATURES in spec.files else {}
    codes = spec.assets.get("cardinalities", {})
    users, items = (
        Tower(
            count,
            {name.removeprefix(f"{side}_"): value for name, value in known.items() if name.startswith(f"{side}_")},
            codes.get(side, []),
            sizes,
            width,
            width if side == "user" and history else 0,
        )
        for side, count in (("user", given.num_users), ("item", given.num_items))
    )
    return TwoTower(users, items, history, temperature, given.mean_rating)

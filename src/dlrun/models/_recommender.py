"""What the models that recommend share: facts of the data, and scores of items as products of vectors."""

# B batch, T places of a history, C items of a row, I items of all rows, D width

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError


class Facts(NamedTuple):
    """num_users and num_items, whose ids begin at 1.   mean_rating: of ratings to predict, else 0."""

    num_users: int
    num_items: int
    mean_rating: float


def facts(spec: DataSpec) -> Facts:
    """What the data is. Raises: DlrunError for data without users and items."""
    return Facts(spec.size("users"), spec.size("items"), float(spec.assets.get("mean_rating", 0.0)))


def embedding(count: int, width: int, std: float) -> nn.Embedding:
    """Vectors of ids from 1, drawn from a normal distribution; that of id 0 is zero and stays so."""
    made = nn.Embedding(count + 1, width, padding_idx=0)
    with torch.no_grad():
        made.weight[1:] = std * torch.randn(count, width)
    return made


def products(query: Tensor, vectors: Tensor, items: Tensor) -> Tensor:
    """Scores of items in the form of items: [B, C], [B, T, C], or of [I] for all rows [B, I].

    query: [B, D], or [B, T, D], of which the last place counts where items are not given a place.
    vectors: of the items, in the form of items and then D.
    """
    last = query[:, -1] if query.dim() == 3 else query
    if items.dim() == 1:
        return last @ vectors.T
    if items.dim() == 2:
        return torch.einsum("bd,bcd->bc", last, vectors)
    query = query if query.dim() == 3 else query[:, None]
    return (query[:, :, None] * vectors).sum(-1)


def beside(by_row: Tensor, items: Tensor) -> Tensor:
    """Something of each row [B, …] in the form of items, so that it can be put beside something of each item."""
    if items.dim() == 1:
        return by_row[:, None].expand(-1, len(items), *by_row.shape[1:])
    shape = (len(by_row), *(1,) * (items.dim() - 1), *by_row.shape[1:])
    return by_row.reshape(shape).expand(*items.shape, *by_row.shape[1:])


def check_width(width: int) -> None:
    """Raises: DlrunError below 1."""
    if width < 1:
        raise DlrunError(f"model.width: {width} is not at least 1", "model.width=64")

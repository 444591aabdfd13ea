"""What the models of tables share: facts of the data, embeddings of categories, and the head."""

# B batch, F numbers of a row, M categories of a row, D width of an embedding, K outputs

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError

_UNKNOWN = 0  # the code of a category never seen


class Facts(NamedTuple):
    """num_numbers: F.   cardinalities: the codes of each category, [M]."""

    num_numbers: int
    cardinalities: tuple[int, ...]


def facts(spec: DataSpec) -> Facts:
    """What the data is. Raises: DlrunError for data that is no table of numbers and categories."""
    spec.size("categories")
    return Facts(spec.size("numbers"), tuple(spec.assets["cardinalities"]))


class Categories(nn.Module):
    """An embedding for each category, all in one table; that of a word never seen starts at zero and says nothing."""

    offsets: Tensor

    def __init__(self, cardinalities: Sequence[int], width: int) -> None:
        super().__init__()
        starts = [sum(cardinalities[:index]) for index in range(len(cardinalities))]
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.embedding = nn.Embedding(sum(cardinalities), width)
        # As the tokens of the FT-Transformer start (Gorishniy et al. 2021, their code).
        nn.init.uniform_(self.embedding.weight, -1 / math.sqrt(width), 1 / math.sqrt(width))
        with torch.no_grad():
            self.embedding.weight[[start + _UNKNOWN for start in starts]] = 0.0

    def forward(self, categories_BM: Tensor) -> Tensor:
        """[B, M, D]."""
        return self.embedding(categories_BM + self.offsets)


class Flat(nn.Module):
    """A row as one vector: its numbers, and the embeddings of its categories end to end."""

    def __init__(self, given: Facts, width: int) -> None:
        super().__init__()
        self.categories = Categories(given.cardinalities, width) if given.cardinalities else None
        self.width = given.num_numbers + width * len(given.cardinalities)

    def forward(self, numbers_BF: Tensor, categories_BM: Tensor) -> Tensor:
        """[B, width]."""
        if self.categories is None:
            return numbers_BF
        embedded_BD = self.categories(categories_BM).flatten(1)
        return torch.cat([numbers_BF.to(embedded_BD.dtype), embedded_BD], dim=1)


class Units(nn.Module):
    """What a network says, in the units of the numbers to predict; of classes, as it is."""

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.scaled = "target_std" in spec.assets
        if self.scaled:
            self.register_buffer("scale", torch.tensor(spec.assets["target_std"]), persistent=False)
            self.register_buffer("shift", torch.tensor(spec.assets["target_mean"]), persistent=False)

    def forward(self, y_BK: Tensor) -> Tensor:
        """[B, K]."""
        return y_BK.float() * self.scale + self.shift if self.scaled else y_BK


class Head(nn.Module):
    """A linear layer to the outputs, and their units."""

    def __init__(self, width: int, spec: DataSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(width, spec.num_outputs)
        self.units = Units(spec)

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, K]."""
        return self.units(self.linear(x_BD))


def check_width(embedding_width: int) -> None:
    """Raises: DlrunError below 1."""
    if embedding_width < 1:
        raise DlrunError(f"model.embedding_width: {embedding_width} is not at least 1", "model.embedding_width=8")

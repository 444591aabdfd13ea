"""What the columns of a mixed table become: standardised numbers, and codes of categories; kept with the run."""

# N rows, F numbers of a row, M categories of a row

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from dlrun.data._mixed_cells import Numbers, Words

FILE = "columns.json"  # among the files of a spec
UNKNOWN, MISSING, FIRST = 0, 1, 2  # codes of a category: one never seen, none at all, and that of the first value
_MOST_QUANTILES = 1000


@dataclass(frozen=True)
class NumberColumn:
    """median: stands for a missing number.   indicator: whether a second number says that it was missing.

    quantiles: of the training numbers at even steps, ascending; empty where numbers are standardised only.
    """

    name: str
    median: float
    mean: float
    std: float
    indicator: bool
    quantiles: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Numbers that a model sees of it."""
        return 1 + self.indicator

    def scaled(self, values_N: np.ndarray) -> np.ndarray:
        """float32 [N, width]. values_N: float64, nan where missing."""
        is_missing = np.isnan(values_N)
        filled = np.where(is_missing, self.median, values_N)
        scaled = self._normal(filled) if self.quantiles else (filled - self.mean) / self.std
        columns = [scaled, is_missing] if self.indicator else [scaled]
        return np.stack(columns, axis=1).astype(np.float32)

    def _normal(self, values_N: np.ndarray) -> np.ndarray:
        """The number of a normal distribution with the same share of numbers below it."""
        grid, steps = np.array(self.quantiles), np.linspace(0, 1, len(self.quantiles))
        # Both ways, so that a number that takes up many quantiles is put into their middle.
        up = np.interp(values_N, grid, steps)
        down = -np.interp(-values_N, -grid[::-1], -steps[::-1])
        edge = 1e-3  # of a normal distribution, 3.1 deviations
        share = torch.from_numpy(np.clip((up + down) / 2, edge, 1 - edge))
        return torch.special.ndtri(share).numpy()


@dataclass(frozen=True)
class CategoryColumn:
    """values: the words of the training rows, the most frequent first."""

    name: str
    values: tuple[str, ...]

    @property
    def cardinality(self) -> int:
        """Codes there are, those of an unknown and of a missing word among them."""
        return FIRST + len(self.values)

    def codes(self, words: Words) -> np.ndarray:
        """int64 [N]."""
        place = {value: index for index, value in enumerate(self.values, start=FIRST)}
        table = np.array([*(place.get(name, UNKNOWN) for name in words.names), MISSING], dtype=np.int64)
        return table[words.codes]

    def unknown(self, words: Words) -> Unknown | None:
        """The cells whose word has no code of its own, if there are any."""
        places = np.flatnonzero(self.codes(words) == UNKNOWN)
        return Unknown(len(places), int(places[0]), words.names[words.codes[places[0]]]) if len(places) else None


class Unknown(NamedTuple):
    """Cells of a column with a category that has no code of its own: how many, the place of the first, its word."""

    count: int
    first: int
    word: str

    def note(self, column: str, place: str) -> str:
        """A sentence. place: that of the first."""
        rows = "1 row has" if self.count == 1 else f"{self.count:,} rows have"
        return f"{rows} an unknown category in column '{column}' (the first: {place}, '{self.word}')"


@dataclass(frozen=True)
class MixedColumns:
    """All columns of a run. missing: words that mean that a cell is empty."""

    numbers: tuple[NumberColumn, ...]
    categories: tuple[CategoryColumn, ...]
    missing: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [column.name for column in (*self.numbers, *self.categories)]

    @property
    def num_numbers(self) -> int:
        """Numbers of a row, F."""
        return sum(column.width for column in self.numbers)

    @property
    def cardinalities(self) -> list[int]:
        """Codes of each category, [M]."""
        return [column.cardinality for column in self.categories]

    def fields(self, numbers: Mapping[str, np.ndarray], words: Mapping[str, Words], rows: int) -> dict[str, np.ndarray]:
        """ "numbers" float32 [N, F] and "categories" int64 [N, M], either of which may be of no width."""
        scaled = [column.scaled(numbers[column.name]) for column in self.numbers]
        codes = [column.codes(words[column.name]) for column in self.categories]
        return {
            "numbers": np.concatenate(scaled, 1) if scaled else np.zeros((rows, 0), dtype=np.float32),
            "categories": np.stack(codes, 1) if codes else np.zeros((rows, 0), dtype=np.int64),
        }

    def to_bytes(self) -> bytes:
        """JSON that `from_bytes` turns back."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @staticmethod
    def from_bytes(content: bytes) -> MixedColumns:
        """The inverse of `to_bytes`."""
        stored = json.loads(content)
        numbers = [NumberColumn(**column | {"quantiles": tuple(column["quantiles"])}) for column in stored["numbers"]]
        categories = [CategoryColumn(column["name"], tuple(column["values"])) for column in stored["categories"]]
        return MixedColumns(tuple(numbers), tuple(categories), tuple(stored["missing"]))


def measure_number(name: str, found: Numbers, rows: np.ndarray, how: Literal["standard", "quantile"]) -> NumberColumn:
    """A column as its training rows have it. rows: their numbers."""
    values = found.values[rows]
    known = values[~np.isnan(values)]
    indicator = len(known) < len(values)
    if not len(known):
        return NumberColumn(name, 0.0, 0.0, 1.0, indicator)
    mean, deviation = float(known.mean()), float(known.std())
    quantiles: Sequence[float] = ()
    if how == "quantile":
        count = max(2, min(_MOST_QUANTILES, len(known)))
        quantiles = np.quantile(known, np.linspace(0, 1, count)).tolist()
    std = deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0  # of a column that never varies
    return NumberColumn(name, float(np.median(known)), mean, std, indicator, tuple(quantiles))


def measure_category(name: str, words: Words, rows: np.ndarray, min_count: int) -> CategoryColumn:
    """A column as its training rows have it; words rarer than min_count are as good as unknown."""
    codes = words.codes[rows]
    counts = np.bincount(codes[codes >= 0], minlength=len(words.names))
    kept = [index for index in range(len(words.names)) if counts[index] >= min_count]
    ordered = sorted(kept, key=lambda index: (-counts[index], words.names[index]))
    return CategoryColumn(name, tuple(words.names[index] for index in ordered))

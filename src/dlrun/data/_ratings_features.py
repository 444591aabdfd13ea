"""What is known of users and items beside their interactions: numbers and categories by id, kept with the run."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlrun.data._interactions import Interactions
from dlrun.data._log import Log
from dlrun.data._mixed_cells import read_numbers, read_words, share_of_numbers
from dlrun.data._mixed_columns import CategoryColumn, MixedColumns, NumberColumn, measure_category, measure_number

FEATURES = "features.safetensors"  # among the files of a spec


def feature_tensors(
    found: Interactions, rows: np.ndarray, log: Log, user_columns: tuple[str, ...], item_columns: tuple[str, ...]
) -> tuple[bytes, dict[str, list[int]]]:
    """Tensors "user_numbers" float32 [U + 1, F], "user_categories" int64 [U + 1, M] and the same of items, row 0 of
    nobody; and the codes of each category. What is said of one in several rows, the first of them says."""
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    cardinalities = {}
    for side, columns, id_N, count in (
        ("user", user_columns, log.user, len(log.ids.users)),
        ("item", item_columns, log.item, len(log.ids.items)),
    ):
        if not columns:
            continue
        ids, first = np.unique(id_N, return_index=True)
        at = np.zeros(count + 1, dtype=np.int64)
        at[ids] = log.row[first]
        mixed, fields = _coded(found, columns, at)
        for name, values in fields.items():
            values[0] = 0
            tensors[f"{side}_{name}"] = values
        cardinalities[side] = mixed.cardinalities
    return save(tensors), cardinalities


def _coded(found: Interactions, columns: tuple[str, ...], at: np.ndarray) -> tuple[MixedColumns, dict[str, np.ndarray]]:
    """Columns by id. at: for each id the row of the file that says it; that of id 0 does not count."""
    import pyarrow as pa

    nothing: frozenset[str] = frozenset()
    numbers: list[NumberColumn] = []
    categories: list[CategoryColumn] = []
    values, words = {}, {}
    everybody = np.arange(1, len(at))
    for name in columns:
        cells: Any = found.columns[name].take(pa.array(at))
        if _is_numeric(cells) or share_of_numbers(cells, nothing) == 1.0:
            read = read_numbers(cells, nothing)
            numbers.append(measure_number(name, read, everybody, "standard"))
            values[name] = read.values
        else:
            words[name] = read_words(cells, nothing)
            categories.append(measure_category(name, words[name], everybody, 1))
    mixed = MixedColumns(tuple(numbers), tuple(categories))
    return mixed, mixed.fields(values, words, len(at))


def _is_numeric(cells: Any) -> bool:
    import pyarrow.types as types

    return types.is_integer(cells.type) or types.is_floating(cells.type) or types.is_decimal(cells.type)

"""Which columns of a mixed table are numbers and which are categories: as the user says, else as their cells look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dlrun.data._columns import ROW_NUMBERS, require
from dlrun.data._mixed_cells import MOSTLY, share_of_numbers
from dlrun.data._source import Source
from dlrun.errors import DlrunError, Exit

_MANY = 100  # distinct words, of which half the rows have one of their own: names or texts, not categories


class Kinds(NamedTuple):
    """The names of the columns of each kind, in the order of the table."""

    numbers: tuple[str, ...]
    categories: tuple[str, ...]


def choose_kinds(
    source: Source,
    targets: Sequence[str],
    numeric: list | None,
    categorical: list | None,
    ignore: list | None,
    missing: frozenset[str],
) -> tuple[Kinds, list[str]]:
    """The kind of every column but the targets, and sentences for what was guessed.

    Raises: DlrunError for a name that is no column, one that is named twice, a type that is of neither kind, and a
    table of which nothing is left.
    """
    said = _said(source, targets, {"numeric": numeric, "categorical": categorical, "ignore": ignore})
    guessed: dict[str, str] = {}
    for name in source.columns:
        if name not in said and name not in targets:
            guessed[name] = _guess(source, name, missing)
    kinds = {name: said.get(name) or guessed[name] for name in source.columns if name not in targets}
    numbers = tuple(name for name, kind in kinds.items() if kind == "numeric")
    categories = tuple(name for name, kind in kinds.items() if kind == "categorical")
    if not numbers and not categories:
        raise DlrunError(f"{source.name}: no column is left to learn from beside {_listed(targets)}")
    return Kinds(numbers, categories), _notes(guessed)


def _said(source: Source, targets: Sequence[str], lists: dict[str, list | None]) -> dict[str, str]:
    """What the user said of columns."""
    said: dict[str, str] = {}
    for setting, names in lists.items():
        for name in names or []:
            require(source, setting, name)
            if name in said:
                raise DlrunError(f"data.{setting}: '{name}' is in data.{said[name]} already")
            if name in targets and setting != "ignore":
                raise DlrunError(f"data.{setting}: '{name}' is the target, and cannot be learned from")
            said[name] = setting
    return said


def _guess(source: Source, name: str, missing: frozenset[str]) -> str:
    import pyarrow.types as types

    cells: Any = source.table.column(name)
    kind = cells.type
    if name.lower() in ROW_NUMBERS:
        return "a row number"
    if name in source.class_names or types.is_boolean(kind):
        return "categorical"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numeric"
    if types.is_null(kind):
        return "empty"
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise DlrunError(
            f"{source.name}: column '{name}' holds values of type {kind}, neither numbers nor categories",
            f"'data.ignore=[{name}]'",
            Exit.DATA,
        )
    if share_of_numbers(cells, missing) >= MOSTLY:
        return "numeric"
    distinct = len(cells.unique())
    return "names or texts" if distinct > max(_MANY, len(source) // 2) else "categorical"


def _notes(guessed: dict[str, str]) -> list[str]:
    notes = []
    for kind, word in (("numeric", "numbers"), ("categorical", "categories")):
        if names := [name for name, guess in guessed.items() if guess == kind]:
            notes.append(f"{word}: {_listed(names)} (guessed; data.{kind})")
    left = [f"{name} ({guess})" for name, guess in guessed.items() if guess not in ("numeric", "categorical")]
    return notes + ([f"not learned from: {_listed(left)} (guessed; data.numeric, data.categorical)"] if left else [])


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")

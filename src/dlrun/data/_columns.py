"""Which columns are the picture, the target and the features: named by the user, else guessed where obvious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlrun.data._images import SUFFIXES
from dlrun.data._mixed_cells import MOSTLY, is_text, read_numbers, share_of_numbers
from dlrun.data._source import Source
from dlrun.errors import DlrunError, did_you_mean

_LABELS = ("label", "labels", "target", "class", "y", "category")
ROW_NUMBERS = {"id", "idx", "index", "row", "unnamed: 0", "__index_level_0__"}


@dataclass(frozen=True)
class Wanted:
    """What a user said of the columns; see `files.build`."""

    target: str | list | None = None
    target_kind: Literal["auto", "class", "number"] = "auto"
    image: str | None = None
    features: list | None = None


@dataclass(frozen=True)
class Columns:
    """targets: the one label, or the numbers to predict (is_number).

    image: the picture, or None for a table of numbers. features: the numbers of a table.
    """

    targets: tuple[str, ...]
    is_number: bool
    image: str | None
    features: tuple[str, ...] = ()


def choose(source: Source, wanted: Wanted) -> tuple[Columns, list[str]]:
    """The columns of a data set, and a sentence for each that was guessed. Raises DlrunError if none is obvious."""
    targets, is_number, notes = choose_targets(source, wanted)
    picture = wanted.image or (None if wanted.features else guess_image(source, targets))
    if picture is not None:
        chosen = Columns(targets, is_number, picture)
        notes += [] if wanted.image else [f"image column: {picture} (guessed)"]
    else:
        features = tuple(wanted.features) if wanted.features else _guess_features(source, targets)
        chosen = Columns(targets, is_number, None, features)
        notes += [] if wanted.features else [f"features: {_listed(chosen.features)}"]
    check(source, chosen)
    return chosen, notes


def choose_targets(source: Source, wanted: Wanted) -> tuple[tuple[str, ...], bool, list[str]]:
    """The columns to predict, whether they are numbers, and a sentence for what was guessed."""
    targets, notes = _targets(source, wanted)
    is_number, guesses = _is_number(source, targets, wanted)
    return targets, is_number, [*notes, *guesses]


def _targets(source: Source, wanted: Wanted) -> tuple[tuple[str, ...], list[str]]:
    if isinstance(wanted.target, list):
        names = tuple(str(name) for name in wanted.target)
        if not names or len(set(names)) < len(names):
            raise DlrunError(f"data.target: {wanted.target} is not a list of different columns")
        return names, []
    if wanted.target:
        return (wanted.target,), []
    guessed = _guess_label(source)
    return (guessed,), [f"label column: {guessed} (guessed)"]


def _is_number(source: Source, targets: tuple[str, ...], wanted: Wanted) -> tuple[bool, list[str]]:
    """Whether numbers are to be predicted, not a class, and a sentence if that was guessed."""
    target, count = targets[0], len(targets)
    if wanted.target_kind == "class" and count > 1:
        raise DlrunError(
            f"data.target_kind=class goes with one column; data.target names {count}", "data.target=COLUMN"
        )
    if wanted.target_kind != "auto" or isinstance(wanted.target, list):
        return wanted.target_kind != "class", []
    if target not in source.columns or not _holds_fractions(source, target):
        return False, []
    note = f"target: {target} holds numbers with fractions, so a number is predicted (guessed; data.target_kind)"
    return True, [note]


def check(source: Source, columns: Columns) -> None:
    """Raises DlrunError if a column is not there, or one of features or of numbers to predict holds none.

    Single cells that are no numbers make bad rows.
    """
    settings = [*(("target", name) for name in columns.targets), *(("columns", name) for name in columns.features)]
    settings += [("image", columns.image)] if columns.image else []
    for setting, name in settings:
        require(source, setting, name)
    if both := [name for name in columns.targets if name in columns.features]:
        raise DlrunError(f"data.columns: '{both[0]}' is the target, and cannot be a feature too")
    if columns.is_number and (words := [name for name in columns.targets if not _has_numbers(source, name)]):
        raise DlrunError(f"data.target: {source.name}: not numbers: {_listed(words)}", "name columns of numbers")
    if words := [name for name in columns.features if not _is_numeric(source, name)]:
        numbers = [name for name in source.columns if name not in columns.targets and _is_numeric(source, name)]
        hint = f"choose columns of numbers: 'data.columns=[{','.join(numbers)}]'"
        shown = [f"{name} ({source.media[name]})" if name in source.media else name for name in words]
        hint = hint if numbers else "pictures and columns of numbers are read here, not text or sound"
        raise DlrunError(f"{source.name}: not numbers: {_listed(shown)}", hint)


def require(source: Source, setting: str, name: str) -> None:
    """Raises DlrunError if the column that a setting names is not there."""
    if name not in source.columns:
        hint = did_you_mean(str(name), source.columns)
        raise DlrunError(f"data.{setting}: {source.name} has no column '{name}'", hint)


def _guess_label(source: Source) -> str:
    by_name = [name for wanted in _LABELS for name in source.columns if name.lower() == wanted]
    declared = list(source.class_names)
    for found in ([name for name in by_name if name in declared], declared, by_name):
        if len(found) == 1 or (found and found is not declared):
            return found[0]
    raise DlrunError(
        f"{source.name}: which column is the label? It has {_listed(source.columns)}",
        "name it: data.target=COLUMN",
    )


def guess_image(source: Source, others: Sequence[str]) -> str | None:
    """The one column of pictures: declared, of bytes, or of paths with a picture's suffix; else None.

    others: columns that are something else.
    """
    candidates = [name for name in source.columns if name not in others and name not in source.media]
    for found in (
        [name for name in source.images if name not in others],
        [name for name in candidates if _holds_bytes(source, name)],
        [name for name in candidates if _holds_paths(source, name)],
    ):
        if len(found) == 1 or "image" in found:
            return "image" if "image" in found else found[0]
        if found:
            raise DlrunError(
                f"{source.name}: which column is the picture? It has {_listed(found)}", "name it: data.image=COLUMN"
            )
    return None


def _holds_bytes(source: Source, name: str) -> bool:
    import pyarrow.types as types

    kind = source.table.column(name).type
    if types.is_struct(kind):
        return "bytes" in [kind.field(index).name for index in range(kind.num_fields)]
    return types.is_binary(kind) or types.is_large_binary(kind)


def _holds_paths(source: Source, name: str) -> bool:
    import pyarrow.types as types

    cells = source.table.column(name)
    if not (types.is_string(cells.type) or types.is_large_string(cells.type)):
        return False
    first = [cell for cell in cells.slice(0, 20).to_pylist() if cell]
    return bool(first) and all(cell.lower().endswith(SUFFIXES) for cell in first)


def _guess_features(source: Source, targets: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(name for name in source.columns if name not in targets and name.lower() not in ROW_NUMBERS)
    if not found:
        raise DlrunError(f"{source.name}: no column of features beside the target '{targets[0]}'")
    return found


def _holds_fractions(source: Source, name: str) -> bool:
    """Whether a column of numbers, perhaps but for a few words, has a finite one that is not whole."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    cells = source.table.column(name)
    if types.is_decimal(cells.type):
        cells = pc.cast(cells, "float64", safe=False)
    if is_text(cells.type) and _is_numeric(source, name):
        values = read_numbers(cells, frozenset()).values
    elif types.is_floating(cells.type):
        values = cells.drop_null().to_numpy()
    else:
        return False
    return bool((values[np.isfinite(values)] % 1).any())


def _is_numeric(source: Source, name: str) -> bool:
    """Whether a column is of numbers, or of words of which most are."""
    return _share_of_numbers(source, name) >= MOSTLY


def _has_numbers(source: Source, name: str) -> bool:
    return _share_of_numbers(source, name) > 0


def _share_of_numbers(source: Source, name: str) -> float:
    """0 of a column that declares classes, and of a type that is neither numbers nor words."""
    import pyarrow.types as types

    cells = source.table.column(name)
    kind = cells.type
    if is_text(kind):
        return share_of_numbers(cells, frozenset())
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
    return float(number and name not in source.class_names)


def _listed(names: list[str] | tuple[str, ...], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")

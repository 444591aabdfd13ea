"""Which columns are the picture, the label and the features: named by the user, else guessed where obvious."""

from __future__ import annotations

from dataclasses import dataclass

from dlrun.data._images import SUFFIXES
from dlrun.data._source import Source
from dlrun.errors import DlrunError, did_you_mean

_LABELS = ("label", "labels", "target", "class", "y", "category")
_ROW_NUMBERS = {"id", "idx", "index", "row", "unnamed: 0", "__index_level_0__"}


@dataclass(frozen=True)
class Columns:
    """target: the label. image: the picture, or None for a table of numbers. features: the numbers of a table."""

    target: str
    image: str | None
    features: tuple[str, ...] = ()


def choose(source: Source, target: str | None, image: str | None, features: list | None) -> tuple[Columns, list[str]]:
    """The columns of a data set, and a sentence for each that was guessed. Raises DlrunError if none is obvious."""
    label = target or _guess_label(source)
    picture = image or (None if features else _guess_image(source, label))
    notes = [] if target else [f"label column: {label} (guessed)"]
    if picture is not None:
        chosen = Columns(label, picture)
        notes += [] if image else [f"image column: {picture} (guessed)"]
    else:
        chosen = Columns(label, None, tuple(features) if features else _guess_features(source, label))
        notes += [] if features else [f"features: {_listed(chosen.features)}"]
    check(source, chosen)
    return chosen, notes


def check(source: Source, columns: Columns) -> None:
    """Raises DlrunError if a column is not there, or a feature is not a number."""
    settings = [("target", columns.target), *(("columns", name) for name in columns.features)]
    settings += [("image", columns.image)] if columns.image else []
    for setting, name in settings:
        if name not in source.columns:
            hint = did_you_mean(str(name), source.columns)
            raise DlrunError(f"data.{setting}: {source.name} has no column '{name}'", hint)
    if columns.target in columns.features:
        raise DlrunError(f"data.columns: '{columns.target}' is the label, and cannot be a feature too")
    if words := [name for name in columns.features if not _is_numeric(source, name)]:
        numbers = [name for name in source.columns if name != columns.target and _is_numeric(source, name)]
        hint = f"choose columns of numbers: 'data.columns=[{','.join(numbers)}]'"
        shown = [f"{name} ({source.media[name]})" if name in source.media else name for name in words]
        hint = hint if numbers else "pictures and columns of numbers are read here, not text or sound"
        raise DlrunError(f"{source.name}: not numbers: {_listed(shown)}", hint)


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


def _guess_image(source: Source, label: str) -> str | None:
    """The one column of pictures: declared, of bytes, or of paths with a picture's suffix; else None."""
    candidates = [name for name in source.columns if name != label and name not in source.media]
    for found in (
        [name for name in source.images if name != label],
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


def _guess_features(source: Source, label: str) -> tuple[str, ...]:
    found = tuple(name for name in source.columns if name != label and name.lower() not in _ROW_NUMBERS)
    if not found:
        raise DlrunError(f"{source.name}: no column of features beside the label '{label}'")
    return found


def _is_numeric(source: Source, name: str) -> bool:
    import pyarrow.types as types

    kind = source.table.column(name).type
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
    return number and name not in source.class_names


def _listed(names: list[str] | tuple[str, ...], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")

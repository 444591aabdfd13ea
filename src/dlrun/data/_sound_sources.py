"""Where recordings are: folders by class, folders or zip files with a metadata table, and tables of paths or bytes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from dlrun.data._files import check_split_names, is_table, meaning
from dlrun.data._sound import SUFFIXES
from dlrun.data._source import Source
from dlrun.data._texts import decoded, table_sources
from dlrun.data._tree import Archive, Folder, joined, open_tree, parent
from dlrun.errors import DlrunError, Exit, did_you_mean

_METADATA = ("metadata.csv", "metadata.tsv")
_USUAL = ("audio", "file", "path", "wav", "recording", "sound", "file_name", "filename")


def sound_sources(
    path: str, config: str | None, revision: str | None, splits: Mapping[str, str] | None, pattern: str | None
) -> tuple[dict[str, Source], list[str]]:
    """The rows of each given split, nothing decoded, and a sentence for what was guessed.

    pattern: a regular expression; its named groups, found in a recording's path, become columns.
    """
    place = Path(path).expanduser() if path else None
    if place is not None and (place.is_dir() or place.suffix.lower() == ".zip"):
        tree = open_tree(path)
        sounds = sorted(name for name in tree.names if name.lower().endswith(SUFFIXES))
        if sounds or isinstance(tree, Archive):
            return _of_tree(tree, sounds, path, splits, pattern)
    sources, notes = table_sources(path, config, revision, splits, needs_train=False)
    if pattern is not None:
        raise DlrunError("data.file_pattern goes with a folder of recordings; a table has columns of its own")
    return sources, notes


def sound_column(source: Source, wanted: str | None) -> tuple[str, list[str]]:
    """The column of recordings, and a sentence if it was guessed. Raises DlrunError if there is none."""
    if wanted is not None:
        if wanted not in source.columns:
            hint = did_you_mean(wanted, source.columns)
            raise DlrunError(f"data.audio: {source.name} has no column '{wanted}'", hint)
        if not _may_hold(source, wanted):
            kind = source.table.column(wanted).type
            raise DlrunError(f"data.audio: {source.name}: column '{wanted}' holds {kind}; paths or bytes are needed")
        return wanted, []
    declared = [name for name, kind in source.media.items() if kind == "audio"]
    usual = [name for word in _USUAL for name in source.columns if name.lower() == word]
    paths = [name for name in source.columns if _holds_paths(source, name)]
    found = declared or [name for name in usual if name in paths] or paths
    found = found or [name for name in usual if name.lower() == "audio" and _may_hold(source, name)]
    if not found:
        raise DlrunError(
            f"{source.name}: which column has the recordings? It has {', '.join(source.columns[:12])}",
            "name it: data.audio=COLUMN",
        )
    return found[0], [f"audio column: {found[0]} (guessed)"]


def _may_hold(source: Source, name: str) -> bool:
    """Whether a column is of bytes, of paths, or of both."""
    import pyarrow.types as types

    kind = source.table.column(name).type
    if types.is_struct(kind):
        return bool({"bytes", "path"} & {kind.field(index).name for index in range(kind.num_fields)})
    return any(
        is_it(kind) for is_it in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    )


def _holds_paths(source: Source, name: str) -> bool:
    import pyarrow.types as types

    cells = source.table.column(name)
    if not (types.is_string(cells.type) or types.is_large_string(cells.type)):
        return False
    first = [cell for cell in cells.slice(0, 20).to_pylist() if cell]
    return bool(first) and all(cell.lower().endswith(SUFFIXES) for cell in first)


# ---------------------------------------------------------------- folders and zip files


def _of_tree(
    tree: Folder | Archive, sounds: list[str], path: str, splits: Mapping[str, str] | None, pattern: str | None
) -> tuple[dict[str, Source], list[str]]:
    if not sounds:
        raise DlrunError(f"data.path: {path} holds no recordings ({', '.join(SUFFIXES)})", code=Exit.DATA)
    tables = sorted(name for name in tree.names if PurePosixPath(name).name.lower() in _METADATA)
    rows = _metadata_rows(tree, tables) if tables else [{"audio": name} for name in sounds]
    if not tables and isinstance(tree, Folder) and any(is_table(tree.path / name) for name in _top(tree)):
        return table_sources(path, None, None, splits, needs_train=False)
    groups = _split_rows(rows, splits)
    if not tables:
        rows = _labelled(rows, {row["audio"] for rows in groups.values() for row in rows}, pattern)
    elif pattern is not None:
        raise DlrunError("data.file_pattern goes with recordings alone; these have a metadata table")
    sources = {split: _source(tree, members, path, split) for split, members in groups.items()}
    notes = [f"splits: {', '.join(groups)}, from folders of that name"] if len(groups) > 1 else []
    return sources, notes


def _top(tree: Folder) -> list[str]:
    return [name for name in tree.names if "/" not in name and PurePosixPath(name).name.lower() not in _METADATA]


def _metadata_rows(tree: Folder | Archive, tables: list[str]) -> list[dict[str, str]]:
    """The rows of every metadata table; their recordings by paths from the top."""
    rows = []
    for name in tables:
        text = decoded(tree.read(name), name)
        reader = csv.DictReader(io.StringIO(text), delimiter="\t" if name.endswith(".tsv") else ",")
        columns = list(reader.fieldnames or ())
        found = next((column for column in ("file_name", "file", "path", "audio") if column in columns), None)
        if found is None:
            raise DlrunError(f"{name}: has no column file_name; it has {', '.join(columns) or 'none'}", code=Exit.DATA)
        for row in reader:
            rest = {column: value or "" for column, value in row.items() if column and column != found}
            rows.append({"audio": joined(parent(name), row[found] or "")} | rest)
    return rows


def _split_rows(rows: list[dict[str, str]], splits: Mapping[str, str] | None) -> dict[str, list[dict[str, str]]]:
    """The rows under the folder of each split; all are train where no folder at the top has such a name."""
    tops = {row["audio"].split("/")[0] for row in rows if "/" in row["audio"]}
    wanted = {split: str(name) for split, name in (splits or {}).items() if name}
    check_split_names(wanted)
    for split, name in wanted.items():
        if name not in tops:
            raise DlrunError(f"data.splits.{split}: no folder is called '{name}'", did_you_mean(name, tops))
    chosen = wanted or {split: name for name in sorted(tops) if (split := meaning(name))}
    if "train" not in chosen and not wanted:
        return {"train": rows}
    return {split: [row for row in rows if row["audio"].startswith(f"{name}/")] for split, name in chosen.items()}


def _labelled(rows: list[dict[str, str]], used: set[str], pattern: str | None) -> list[dict[str, str]]:
    """Rows of bare paths with what their folders or their names say, added in place."""
    try:
        expression = re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise DlrunError(f"data.file_pattern: is no regular expression: {error}") from error
    if expression is not None and not expression.groupindex:
        raise DlrunError("data.file_pattern: has no named group", "'(?P<label>[^_]+)_(?P<speaker>[^_]+)_.*'")
    for row in rows if expression is not None else ():
        found = expression.search(row["audio"])  # type: ignore[union-attr]
        if found is None and row["audio"] in used:
            raise DlrunError(f"data.file_pattern: {row['audio']} does not fit '{pattern}'", code=Exit.DATA)
        row |= {name: text or "" for name, text in (found.groupdict() if found else {}).items()}
    for row in rows:
        folder = PurePosixPath(parent(row["audio"])).name
        if folder and not meaning(folder):
            row.setdefault("label", folder)
    return rows


def _source(tree: Folder | Archive, rows: list[dict[str, str]], path: str, split: str) -> Source:
    import pyarrow as pa

    if not rows:
        raise DlrunError(f"data.path: {path} has no recordings for {split}", code=Exit.DATA)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})
    name = f"{Path(path).name} {split}"
    if isinstance(tree, Archive):
        return Source(table, name, archive=tree)
    return Source(table, name, tree.path)

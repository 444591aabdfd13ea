"""Which files of a folder are which split: named by the user, else guessed from the names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from dlrun.data._images import SUFFIXES
from dlrun.errors import DlrunError, Exit, did_you_mean

Kind = Literal["parquet", "csv", "tsv", "json", "pictures"]
SPLITS = ("train", "valid", "test")
_WORDS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
_KINDS: dict[str, Kind] = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv",
    ".json": "json", ".jsonl": "json", ".ndjson": "json",
}  # fmt: skip
_NOT_YET = {
    ".txt": "plain text", ".md": "plain text", ".wav": "audio", ".flac": "audio", ".mp3": "audio", ".ogg": "audio",
}  # fmt: skip
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z")
_READS = (
    "what can be read: parquet, csv, json lines (also .gz), and a folder of pictures with a folder for each class; "
    "recordings: data=speech"
)
_SHARD = re.compile(r"[-_.]\d+([-_]of[-_]\d+)?$")


class Part(NamedTuple):
    """Files that belong together: shards of one table, or the one folder whose folders are classes."""

    kind: Kind
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        first = self.files[0].name
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more"


def find(path: str, splits: Mapping[str, str] | None) -> tuple[dict[str, Part], list[str]]:
    """The part of each given split, and a sentence for what was guessed. Raises DlrunError that says what is there.

    splits: of one file, its own name as the one split that it is.
    """
    splits = {split: wanted for split, wanted in (splits or {}).items() if wanted}
    place = existing(path)
    if place.is_file():
        if splits and list(splits.values()) != [place.name]:
            raise DlrunError(
                f"data.splits goes with a folder; data.path={path} is one file", f"use data.path={place.parent}"
            )
        check_split_names(splits)
        return {next(iter(splits), "train"): Part(_kind(place), (place,))}, []
    parts = _parts(place)
    if splits:
        return _named(place, parts, splits), []
    return _guessed(place, parts)


def the_only_part(place: Path) -> str | None:
    """What `data.splits` calls the rows of one table, or of one folder of class folders; None for anything else."""
    if place.is_file():
        return place.name if is_table(place) else None
    try:
        parts = _parts(place)
    except DlrunError:  # for the component to say
        return None
    return "train" if parts == {"train": Part("pictures", (place,))} else None


def existing(path: str) -> Path:
    """The file or folder a user named. Raises DlrunError that says what is near it."""
    if not path:
        raise DlrunError("data.path is not set", "data.path=FILE or data.path=FOLDER", Exit.USAGE)
    place = Path(path).expanduser().absolute()
    try:
        if place.is_file() or place.is_dir():
            return place
        if not place.exists():
            above = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
            hint = did_you_mean(place.name, above, f"looked in {place.parent}")
            raise DlrunError(f"data.path: no such file or folder: {path}", hint, Exit.DATA)
    except OSError as error:
        raise _unreadable(place, error) from error
    raise DlrunError(f"data.path: {path} is neither a file nor a folder", code=Exit.DATA)


def _unreadable(place: Path, error: OSError) -> DlrunError:
    return DlrunError(f"data.path: {place} cannot be read: {error.strerror or error}", code=Exit.DATA)


def _kind(file: Path) -> Kind:
    """The format by the suffix, .gz aside. Raises DlrunError for what is not read."""
    suffix = _suffix(file)
    if suffix in _KINDS:
        return _KINDS[suffix]
    if suffix in _NOT_YET:
        raise DlrunError(
            f"{file.name}: {_NOT_YET[suffix]} is not read here; pictures and tables of numbers are", _READS
        )
    if suffix in SUFFIXES:
        raise DlrunError(f"{file.name} is one picture; to train, give a folder of them", _READS)
    hint = "unpack it and give the folder" if suffix in _ARCHIVES else _READS
    raise DlrunError(f"{file.name}: unknown kind of file", hint)


def is_table(file: Path) -> bool:
    """Whether a file's name is that of a table."""
    return _suffix(file) in _KINDS


def _suffix(file: Path) -> str:
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _parts(folder: Path) -> dict[str, Part]:
    """What a folder holds, by name without shard number and suffix: "train-00000-of-00002.parquet" is "train"."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        files = [entry for entry in entries if entry.is_file() and _suffix(entry) in _KINDS]
        folders = [entry for entry in entries if entry.is_dir()]
    except OSError as error:
        raise _unreadable(folder, error) from error
    if files:
        return _tables(files)
    if (folder / "data").is_dir() and not any(meaning(entry.name) for entry in folders):
        return _parts(folder / "data")  # as repositories of the hub are laid out
    if any(meaning(entry.name) for entry in folders):
        return {entry.name: _folder_part(entry) for entry in folders if meaning(entry.name)}
    if folders and any(_has_pictures(entry) for entry in folders):
        return {"train": Part("pictures", (folder,))}
    raise _nothing(folder, entries)


def _tables(files: list[Path]) -> dict[str, Part]:
    grouped: dict[str, list[Path]] = {}
    for file in files:
        stem = file.name[: -len(".gz")] if file.name.lower().endswith(".gz") else file.name
        grouped.setdefault(_SHARD.sub("", Path(stem).stem), []).append(file)
    return {name: _shards(group) for name, group in grouped.items()}


def _shards(files: list[Path]) -> Part:
    kind = _kind(files[0])
    if any(_kind(file) != kind for file in files):
        raise DlrunError(
            f"{files[0].name} and {files[-1].name} have the same name in two formats",
            f"say which is meant: 'data.splits={{train: {files[0].name}}}'",
        )
    return Part(kind, tuple(files))


def _folder_part(folder: Path) -> Part:
    """A split's own folder: shards of one table, or class folders."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and _suffix(entry) in _KINDS)
    return _shards(files) if files else Part("pictures", (folder,))


def _has_pictures(folder: Path) -> bool:
    return any(entry.suffix.lower() in SUFFIXES for entry in folder.rglob("*"))


def _nothing(folder: Path, entries: list[Path]) -> DlrunError:
    """What a folder without data does hold."""
    suffixes = {entry.suffix.lower() for entry in entries}
    if suffixes & set(SUFFIXES):
        hint = "put the pictures of each class in a folder of its own, or give a table with their paths and labels"
        return DlrunError(f"data.path: the pictures in {folder} have no labels", hint, Exit.DATA)
    inside = [inner for entry in entries for inner in (entry.iterdir() if entry.is_dir() else [entry])]
    inside = [entry for entry in inside if not entry.name.startswith(("README", "LICENSE"))]
    if inside and all(_suffix(entry) in _NOT_YET for entry in inside):
        kinds = " and ".join(sorted({_NOT_YET[_suffix(entry)] for entry in inside}))
        return DlrunError(f"data.path: {folder} holds {kinds}; pictures and tables of numbers are read here", _READS)
    shown = ", ".join(entry.name for entry in entries[:8]) + (", …" if len(entries) > 8 else "")
    hint = "unpack the archive and give its folder" if suffixes & set(_ARCHIVES) else _READS
    return DlrunError(f"data.path: no data in {folder}; it holds {shown or 'nothing'}", hint, Exit.DATA)


def meaning(name: str) -> str | None:
    """The split that a name means by itself."""
    return next((split for split, words in _WORDS.items() if name.lower() in words), None)


def inner_word(name: str) -> str | None:
    """The one split whose word is among the words of a name ("adult_train")."""
    found = {split for piece in re.split(r"[-_.\s]", name) if (split := meaning(piece))}
    return found.pop() if len(found) == 1 else None


def _guessed(folder: Path, parts: dict[str, Part]) -> tuple[dict[str, Part], list[str]]:
    for read in (meaning, inner_word):
        found: dict[str, list[str]] = {}
        for name in parts:
            if split := read(name):
                found.setdefault(split, []).append(name)
        if twice := [names for names in found.values() if len(names) > 1]:
            raise _ambiguous(folder, twice[0])
        if "train" in found or (found and read is meaning and len(found) == len(parts)):
            chosen = {split: parts[names[0]] for split, names in found.items()}
            return chosen, [
                f"splits: {', '.join(f'{split} is {part.name}' for split, part in chosen.items())} (guessed)"
            ]
    if len(parts) == 1:
        return {"train": next(iter(parts.values()))}, []
    raise _ambiguous(folder, list(parts))


def _ambiguous(folder: Path, names: list[str]) -> DlrunError:
    shown = ", ".join(sorted(names)[:8]) + (", …" if len(names) > 8 else "")
    return DlrunError(
        f"data.path: which of the files in {folder} are the training rows? It has {shown}",
        f"say it: 'data.splits={{train: {sorted(names)[0]}}}' (a name or a pattern such as '*.csv')",
    )


def _named(folder: Path, parts: dict[str, Part], splits: Mapping[str, str]) -> dict[str, Part]:
    check_split_names(splits)
    return {split: _one(folder, parts, split, str(wanted)) for split, wanted in splits.items()}


def check_split_names(splits: Mapping[str, str]) -> None:
    """Raises DlrunError for a split that is not train, valid or test."""
    for split in splits:
        if split not in SPLITS:
            raise DlrunError(f"data.splits: no split is called '{split}'", did_you_mean(str(split), SPLITS))


def _one(folder: Path, parts: dict[str, Part], split: str, wanted: str) -> Part:
    """The part that a name, a pattern or a folder means."""
    if wanted in parts:
        return parts[wanted]
    place = Path(wanted).expanduser()
    if place.is_absolute() or ".." in place.parts:
        found = [place] if place.exists() else []
    else:
        found = sorted(folder.glob(wanted))
    if len(found) == 1 and found[0].is_dir():
        return _folder_part(found[0])
    if files := [file for file in found if file.is_file()]:
        return _shards(files)
    known = [*parts, *(file.name for part in parts.values() for file in part.files)]
    raise DlrunError(
        f"data.splits.{split}: nothing in {folder} is called '{wanted}'",
        did_you_mean(wanted, known),
    )
